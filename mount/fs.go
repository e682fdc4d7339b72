package mount

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rfs"
	"rfs/client"
	"rfs/raftmeta"
)

// A fileSystem answers the kernel. Its methods are called by the FUSE server, each on a goroutine of the request's own.
type fileSystem struct {
	fuse.RawFileSystem // answers ENOSYS to what is not here

	c    *client.FS
	opts Options
	log  *slog.Logger
	logs limitedLog

	base   context.Context // of all calls; ends when the mount is cut off
	cancel context.CancelFunc
	trace  traces

	recent recent
	files  handles[*file]
	dirs   handles[*dir]
	locks  lockOwners
	armed  armings
}

func newFileSystem(cfg Config) *fileSystem {
	fs := &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		c:             cfg.FS, opts: cfg.Options, log: cfg.Log,
		logs: limitedLog{to: cfg.Log, last: map[string]time.Time{}, skipped: map[string]int{}},
	}
	fs.base, fs.cancel = context.WithCancel(context.Background())
	fs.trace.Store(rand.Uint64() &^ 0xffffffff)
	return fs
}

// closeTime bounds how long files that were open when the mount was cut off are flushed.
const closeTime = 10 * time.Second

// close ends the files that the kernel did not: after a connection is cut there is no RELEASE.
func (fs *fileSystem) close() {
	fs.cancel()
	ctx, done := context.WithTimeout(context.Background(), closeTime)
	defer done()
	for _, f := range fs.files.takeAll() {
		if err := f.Close(ctx); err != nil {
			fs.log.Warn("a file that was open when the mount ended could not be closed; what was not synced may be lost",
				"inode", f.Inode().String(), "err", err)
		}
	}
}

func (fs *fileSystem) String() string { return "rfs" }

// node returns the inode of a node id. They are the same number.
func node(id uint64) rfs.InodeID { return rfs.InodeID(id) }

// blockSize is what stat calls the preferred size of I/O: that of a request.
// For directories it is the buffer of readdir(3).
const (
	blockSize    = MaxIO
	dirBlockSize = 64 << 10
)

// fill writes a into the kernel's form.
func fill(out *fuse.Attr, a *raftmeta.Attr) {
	out.Ino = uint64(a.Inode)
	out.Size = uint64(a.Size)
	out.Blocks = (uint64(a.Size) + 511) / 512
	out.Atime, out.Atimensec = seconds(a.Atime)
	out.Mtime, out.Mtimensec = seconds(a.Mtime)
	out.Ctime, out.Ctimensec = seconds(a.Ctime)
	out.Mode, out.Nlink = a.Mode, a.Nlink
	out.Uid, out.Gid = a.UID, a.GID
	out.Rdev, out.Blksize = a.Rdev, blockSize
	if a.IsDir() {
		out.Blksize = dirBlockSize
	}
}

// seconds cuts nanoseconds since 1970 in two; before 1970 the seconds are negative and the rest still counts upwards.
func seconds(ns int64) (uint64, uint32) {
	s, rest := ns/1e9, ns%1e9
	if rest < 0 {
		s, rest = s-1, rest+1e9
	}
	return uint64(s), uint32(rest)
}

// attrTimeout returns for how long the kernel may keep the attributes. A directory's are kept at least a
// nanosecond, which the kernel rounds up to a tick: each step of a path is checked against them, often twice.
func (fs *fileSystem) attrTimeout(a *raftmeta.Attr) time.Duration {
	switch {
	case a.Writers:
		return 0
	case a.IsDir():
		return max(fs.opts.AttrTimeout, 1)
	}
	return fs.opts.AttrTimeout
}

// entry writes what a name stands for.
func (fs *fileSystem) entry(out *fuse.EntryOut, a *raftmeta.Attr) {
	out.NodeId, out.Generation = uint64(a.Inode), 1
	out.SetEntryTimeout(fs.opts.EntryTimeout)
	out.SetAttrTimeout(fs.attrTimeout(a))
	fill(&out.Attr, a)
}

func (fs *fileSystem) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c := fs.begin("lookup", cancel, h)
	defer c.end()
	a, err := fs.c.Lookup(c, node(h.NodeId), name)
	if err != nil {
		return c.status(err)
	}
	fs.entry(out, &a)
	fs.recent.put(h.Pid, &a)
	return fuse.OK
}

func (fs *fileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a, ok := fs.recent.take(in.Pid, node(in.NodeId))
	if !ok {
		c := fs.begin("getattr", cancel, &in.InHeader)
		defer c.end()
		var err error
		if a, err = fs.c.Getattr(c, node(in.NodeId)); err != nil {
			return c.ofNode(err)
		}
	}
	out.SetTimeout(fs.attrTimeout(&a))
	fill(&out.Attr, &a)
	return fuse.OK
}

func (fs *fileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	c := fs.begin("setattr", cancel, &in.InHeader)
	defer c.end()
	fs.recent.forget(in.Pid)
	set, err := fs.setAttr(c, in)
	if err != nil {
		return c.ofNode(err)
	}
	a, err := fs.c.Setattr(c, node(in.NodeId), set)
	if err != nil {
		return c.ofNode(err)
	}
	if _, chmod := in.GetMode(); chmod {
		fs.armed.changed(a.Mode)
	}
	out.SetTimeout(fs.attrTimeout(&a))
	fill(&out.Attr, &a)
	return fuse.OK
}

