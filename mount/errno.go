package mount

import (
	"context"
	"errors"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rfs"
	"rfs/transport"
)

// errnos is the one table from the errors of rfs to what a system call returns.
// The first line that errors.Is finds in an error counts, so that an error which wraps
// several is answered with the most telling of them.
//
// A line that is not quiet stands for a fault of the service rather than of the
// caller; it is logged with the request's trace id.
var errnos = []struct {
	err   error
	errno syscall.Errno
	quiet bool
}{
	{rfs.ErrNotFound, syscall.ENOENT, true},
	{rfs.ErrExist, syscall.EEXIST, true},
	{rfs.ErrNotDir, syscall.ENOTDIR, true},
	{rfs.ErrIsDir, syscall.EISDIR, true},
	{rfs.ErrNotEmpty, syscall.ENOTEMPTY, true},
	{rfs.ErrInvalid, syscall.EINVAL, true},
	{rfs.ErrPermission, syscall.EPERM, true},
	{rfs.ErrAccess, syscall.EACCES, true},
	{rfs.ErrNameTooLong, syscall.ENAMETOOLONG, true},
	{rfs.ErrNoAttr, syscall.ENODATA, true},
	{rfs.ErrCrossDevice, syscall.EXDEV, true},
	{rfs.ErrTooManyLinks, syscall.EMLINK, true},
	{rfs.ErrFileTooBig, syscall.EFBIG, true},
	{rfs.ErrWouldBlock, syscall.EAGAIN, true},
	{rfs.ErrDeadlock, syscall.EDEADLK, true},
	{rfs.ErrStale, syscall.ESTALE, true},
	{rfs.ErrUnsupported, syscall.EOPNOTSUPP, true},
	{rfs.ErrReadOnly, syscall.EROFS, true},
	{rfs.ErrNoSpace, syscall.ENOSPC, false},
	// What the cluster could not do is EIO, as on any file system whose disk fails: programs
	// know what to do with it, and do not with the finer errno of networks.
	{rfs.ErrCorrupt, syscall.EIO, false},
	{rfs.ErrSessionLost, syscall.EIO, false},
	{rfs.ErrUnavailable, syscall.EIO, false},
	{rfs.ErrStaleEpoch, syscall.EIO, false},
	{rfs.ErrStaleTag, syscall.EIO, false},
	{transport.ErrClosed, syscall.EIO, false},
	{transport.ErrBroken, syscall.EIO, false},
	{transport.ErrRefused, syscall.EIO, false},
	{context.DeadlineExceeded, syscall.EIO, false}, // a soft mount's time is up
	{context.Canceled, syscall.EINTR, true},        // the caller was killed
}

// Errno returns the errno for err, 0 for nil, and whether err is worth a line in the log.
// An error that nobody foresaw is EIO.
func Errno(err error) (errno syscall.Errno, log bool) {
	if err == nil {
		return 0, false
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return e.errno, !e.quiet
		}
	}
	// The mount's own checks and the system below say it in errno already.
	if errors.As(err, &errno) && errno != 0 {
		return errno, errno == syscall.EIO
	}
	return syscall.EIO, true
}

func status(errno syscall.Errno) fuse.Status { return fuse.Status(errno) }
