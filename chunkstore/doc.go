// Package chunkstore keeps the shards of one target in a directory: versions
// of each, out of place, so that the old is there until the new one is known
// complete; merged and checked when they are read.
//
//	DIR/
//	  rfs-target             whose it is: JSON, written once (Identity)
//	  LOCK                   flock of the one process that has it open
//	  boot                   boot id of the machine when it was last opened
//	  clean                  there only while nobody has it open, and the last one closed it
//	  segments/00000000.data 1 GiB (less on a small target), preallocated, of extents
//	  segments/00000000.head the extents' headers, sparse
//	  index/                 Pebble
//
// # Extents
//
// An extent is 4 KiB << order of a data file, order 0 to 10, aligned to its
// size, and holds the payload of one version. Buddies split and join (alloc.go);
// which are free is not on disk, but found at open from the index. Of a payload
// that is written from aligned memory, whole blocks go to the disk with O_DIRECT
// if there are 64 KiB of them or more.
//
// Its header is not in the data file, where it would push a 1 MiB shard into a
// 2 MiB extent, but in the head file, in which each 4 KiB block owns a slot of
// 256 bytes. An extent of n blocks has n slots for its header; few are filled:
//
//	data   | block 0 | block 1 | block 2 | block 3 | block 4 ...
//	       [ extent of order 1 ][ order 0 ][ ...
//	head   | slot 0  | slot 1  | slot 2  | slot 3  | slot 4  ...
//	       [header...          ][header   ][ ...
//
// so a full 1 MiB shard costs one 4 KiB page of the head file, 0.4%. The header
// has all that the index knows of the version; the index is rebuilt from the
// headers (Rebuild). Little-endian:
//
//	 0  magic "rfsX"              4      zero: the extent is free
//	 4  mark                      4      "DONE": the version is complete; anything else: prepared
//	 8  CRC32C of [12, end)       4
//	12  length of the record      4
//	16  inode                     8
//	24  stripe                    4
//	28  shard                     1 + 3 zero
//	32  target id                16
//	48  record
//
// The record is also the value of the version's key in the index:
//
//	 0  format, 1                 1
//	 1  kind: 1 full, 2 partial   1
//	 2  state: 1 prepared, 2 complete  1      in a header always 1: the mark tells
//	 3  flags: 1 fold             1
//	 4  length of a full shard    4
//	 8  tag                      16
//	24  seq                       8      orders all changes of the store; the upper half counts opens
//	32  W, write set             32
//	64  slot 4 | pool 2 | order of the extent 1 | zero 1
//	72  segment 4 | block 4              where the extent is
//	80  payload length            4
//	84  number of segments        2 + 2 zero
//	88  segments, each: off 4 | len 4 | shard 1 | zero-flag 1 | 2 zero
//	..  CRC32C of each block of each segment that is not zero, 4 each (package internal/crc)
//
// # Index
//
// Keys, big-endian so that they sort, and values:
//
//	'v' inode 8 stripe 4 shard 1 tag 16 kind 1  -> record
//	's' pool 2 slot 4 inode 8 stripe 4 shard 1  -> nothing      finds a slot's shards
//	'f' inode 8 stripe 4                        -> tag 16       floor of a Trim
//	"msynced"                                   -> seq 8        data of versions up to it is durable
//
// # What is durable when
//
//	Put     write payload; write header; index          nothing is durable
//	Commit  mark header; index                          nothing is durable
//	Sync    fdatasync files -> sync index -> free what is gone
//
// So no acknowledged Sync loses anything. For the rest there are three rules:
//
//   - A version in the index whose seq is above the synced one may lack its
//     data after a crash of the machine: Open reads all such, and drops what does
//     not check. What is left is old or new, never mixed.
//   - What a complete Full version supersedes is invisible at once, but stays in
//     the index until a Sync has made the Full one durable ("condemned"), because
//     the Full one may be such a version.
//   - An extent is used again only when its going is durable in the index, and
//     after its header was voided.
//
// A failed fdatasync or index write puts the store out of service until it is
// opened again: what the kernel could not write it may have forgotten.
package chunkstore