// setAttr returns what is to be set, with the privileges that chown and truncate take away.
func (fs *fileSystem) setAttr(c *call, in *fuse.SetAttrIn) (set raftmeta.SetAttr, err error) {
	if m, ok := in.GetMode(); ok {
		set.Mode = &m
	}
	if uid, ok := in.GetUID(); ok {
		set.UID = &uid
	}
	if gid, ok := in.GetGID(); ok {
		set.GID = &gid
	}
	if size, ok := in.GetSize(); ok {
		s := int64(size)
		if s < 0 {
			return set, rfs.ErrFileTooBig
		}
		set.Size = &s
	}
	if t, ok := in.GetATime(); ok {
		ns := t.UnixNano()
		set.Atime = &ns
	}
	if t, ok := in.GetMTime(); ok {
		ns := t.UnixNano()
		set.Mtime = &ns
	}
	chown := set.UID != nil || set.GID != nil
	if set.Mode != nil || !chown && set.Size == nil {
		return set, nil
	}
	set.Mode, err = fs.disarm(c, chown || in.Valid&fuse.FATTR_KILL_SUIDGID != 0)
	return set, err
}

const (
	setUID    = syscall.S_ISUID
	setGID    = syscall.S_ISGID
	groupExec = 0o010
	capName   = "security.capability"
)

// disarmed returns the mode without the bits that writing and chown take away, and whether it had any. Without
// the group's execute bit, set-group-ID is no privilege.
func disarmed(mode uint32) (uint32, bool) {
	had := mode
	mode &^= setUID
	if mode&groupExec != 0 {
		mode &^= setGID
	}
	return mode & 0o7777, mode != had
}

// disarm takes the capabilities from the call's file, and returns the mode that it should have when it has
// set-ID bits to lose and ids says to take them.
func (fs *fileSystem) disarm(c *call, ids bool) (mode *uint32, err error) {
	ino := node(c.node)
	// Most files have none: a query costs less than a command that finds nothing to remove.
	if _, err = fs.c.Getxattr(c, ino, capName); err == nil {
		err = fs.c.Removexattr(c, ino, capName)
	}
	if err != nil && !errors.Is(err, rfs.ErrNoAttr) {
		return nil, err
	}
	if !ids {
		return nil, nil
	}
	a, err := fs.c.Getattr(c, ino)
	if m, had := disarmed(a.Mode); err == nil && had && !a.IsDir() {
		mode = &m
	}
	return mode, err
}

// armings counts what could give a file set-ID bits or capabilities through this mount, so that a handle which found none
// need not look before each write. (Bits set by another client while this one writes are not seen.)
type armings struct{ n atomic.Uint64 }

func (a *armings) changed(mode uint32) {
	if mode&(setUID|setGID) != 0 {
		a.n.Add(1)
	}
}

// recent remembers what a thread looked up last, for the GETATTR that follows in the same
// system call: one use, by the same thread, at once. A few slots do, for a lost entry costs only a request.
type recent struct {
	slots [256]struct {
		sync.Mutex
		tid  uint32
		at   time.Time
		attr raftmeta.Attr
	}
}

// recentTime bounds for how long; what does not ask for attributes after a LOOKUP, such as open with O_PATH, leaves an entry behind.
const recentTime = 2 * time.Millisecond

func (r *recent) put(tid uint32, a *raftmeta.Attr) {
	if tid == 0 || a.Writers { // of a file that others write only they know the size
		return
	}
	s := &r.slots[tid%uint32(len(r.slots))]
	s.Lock()
	s.tid, s.at, s.attr = tid, time.Now(), *a
	s.Unlock()
}

func (r *recent) take(tid uint32, ino rfs.InodeID) (a raftmeta.Attr, ok bool) {
	s := &r.slots[tid%uint32(len(r.slots))]
	s.Lock()
	defer s.Unlock()
	if tid == 0 || s.tid != tid {
		return a, false
	}
	s.tid = 0
	return s.attr, s.attr.Inode == ino && time.Since(s.at) < recentTime
}

// forget is for calls that change what was remembered.
func (r *recent) forget(tid uint32) { r.take(tid, 0) }

// handles numbers what is open. The zero value is ready.
type handles[T any] struct {
	mu   sync.RWMutex
	all  map[uint64]T // guarded by mu
	last uint64
}

func (h *handles[T]) add(v T) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = map[uint64]T{}
	}
	h.last++
	h.all[h.last] = v
	return h.last
}

func (h *handles[T]) get(id uint64) (T, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	v, ok := h.all[id]
	return v, ok
}

func (h *handles[T]) take(id uint64) (T, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.all[id]
	delete(h.all, id)
	return v, ok
}

func (h *handles[T]) takeAll() []T {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []T
	for _, v := range h.all {
		all = append(all, v)
	}
	clear(h.all)
	return all
}
