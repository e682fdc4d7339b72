// Package bench holds workloads on a mounted file system: what they do, how long
// it took, and the table of it. `rfs demo` runs them.
//
//	source tree --Scan--> Tree --Copy--> mount    each file hashed as it is read
//	                           --Verify-> mount   each file read back and hashed
//
// A workload goes through the kernel, as a job's own reads and writes do.
package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
)

// ioSize is what one read or write moves: a FUSE request of rfs.
const ioSize = 1 << 20

// Sum is a file's SHA-256.
type Sum [sha256.Size]byte

// A Tree is what Scan found, parents before children.
type Tree struct {
	Root  string
	Dirs  []string // relative paths
	Links []string
	Files []File
	Bytes int64
}

// A File of a Tree. Sum is known once the file has been copied.
type File struct {
	Path string // relative
	Size int64
	Mode fs.FileMode
	Sum  Sum
}

// Progress hears of what was done; it is called from several goroutines.
type Progress func(files int, bytes int64)

// Scan lists the directories, symbolic links and regular files below root.
func Scan(root string) (*Tree, error) {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	t := &Tree{Root: root}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			t.Dirs = append(t.Dirs, rel)
		case d.Type()&fs.ModeSymlink != 0:
			t.Links = append(t.Links, rel)
		case d.Type().IsRegular():
			info, err := d.Info()
			if err != nil {
				return err
			}
			t.Files = append(t.Files, File{Path: rel, Size: info.Size(), Mode: info.Mode().Perm()})
			t.Bytes += info.Size()
		}
		return nil
	})
	return t, err
}

// Copy copies the tree to dst, which must not exist, by workers goroutines, and
// keeps the sum of each file as it was read.
func (t *Tree) Copy(ctx context.Context, dst string, workers int, p Progress) error {
	for _, d := range t.Dirs {
		if err := os.Mkdir(filepath.Join(dst, d), 0o755); err != nil {
			return err
		}
	}
	for _, l := range t.Links {
		to, err := os.Readlink(filepath.Join(t.Root, l))
		if err == nil {
			err = os.Symlink(to, filepath.Join(dst, l))
		}
		if err != nil {
			return err
		}
	}
	return t.each(ctx, workers, func(f *File, buf []byte) error {
		sum, n, err := copyFile(filepath.Join(t.Root, f.Path), filepath.Join(dst, f.Path), f.Mode, buf)
		f.Sum, f.Size = sum, n
		p(1, n)
		return err
	})
}

// Verify reads the copy in dst and compares each file's sum.
func (t *Tree) Verify(ctx context.Context, dst string, workers int, p Progress) error {
	for _, l := range t.Links {
		want, err := os.Readlink(filepath.Join(t.Root, l))
		if err != nil {
			return err
		}
		if have, err := os.Readlink(filepath.Join(dst, l)); err != nil || have != want {
			return fmt.Errorf("%s: points to %q, want %q: %w", l, have, want, errors.Join(err, ErrMismatch))
		}
	}
	return t.each(ctx, workers, func(f *File, buf []byte) error {
		err := VerifyFile(ctx, filepath.Join(dst, f.Path), f.Size, f.Sum, buf, func(int, int64) {})
		p(1, f.Size)
		return err
	})
}

// ErrMismatch means that a file came back with other bytes.
var ErrMismatch = errors.New("content differs from what was written")

// each calls do for every file, by workers goroutines with a buffer each.
func (t *Tree) each(ctx context.Context, workers int, do func(f *File, buf []byte) error) error {
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	buffers := sync.Pool{New: func() any { b := make([]byte, ioSize); return &b }}
	for i := range t.Files {
		if inner.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := context.Cause(inner); err != nil {
				return err
			}
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			return do(&t.Files[i], *buf)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func copyFile(from, to string, mode fs.FileMode, buf []byte) (sum Sum, n int64, err error) {
	in, err := os.Open(from)
	if err != nil {
		return sum, 0, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o200)
	if err != nil {
		return sum, 0, err
	}
	h := sha256.New()
	for {
		var k int
		k, err = in.Read(buf)
		if k > 0 {
			h.Write(buf[:k])
			if _, werr := out.Write(buf[:k]); werr != nil {
				out.Close()
				return sum, n, werr
			}
			n += int64(k)
		}
		if err != nil {
			break
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	h.Sum(sum[:0])
	return sum, n, errors.Join(err, out.Close())
}

// WriteFile writes size pseudo-random bytes of the seed to path, through to the
// targets' disks, and returns their sum.
func WriteFile(ctx context.Context, path string, size int64, seed byte, p Progress) (sum Sum, err error) {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return sum, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	random := rand.NewChaCha8([32]byte{seed})
	h, buf := sha256.New(), make([]byte, ioSize)
	for left := size; left > 0; {
		if err := context.Cause(ctx); err != nil {
			return sum, err
		}
		b := buf[:min(left, ioSize)]
		_, _ = random.Read(b) // never fails
		h.Write(b)
		if _, err := out.Write(b); err != nil {
			return sum, err
		}
		left -= int64(len(b))
		p(0, int64(len(b)))
	}
	p(1, 0)
	h.Sum(sum[:0])
	return sum, out.Sync()
}

// VerifyFile reads path and compares its size and sum. A nil buf is allocated.
func VerifyFile(ctx context.Context, path string, size int64, want Sum, buf []byte, p Progress) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if buf == nil {
		buf = make([]byte, ioSize)
	}
	h := sha256.New()
	n, err := read(ctx, in, h, buf, p)
	if err != nil {
		return err
	}
	if have := Sum(h.Sum(nil)); n != size || have != want {
		return fmt.Errorf("%s: %d bytes with SHA-256 %x, want %d with %x: %w", path, n, have[:8], size, want[:8], ErrMismatch)
	}
	p(1, 0)
	return nil
}

func read(ctx context.Context, in io.Reader, h hash.Hash, buf []byte, p Progress) (n int64, err error) {
	for {
		if err := context.Cause(ctx); err != nil {
			return n, err
		}
		k, err := in.Read(buf)
		h.Write(buf[:k])
		n += int64(k)
		p(0, int64(k))
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
