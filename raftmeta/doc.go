// Package raftmeta owns names, attributes, layouts, locks, sessions and the
// cluster map: a state machine, replicated by Raft, and the client of it.
//
//	Client                                      Replica (leader)
//	  Create ---- OpMeta: Command ------------>  proposals --+
//	  Lookup ---- OpMeta: Query -------------->  reads ------+   loop: one goroutine
//	  poll ------ OpEvents ------------------->  lead        |     raft.RawNode
//	                                                         v     1 send appends
//	          OpRaft, OpSnapshot <------------- links <---  Ready  2 write and sync the log
//	            |                                            |     3 send what promises it
//	            v                                            |     4 apply in one batch
//	          Replica, Replica (followers)                   |     5 answer
//	            the same loop                                v
//	                                             Pebble: log | state A | state B
//
// The log and the state share one Pebble store and so one write-ahead log:
//
//	l index       Raft entries            H   which half is the state
//	h             Raft's hard state       I   who this replica is
//	b             where the log begins    A.. B..   the two halves, see key.go
//
// Writes of a store survive a crash as a prefix of their order. The log is
// synced before anything is promised; the state is not: its batch has the
// applied index in it, and follows the entries that it came from, so that a
// crash finds some state of the past, with its index, and a log that goes on
// from there. A snapshot from the leader is received into the half that is not
// the state; one synced batch then turns the store around.
//
// A command has the nonce of its asker and a sequence number, and is applied
// once: the answers that were not acknowledged are part of the state, so that
// whoever leads gives them again. What is volatile is the leader's alone
// (type lead): leases, the events that sessions poll for, who waits for what.
//
// There is one trust domain: whoever authenticates with the cluster key may ask
// anything, administration too, and the uid and gid that a client gives are
// believed. Permissions are checked by the kernels of the clients
// (default_permissions).
//
// One Raft group serves shard 0, that is, all inodes: the number of the shard
// stands in the upper 16 bits of every inode's, so that more may come.
package raftmeta
