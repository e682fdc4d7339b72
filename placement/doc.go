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
// A slot is the unit of placement, fencing, rebuild and migration: its epoch
// rises whenever its members or their states change, and requests that carry
// an old one are refused.
package placement
