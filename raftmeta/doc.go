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
//	l index 8     entry: CRC32C 4 | raftpb.Entry
//	h             hard state: CRC32C 4 | raftpb.HardState
//	b             what the log begins after: index 8 | term 8
//	H             which half is the state: 1
//	I             who this replica is: cluster 16 | id 8
//	A.. B..       the two halves
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
//
// # Keys of the state
//
// half 1 | kind 1 | what follows, integers big-endian, so that a scan is in their order:
//
//	i inode 8                 inode
//	d directory 8 | cookie 8  entry
//	x inode 8 | name          extended attribute; the value is as set
//	s session 4               session
//	o inode 8 | session 4     open file
//	l inode 8                 locks, held and waited for
//	a nonce 8                 asker
//	r nonce 8 | sequence 8    the answer that it got (metapb.Response)
//	q number 8                inode removed, its shards not yet
//	c target 16               number up to which the target deleted them
//	t inode 8 | tag 16        truncation under way
//	v inode 8                 file whose writer died: its size is to be recovered; layout
//	e number 4                session that ended (session 4)
//	M                         cluster map (JSON)
//	C                         counters
//	F                         applied index 8 | its term 8
//	G                         cluster id, Raft membership (JSON)
//
// # Values of the state
//
// Integers are little-endian. Each value begins with a version, 1 today:
//
//	inode     version 1 | flags 1 (1: was opened for writing, 2: made without a name) | k 1 | m 1 | mode 4 | nlink 4 | uid 4 | gid 4 | rdev 4 |
//	          size 8 | atime 8 | mtime 8 | ctime 8 | btime 8 | parent 8 | change 8 |
//	          pool 2 | trims 2 | start 4 | unit 4 | cell 4 | 96 trim 32 x trims | target of a symbolic link
//	trim      size 8 | tag 16 | flags 8 (1: swept)
//	entry     version 1 | type 1 (st_mode >> 12) | inode 8 | name; of type 0: a place held for others of the same hash
//	session   version 1 | nonce 8 | name
//	open      version 1 | cache 1 | readers 4 | writers 4 | grant 8
//	asker     version 1 | session 4 | low 8 | last 8
//	purge     version 1 | inode 8 | layout 16
//	trimming  version 1 | session 4 | size 8 | layout 16
//	layout    pool 2 | k 1 | m 1 | start 4 | unit 4 | cell 4
//	counters  version 1 | next inode 8 | next session 4 | next purge 8 | next ended 4 | inodes 8 | next member 8 | made 8
//	locks     version 1 | held 4 | waits 4 | held x lock | waits x wait
//	lock      flags 1 (1: flock) | type 1 | session 4 | owner 8 | start 8 | end 8 | pid 4
//	wait      nonce 8 | seq 8 | flags 1 (1: granted, 2: at once) | lock | spans 4 | spans x (start 8 | end 8)
package raftmeta
