// Package placement owns the cluster map and decides which targets hold what.
// It is pure: no clock, no I/O, no goroutine, no randomness but the caller's.
//
//	file --Layout--> slots, one a stripe --Members--> targets --Node--> nodes
//
//	stripe     0    1    2    3    4  ...            Pool.SlotOf: start, then a stride
//	slot      17    6   31   20    9  ...            coprime to the number of slots
//	            \
//	slot 17   [ t3 | t9 | t1 | t7 || t4 | t0 ]       Slot.Members, for ec:4+2
//	position    0    1    2    3     4    5          shard number; || parity from here
//	                 |
//	                 +-> t8                          Slot.Incoming: position 1 moves to t8
//
// How a member of a slot lives; each arrow is a transition (transition.go),
// which raises the slot's epoch and the map's:
//
//	            SetTargetState Down              SetTargetState Up
//	readable ------------------------> down ------------------------> syncing
//	   ^  |                                                             |  ^
//	   |  '------------ SetTargetState Up: restarted unclean -----------)--'
//	   '------------------------- SetSlotSynced ------------------------'
//
//	StartDrain, StartMoves                       SetSlotSynced
//	------------------------> incoming, syncing ---------------> member, readable
//
// A slot is the unit of placement, fencing, rebuild and migration: its epoch
// rises whenever its members or their states change, and requests that carry
// an old one are refused. Members that are up take part in writes, syncing or
// not; only readable ones are read; the first readable parity leads.
//
// Slots are chosen by weighted rendezvous hashing, bounded by shares and failure
// domains (assign.go). The result is state, kept in the map, and not computed
// anew from the list of targets: so a target that joins or leaves moves what it
// must, and a slot that is moving can be seen to.
package placement
