// Package client is the library through which a file system call becomes
// stripes on storage targets: it owns the open files of one process, their
// unwritten bytes, and the client's side of the write and read protocol.
//
//	File.WriteAt      bytes -> the stripe's buffer, cell by cell (the one copy)
//	  writeStripe     a full stripe, or what memory, fsync or close ask for
//	    encode        parity and a CRC32C per 4 KiB block, at most 64 KiB at a time
//	    placement     slot of the stripe -> k+m targets and an epoch
//	    Conn.Call     a tagged PREPARE to each of the write set; data shards first
//	  committed       when all live members have it; COMMIT follows as a hint
//	File.Sync         SYNC to each target touched since the last; then size and
//	                  mtime to the metadata service
//
// A stripe's buffer is laid out as the targets will hold it, one arena buffer a
// data shard, so that the shard is lent to the transport as it lies:
//
//	file     | a0 | a1 | a2 | a3 | b0 | b1 | b2 | b3 | ...      cells of 128 KiB
//	shard 0  | a0 | b0 | ...            with the exact extents that were written;
//	shard 1  | a1 | b1 | ...            a buffer covers only a window of its shard
//	...                                 while little of it is dirty
//
// # Cache and consistency
//
// A file open on one client is cached there, write-back, by exact byte extents.
// When the metadata service recalls the lease, the file's dirty bytes are
// written, its size committed and its read-ahead dropped; from then on each
// write returns when it is committed on the targets, and each read asks them.
// Attributes come from the metadata service unless this client holds the write
// lease of the file; only the size and times of files open here are kept.
//
// # Errors
//
// A write-back that fails for good (no space, session lost, a soft mount's
// timeout) is reported once by each open handle, at its next Sync, Flush or
// Close. A lost session ends all open files: their unsynced bytes are gone, and
// every later call on them fails with rfs.ErrSessionLost.
package client
