// Package raftmeta owns names, attributes, layouts, locks, sessions and the
// cluster map: a state machine on Pebble, replicated by Raft, and the client of it.
//
//	Client --OpMeta, OpEvents--> Replica (leader) --OpRaft--> Replica, Replica
package raftmeta
