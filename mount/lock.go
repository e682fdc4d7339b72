package mount

import (
	"math"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rfs"
	"rfs/raftmeta"
)

// lockOwners are the owners that took POSIX locks through this mount: the kernel leaves it to FLUSH, which comes
// with every close(2), to release them, and only these have any.
type lockOwners struct {
	mu  sync.Mutex
	has map[lockOwner]struct{} // guarded by mu
}

type lockOwner struct {
	ino   rfs.InodeID
	owner uint64
}

func (l *lockOwners) add(o lockOwner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.has == nil {
		l.has = map[lockOwner]struct{}{}
	}
	l.has[o] = struct{}{}
}

func (l *lockOwners) take(o lockOwner) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.has[o]
	delete(l.has, o)
	return ok
}

// lockSpec translates a request. The kernel's end of file is the largest offset, the service's the largest number.
func lockSpec(in *fuse.LkIn) (raftmeta.LockSpec, error) {
	s := raftmeta.LockSpec{
		Owner: in.Owner, Flock: in.LkFlags&fuse.LK_FLOCK != 0, Start: in.Lk.Start, End: in.Lk.End, PID: in.Lk.Pid,
	}
	if s.End >= math.MaxInt64 || s.Flock {
		s.End = math.MaxUint64
	}
	if s.Flock {
		s.Start = 0
	}
	switch in.Lk.Typ {
	case unix.F_RDLCK:
		s.Type = raftmeta.ReadLock
	case unix.F_WRLCK:
		s.Type = raftmeta.WriteLock
	case unix.F_UNLCK:
		s.Type = raftmeta.Unlock
	default:
		return s, rfs.ErrInvalid
	}
	return s, nil
}

func (fs *fileSystem) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	c := fs.begin("getlk", cancel, &in.InHeader)
	defer c.end()
	spec, err := lockSpec(in)
	if err != nil {
		return c.status(err)
	}
	l, err := fs.c.TestLock(c, node(in.NodeId), spec)
	if err != nil {
		return c.ofNode(err)
	}
	out.Lk = fuse.FileLock{Typ: unix.F_UNLCK}
	if l != nil {
		out.Lk = fuse.FileLock{Start: l.Start, End: min(l.End, math.MaxInt64), Typ: unix.F_WRLCK}
		if l.Type == raftmeta.ReadLock {
			out.Lk.Typ = unix.F_RDLCK
		}
		if l.Session == fs.c.Session() { // on other machines the number means somebody else
			out.Lk.Pid = l.PID
		}
	}
	return fuse.OK
}

func (fs *fileSystem) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return fs.setLock("setlk", cancel, in, false)
}

// SetLkw waits. Unlike other requests it ends with EINTR at any signal.
func (fs *fileSystem) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return fs.setLock("setlkw", cancel, in, true)
}

func (fs *fileSystem) setLock(op string, cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	c := fs.begin(op, cancel, &in.InHeader)
	c.any = wait
	defer c.end()
	spec, err := lockSpec(in)
	if err != nil {
		return c.status(err)
	}
	if !spec.Flock && spec.Type != raftmeta.Unlock {
		fs.locks.add(lockOwner{node(in.NodeId), in.Owner}) // before it is taken: a close may overtake the answer
	}
	return c.ofNode(fs.c.Lock(c, node(in.NodeId), spec, wait && spec.Type != raftmeta.Unlock))
}

// unlockOwner releases the POSIX locks of an owner that closes the file.
func (fs *fileSystem) unlockOwner(c *call, ino rfs.InodeID, owner uint64) {
	if fs.locks.take(lockOwner{ino, owner}) {
		fs.unlock(c, ino, raftmeta.LockSpec{Owner: owner, End: math.MaxUint64})
	}
}

// unlock releases spec's range, also for a process that is being killed.
func (fs *fileSystem) unlock(c *call, ino rfs.InodeID, spec raftmeta.LockSpec) {
	if err := fs.c.Lock(fs.base, ino, spec, false); err != nil {
		if errno, log := Errno(err); log {
			fs.logs.warn(c, errno, err)
		}
	}
}
