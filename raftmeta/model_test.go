package raftmeta

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0 draws one")

func seeded(t testing.TB) *rand.Rand {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("to repeat: -seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// model is a file system in memory, written for being obviously right.
type model struct {
	root *thing
	all  []*thing // that have an inode, in the order in which they were made
}

type thing struct {
	ino     rfs.InodeID
	typ     uint32
	nlink   int
	size    int64
	opens   int
	names   map[string]*thing // of a directory
	parent  *thing
	xattrs  map[string]string
	dropped bool
}

func (x *thing) dir() bool { return x.typ == TypeDir }

// below reports whether x is d or under it.
func (x *thing) below(d *thing) bool {
	for ; ; x = x.parent {
		if x == d {
			return true
		}
		if x.parent == x {
			return false
		}
	}
}

func (x *thing) release() {
	if x.nlink == 0 && x.opens == 0 {
		x.dropped = true
	}
}

func (m *model) make(d *thing, name string, typ uint32) (*thing, wire.Status) {
	switch {
	case d.dropped:
		return nil, wire.StatusNotFound
	case !d.dir():
		return nil, wire.StatusNotDir
	case d.names[name] != nil:
		return d.names[name], wire.StatusExist
	}
	x := &thing{typ: typ, nlink: 1, xattrs: map[string]string{}}
	if x.dir() {
		x.nlink, x.names, x.parent = 2, map[string]*thing{}, d
		d.nlink++
	}
	d.names[name] = x
	m.all = append(m.all, x)
	return x, wire.StatusOK
}

func (m *model) link(x, d *thing, name string) wire.Status {
	switch {
	case x.dropped || x.nlink == 0:
		return wire.StatusNotFound
	case x.dir():
		return wire.StatusPermission
	case d.dropped:
		return wire.StatusNotFound
	case !d.dir():
		return wire.StatusNotDir
	case d.names[name] != nil:
		return wire.StatusExist
	}
	d.names[name] = x
	x.nlink++
	return wire.StatusOK
}

func (m *model) unlink(d *thing, name string, rmdir bool) wire.Status {
	switch {
	case d.dropped:
		return wire.StatusNotFound
	case !d.dir():
		return wire.StatusNotDir
	case d.names[name] == nil:
		return wire.StatusNotFound
	}
	x := d.names[name]
	switch {
	case x.dir() && !rmdir:
		return wire.StatusIsDir
	case !x.dir() && rmdir:
		return wire.StatusNotDir
	case x.dir() && len(x.names) > 0:
		return wire.StatusNotEmpty
	}
	m.remove(d, name)
	return wire.StatusOK
}

func (m *model) remove(d *thing, name string) {
	x := d.names[name]
	delete(d.names, name)
	x.nlink--
	if x.dir() {
		x.nlink = 0
		d.nlink--
	}
	x.release()
}

func (m *model) rename(d *thing, n string, nd *thing, nn string, flags RenameFlags) wire.Status {
	for _, x := range []*thing{d, nd} {
		switch {
		case x.dropped:
			return wire.StatusNotFound
		case !x.dir():
			return wire.StatusNotDir
		}
	}
	x, old := d.names[n], nd.names[nn]
	switch {
	case x == nil:
		return wire.StatusNotFound
	case x.dir() && nd != d && nd.below(x):
		return wire.StatusInvalid
	case flags == RenameExchange && old == nil:
		return wire.StatusNotFound
	case flags == RenameExchange && old == x:
		return wire.StatusOK
	case flags == RenameExchange && old.dir() && nd != d && d.below(old):
		return wire.StatusInvalid
	case flags == RenameExchange:
		d.names[n], nd.names[nn] = old, x
		for _, y := range []struct{ x, from, to *thing }{{x, d, nd}, {old, nd, d}} {
			if y.x.dir() {
				y.from.nlink--
				y.to.nlink++
				y.x.parent = y.to
			}
		}
		return wire.StatusOK
	case old != nil && flags == RenameNoReplace:
		return wire.StatusExist
	case old == x:
		return wire.StatusOK
	case old != nil && x.dir() && !old.dir():
		return wire.StatusNotDir
	case old != nil && !x.dir() && old.dir():
		return wire.StatusIsDir
	case old != nil && old.dir() && len(old.names) > 0:
		return wire.StatusNotEmpty
	}
	if old != nil {
		m.remove(nd, nn)
	}
	delete(d.names, n)
	nd.names[nn] = x
	if x.dir() {
		d.nlink--
		nd.nlink++
		x.parent = nd
	}
	return wire.StatusOK
}

// TestAgainstModel runs random commands on both, compares the answers, and now
// and then everything.
func TestAgainstModel(t *testing.T) {
	rnd := seeded(t)
	f := newFS(t)
	m := &model{root: &thing{ino: rfs.RootInode, typ: TypeDir, nlink: 2, names: map[string]*thing{}, xattrs: map[string]string{}}}
	m.root.parent = m.root
	m.all = []*thing{m.root}
	steps := 4000
	if testing.Short() {
		steps = 1000
	}
	for i := range steps {
		what, got, want := m.step(f, rnd)
		if got != want {
			t.Fatalf("step %d: %s: %v, the model says %v", i, what, got, want)
		}
		if i%200 == 199 {
			m.compare(f)
			f.check()
		}
	}
	m.compare(f)
}

// step does one random thing.
func (m *model) step(f *fs, rnd *rand.Rand) (what string, got, want wire.Status) {
	some := func() *thing { return m.all[max(rnd.IntN(len(m.all)), rnd.IntN(len(m.all)))] }
	dir := func() *thing {
		for range 10 {
			if x := some(); x.dir() && !x.dropped {
				return x
			}
		}
		return m.root
	}
	name := func() string { return fmt.Sprint("n", rnd.IntN(8)) }
	do := func(cmd *metapb.Command) *metapb.Response { return f.do(f.id, cmd) }
	d, n, nd, nn, x := dir(), name(), dir(), name(), some()
	if rnd.IntN(20) == 0 {
		d = some()
	}
	switch k := rnd.IntN(100); {
	case k < 35:
		typ := []uint32{TypeFile, TypeDir, TypeDir, TypeLink, TypeFIFO}[rnd.IntN(5)]
		y, st := m.make(d, n, typ)
		rep := do(&metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: uint64(d.ino), Name: []byte(n), Mode: typ, Target: []byte("to")}}})
		if st == wire.StatusOK {
			y.ino = rfs.InodeID(rep.GetAttr().GetInode())
			if typ == TypeLink {
				y.size = 2
			}
		}
		return fmt.Sprintf("mknod %o %v/%s", typ, d.ino, n), wire.Status(rep.GetStatus()), st
	case k < 45:
		rep := do(&metapb.Command{Op: &metapb.Command_Link{Link: &metapb.Link{Inode: uint64(x.ino), Parent: uint64(d.ino), Name: []byte(n)}}})
		return fmt.Sprintf("link %v %v/%s", x.ino, d.ino, n), wire.Status(rep.GetStatus()), m.link(x, d, n)
	case k < 60:
		rmdir := rnd.IntN(2) == 0
		rep := do(&metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: uint64(d.ino), Name: []byte(n), Dir: rmdir}}})
		return fmt.Sprintf("unlink %v %v/%s", rmdir, d.ino, n), wire.Status(rep.GetStatus()), m.unlink(d, n, rmdir)
	case k < 80:
		flags := []RenameFlags{0, 0, RenameNoReplace, RenameExchange}[rnd.IntN(4)]
		rep := do(&metapb.Command{Op: &metapb.Command_Rename{Rename: &metapb.Rename{
			Parent: uint64(d.ino), Name: []byte(n), NewParent: uint64(nd.ino), NewName: []byte(nn), Flags: uint32(flags),
		}}})
		return fmt.Sprintf("rename %d %v/%s %v/%s", flags, d.ino, n, nd.ino, nn), wire.Status(rep.GetStatus()), m.rename(d, n, nd, nn, flags)
	case k < 88:
		want = wire.StatusOK
		switch {
		case x.dropped:
			want = wire.StatusStale
		case x.dir():
			want = wire.StatusIsDir
		case x.typ != TypeFile:
			want = wire.StatusInvalid
		default:
			x.opens++
		}
		rep := do(&metapb.Command{Op: &metapb.Command_Open{Open: &metapb.Open{Inode: uint64(x.ino), Mode: uint32(OpenWrite)}}})
		return fmt.Sprintf("open %v", x.ino), wire.Status(rep.GetStatus()), want
	case k < 95:
		if x.opens > 0 {
			x.opens--
			x.release()
		}
		rep := do(&metapb.Command{Op: &metapb.Command_Close{Close: &metapb.Close{Files: []*metapb.CloseOne{{Inode: uint64(x.ino), Mode: uint32(OpenWrite)}}}}})
		return fmt.Sprintf("close %v", x.ino), wire.Status(rep.GetStatus()), wire.StatusOK
	default:
		want = wire.StatusOK
		if x.dropped {
			want = wire.StatusStale
		} else {
			x.xattrs[n] = nn
		}
		rep := do(&metapb.Command{Op: &metapb.Command_Setxattr{Setxattr: &metapb.Setxattr{Inode: uint64(x.ino), Name: []byte(n), Value: []byte(nn)}}})
		return fmt.Sprintf("setxattr %v", x.ino), wire.Status(rep.GetStatus()), want
	}
}

