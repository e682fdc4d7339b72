package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"rfs"
	"rfs/raftmeta"
)

// A File is one open of a file. All opens of an inode in one FS share its
// unwritten bytes. Its methods may be called from any goroutine; a method that
// waits for targets or metadata ends early with ctx's error.
type File struct {
	ino   *inode
	flags OpenFlags
	once  sync.Once // of Close
	ahead stream    // guarded by ino.mu

	// guarded by ino.mu
	seen   uint64 // the inode's count of write errors when this handle last reported
	closed bool
}

// OpenFlags say how a file is opened.
type OpenFlags uint32

// OpenFlags values.
const (
	OpenRead     OpenFlags = 1 << iota
	OpenWrite              // or both
	OpenAppend             // WriteAt ignores its offset: the bytes go to the end, atomically among clients
	OpenTruncate           // to size 0 first
	OpenSync               // each write returns when it is durable (O_SYNC)
	OpenDirect             // not read ahead (O_DIRECT)
)

// AllocateMode is how Allocate treats the range.
type AllocateMode uint8

// AllocateMode values.
const (
	AllocateExtend   AllocateMode = iota // the file is at least as long as the range's end; its bytes stay
	AllocateKeepSize                     // the size stays; space is not reserved, so that this does nothing
	AllocatePunch                        // the range reads as zeros; the size stays
	AllocateZero                         // the range reads as zeros; the file grows to its end if that is beyond
)

// ErrClosed is returned by the methods of a File or FS that was closed.
var ErrClosed = errors.New("client: closed")

// Inode returns which file this is.
func (f *File) Inode() rfs.InodeID { return f.ino.id }

// Layout returns how the file is striped.
func (f *File) Layout() rfs.Layout { return f.ino.layout }

// Attr returns the file's attributes, with the size and mtime of bytes not yet written.
func (f *File) Attr(ctx context.Context) (raftmeta.Attr, error) {
	return f.ino.fs.Getattr(ctx, f.ino.id)
}

// ReadAt reads into p from off. It returns io.EOF with fewer bytes than len(p)
// at the end of the file. Holes read as zeros.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("read at offset %d: %w", off, rfs.ErrInvalid)
	}
	if err := f.usable(OpenRead); err != nil {
		return 0, err
	}
	return f.ino.read(ctx, f, p, off)
}

// WriteAt writes p at off, or at the end with OpenAppend. Unless the file is
// shared with other clients or opened with OpenSync, it returns when the bytes
// are in the client's memory.
func (f *File) WriteAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	if f.flags&OpenAppend != 0 {
		_, n, err = f.Append(ctx, p)
		return n, err
	}
	if off < 0 {
		return 0, fmt.Errorf("write at offset %d: %w", off, rfs.ErrInvalid)
	}
	if err := f.usable(OpenWrite); err != nil {
		return 0, err
	}
	return f.ino.write(ctx, f, p, off)
}

// Append writes p at the end of the file, wherever that is when it is called,
// and returns the offset. Appends of several clients do not overlap.
func (f *File) Append(ctx context.Context, p []byte) (off int64, n int, err error) {
	if err := f.usable(OpenWrite); err != nil {
		return 0, 0, err
	}
	return f.ino.append(ctx, f, p)
}

// Flush writes the file's dirty bytes to the targets, and reports errors of
// write-back that this handle has not reported. It is what close(2) waits for:
// the bytes survive the loss of m targets, but not of the cluster's power.
func (f *File) Flush(ctx context.Context) error {
	if err := f.usable(0); err != nil {
		return err
	}
	return f.report(f.ino.flush(ctx))
}

// Sync makes all that was written to the file durable, and its size and mtime
// known to all. It reports as Flush does.
func (f *File) Sync(ctx context.Context) error {
	if err := f.usable(0); err != nil {
		return err
	}
	return f.report(f.ino.sync(ctx))
}

// Truncate sets the file's size.
func (f *File) Truncate(ctx context.Context, size int64) error {
	if err := f.usable(OpenWrite); err != nil {
		return err
	}
	_, err := f.ino.truncate(ctx, raftmeta.SetAttr{Size: &size})
	return err
}

