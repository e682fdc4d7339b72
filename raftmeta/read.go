package raftmeta

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// Queries. They read a view; what they say of openers and locks is of the same
// moment or later.

// read answers a query that needs nothing but the state. An error is the disk's.
func (s *state) read(v view, id rfs.SessionID, q *metapb.Query) (*metapb.Response, error) {
	switch op := q.GetOp().(type) {
	case *metapb.Query_Lookup:
		return s.lookup(v, id, op.Lookup)
	case *metapb.Query_Getattr:
		return s.getattr(v, id, rfs.InodeID(op.Getattr.GetInode()))
	case *metapb.Query_Readdir:
		return s.readdir(v, id, op.Readdir)
	case *metapb.Query_Readlink:
		return readlink(v, rfs.InodeID(op.Readlink.GetInode()))
	case *metapb.Query_Getxattr:
		return getxattr(v, op.Getxattr)
	case *metapb.Query_Listxattr:
		return listxattr(v, rfs.InodeID(op.Listxattr.GetInode()))
	case *metapb.Query_TestLock:
		return s.testLock(id, op.TestLock), nil
	case *metapb.Query_Statfs:
		return s.statfs(), nil
	case *metapb.Query_Openers:
		return s.openers(rfs.InodeID(op.Openers.GetInode())), nil
	}
	return refuse(wire.StatusUnknownOp, "a query that this version does not know: upgrade this replica"), nil
}

