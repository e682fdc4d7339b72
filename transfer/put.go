package transfer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"rfs"
	"rfs/client"
	"rfs/raftmeta"
)

// Put copies local files, and with recursive whole trees, to a path in rfs: into
// it if it is a directory, else under that name.
func (c *Copier) Put(ctx context.Context, from []string, to string, recursive bool) (Result, error) {
	into, err := c.isDir(ctx, to)
	if err != nil {
		return Result{}, fmt.Errorf("put to %s: %w", to, err)
	}
	if len(from) > 1 && !into {
		return Result{}, fmt.Errorf("put to %s: %w: several files need a directory that is there: rfs mkdir %s", to, rfs.ErrNotDir, to)
	}
	var jobs []job
	for _, f := range from {
		dst := to
		if into {
			dst = path.Join(to, filepath.Base(filepath.Clean(f)))
		}
		js, err := c.planPut(ctx, f, dst, recursive)
		if err != nil {
			return Result{}, err
		}
		jobs = append(jobs, js...)
	}
	return c.all(ctx, jobs, c.putFile)
}

// planPut lists the files below a local path; directories and links are made at once.
func (c *Copier) planPut(ctx context.Context, from, to string, recursive bool) (jobs []job, err error) {
	info, err := os.Stat(from)
	if err != nil {
		return nil, fmt.Errorf("put: %w", err)
	}
	if !info.IsDir() {
		return []job{{from, to, info.Size()}}, nil
	}
	if !recursive {
		return nil, fmt.Errorf("put %s: %w: give -r to copy it and all below it", from, rfs.ErrIsDir)
	}
	err = filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := path.Join(to, filepath.ToSlash(rel))
		info, err := d.Info()
		if err != nil {
			return err
		}
		if kind := kindOf(info.Mode()); kind != "" {
			c.skipped(p, kind)
			return nil
		}
		switch {
		case d.IsDir():
			return c.mkdir(ctx, dst, info.Mode())
		case d.Type()&fs.ModeSymlink != 0:
			return c.putLink(ctx, p, dst)
		}
		jobs = append(jobs, job{p, dst, info.Size()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("put %s: %w", from, err)
	}
	return jobs, nil
}

func (c *Copier) putLink(ctx context.Context, from, to string) error {
	target, err := os.Readlink(from)
	if err != nil {
		return err
	}
	dir, name := split(to)
	parent, err := c.FS.Walk(ctx, dir)
	if err != nil {
		return err
	}
	_, err = c.FS.Symlink(ctx, parent.Inode, name, target, uint32(os.Getuid()), uint32(os.Getgid()))
	if errors.Is(err, rfs.ErrExist) {
		if a, lerr := c.FS.Lookup(ctx, parent.Inode, name); lerr == nil && a.Type() == raftmeta.TypeLink {
			if have, rerr := c.FS.Readlink(ctx, a.Inode); rerr == nil && have == target {
				return nil
			}
		}
	}
	return err
}

// putFile copies one file.
func (c *Copier) putFile(ctx context.Context, j job) (r Result, err error) {
	in, err := os.Open(j.from)
	if err != nil {
		return r, fmt.Errorf("put: %w", err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return r, fmt.Errorf("put: %w", err)
	}
	p := put{c: c, in: in, size: info.Size(), mtime: info.ModTime().UnixNano(), mode: uint32(info.Mode().Perm()), h: sha256.New()}
	if err := p.run(ctx, j.to); err != nil {
		return r, fmt.Errorf("put %s to %s: %w", j.from, j.to, err)
	}
	c.moved(1, 0)
	return Result{Files: 1, Same: p.same, Bytes: p.size, Resumed: p.resumed}, nil
}

// put is a file on its way into rfs.
type put struct {
	c           *Copier
	in          *os.File
	size, mtime int64
	mode        uint32
	h           hash.Hash

	dir     rfs.InodeID
	out     *client.File
	resumed int64
	same    int
}

// run opens or makes the part file, fills it, and gives it its name.
func (p *put) run(ctx context.Context, to string) (err error) {
	dir, name := split(to)
	if name == "" {
		return fmt.Errorf("%w: it is the root: name a file in it", rfs.ErrIsDir)
	}
	parent, err := p.c.FS.Walk(ctx, dir)
	if err != nil {
		return err
	}
	p.dir = parent.Inode
	if old, err := p.c.FS.Lookup(ctx, p.dir, name); err == nil {
		if old.IsDir() {
			return rfs.ErrIsDir
		}
		if old.IsRegular() && old.Size == p.size && old.Mtime == p.mtime && p.c.attrSum(ctx, old) != "" {
			p.same = 1
			p.c.moved(0, p.size)
			return nil
		}
	}
	part := partName(name, p.size, p.mtime)
	off, err := p.openPart(ctx, part)
	if err != nil {
		return err
	}
	if err := p.fill(ctx, off); err != nil {
		// What is durable is kept for the next try; the interrupted context cannot say so.
		return errors.Join(err, p.out.Close(context.WithoutCancel(ctx)))
	}
	if err := p.finish(ctx); err != nil {
		return err
	}
	if p.c.Verify {
		if err := p.verify(ctx, p.out.Inode()); err != nil {
			return errors.Join(err, p.c.FS.Unlink(ctx, p.dir, part))
		}
	}
	return p.c.FS.Rename(ctx, p.dir, part, p.dir, name, 0)
}

// openPart opens the part file and returns how much of it is durable.
func (p *put) openPart(ctx context.Context, part string) (off int64, err error) {
	spec := raftmeta.CreateSpec{Mode: p.mode | 0o200, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	var attr raftmeta.Attr
	p.out, attr, err = p.c.FS.Create(ctx, p.dir, part, spec, client.OpenWrite)
	if err != nil {
		return 0, err
	}
	if attr.Size > 0 {
		if v, err := p.c.FS.Getxattr(ctx, attr.Inode, partAttr); err == nil {
			off, _ = strconv.ParseInt(string(v), 10, 64)
		}
	}
	if off < 0 || off > p.size || off > attr.Size {
		off = 0
	}
	// The sum is of the whole file, so what is there already is read once more, here.
	n, err := io.Copy(p.h, io.NewSectionReader(p.in, 0, off))
	if err == nil && n < off {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, errors.Join(err, p.out.Close(context.WithoutCancel(ctx)))
	}
	p.resumed = off
	p.c.moved(0, off)
	return off, nil
}

// fill copies from off to the end, and now and then makes it durable and says how far it is.
func (p *put) fill(ctx context.Context, off int64) (err error) {
	buf := make([]byte, min(chunk, max(p.size, 1)))
	saved := off
	defer func() {
		if err != nil && off > saved {
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			_ = p.save(end, off)
			cancel()
		}
	}()
	for off < p.size {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := p.in.ReadAt(buf[:min(int64(len(buf)), p.size-off)], off)
		if n == 0 && errors.Is(err, io.EOF) {
			return fmt.Errorf("the file became shorter while it was copied, from %d to %d bytes: copy it again when it is at rest", p.size, off)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		p.h.Write(buf[:n])
		if _, err := p.out.WriteAt(ctx, buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
		p.c.moved(0, int64(n))
		if off-saved >= saveEvery && off < p.size {
			if err := p.save(ctx, off); err != nil {
				return err
			}
			saved = off
		}
	}
	return nil
}

// save makes the first off bytes durable and records that they are.
func (p *put) save(ctx context.Context, off int64) error {
	if err := p.out.Sync(ctx); err != nil {
		return err
	}
	return p.c.FS.Setxattr(ctx, p.out.Inode(), partAttr, strconv.AppendInt(nil, off, 10), 0)
}

// finish makes the file durable, gives it the source's attributes and its sum, and closes it.
func (p *put) finish(ctx context.Context) error {
	ino := p.out.Inode()
	err := p.out.Sync(ctx)
	err = errors.Join(err, p.out.Close(ctx))
	if err != nil {
		return err
	}
	if err := p.c.FS.Removexattr(ctx, ino, partAttr); err != nil && !errors.Is(err, rfs.ErrNoAttr) {
		return err
	}
	if _, err := p.c.FS.Setattr(ctx, ino, raftmeta.SetAttr{Mode: &p.mode, Mtime: &p.mtime}); err != nil {
		return err
	}
	return p.c.FS.Setxattr(ctx, ino, sumAttr, sumText(p.h, p.size, p.mtime), 0)
}

// verify reads the file back from the targets.
func (p *put) verify(ctx context.Context, ino rfs.InodeID) error {
	h := sha256.New()
	n, err := p.c.read(ctx, ino, 0, func(b []byte) error { h.Write(b); return nil })
	if err != nil {
		return err
	}
	if want, have := p.h.Sum(nil), h.Sum(nil); n != p.size || string(want) != string(have) {
		return fmt.Errorf("%d bytes with SHA-256 %x came back, %d with %x were written: %w", n, have[:8], p.size, want[:8], ErrMismatch)
	}
	return nil
}
