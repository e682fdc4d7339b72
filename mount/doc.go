// Package mount serves a client as a file system of the kernel by FUSE. It owns
// the translation of kernel requests into client calls, the one table from errors to errno
// (errno.go), the mount point, and the life of a mount from `mount` to `umount`.
//
//	program     open("/mnt/a/f")        write(fd, 1 MiB)          close(fd)
//	kernel      LOOKUP a, LOOKUP f,     WRITE fh, offset          FLUSH fh, RELEASE fh
//	            OPEN inode
//	 /dev/fuse ------------------------------------------------------------------
//	mount       fileSystem.Lookup,      fileSystem.Write          fileSystem.Flush,
//	            .Open -> handle fh                                 .Release
//	client      FS.Lookup, FS.Open      File.WriteAt              File.Flush, Close
//
// # Names and inodes
//
// The kernel's node ids are rfs's inode numbers, which are never used again: 1 is the root, and the
// generation is always 1. There is no table of inodes, so lookup counts have nothing to keep right, and
// forgetting costs nothing. What has state is a handle: an open file, an open directory.
//
// Names are linearizable: by default the kernel keeps no name and no file's attributes from
// one system call to the next (entry and attribute timeouts of 0). So that a stat(2) is one
// request to the metadata service and not two, the GETATTR that a LOOKUP of the same thread is followed by is
// answered with what the LOOKUP brought. Only a directory's attributes, which each step of
// a path is checked against, are kept for one tick of the kernel's clock (1-10 ms).
//
// # Bytes
//
// Files are opened with FOPEN_DIRECT_IO: reads and writes of up to 1 MiB come
// straight from the program, several at once for one file, and the kernel keeps no pages that
// could be stale or that could write back bytes nobody wrote. What is mapped goes
// through the page cache, and what is written by write(2) invalidates there. A
// WRITE's bytes are copied once, from FUSE's buffer into the stripe's; a READ's are
// put by the client into the reply.
//
// # Privileges
//
// The kernel checks permissions (default_permissions). Clearing set-user-ID,
// set-group-ID and capabilities upon write, truncate and chown is done here (FUSE_HANDLE_KILLPRIV_V2).
package mount
