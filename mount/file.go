package mount

import (
	"errors"
	"io"
	"math"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rfs"
	"rfs/client"
	"rfs/raftmeta"
)

// A file is an open file as the kernel holds it.
type file struct {
	*client.File
	// armings+1 as it was when the file was last seen to have no capabilities, and no set-ID bits, that a write would
	// take away; 0 is never.
	noCaps, noIDs atomic.Uint64
}

// openFlags translates the flags of open(2). Append is not among them: it can be set and
// unset while the file is open, so each write says whether it is one.
func openFlags(flags uint32) client.OpenFlags {
	f := map[uint32]client.OpenFlags{
		unix.O_RDONLY: client.OpenRead, unix.O_WRONLY: client.OpenWrite, unix.O_RDWR: client.OpenRead | client.OpenWrite,
	}[flags&unix.O_ACCMODE]
	if flags&unix.O_TRUNC != 0 {
		f |= client.OpenTruncate | client.OpenWrite
	}
	if flags&(unix.O_SYNC|unix.O_DSYNC) != 0 {
		f |= client.OpenSync
	}
	if flags&unix.O_DIRECT != 0 {
		f |= client.OpenDirect
	}
	return f
}

// opened hands f to the kernel; bare is whether it is known to have no privileges to lose.
func (fs *fileSystem) opened(f *client.File, bare bool, flags uint32, out *fuse.OpenOut) {
	h := &file{File: f}
	if bare {
		now := fs.armed.n.Load() + 1
		h.noCaps.Store(now)
		h.noIDs.Store(now)
	}
	out.Fh = fs.files.add(h)
	// Where writes go to the end, the kernel's pages cannot know at which offset they are: never cached.
	if fs.opts.Cache == CacheNone || flags&unix.O_APPEND != 0 {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
}

func (fs *fileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c := fs.begin("open", cancel, &in.InHeader)
	defer c.end()
	fs.recent.forget(in.Pid)
	if in.Flags&unix.O_TRUNC != 0 {
		if err := fs.disarmNow(c, in.Mode&fuse.OPEN_KILL_SUIDGID != 0); err != nil {
			return c.ofNode(err)
		}
	}
	f, err := fs.c.Open(c, node(in.NodeId), openFlags(in.Flags))
	if err != nil {
		return c.ofNode(err)
	}
	fs.opened(f, false, in.Flags, out)
	return fuse.OK
}

// disarmNow takes the privileges that a change of its bytes takes from the call's file.
func (fs *fileSystem) disarmNow(c *call, ids bool) error {
	mode, err := fs.disarm(c, ids)
	if err == nil && mode != nil {
		_, err = fs.c.Setattr(c, node(c.node), raftmeta.SetAttr{Mode: mode})
	}
	return err
}

func (fs *fileSystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	c := fs.begin("create", cancel, &in.InHeader)
	defer c.end()
	fs.recent.forget(in.Pid)
	spec := raftmeta.CreateSpec{Mode: in.Mode & 0o7777, UID: in.Uid, GID: in.Gid, Excl: in.Flags&unix.O_EXCL != 0}
	f, a, err := fs.c.Create(c, node(in.NodeId), name, spec, openFlags(in.Flags))
	if err != nil {
		return c.status(err)
	}
	fs.entry(&out.EntryOut, &a)
	unchanged := a.Ctime == a.Btime // since it was made: nobody set attributes
	fs.opened(f, unchanged && a.Mode&(setUID|setGID) == 0, in.Flags, &out.OpenOut)
	return fuse.OK
}

// Tmpfile makes a file without a name (O_TMPFILE), which linkat(2) may give it.
func (fs *fileSystem) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return fs.Create(cancel, in, "", out)
}

// file returns the handle of a request.
func (fs *fileSystem) file(id uint64) (*file, error) {
	if f, ok := fs.files.get(id); ok {
		return f, nil
	}
	return nil, syscall.EBADF
}

