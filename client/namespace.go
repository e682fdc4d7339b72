package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"rfs"
	"rfs/raftmeta"
)

// Names are linearizable, so none are cached here: each call asks the metadata
// service. Permissions are the caller's to check: uid and gid are only recorded.

// Lookup returns the attributes of what name stands for in dir; "." and ".." too.
func (fs *FS) Lookup(ctx context.Context, dir rfs.InodeID, name string) (raftmeta.Attr, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	a, err := fs.meta.Lookup(ctx, dir, name)
	return fs.withOpen(a, err)
}

// Getattr returns the attributes of an inode. The clients that are writing the file are asked for its size.
func (fs *FS) Getattr(ctx context.Context, id rfs.InodeID) (raftmeta.Attr, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	a, err := fs.meta.Getattr(ctx, id)
	return fs.withOpen(a, err)
}

// withOpen lays over a what this client knows of the file, if it is open here.
func (fs *FS) withOpen(a raftmeta.Attr, err error) (raftmeta.Attr, error) {
	if err == nil && a.IsRegular() {
		if ino := fs.lookupOpen(a.Inode); ino != nil {
			ino.learn(&a)
			ino.overlayAttr(&a)
		}
	}
	return a, err
}

// Setattr changes attributes. A new size truncates the file or extends it with zeros.
func (fs *FS) Setattr(ctx context.Context, id rfs.InodeID, set raftmeta.SetAttr) (raftmeta.Attr, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	if set.Size != nil {
		return fs.resize(ctx, id, set)
	}
	ino := fs.lookupOpen(id)
	if ino != nil { // what is set now counts, not the time of a write before
		if err := ino.commitAttr(ctx); err != nil {
			return raftmeta.Attr{}, err
		}
	}
	a, err := fs.meta.Setattr(ctx, id, set)
	return fs.withOpen(a, err)
}

// resize is Setattr with a size: the file must be open for writing, so that others' caches are recalled.
func (fs *FS) resize(ctx context.Context, id rfs.InodeID, set raftmeta.SetAttr) (a raftmeta.Attr, err error) {
	f, err := fs.Open(ctx, id, OpenWrite)
	if err != nil {
		return a, err
	}
	defer func() { err = errors.Join(err, f.Close(ctx)) }()
	return f.ino.truncate(ctx, set)
}

// Mkdir makes a directory.
func (fs *FS) Mkdir(ctx context.Context, dir rfs.InodeID, name string, mode, uid, gid uint32) (raftmeta.Attr, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Mkdir(ctx, dir, name, mode, uid, gid)
}

// Mknod makes a file, device node, FIFO or socket.
func (fs *FS) Mknod(ctx context.Context, dir rfs.InodeID, name string, spec raftmeta.MknodSpec) (raftmeta.Attr, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Mknod(ctx, dir, name, spec)
}

// Symlink makes a symbolic link to target.
func (fs *FS) Symlink(ctx context.Context, dir rfs.InodeID, name, target string, uid, gid uint32) (raftmeta.Attr, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Symlink(ctx, dir, name, target, uid, gid)
}

// Readlink returns the target of a symbolic link.
func (fs *FS) Readlink(ctx context.Context, id rfs.InodeID) (string, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Readlink(ctx, id)
}

// Link gives an inode, not a directory, one more name.
func (fs *FS) Link(ctx context.Context, id, dir rfs.InodeID, name string) (raftmeta.Attr, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	a, err := fs.meta.Link(ctx, id, dir, name)
	return fs.withOpen(a, err)
}

// Unlink removes a name that is not a directory's. A file that is open anywhere lives until its last close.
func (fs *FS) Unlink(ctx context.Context, dir rfs.InodeID, name string) error {
	ctx, done := fs.patience(ctx)
	defer done()
	_, err := fs.meta.Unlink(ctx, dir, name)
	return err
}

// Rmdir removes an empty directory.
func (fs *FS) Rmdir(ctx context.Context, dir rfs.InodeID, name string) error {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Rmdir(ctx, dir, name)
}

// holdTime is for how long a file outlives the rename that replaced it: for who had looked up its
// name and was about to open it.
const holdTime = 2 * time.Second

// Rename moves a name, replacing what has the new one unless flags say otherwise. To who opens the new
// name meanwhile it is never without a file.
func (fs *FS) Rename(ctx context.Context, dir rfs.InodeID, name string, newDir rfs.InodeID, newName string, flags raftmeta.RenameFlags) error {
	ctx, done := fs.patience(ctx)
	defer done()
	held, err := fs.meta.RenameHold(ctx, dir, name, newDir, newName, flags)
	if held != 0 {
		time.AfterFunc(holdTime, func() { fs.meta.Release(held, raftmeta.OpenRead) })
	}
	return err
}