// attr returns an inode's attributes as the session sees them.
func (s *state) attr(n *node, id rfs.SessionID) *metapb.Attr {
	a := attrToPB(&n.Attr)
	if !n.IsRegular() {
		return a
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for other, o := range s.opens[n.Inode] {
		if other != id && o.writers > 0 {
			a.Writers = true
		}
	}
	return a
}

func (s *state) getattr(v view, id rfs.SessionID, ino rfs.InodeID) (*metapb.Response, error) {
	n, err := v.node(ino)
	if n == nil || err != nil {
		return no(wire.StatusStale), err
	}
	return &metapb.Response{Attr: s.attr(n, id)}, nil
}

func (s *state) lookup(v view, id rfs.SessionID, op *metapb.Lookup) (*metapb.Response, error) {
	d, err := v.node(rfs.InodeID(op.GetParent()))
	switch {
	case err != nil:
		return nil, err
	case d == nil:
		return no(wire.StatusStale), nil
	case !d.IsDir():
		return no(wire.StatusNotDir), nil
	}
	ino := d.Inode
	switch string(op.GetName()) {
	case ".":
	case "..":
		ino = d.Parent
	default:
		p, err := v.find(d.Inode, op.GetName())
		if err != nil || p.ent.typ == 0 {
			return no(wire.StatusNotFound), err
		}
		ino = p.ent.inode
	}
	return s.getattr(v, id, ino)
}

// readdirDefault bounds the bytes of an answer whose asker gave no bound.
const readdirDefault = 64 << 10

func (s *state) readdir(v view, id rfs.SessionID, op *metapb.Readdir) (*metapb.Response, error) {
	d, err := v.node(rfs.InodeID(op.GetInode()))
	switch {
	case err != nil:
		return nil, err
	case d == nil:
		return no(wire.StatusStale), nil
	case !d.IsDir():
		return no(wire.StatusNotDir), nil
	}
	rep := &metapb.Response{Eof: true}
	room := int(cmp.Or(op.GetBytes(), readdirDefault))
	prefix := keyOf(v.half, kEntry).ino(d.Inode)
	start := keyOf(v.half, kEntry).ino(d.Inode).u64(op.GetCookie() + 1)
	err = v.scan(prefix, start, func(k, val []byte) (bool, error) {
		x, err := decodeDirent(val)
		if err != nil || x.typ == 0 {
			return true, err
		}
		e := &metapb.DirEntry{
			Name: slices.Clone(x.name), Inode: uint64(x.inode), Type: uint32(x.typ) << 12, Cookie: binary.BigEndian.Uint64(k[8:]),
		}
		if op.GetPlus() {
			n, err := v.node(x.inode)
			if n == nil || err != nil {
				return true, err
			}
			e.Attr = s.attr(n, id)
		}
		size := proto.Size(e) + 4
		if full := op.GetLimit() > 0 && len(rep.Entries) >= int(op.GetLimit()); full || room < size && len(rep.Entries) > 0 {
			rep.Eof = false
			return false, nil
		}
		room -= size
		rep.Entries = append(rep.Entries, e)
		return true, nil
	})
	return rep, err
}

func readlink(v view, ino rfs.InodeID) (*metapb.Response, error) {
	n, err := v.node(ino)
	switch {
	case err != nil:
		return nil, err
	case n == nil:
		return no(wire.StatusStale), nil
	case n.Type() != TypeLink:
		return no(wire.StatusInvalid), nil
	}
	return &metapb.Response{Value: []byte(n.target)}, nil
}

func getxattr(v view, op *metapb.Getxattr) (*metapb.Response, error) {
	val, err := v.get(keyOf(v.half, kXattr).u64(op.GetInode()).bytes(op.GetName()))
	if err != nil {
		return nil, err
	}
	if val != nil {
		return &metapb.Response{Value: val}, nil
	}
	n, err := v.node(rfs.InodeID(op.GetInode()))
	if n == nil {
		return no(wire.StatusStale), err
	}
	return no(wire.StatusNoAttr), err
}

func listxattr(v view, ino rfs.InodeID) (*metapb.Response, error) {
	n, err := v.node(ino)
	if n == nil || err != nil {
		return no(wire.StatusStale), err
	}
	rep := &metapb.Response{}
	err = v.scan(keyOf(v.half, kXattr).ino(ino), nil, func(k, _ []byte) (bool, error) {
		rep.Names = append(rep.Names, slices.Clone(k[8:]))
		return true, nil
	})
	return rep, err
}

func (s *state) testLock(id rfs.SessionID, op *metapb.TestLock) *metapb.Response {
	l, ok := lockOf(id, op.GetSpec())
	if !ok {
		return no(wire.StatusInvalid)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	rep := &metapb.Response{}
	if lt := s.locks[rfs.InodeID(op.GetInode())]; lt != nil && l.typ != Unlock {
		lt.blockers(&l, func(b *lock) bool {
			rep.Lock = lockToPB(LockSpec{
				Owner: b.who.owner, Flock: b.flock, Type: b.typ, Start: b.start, End: b.end, PID: b.pid, Session: b.who.session,
			})
			return false
		})
	}
	return rep
}

func (s *state) openers(ino rfs.InodeID) *metapb.Response {
	s.mu.RLock()
	defer s.mu.RUnlock()
	rep := &metapb.Response{}
	for _, id := range slices.Sorted(maps.Keys(s.opens[ino])) {
		o := s.opens[ino][id]
		rep.Openers = append(rep.Openers, &metapb.Opener{
			Session: uint32(id), Readers: o.readers, Writers: o.writers, Cache: uint32(o.cache), Grant: o.grant,
		})
	}
	return rep
}

// statfs adds up the targets. What files can still take is by the first pool's overhead.
func (s *state) statfs() *metapb.Response {
	s.mu.RLock()
	m, inodes := s.cmap, s.counters.inodes
	s.mu.RUnlock()
	f := &metapb.Statfs{Inodes: inodes}
	free := int64(0)
	for i := range m.Targets {
		t := &m.Targets[i]
		f.Capacity += t.Capacity
		f.Used += t.Used
		if t.State == placement.Up && !t.Draining {
			free += max(t.Capacity-t.Used, 0)
		}
	}
	if len(m.Pools) > 0 {
		k, w := int64(m.Pools[0].Scheme.K), int64(m.Pools[0].Scheme.Width())
		f.Usable, f.Free = f.Capacity/w*k, free/w*k
	}
	return &metapb.Response{Statfs: f}
}

// mapChunkOf returns a piece of the encoded map.
func (s *state) mapChunkOf(op *metapb.GetMap) *metapb.Response {
	s.mu.RLock()
	body, sum, epoch := s.mapBytes, s.mapSum, uint32(s.cmap.Epoch)
	s.mu.RUnlock()
	off := op.GetOffset()
	if op.GetOf() != sum || off > uint64(len(body)) {
		off = 0
	}
	end := min(off+mapChunk, uint64(len(body)))
	return &metapb.Response{Map: &metapb.MapChunk{Epoch: epoch, Sum: sum, Size: uint64(len(body)), Offset: off, Data: body[off:end]}}
}
