package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"rfs"
	"rfs/transport"
	"rfs/transport/wire"
)

func TestErrno(t *testing.T) {
	for _, c := range []struct {
		err   error
		errno syscall.Errno
		log   bool
	}{
		{nil, 0, false},
		{rfs.ErrNotFound, syscall.ENOENT, false},
		{fmt.Errorf("lookup %q: %w", "x", rfs.ErrNotFound), syscall.ENOENT, false},
		{rfs.ErrExist, syscall.EEXIST, false},
		{rfs.ErrNotDir, syscall.ENOTDIR, false},
		{rfs.ErrIsDir, syscall.EISDIR, false},
		{rfs.ErrNotEmpty, syscall.ENOTEMPTY, false},
		{rfs.ErrInvalid, syscall.EINVAL, false},
		{rfs.ErrPermission, syscall.EPERM, false},
		{rfs.ErrAccess, syscall.EACCES, false},
		{rfs.ErrNameTooLong, syscall.ENAMETOOLONG, false},
		{rfs.ErrNoSpace, syscall.ENOSPC, true},
		{rfs.ErrNoAttr, syscall.ENODATA, false},
		{rfs.ErrCrossDevice, syscall.EXDEV, false},
		{rfs.ErrTooManyLinks, syscall.EMLINK, false},
		{rfs.ErrFileTooBig, syscall.EFBIG, false},
		{rfs.ErrWouldBlock, syscall.EAGAIN, false},
		{rfs.ErrDeadlock, syscall.EDEADLK, false},
		{rfs.ErrReadOnly, syscall.EROFS, false},
		{rfs.ErrStale, syscall.ESTALE, false},
		{rfs.ErrUnsupported, syscall.EOPNOTSUPP, false},
		{errors.ErrUnsupported, syscall.EOPNOTSUPP, false},
		{rfs.ErrSessionLost, syscall.EIO, true},
		{rfs.ErrUnavailable, syscall.EIO, true},
		{rfs.ErrCorrupt, syscall.EIO, true},
		{transport.ErrBroken, syscall.EIO, true},
		{context.DeadlineExceeded, syscall.EIO, true},
		{context.Canceled, syscall.EINTR, false},
		{syscall.EBADF, syscall.EBADF, false},
		{&os.PathError{Op: "open", Path: "x", Err: syscall.ENXIO}, syscall.ENXIO, false},
		{io.ErrUnexpectedEOF, syscall.EIO, true},
		// Of several, the first line of the table counts.
		{errors.Join(rfs.ErrUnavailable, rfs.ErrNoSpace), syscall.ENOSPC, true},
	} {
		if errno, log := Errno(c.err); errno != c.errno || log != c.log {
			t.Errorf("Errno(%v) = %v, log %v; want %v, %v", c.err, errno, log, c.errno, c.log)
		}
	}
}

// Each status that a server can answer with has an errno that was chosen for it.
func TestErrnoKnowsEachStatus(t *testing.T) {
	for s := wire.StatusOK + 1; s.Err() != nil || s <= wire.StatusIO; s++ {
		if s.Err() == nil { // an internal error, which nobody foresaw
			continue
		}
		known := false
		for _, e := range errnos {
			known = known || errors.Is(s.Err(), e.err)
		}
		if !known {
			t.Errorf("%v (%v) is not in the table", s, s.Err())
		}
	}
}
