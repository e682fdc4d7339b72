package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"time"

	"rfs"
	"rfs/client"
	"rfs/raftmeta"
)

// Get copies files of rfs, and with recursive whole trees, to a local path: into
// it if it is a directory, else under that name.
func (c *Copier) Get(ctx context.Context, from []string, to string, recursive bool) (Result, error) {
	into := localDir(to)
	if len(from) > 1 && !into {
		return Result{}, fmt.Errorf("get to %s: %w: several files need a directory that is there", to, rfs.ErrNotDir)
	}
	var jobs []job
	for _, f := range from {
		a, err := c.FS.Walk(ctx, f)
		if err != nil {
			return Result{}, fmt.Errorf("get %s: %w", f, err)
		}
		dst := to
		if into {
			dst = filepath.Join(to, path.Base(path.Clean("/"+f)))
		}
		switch {
		case a.IsRegular():
			jobs = append(jobs, job{f, dst, a.Size})
		case !a.IsDir():
			return Result{}, fmt.Errorf("get %s: not a regular file: %w", f, rfs.ErrInvalid)
		case !recursive:
			return Result{}, fmt.Errorf("get %s: %w: give -r to copy it and all below it", f, rfs.ErrIsDir)
		default:
			if jobs, err = c.planGet(ctx, jobs, a, path.Clean("/"+f), dst); err != nil {
				return Result{}, fmt.Errorf("get %s: %w", f, err)
			}
		}
	}
	return c.all(ctx, jobs, c.getFile)
}

// planGet appends the files below a directory of rfs; directories and links are made at once.
func (c *Copier) planGet(ctx context.Context, jobs []job, dir raftmeta.Attr, from, to string) ([]job, error) {
	if err := os.MkdirAll(to, os.FileMode(dir.Mode).Perm()|0o700); err != nil {
		return jobs, err
	}
	err := c.each(ctx, dir.Inode, func(e raftmeta.DirEntry) error {
		dst, err := inside(to, e.Name)
		if err != nil {
			return err
		}
		src := path.Join(from, e.Name)
		switch e.Attr.Type() {
		case raftmeta.TypeDir:
			jobs, err = c.planGet(ctx, jobs, *e.Attr, src, dst)
		case raftmeta.TypeFile:
			jobs = append(jobs, job{src, dst, e.Attr.Size})
		case raftmeta.TypeLink:
			err = c.getLink(ctx, e.Inode, dst)
		default:
			c.skipped(src, "not a regular file")
		}
		return err
	})
	return jobs, err
}

// each calls do for every entry of a directory, with its attributes.
func (c *Copier) each(ctx context.Context, dir rfs.InodeID, do func(raftmeta.DirEntry) error) error {
	for cookie, last := uint64(0), false; !last; {
		var list []raftmeta.DirEntry
		var err error
		if list, last, err = c.FS.ReadDir(ctx, dir, cookie, 0, true); err != nil {
			return err
		}
		for _, e := range list {
			if err := do(e); err != nil {
				return err
			}
			cookie = e.Cookie
		}
	}
	return nil
}

func (c *Copier) getLink(ctx context.Context, ino rfs.InodeID, to string) error {
	target, err := c.FS.Readlink(ctx, ino)
	if err != nil {
		return err
	}
	if have, err := os.Readlink(to); err == nil && have == target {
		return nil
	}
	return os.Symlink(target, to)
}

// getFile copies one file.
func (c *Copier) getFile(ctx context.Context, j job) (r Result, err error) {
	a, err := c.FS.Walk(ctx, j.from)
	if err != nil {
		return r, fmt.Errorf("get %s: %w", j.from, err)
	}
	g := get{c: c, attr: a, h: sha256.New()}
	if err := g.run(ctx, j.to); err != nil {
		return r, fmt.Errorf("get %s to %s: %w", j.from, j.to, err)
	}
	c.moved(1, 0)
	return Result{Files: 1, Same: g.same, Bytes: a.Size, Resumed: g.resumed}, nil
}

// get is a file on its way out of rfs.
type get struct {
	c       *Copier
	attr    raftmeta.Attr
	h       hash.Hash
	resumed int64
	same    int
}

func (g *get) run(ctx context.Context, to string) error {
	mtime := time.Unix(0, g.attr.Mtime)
	if info, err := os.Lstat(to); err == nil {
		if info.IsDir() {
			return rfs.ErrIsDir
		}
		if info.Mode().IsRegular() && info.Size() == g.attr.Size && info.ModTime().Equal(mtime) {
			g.same = 1
			g.c.moved(0, g.attr.Size)
			return nil
		}
	}
	dir := filepath.Dir(to)
	part := filepath.Join(dir, partName(filepath.Base(to), g.attr.Size, g.attr.Mtime))
	out, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = g.fill(ctx, out)
	if err == nil {
		err = g.verify(ctx, out)
		if errors.Is(err, ErrMismatch) {
			_ = os.Remove(part) // it is of no use to a next try
		}
	}
	if err == nil {
		err = errors.Join(out.Chmod(os.FileMode(g.attr.Mode).Perm()), out.Sync())
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := os.Chtimes(part, time.Time{}, mtime); err != nil {
		return err
	}
	return os.Rename(part, to)
}

// fill appends to the part file what it does not have. It was only ever appended to, by whole chunks.
func (g *get) fill(ctx context.Context, out *os.File) error {
	info, err := out.Stat()
	if err != nil {
		return err
	}
	off := info.Size() / chunk * chunk
	if off > g.attr.Size {
		off = 0
	}
	if _, err := io.Copy(g.h, io.NewSectionReader(out, 0, off)); err != nil {
		return err
	}
	if err := out.Truncate(off); err != nil {
		return err
	}
	g.resumed = off
	g.c.moved(0, off)
	n, err := g.c.read(ctx, g.attr.Inode, off, func(b []byte) error {
		g.h.Write(b)
		_, err := out.WriteAt(b, off)
		off += int64(len(b))
		g.c.moved(0, int64(len(b)))
		return err
	})
	if err == nil && n+g.resumed != g.attr.Size {
		err = fmt.Errorf("the file had %d bytes and now has %d: copy it again when it is at rest", g.attr.Size, n+g.resumed)
	}
	return err
}

// verify compares with the sum that was recorded when the file was put, if it is of this content.
func (g *get) verify(ctx context.Context, out *os.File) error {
	have, want := hex.EncodeToString(g.h.Sum(nil)), g.c.attrSum(ctx, g.attr)
	if want == "" && g.c.Verify {
		h := sha256.New()
		if _, err := g.c.read(ctx, g.attr.Inode, 0, func(b []byte) error { h.Write(b); return nil }); err != nil {
			return err
		}
		want = hex.EncodeToString(h.Sum(nil))
	}
	if want != "" && want != have {
		return fmt.Errorf("SHA-256 is %s, want %s: %w", have[:16], want[:16], ErrMismatch)
	}
	return nil
}

// read reads a file of rfs from off to its end.
func (c *Copier) read(ctx context.Context, ino rfs.InodeID, off int64, do func([]byte) error) (n int64, err error) {
	f, err := c.FS.Open(ctx, ino, client.OpenRead)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(context.WithoutCancel(ctx))) }()
	buf := make([]byte, chunk)
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, err := f.ReadAt(ctx, buf, off)
		if k > 0 {
			if err := do(buf[:k]); err != nil {
				return n, err
			}
			off += int64(k)
			n += int64(k)
		}
		if errors.Is(err, io.EOF) || err == nil && k == 0 {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