func (fs *fileSystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	c := fs.begin("read", cancel, &in.InHeader)
	defer c.end()
	f, err := fs.file(in.Fh)
	if err != nil {
		return nil, c.status(err)
	}
	n, err := f.ReadAt(c, buf, int64(in.Offset))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, c.status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

func (fs *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	c := fs.begin("write", cancel, &in.InHeader)
	defer c.end()
	f, err := fs.file(in.Fh)
	if err != nil {
		return 0, c.status(err)
	}
	if err := fs.beforeWrite(c, f, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0); err != nil {
		return 0, c.status(err)
	}
	n, err := write(c, f, in, data)
	if n > 0 { // what is written is written; the error comes again with the rest
		return uint32(n), fuse.OK
	}
	return 0, c.status(err)
}

func write(c *call, f *file, in *fuse.WriteIn, data []byte) (n int, err error) {
	// Pages that were written through a mapping go where they were mapped.
	if in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0 {
		_, n, err = f.Append(c, data)
		return n, err
	}
	if in.Offset > math.MaxInt64-uint64(len(data)) {
		return 0, rfs.ErrFileTooBig
	}
	return f.WriteAt(c, data, int64(in.Offset))
}

// beforeWrite takes away the privileges of a file whose bytes are about to change: capabilities, and unless root
// writes (ids) the set-ID bits.
func (fs *fileSystem) beforeWrite(c *call, f *file, ids bool) error {
	now := fs.armed.n.Load() + 1
	if f.noCaps.Load() == now && (!ids || f.noIDs.Load() == now) {
		return nil
	}
	if err := fs.disarmNow(c, ids); err != nil {
		return err
	}
	f.noCaps.Store(now)
	if ids {
		f.noIDs.Store(now)
	}
	return nil
}

func (fs *fileSystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	c := fs.begin("lseek", cancel, &in.InHeader)
	defer c.end()
	f, err := fs.file(in.Fh)
	if err != nil {
		return c.status(err)
	}
	var off int64
	switch in.Whence {
	case unix.SEEK_DATA:
		off, err = f.SeekData(c, int64(in.Offset))
	case unix.SEEK_HOLE:
		off, err = f.SeekHole(c, int64(in.Offset))
	default: // the kernel does the others itself
		err = rfs.ErrInvalid
	}
	if errors.Is(err, io.EOF) {
		err = syscall.ENXIO
	}
	out.Offset = uint64(off)
	return c.status(err)
}

func (fs *fileSystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	c := fs.begin("fallocate", cancel, &in.InHeader)
	defer c.end()
	f, err := fs.file(in.Fh)
	if err != nil {
		return c.status(err)
	}
	if in.Offset > math.MaxInt64-in.Length || in.Length > math.MaxInt64 {
		return c.status(rfs.ErrFileTooBig)
	}
	if err := fs.beforeWrite(c, f, in.Uid != 0); err != nil {
		return c.status(err)
	}
	off, n := int64(in.Offset), int64(in.Length)
	switch in.Mode {
	case 0:
		err = f.Allocate(c, client.AllocateExtend, off, n)
	case unix.FALLOC_FL_KEEP_SIZE:
		err = f.Allocate(c, client.AllocateKeepSize, off, n)
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		err = f.Allocate(c, client.AllocatePunch, off, n)
	case unix.FALLOC_FL_ZERO_RANGE:
		err = f.Allocate(c, client.AllocateZero, off, n)
	default:
		err = rfs.ErrUnsupported
	}
	return c.status(err)
}

// copyChunk bounds what one request copies, so that the program sees its signals.
const copyChunk = 16 << 20

func (fs *fileSystem) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	c := fs.begin("copy_file_range", cancel, &in.InHeader)
	defer c.end()
	src, err := fs.file(in.FhIn)
	if err != nil {
		return 0, c.status(err)
	}
	dst, err := fs.file(in.FhOut)
	if err != nil {
		return 0, c.status(err)
	}
	c.node = in.NodeIdOut
	if err := fs.beforeWrite(c, dst, in.Uid != 0); err != nil {
		return 0, c.status(err)
	}
	n, err := src.CopyRange(c, int64(in.OffIn), dst.File, int64(in.OffOut), int64(min(in.Len, copyChunk)))
	if n > 0 {
		return uint32(n), fuse.OK
	}
	return 0, c.status(err)
}

// Flush is sent for each close(2) of a handle, which may have several.
func (fs *fileSystem) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	c := fs.begin("flush", cancel, &in.InHeader)
	defer c.end()
	f, err := fs.file(in.Fh)
	if err != nil {
		return c.status(err)
	}
	fs.unlockOwner(c, node(in.NodeId), in.LockOwner)
	return c.status(f.Flush(c))
}

func (fs *fileSystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	c := fs.begin("fsync", cancel, &in.InHeader)
	defer c.end()
	f, err := fs.file(in.Fh)
	if err != nil {
		return c.status(err)
	}
	return c.status(f.Sync(c))
}

// releaseFlock in ReleaseIn.ReleaseFlags says that the handle took a lock by flock(2) (FUSE_RELEASE_FLOCK_UNLOCK).
const releaseFlock = 1 << 1

// Release ends a handle. Nobody waits for it any more, and nobody hears of errors.
func (fs *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	c := fs.begin("release", nil, &in.InHeader)
	defer c.end()
	f, ok := fs.files.take(in.Fh)
	if !ok {
		return
	}
	if in.ReleaseFlags&releaseFlock != 0 {
		fs.unlock(c, node(in.NodeId), raftmeta.LockSpec{Owner: in.LockOwner, Flock: true, End: math.MaxUint64})
	}
	c.status(f.Close(c)) // for the log
}

// Ioctl knows no command.
func (fs *fileSystem) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return status(syscall.ENOTTY)
}
