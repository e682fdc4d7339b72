package mount

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"rfs"
	"rfs/raftmeta"
)

func (fs *fileSystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.mknod("mkdir", cancel, &in.InHeader, name, raftmeta.MknodSpec{Mode: raftmeta.TypeDir | in.Mode&0o7777}, out)
}

func (fs *fileSystem) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fs.mknod("symlink", cancel, h, name, raftmeta.MknodSpec{Mode: raftmeta.TypeLink | 0o777, Target: target}, out)
}

func (fs *fileSystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.mknod("mknod", cancel, &in.InHeader, name, raftmeta.MknodSpec{Mode: in.Mode, Rdev: in.Rdev}, out)
}

func (fs *fileSystem) mknod(op string, cancel <-chan struct{}, h *fuse.InHeader, name string, spec raftmeta.MknodSpec, out *fuse.EntryOut) fuse.Status {
	c := fs.begin(op, cancel, h)
	defer c.end()
	fs.recent.forget(h.Pid)
	spec.UID, spec.GID = h.Uid, h.Gid
	a, err := fs.c.Mknod(c, node(h.NodeId), name, spec)
	if err != nil {
		return c.status(err)
	}
	fs.entry(out, &a)
	return fuse.OK
}

func (fs *fileSystem) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	c := fs.begin("link", cancel, &in.InHeader)
	defer c.end()
	fs.recent.forget(in.Pid)
	a, err := fs.c.Link(c, node(in.Oldnodeid), node(in.NodeId), name)
	if err != nil {
		return c.status(err)
	}
	fs.entry(out, &a)
	return fuse.OK
}

func (fs *fileSystem) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c := fs.begin("unlink", cancel, h)
	defer c.end()
	fs.recent.forget(h.Pid)
	return c.status(fs.c.Unlink(c, node(h.NodeId), name))
}

func (fs *fileSystem) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c := fs.begin("rmdir", cancel, h)
	defer c.end()
	fs.recent.forget(h.Pid)
	return c.status(fs.c.Rmdir(c, node(h.NodeId), name))
}

func (fs *fileSystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	c := fs.begin("rename", cancel, &in.InHeader)
	defer c.end()
	fs.recent.forget(in.Pid)
	flags := raftmeta.RenameFlags(in.Flags)
	if flags&^(raftmeta.RenameNoReplace|raftmeta.RenameExchange) != 0 { // RENAME_WHITEOUT is for overlays
		return c.status(rfs.ErrInvalid)
	}
	return c.status(fs.c.Rename(c, node(in.NodeId), name, node(in.Newdir), newName, flags))
}

func (fs *fileSystem) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	c := fs.begin("readlink", cancel, h)
	defer c.end()
	target, err := fs.c.Readlink(c, node(h.NodeId))
	return []byte(target), c.ofNode(err)
}

// statBlock is the unit of statfs. Programs multiply by either of its two block sizes, so they are equal.
const statBlock = 4096

func (fs *fileSystem) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	c := fs.begin("statfs", cancel, h)
	defer c.end()
	s, err := fs.c.Statfs(c)
	if err != nil {
		return c.status(err)
	}
	const inodes = 1 << 48 // of a shard of the metadata
	*out = fuse.StatfsOut{
		Blocks: uint64(s.Usable) / statBlock, Bfree: uint64(s.Free) / statBlock, Bavail: uint64(s.Free) / statBlock,
		Files: inodes, Ffree: inodes - min(s.Inodes, inodes),
		Bsize: statBlock, Frsize: statBlock, NameLen: rfs.MaxName,
	}
	return fuse.OK
}