// Punch makes n bytes from off read as zeros, within the file's size.
func (f *File) Punch(ctx context.Context, off, n int64) error {
	return f.Allocate(ctx, AllocatePunch, off, n)
}

// Allocate changes n bytes from off as mode says.
func (f *File) Allocate(ctx context.Context, mode AllocateMode, off, n int64) error {
	if off < 0 || n <= 0 || off+n < 0 {
		return fmt.Errorf("allocate %d bytes from %d: %w", n, off, rfs.ErrInvalid)
	}
	if err := f.usable(OpenWrite); err != nil {
		return err
	}
	switch mode {
	case AllocateExtend:
		return f.ino.extend(ctx, off+n)
	case AllocateKeepSize:
		return nil
	case AllocatePunch:
		return f.ino.punch(ctx, off, n)
	case AllocateZero:
		if err := f.ino.punch(ctx, off, n); err != nil {
			return err
		}
		return f.ino.extend(ctx, off+n)
	}
	return fmt.Errorf("allocate mode %d: %w", mode, rfs.ErrUnsupported)
}

// SeekData returns the first offset from off on that may hold data, and io.EOF if there is none.
func (f *File) SeekData(ctx context.Context, off int64) (int64, error) {
	if err := f.usable(0); err != nil {
		return 0, err
	}
	return f.ino.seek(ctx, off, true)
}

// SeekHole returns the first offset from off on that surely holds no data: the
// file's size at the latest. It returns io.EOF if off is not below the size.
func (f *File) SeekHole(ctx context.Context, off int64) (int64, error) {
	if err := f.usable(0); err != nil {
		return 0, err
	}
	return f.ino.seek(ctx, off, false)
}

// CopyRange copies up to n bytes from off of f to dstOff of dst, and returns
// how many: fewer than n at the end of f.
func (f *File) CopyRange(ctx context.Context, off int64, dst *File, dstOff, n int64) (done int64, err error) {
	if f.ino == dst.ino && off < dstOff+n && dstOff < off+n {
		return 0, fmt.Errorf("copy within a file: ranges overlap: %w", rfs.ErrInvalid)
	}
	p := make([]byte, min(n, 1<<20))
	for done < n {
		m, err := f.ReadAt(ctx, p[:min(n-done, int64(len(p)))], off+done)
		if m > 0 {
			w, err := dst.WriteAt(ctx, p[:m], dstOff+done)
			done += int64(w)
			if err != nil {
				return done, err
			}
		}
		if err == io.EOF {
			return done, nil
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Close writes what is dirty, commits the size and gives the lease back. It
// reports as Flush does. Closing again does nothing.
func (f *File) Close(ctx context.Context) (err error) {
	f.once.Do(func() { err = f.close(ctx) })
	return err
}

func (f *File) close(ctx context.Context) error {
	ino := f.ino
	err := f.report(ino.flush(ctx))
	ino.mu.Lock()
	f.closed = true
	f.ahead.drop()
	ino.mu.Unlock()
	return errors.Join(err, ino.fs.release(ctx, ino, f.flags))
}

// usable says whether the file is open, for what is asked, and its session alive.
func (f *File) usable(want OpenFlags) error {
	f.ino.mu.Lock()
	defer f.ino.mu.Unlock()
	switch {
	case f.closed:
		return ErrClosed
	case f.ino.gone != nil:
		return f.ino.gone
	case f.flags&want != want:
		return fmt.Errorf("file %v is not open for that: %w", f.ino.id, rfs.ErrPermission)
	}
	return nil
}

// report adds to err the newest write-back error, if this handle has not reported it.
func (f *File) report(err error) error {
	f.ino.mu.Lock()
	defer f.ino.mu.Unlock()
	if f.seen == f.ino.nerr {
		return err
	}
	f.seen = f.ino.nerr
	if err != nil {
		return err
	}
	return f.ino.werr
}
