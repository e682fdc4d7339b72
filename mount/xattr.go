package mount

import (
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rfs"
	"rfs/raftmeta"
)

// xattrSpace refuses names of spaces that rfs does not keep. The kernel has checked who may set which.
//
// POSIX ACLs are refused rather than kept as bytes: they would be shown, and not be obeyed. Tools know
// EOPNOTSUPP (`cp -a` and `rsync -A` say so or go on).
func xattrSpace(name string) error {
	for _, space := range []string{"user.", "trusted.", "security."} {
		if strings.HasPrefix(name, space) && len(name) > len(space) {
			return nil
		}
	}
	return rfs.ErrUnsupported
}

func (fs *fileSystem) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	c := fs.begin("getxattr", cancel, h)
	defer c.end()
	if err := xattrSpace(name); err != nil {
		return 0, c.status(err)
	}
	v, err := fs.c.Getxattr(c, node(h.NodeId), name)
	if err != nil {
		return 0, c.ofNode(err)
	}
	return put(dest, v)
}

// put copies v to dest, if there is room; the length is asked for with a dest of no bytes.
func put(dest, v []byte) (uint32, fuse.Status) {
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

func (fs *fileSystem) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	c := fs.begin("listxattr", cancel, h)
	defer c.end()
	names, err := fs.c.Listxattr(c, node(h.NodeId))
	if err != nil {
		return 0, c.ofNode(err)
	}
	var list []byte
	for _, n := range names {
		if h.Uid == 0 || !strings.HasPrefix(n, "trusted.") { // xattr(7): for those who may read them only
			list = append(append(list, n...), 0)
		}
	}
	return put(dest, list)
}

func (fs *fileSystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	c := fs.begin("setxattr", cancel, &in.InHeader)
	defer c.end()
	if err := xattrSpace(name); err != nil {
		return c.status(err)
	}
	if len(data) > raftmeta.MaxXattr {
		return status(syscall.E2BIG)
	}
	err := fs.c.Setxattr(c, node(in.NodeId), name, data, raftmeta.XattrFlags(in.Flags))
	if name == capName && err == nil {
		fs.armed.n.Add(1)
	}
	return c.ofNode(err)
}

func (fs *fileSystem) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	c := fs.begin("removexattr", cancel, h)
	defer c.end()
	if err := xattrSpace(name); err != nil {
		return c.status(err)
	}
	return c.ofNode(fs.c.Removexattr(c, node(h.NodeId), name))
}