// compare compares every inode, directory and attribute.
func (m *model) compare(f *fs) {
	f.t.Helper()
	there := uint64(0)
	for _, x := range m.all {
		rep := f.query(&metapb.Query{Op: &metapb.Query_Getattr{Getattr: &metapb.Getattr{Inode: uint64(x.ino)}}})
		if x.dropped {
			f.want(rep, wire.StatusStale)
			continue
		}
		there++
		a := f.want(rep, wire.StatusOK).GetAttr()
		size := x.size + int64(len(x.names))
		if a.GetNlink() != uint32(x.nlink) || a.GetSize() != size || a.GetMode()&TypeMask != x.typ {
			f.t.Fatalf("inode %v: %v; the model has nlink %d, size %d, type %o", x.ino, a, x.nlink, size, x.typ)
		}
		m.compareXattrs(f, x)
		if x.dir() {
			m.compareDir(f, x, a)
		}
	}
	if f.s.counters.inodes != there {
		f.t.Fatalf("%d inodes are counted, the model has %d", f.s.counters.inodes, there)
	}
}

func (m *model) compareXattrs(f *fs, x *thing) {
	f.t.Helper()
	list := f.query(&metapb.Query{Op: &metapb.Query_Listxattr{Listxattr: &metapb.Listxattr{Inode: uint64(x.ino)}}})
	if got, want := fmt.Sprintf("%s", list.GetNames()), fmt.Sprint(slices.Sorted(maps.Keys(x.xattrs))); got != want {
		f.t.Fatalf("inode %v has attributes %s, want %s", x.ino, got, want)
	}
}

func (m *model) compareDir(f *fs, x *thing, a *metapb.Attr) {
	f.t.Helper()
	if a.GetParent() != uint64(x.parent.ino) {
		f.t.Fatalf("directory %v: parent %x, want %v", x.ino, a.GetParent(), x.parent.ino)
	}
	rep := f.query(&metapb.Query{Op: &metapb.Query_Readdir{Readdir: &metapb.Readdir{Inode: uint64(x.ino), Plus: true}}})
	if len(rep.GetEntries()) != len(x.names) {
		f.t.Fatalf("directory %v has %d entries, want %d", x.ino, len(rep.GetEntries()), len(x.names))
	}
	for _, e := range rep.GetEntries() {
		y := x.names[string(e.GetName())]
		if y == nil || y.ino != rfs.InodeID(e.GetInode()) || e.GetType() != y.typ || e.GetAttr().GetInode() != e.GetInode() {
			f.t.Fatalf("directory %v: entry %v, want %+v", x.ino, e, y)
		}
	}
}
