package mount

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rfs"
	"rfs/raftmeta"
)

// A dir is an open directory. The offsets that the kernel sees are cookies of the metadata service, which stay good
// however the directory changes, after those of "." and "..":
//
//	0 start   1 after "."   2 after ".."   16.. after the entry with this cookie
//
// Entries are fetched many at a time; a reader that goes on where it was takes the
// next from the batch, one that seeks or rewinds fetches anew.
type dir struct {
	ino rfs.InodeID

	mu sync.Mutex // guards all below
	// batch[next:] come after cookie at; eof says that nothing comes after them.
	batch []raftmeta.DirEntry
	next  int
	at    uint64
	eof   bool
}

const dotdot = 2 // the cookie after ".."

func (fs *fileSystem) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	fs.recent.forget(in.Pid)
	out.Fh = fs.dirs.add(&dir{ino: node(in.NodeId)})
	return fuse.OK
}

func (fs *fileSystem) ReleaseDir(in *fuse.ReleaseIn) { fs.dirs.take(in.Fh) }

// FsyncDir has nothing to do: a change of names is durable when it returned.
func (fs *fileSystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (fs *fileSystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.list("readdir", cancel, in, false, func(e fuse.DirEntry, _ *raftmeta.Attr) bool { return out.AddDirEntry(e) })
}

func (fs *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.list("readdirplus", cancel, in, true, func(e fuse.DirEntry, a *raftmeta.Attr) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && a != nil { // without attributes the kernel looks the name up when it is asked for
			fs.entry(entry, a)
		}
		return entry != nil
	})
}

// list gives add the entries from in.Offset on until it has no room for one.
func (fs *fileSystem) list(op string, cancel <-chan struct{}, in *fuse.ReadIn, plus bool, add func(fuse.DirEntry, *raftmeta.Attr) bool) fuse.Status {
	c := fs.begin(op, cancel, &in.InHeader)
	defer c.end()
	d, ok := fs.dirs.get(in.Fh)
	if !ok {
		return c.status(syscall.EBADF)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	off := in.Offset
	if off <= dotdot {
		d.seek(dotdot)
	}
	for i, name := range []string{".", ".."} {
		if off == uint64(i) {
			e := fuse.DirEntry{Name: name, Mode: raftmeta.TypeDir, Off: off + 1}
			if i == 0 {
				e.Ino = in.NodeId
			}
			if !add(e, nil) {
				return fuse.OK
			}
			off++
		}
	}
	for {
		e, err := d.after(c, fs, off, plus)
		if err != nil && off == in.Offset {
			return c.ofNode(err)
		}
		// What is there is given; an error comes again with the next request.
		if err != nil || e == nil || !add(fuse.DirEntry{Name: e.Name, Mode: e.Type, Ino: uint64(e.Inode), Off: e.Cookie}, e.Attr) {
			return fuse.OK
		}
		d.next, d.at, off = d.next+1, e.Cookie, e.Cookie
	}
}

// seek makes the next entry the one after cookie off, to be fetched anew.
func (d *dir) seek(off uint64) { d.batch, d.next, d.at, d.eof = nil, 0, off, false }

// after returns the entry that comes after the cookie off, or nil at the end, and leaves it at batch[next].
func (d *dir) after(ctx context.Context, fs *fileSystem, off uint64, plus bool) (e *raftmeta.DirEntry, err error) {
	if off != d.at {
		d.seek(off)
	}
	if d.next == len(d.batch) && !d.eof {
		if off == dotdot {
			off = 0
		}
		if d.batch, d.eof, err = fs.c.ReadDir(ctx, d.ino, off, 0, plus); err != nil {
			d.seek(d.at)
			return nil, err
		}
		d.next = 0
	}
	if d.next == len(d.batch) {
		return nil, nil
	}
	return &d.batch[d.next], nil
}
