package chunkstore

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"
	"unsafe"

	"rfs/internal/vfs"
)

// directMin is the least transfer that goes past the page cache, in bytes: a
// small write is acknowledged from memory and made durable by the next Sync.
const directMin = 64 << 10

// A segment is a pair of files: data, of which extents are parts, and heads,
// of which each block of data owns slotSize bytes.
type segment struct {
	id         uint32
	data, head vfs.File
	direct     vfs.File // data with O_DIRECT, or nil
	noDirect   atomic.Bool
	// dirty are set after a write, and taken by Sync before it flushes.
	dataDirty, headDirty atomic.Bool
}

func dataName(id uint32) string { return fmt.Sprintf("segments/%08d.data", id) }
func headName(id uint32) string { return fmt.Sprintf("segments/%08d.head", id) }

func (g *segment) close() (err error) {
	for _, f := range []vfs.File{g.data, g.head, g.direct} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// write stores p at off of the data file. Whole blocks of aligned memory go
// past the page cache; the rest of the last block does not, which is coherent
// because a block belongs to one extent.
func (g *segment) write(off int64, p []byte) error {
	if n := g.directLen(off, p); n > 0 {
		_, err := g.direct.WriteAt(p[:n], off)
		if errors.Is(err, syscall.EINVAL) {
			g.noDirect.Store(true)
		} else if err != nil {
			return err
		} else if p, off = p[n:], off+int64(n); len(p) == 0 {
			return nil
		}
	}
	_, err := g.data.WriteAt(p, off)
	return err
}

// read fills p from off of the data file. Bytes beyond the file's end, which a
// lost preallocation leaves, are zeros.
func (g *segment) read(off int64, p []byte) error {
	if n := g.directLen(off, p); n > 0 {
		switch err := readFull(g.direct, p[:n], off); {
		case errors.Is(err, syscall.EINVAL):
			g.noDirect.Store(true)
		case err != nil:
			return err
		default:
			if p, off = p[n:], off+int64(n); len(p) == 0 {
				return nil
			}
		}
	}
	return readFull(g.data, p, off)
}

func readFull(f vfs.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}

// directLen is how many bytes of p can be moved with O_DIRECT.
func (g *segment) directLen(off int64, p []byte) int {
	n := len(p) &^ (vfs.DirectAlign - 1)
	if g.direct == nil || n < directMin || off%vfs.DirectAlign != 0 ||
		uintptr(unsafe.Pointer(unsafe.SliceData(p)))%vfs.DirectAlign != 0 || g.noDirect.Load() {
		return 0
	}
	return n
}