// ReadDir returns entries of a directory after the one with the cookie, at most
// limit (0: as many as fit a message), and whether these are the last; with plus,
// their attributes. See raftmeta.Client.Readdir.
func (fs *FS) ReadDir(ctx context.Context, dir rfs.InodeID, cookie uint64, limit int, plus bool) ([]raftmeta.DirEntry, bool, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	list, last, err := fs.meta.Readdir(ctx, dir, cookie, limit, plus)
	for i := range list {
		if a := list[i].Attr; a != nil {
			*a, _ = fs.withOpen(*a, nil)
		}
	}
	return list, last, err
}

// Getxattr returns an extended attribute.
func (fs *FS) Getxattr(ctx context.Context, id rfs.InodeID, name string) ([]byte, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Getxattr(ctx, id, name)
}

// Setxattr sets an extended attribute.
func (fs *FS) Setxattr(ctx context.Context, id rfs.InodeID, name string, value []byte, flags raftmeta.XattrFlags) error {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Setxattr(ctx, id, name, value, flags)
}

// Listxattr returns the names of the extended attributes.
func (fs *FS) Listxattr(ctx context.Context, id rfs.InodeID) ([]string, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Listxattr(ctx, id)
}

// Removexattr removes an extended attribute.
func (fs *FS) Removexattr(ctx context.Context, id rfs.InodeID, name string) error {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Removexattr(ctx, id, name)
}

// Statfs returns the space of the cluster.
func (fs *FS) Statfs(ctx context.Context) (raftmeta.Statfs, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.Statfs(ctx)
}

// Lock takes or releases a lock, cluster-wide. With wait it waits for one that
// another holds, for as long as ctx lasts, on a soft client too; without, it
// fails with rfs.ErrWouldBlock. Who takes it next sees what was written before:
// a file that two clients have open is write-through.
func (fs *FS) Lock(ctx context.Context, id rfs.InodeID, spec raftmeta.LockSpec, wait bool) error {
	return fs.meta.Lock(ctx, id, spec, wait)
}

// TestLock returns a lock of another owner in the way of spec, or nil.
func (fs *FS) TestLock(ctx context.Context, id rfs.InodeID, spec raftmeta.LockSpec) (*raftmeta.LockSpec, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	return fs.meta.TestLock(ctx, id, spec)
}

// maxLinks is how many symbolic links Walk follows.
const maxLinks = 40

// Walk returns the attributes of what a path, from the root of the file system,
// stands for. Symbolic links are followed, within the file system.
func (fs *FS) Walk(ctx context.Context, path string) (raftmeta.Attr, error) {
	return fs.walk(ctx, path, true)
}

// WalkNoFollow is Walk that does not follow a symbolic link at the path's end.
func (fs *FS) WalkNoFollow(ctx context.Context, path string) (raftmeta.Attr, error) {
	return fs.walk(ctx, path, false)
}

func (fs *FS) walk(ctx context.Context, path string, follow bool) (raftmeta.Attr, error) {
	fail := func(err error) (raftmeta.Attr, error) {
		return raftmeta.Attr{}, fmt.Errorf("walk %q: %w", path, err)
	}
	at, err := fs.Getattr(ctx, rfs.RootInode)
	rest, links := strings.Split(path, "/"), 0
	for err == nil && len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		var next raftmeta.Attr
		if next, err = fs.Lookup(ctx, at.Inode, name); err != nil {
			break
		}
		if next.Type() != raftmeta.TypeLink || len(rest) == 0 && !follow {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return fail(fmt.Errorf("more than %d symbolic links: %w", maxLinks, rfs.ErrInvalid))
		}
		var target string
		if target, err = fs.Readlink(ctx, next.Inode); err != nil {
			break
		}
		if strings.HasPrefix(target, "/") {
			at, err = fs.Getattr(ctx, rfs.RootInode)
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if err != nil {
		return fail(err)
	}
	return at, nil
}

// OpenPath opens the regular file at a path.
func (fs *FS) OpenPath(ctx context.Context, path string, flags OpenFlags) (*File, error) {
	a, err := fs.Walk(ctx, path)
	if err != nil {
		return nil, err
	}
	if !a.IsRegular() {
		return nil, fmt.Errorf("open %q: not a regular file: %w", path, rfs.ErrInvalid)
	}
	return fs.Open(ctx, a.Inode, flags)
}

// CreatePath makes the file at a path, in a directory that is there, or opens
// the one that is there unless spec.Excl.
func (fs *FS) CreatePath(ctx context.Context, path string, spec raftmeta.CreateSpec, flags OpenFlags) (*File, error) {
	dir, name := "", strings.TrimRight(path, "/")
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, name = name[:i], name[i+1:]
	}
	if name == "" {
		return nil, fmt.Errorf("create %q: no name: %w", path, rfs.ErrInvalid)
	}
	at, err := fs.Walk(ctx, dir)
	if err != nil {
		return nil, err
	}
	f, _, err := fs.Create(ctx, at.Inode, name, spec, flags)
	return f, err
}
