package vfs

import (
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// pebbleFS is an FS as Pebble wants it, for the simulated disk: on the
// operating system's Pebble has its own.
type pebbleFS struct{ fs FS }

var _ vfs.FS = pebbleFS{}

func (p pebbleFS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	// A new inode, not the old one emptied: a reader may have it open.
	if err := p.fs.Remove(name); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	return p.file(name)(p.fs.Create(name))
}

func (p pebbleFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	return p.file(name)(p.fs.Open(name, ReadOnly))
}

func (p pebbleFS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	f, err := p.fs.Open(name, ReadWrite)
	if os.IsNotExist(err) {
		f, err = p.fs.Create(name)
	}
	return p.file(name)(f, err)
}

func (p pebbleFS) ReuseForWrite(oldname, newname string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	if err := p.fs.Rename(oldname, newname); err != nil {
		return nil, err
	}
	return p.file(newname)(p.fs.Open(newname, ReadWrite))
}

func (p pebbleFS) file(name string) func(File, error) (vfs.File, error) {
	return func(f File, err error) (vfs.File, error) {
		if err != nil {
			return nil, err
		}
		return &pebbleFile{File: f, fs: p.fs, name: name}, nil
	}
}

func (p pebbleFS) OpenDir(name string) (vfs.File, error) {
	if _, err := p.fs.Stat(name); err != nil {
		return nil, err
	}
	return &pebbleFile{fs: p.fs, name: name}, nil
}

func (p pebbleFS) RemoveAll(name string) error {
	st, err := p.fs.Stat(name)
	if os.IsNotExist(err) {
		return nil
	}
	if err == nil && st.IsDir() {
		names, err := p.fs.List(name)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := p.RemoveAll(path.Join(name, n)); err != nil {
				return err
			}
		}
	}
	return p.fs.Remove(name)
}

func (p pebbleFS) Link(oldname, newname string) error        { return p.fs.Link(oldname, newname) }
func (p pebbleFS) Remove(name string) error                  { return p.fs.Remove(name) }
func (p pebbleFS) Rename(oldname, newname string) error      { return p.fs.Rename(oldname, newname) }
func (p pebbleFS) MkdirAll(name string, _ os.FileMode) error { return p.fs.Mkdir(name) }
func (p pebbleFS) Lock(name string) (io.Closer, error)       { return p.fs.Lock(name) }
func (p pebbleFS) List(dir string) ([]string, error)         { return p.fs.List(dir) }
func (p pebbleFS) PathBase(name string) string               { return path.Base(name) }
func (p pebbleFS) PathJoin(elem ...string) string            { return path.Join(elem...) }
func (p pebbleFS) PathDir(name string) string                { return path.Dir(name) }
func (p pebbleFS) Unwrap() vfs.FS                            { return nil }
func (p pebbleFS) GetDiskUsage(dir string) (vfs.DiskUsage, error) {
	u, err := p.fs.Usage(dir)
	return vfs.DiskUsage{
		AvailBytes: uint64(u.Avail), TotalBytes: uint64(u.Total), UsedBytes: uint64(u.Total - u.Avail),
	}, err
}

func (p pebbleFS) Stat(name string) (vfs.FileInfo, error) {
	st, err := p.fs.Stat(name)
	if err != nil {
		return nil, err
	}
	return pebbleInfo{st}, nil
}

type pebbleInfo struct{ os.FileInfo }

func (pebbleInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

// pebbleFile adds positions to a File. Without a File it is a directory, which
// Pebble only syncs. Pebble writes from one goroutine at a time.
type pebbleFile struct {
	File
	fs         FS
	name       string
	rpos, wpos int64
}

func (f *pebbleFile) Read(p []byte) (int, error) {
	if f.File == nil {
		return 0, &os.PathError{Op: "read", Path: f.name, Err: fs.ErrInvalid}
	}
	n, err := f.ReadAt(p, f.rpos)
	f.rpos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

func (f *pebbleFile) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.wpos)
	f.wpos += int64(n)
	return n, err
}

func (f *pebbleFile) Stat() (vfs.FileInfo, error) {
	if f.File == nil {
		return pebbleFS{f.fs}.Stat(f.name)
	}
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	return pebbleInfo{info{name: path.Base(f.name), size: n}}, nil
}

func (f *pebbleFile) Sync() error {
	if f.File == nil {
		return f.fs.SyncDir(f.name)
	}
	err := f.File.Sync()
	if d, ok := f.fs.(*Disk); ok && err == nil {
		d.syncName(f.name)
	}
	return err
}

func (f *pebbleFile) Close() error {
	if f.File == nil {
		return nil
	}
	return f.File.Close()
}

func (f *pebbleFile) SyncData() error                        { return f.Sync() }
func (f *pebbleFile) SyncTo(int64) (bool, error)             { return false, nil }
func (f *pebbleFile) Preallocate(offset, length int64) error { return nil }
func (f *pebbleFile) Prefetch(offset, length int64) error    { return nil }
func (f *pebbleFile) Fd() uintptr                            { return vfs.InvalidFd }
