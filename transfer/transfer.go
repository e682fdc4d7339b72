// Package transfer copies files between the local file system and rfs, through
// the client library and without a mount: `rfs put` and `rfs get`.
//
//	put   local file --read, SHA-256--> .rfs-part-XXXX in the directory --rename--> name
//	get   rfs file   --read, SHA-256--> .rfs-part-XXXX in the directory --rename--> name
//
// A destination has either its old content or all of the new. What an interrupted
// copy leaves is a part file, whose name is a hash of the source's name, size and
// mtime: the same copy, started again, goes on where the part is known to be
// whole; a source that changed meanwhile starts a part of its own.
//
// Put records the SHA-256 of what it copied in the attribute user.rfs.sha256,
// together with the size and mtime that it belongs to; Get compares with it, as
// long as the file was not changed since.
package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"rfs"
	"rfs/client"
	"rfs/raftmeta"
)

const (
	sumAttr  = "user.rfs.sha256" // hex of the sum, size, mtime in ns
	partAttr = "user.rfs.part"   // of a part file: bytes from its start that are durable
	// chunk is what one read or write moves: a stripe of the default pool.
	chunk = 4 << 20
	// saveEvery is how many bytes a put may have to copy again.
	saveEvery = 256 << 20
)

// ErrMismatch means that a copy has other bytes than its source.
var ErrMismatch = fmt.Errorf("the copy differs from its source: %w", rfs.ErrCorrupt)

// A Copier copies files.
type Copier struct {
	FS *client.FS
	// Jobs is how many files of a tree are copied at once. 0 is 4.
	Jobs int
	// Verify reads each file back after it was put, or asks for the source once
	// more after a get that has no recorded sum to compare with.
	Verify bool
	// Planned hears how much there is to do, Moved what was done. Either may be nil.
	Planned func(files int, bytes int64)
	Moved   func(files int, bytes int64)
	// Skipped hears of what is not copied: devices, sockets. May be nil.
	Skipped func(path, why string)
}

// Result says what was done.
type Result struct {
	Files   int   `json:"files"`
	Same    int   `json:"same"` // of those, already there with the same size and mtime
	Bytes   int64 `json:"bytes"`
	Resumed int64 `json:"resumed"` // of those, copied by an earlier try
}

// job is one file to copy.
type job struct {
	from, to string
	size     int64
}

// total adds up results of several goroutines.
type total struct {
	mu sync.Mutex
	r  Result
}

func (t *total) add(r Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.r.Files += r.Files
	t.r.Same += r.Same
	t.r.Bytes += r.Bytes
	t.r.Resumed += r.Resumed
}

// all copies the jobs, several at once; the first error ends the others.
func (c *Copier) all(ctx context.Context, jobs []job, do func(context.Context, job) (Result, error)) (Result, error) {
	var bytes int64
	for _, j := range jobs {
		bytes += j.size
	}
	if c.Planned != nil {
		c.Planned(len(jobs), bytes)
	}
	n := c.Jobs
	if n == 0 {
		n = 4
	}
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(n)
	var t total
	for _, j := range jobs {
		if inner.Err() != nil {
			break
		}
		g.Go(func() error {
			r, err := do(inner, j)
			if err != nil {
				return err
			}
			t.add(r)
			return nil
		})
	}
	err := g.Wait()
	return t.r, errors.Join(err, ctx.Err())
}

func (c *Copier) moved(files int, bytes int64) {
	if c.Moved != nil {
		c.Moved(files, bytes)
	}
}

func (c *Copier) skipped(path, why string) {
	if c.Skipped != nil {
		c.Skipped(path, why)
	}
}

// partName names the part file of a copy.
func partName(name string, size, mtime int64) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d\x00%d", name, size, mtime))
	return ".rfs-part-" + hex.EncodeToString(h[:8])
}

// sumText is the value of sumAttr.
func sumText(h hash.Hash, size, mtime int64) []byte {
	return fmt.Appendf(nil, "%x %d %d", h.Sum(nil), size, mtime)
}

// split returns the directory and the name of a path in rfs.
func split(p string) (dir, name string) {
	dir, name = path.Split(path.Clean("/" + p))
	return dir, name
}

// kindOf returns "" for what can be copied, else what it is.
func kindOf(mode os.FileMode) string {
	switch {
	case mode.IsRegular(), mode.IsDir(), mode&os.ModeSymlink != 0:
		return ""
	case mode&os.ModeDevice != 0:
		return "a device"
	case mode&os.ModeSocket != 0:
		return "a socket"
	case mode&os.ModeNamedPipe != 0:
		return "a pipe"
	}
	return "not a regular file"
}

// isDir says whether there is a directory at the path in rfs.
func (c *Copier) isDir(ctx context.Context, p string) (bool, error) {
	a, err := c.FS.Walk(ctx, p)
	if errors.Is(err, rfs.ErrNotFound) {
		return false, nil
	}
	return err == nil && a.IsDir(), err
}

// mkdir makes a directory in rfs unless it is there.
func (c *Copier) mkdir(ctx context.Context, p string, mode os.FileMode) error {
	dir, name := split(p)
	if name == "" {
		return nil
	}
	parent, err := c.FS.Walk(ctx, dir)
	if err != nil {
		return err
	}
	_, err = c.FS.Mkdir(ctx, parent.Inode, name, uint32(mode.Perm()), uint32(os.Getuid()), uint32(os.Getgid()))
	if errors.Is(err, rfs.ErrExist) {
		if is, werr := c.isDir(ctx, p); werr == nil && is {
			return nil
		}
	}
	return err
}

// localDir says whether there is a local directory at p.
func localDir(p string) bool {
	info, err := os.Stat(p)
	return err == nil && info.IsDir()
}

// inside joins a path in a tree to the tree's destination, and refuses names
// that would lead out of it.
func inside(root, rel string) (string, error) {
	if !filepath.IsLocal(rel) && rel != "." {
		return "", fmt.Errorf("name %q leads out of the tree: %w", rel, rfs.ErrInvalid)
	}
	return filepath.Join(root, rel), nil
}

// attrSum returns the recorded sum of a file, or "" if there is none that is of its present content.
func (c *Copier) attrSum(ctx context.Context, a raftmeta.Attr) string {
	v, err := c.FS.Getxattr(ctx, a.Inode, sumAttr)
	if err != nil {
		return ""
	}
	f := strings.Fields(string(v))
	if len(f) != 3 || f[1] != fmt.Sprint(a.Size) || f[2] != fmt.Sprint(a.Mtime) {
		return ""
	}
	return f[0]
}
