package raftmeta

import (
	"bytes"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// Commands on names. Each checks everything before it changes anything.

// checkName refuses what cannot be the name of a new entry.
func checkName(n []byte) wire.Status {
	switch {
	case len(n) > rfs.MaxName:
		return wire.StatusNameTooLong
	case len(n) == 0 || string(n) == "." || string(n) == ".." || bytes.ContainsAny(n, "/\x00"):
		return wire.StatusInvalid
	}
	return wire.StatusOK
}

// readDir returns a directory, or why the inode is not one.
func (t *tx) readDir(ino rfs.InodeID) (*node, wire.Status) {
	n := t.readNode(ino)
	switch {
	case n == nil:
		return nil, wire.StatusNotFound
	case !n.IsDir():
		return nil, wire.StatusNotDir
	}
	return n, wire.StatusOK
}

// vacant returns the directory and the free place for a new name in it.
func (t *tx) vacant(dir uint64, name []byte) (*node, place, wire.Status) {
	if st := checkName(name); st != wire.StatusOK {
		return nil, place{}, st
	}
	d, st := t.readDir(rfs.InodeID(dir))
	if st != wire.StatusOK {
		return nil, place{}, st
	}
	p := t.findEntry(d.Inode, name)
	switch {
	case p.ent.typ != 0:
		return d, p, wire.StatusExist
	case p.cookie == 0 && p.held == 0:
		return d, p, wire.StatusNoSpace // 256 names of one hash
	}
	return d, p, wire.StatusOK
}

// putEntry writes an entry into its place, or the held one before it.
func (t *tx) putEntry(dir rfs.InodeID, p place, name []byte, n *node) {
	at := p.cookie
	if p.ent.typ == 0 && p.held != 0 {
		at = p.held
	}
	x := dirent{typ: uint8(n.Type() >> 12), inode: n.Inode, name: name}
	t.set(keyOf(t.half, kEntry).ino(dir).u64(at), x.encode())
}

// delEntry removes an entry. If a higher place of its hash is taken, this one
// is held; else the held ones just below go too.
func (t *tx) delEntry(dir rfs.InodeID, p place) {
	at := func(cookie uint64) key { return keyOf(t.half, kEntry).ino(dir).u64(cookie) }
	if (p.cookie+1)%cookieNumbers != 0 && t.read(at(p.cookie+1)) != nil {
		t.set(at(p.cookie), (&dirent{}).encode())
		return
	}
	for c := p.cookie; ; c-- {
		t.del(at(c))
		if c%cookieNumbers == 0 {
			return
		}
		x, err := decodeDirent(t.read(at(c - 1)))
		if err != nil || x.typ != 0 {
			t.fail(err)
			return
		}
	}
}

// touchDir stores a directory whose entries changed by that many.
func (t *tx) touchDir(d *node, entries int64) {
	d.Size += entries
	d.Mtime, d.Ctime = t.now, t.now
	t.putNode(d)
}

// newNode returns an inode made in dir. Directories with the set-group-ID bit
// give their group on, and the bit to directories.
func (s *state) newNode(t *tx, dir *node, mode, uid, gid uint32) *node {
	n := &node{Attr: Attr{
		Inode: rfs.InodeID(s.counters.nextInode), Mode: mode, Nlink: 1, UID: uid, GID: gid,
		Atime: t.now, Mtime: t.now, Ctime: t.now, Btime: t.now,
	}}
	s.counters.nextInode++
	s.counters.inodes++
	const setgid = 0o2000
	if dir.Mode&setgid != 0 {
		n.GID = dir.GID
		if n.IsDir() {
			n.Mode |= setgid
		}
	}
	if n.IsDir() {
		n.Nlink, n.Parent = 2, dir.Inode
		n.Layout.Pool = dir.Layout.Pool
	}
	return n
}

// layoutFor chooses where a new file of dir begins.
func (s *state) layoutFor(dir *node, pick uint64) (rfs.Layout, *metapb.Response) {
	p := s.cmap.Pool(dir.Layout.Pool)
	if p == nil {
		return rfs.Layout{}, refuse(wire.StatusNoSpace, "there is no pool %d to put files in: make one (rfs pool create)", dir.Layout.Pool)
	}
	rand := func() uint64 { // splitmix64
		pick += 0x9e3779b97f4a7c15
		z := (pick ^ pick>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	return p.Layout(placement.ChooseStart(s.cmap, p, rand)), nil
}

func (s *state) create(t *tx, id rfs.SessionID, op *metapb.Create, pick uint64) *metapb.Response {
	if op.GetOpen() != 0 && id == 0 {
		return refuse(wire.StatusInvalid, "only a session can open files")
	}
	if len(op.GetName()) == 0 {
		return s.createUnnamed(t, id, op, pick)
	}
	d, p, st := t.vacant(op.GetParent(), op.GetName())
	if st == wire.StatusExist && !op.GetExcl() {
		return s.createExisting(t, id, op, p)
	}
	if st != wire.StatusOK {
		return no(st)
	}
	l, refusal := s.layoutFor(d, pick)
	if refusal != nil {
		return refusal
	}
	n := s.newNode(t, d, TypeFile|op.GetMode()&^TypeMask, op.GetUid(), op.GetGid())
	n.Layout = l
	n.written = OpenMode(op.GetOpen())&OpenWrite != 0
	t.putNode(n)
	t.putEntry(d.Inode, p, op.GetName(), n)
	t.touchDir(d, 1)
	rep := &metapb.Response{Attr: attrToPB(&n.Attr), Open: &metapb.OpenResult{Created: true}}
	if op.GetOpen() != 0 {
		s.addOpener(t, id, n.Inode, OpenMode(op.GetOpen()), rep.Open)
	}
	return rep
}

// createUnnamed makes a file without name, open, that may get one by link.
func (s *state) createUnnamed(t *tx, id rfs.SessionID, op *metapb.Create, pick uint64) *metapb.Response {
	d, st := t.readDir(rfs.InodeID(op.GetParent()))
	switch {
	case st != wire.StatusOK:
		return no(st)
	case op.GetOpen() == 0:
		return refuse(wire.StatusInvalid, "a file without name is gone when it is not open")
	}
	l, refusal := s.layoutFor(d, pick)
	if refusal != nil {
		return refusal
	}
	n := s.newNode(t, d, TypeFile|op.GetMode()&^TypeMask, op.GetUid(), op.GetGid())
	n.Layout, n.Nlink, n.unnamed = l, 0, true
	n.written = OpenMode(op.GetOpen())&OpenWrite != 0
	t.putNode(n)
	rep := &metapb.Response{Attr: attrToPB(&n.Attr), Open: &metapb.OpenResult{Created: true}}
	s.addOpener(t, id, n.Inode, OpenMode(op.GetOpen()), rep.Open)
	return rep
}

// createExisting is create of a name that is there: it opens the file.
func (s *state) createExisting(t *tx, id rfs.SessionID, op *metapb.Create, p place) *metapb.Response {
	switch uint32(p.ent.typ) << 12 {
	case TypeFile:
	case TypeDir:
		return no(wire.StatusIsDir)
	default:
		return no(wire.StatusExist)
	}
	if op.GetOpen() == 0 {
		n := t.readNode(p.ent.inode)
		if n == nil {
			return no(wire.StatusStale)
		}
		return &metapb.Response{Attr: attrToPB(&n.Attr), Open: &metapb.OpenResult{}}
	}
	return s.open(t, id, &metapb.Open{Inode: uint64(p.ent.inode), Mode: op.GetOpen()})
}

func (s *state) mknod(t *tx, op *metapb.Mknod, pick uint64) *metapb.Response {
	d, p, st := t.vacant(op.GetParent(), op.GetName())
	if st != wire.StatusOK {
		return no(st)
	}
	var l rfs.Layout
	switch op.GetMode() & TypeMask {
	case TypeDir:
		if d.Nlink >= MaxLinks {
			return no(wire.StatusTooManyLinks)
		}
	case TypeFile:
		var refusal *metapb.Response
		if l, refusal = s.layoutFor(d, pick); refusal != nil {
			return refusal
		}
	case TypeLink:
		if len(op.GetTarget()) == 0 || bytes.IndexByte(op.GetTarget(), 0) >= 0 {
			return no(wire.StatusInvalid)
		}
		if len(op.GetTarget()) > MaxTarget {
			return no(wire.StatusNameTooLong)
		}
	case TypeSocket, TypeBlock, TypeChar, TypeFIFO:
	default:
		return refuse(wire.StatusInvalid, "mode %o has no file type", op.GetMode())
	}
	n := s.newNode(t, d, op.GetMode(), op.GetUid(), op.GetGid())
	n.Rdev = op.GetRdev()
	switch n.Type() {
	case TypeFile:
		n.Layout = l
	case TypeLink:
		n.target = string(op.GetTarget())
		n.Size = int64(len(n.target))
	case TypeDir:
		d.Nlink++
	}
	t.putNode(n)
	t.putEntry(d.Inode, p, op.GetName(), n)
	t.touchDir(d, 1)
	return &metapb.Response{Attr: attrToPB(&n.Attr)}
}

func (s *state) link(t *tx, op *metapb.Link) *metapb.Response {
	n := t.readNode(rfs.InodeID(op.GetInode()))
	switch {
	case n == nil || n.Nlink == 0 && !n.unnamed:
		return no(wire.StatusNotFound)
	case n.IsDir():
		return no(wire.StatusPermission)
	case n.Nlink >= MaxLinks:
		return no(wire.StatusTooManyLinks)
	}
	d, p, st := t.vacant(op.GetParent(), op.GetName())
	if st != wire.StatusOK {
		return no(st)
	}
	n.Nlink++
	n.unnamed = false
	n.Ctime = t.now
	t.putNode(n)
	t.putEntry(d.Inode, p, op.GetName(), n)
	t.touchDir(d, 1)
	return &metapb.Response{Attr: attrToPB(&n.Attr)}
}

func (s *state) unlink(t *tx, op *metapb.Unlink) *metapb.Response {
	d, st := t.readDir(rfs.InodeID(op.GetParent()))
	if st != wire.StatusOK {
		return no(st)
	}
	p := t.findEntry(d.Inode, op.GetName())
	if p.ent.typ == 0 {
		return no(wire.StatusNotFound)
	}
	n := t.readNode(p.ent.inode)
	switch {
	case n == nil:
		return refuse(wire.StatusInternal, "entry %q of %v names inode %v, which is not there", op.GetName(), d.Inode, p.ent.inode)
	case n.IsDir() && !op.GetDir():
		return no(wire.StatusIsDir)
	case !n.IsDir() && op.GetDir():
		return no(wire.StatusNotDir)
	case n.IsDir() && n.Size > 0:
		return no(wire.StatusNotEmpty)
	}
	if n.IsDir() {
		d.Nlink--
	}
	t.delEntry(d.Inode, p)
	t.touchDir(d, -1)
	s.dropLink(t, n)
	return &metapb.Response{Attr: attrToPB(&n.Attr)}
}

// dropLink takes a name off n. Without any, n goes, unless it is open.
func (s *state) dropLink(t *tx, n *node) {
	n.Nlink--
	if n.IsDir() {
		n.Nlink = 0
	}
	n.Ctime = t.now
	if n.Nlink == 0 && len(s.opens[n.Inode]) == 0 {
		s.dropNode(t, n)
		return
	}
	t.putNode(n)
}

// dropNode removes an inode that has no name and is not open, and queues its
// shards for deletion, if there can be any.
func (s *state) dropNode(t *tx, n *node) {
	ino := n.Inode
	t.del(keyOf(t.half, kInode).ino(ino))
	s.counters.inodes--
	prefix := keyOf(t.half, kXattr).ino(ino)
	t.fail(t.scan(prefix, nil, func(k, _ []byte) (bool, error) {
		t.del(keyOf(t.half, kXattr).bytes(k))
		return true, nil
	}))
	for _, tr := range n.Trims {
		t.del(keyOf(t.half, kTrim).ino(ino).tag(tr.Tag))
	}
	s.dropRecover(t, ino)
	s.dropLocks(t, ino)
	if n.IsRegular() && n.written {
		q := &purge{inode: ino, layout: n.Layout}
		t.set(keyOf(t.half, kPurge).u64(s.counters.nextPurge), q.encode())
		s.counters.nextPurge++
		s.purges++
		t.effects.queued = true
	}
}

// within reports whether dir is the directory ino or below it.
func (t *tx) within(dir *node, ino rfs.InodeID) bool {
	for n := dir; n != nil; n = t.readNode(n.Parent) {
		if n.Inode == ino {
			return true
		}
		if n.Inode == rfs.RootInode {
			return false
		}
	}
	return false
}

func (s *state) rename(t *tx, id rfs.SessionID, op *metapb.Rename) *metapb.Response {
	flags := RenameFlags(op.GetFlags()) &^ renameHold
	if flags&^(RenameNoReplace|RenameExchange) != 0 || flags == RenameNoReplace|RenameExchange {
		return no(wire.StatusInvalid)
	}
	if st := checkName(op.GetNewName()); st != wire.StatusOK {
		return no(st)
	}
	d, st := t.readDir(rfs.InodeID(op.GetParent()))
	if st != wire.StatusOK {
		return no(st)
	}
	nd := d
	if op.GetNewParent() != op.GetParent() {
		if nd, st = t.readDir(rfs.InodeID(op.GetNewParent())); st != wire.StatusOK {
			return no(st)
		}
	}
	from, to := t.findEntry(d.Inode, op.GetName()), t.findEntry(nd.Inode, op.GetNewName())
	if from.ent.typ == 0 {
		return no(wire.StatusNotFound)
	}
	n := t.readNode(from.ent.inode)
	if n == nil {
		return refuse(wire.StatusInternal, "entry %q of %v names inode %v, which is not there", op.GetName(), d.Inode, from.ent.inode)
	}
	var old *node
	if to.ent.typ != 0 {
		if old = t.readNode(to.ent.inode); old == nil {
			return refuse(wire.StatusInternal, "entry %q of %v names inode %v, which is not there", op.GetNewName(), nd.Inode, to.ent.inode)
		}
	}
	if n.IsDir() && d != nd && t.within(nd, n.Inode) {
		return no(wire.StatusInvalid)
	}
	if flags == RenameExchange {
		return s.exchange(t, d, nd, n, old, from, to)
	}
	return s.move(t, id, d, nd, n, old, from, to, op)
}

// exchange swaps what two entries name.
func (s *state) exchange(t *tx, d, nd, n, old *node, from, to place) *metapb.Response {
	switch {
	case old == nil:
		return no(wire.StatusNotFound)
	case old.Inode == n.Inode:
		return &metapb.Response{}
	case old.IsDir() && d != nd && t.within(d, old.Inode):
		return no(wire.StatusInvalid)
	}
	if d != nd {
		reparent(n, d, nd)
		reparent(old, nd, d)
	}
	n.Ctime, old.Ctime = t.now, t.now
	t.putNode(n)
	t.putNode(old)
	t.putEntry(d.Inode, from, from.ent.name, old)
	t.putEntry(nd.Inode, to, to.ent.name, n)
	s.touchBoth(t, d, nd, 0, 0)
	return &metapb.Response{}
}

// reparent moves the link that a directory's ".." is.
func reparent(n, from, to *node) {
	if n.IsDir() {
		from.Nlink--
		to.Nlink++
		n.Parent = to.Inode
	}
}

func (s *state) touchBoth(t *tx, d, nd *node, gone, come int64) {
	if d == nd {
		t.touchDir(d, gone+come)
		return
	}
	t.touchDir(d, gone)
	t.touchDir(nd, come)
}

// move gives n the new name; what had it goes, or is held open for the session that asks for it.
func (s *state) move(t *tx, id rfs.SessionID, d, nd, n, old *node, from, to place, op *metapb.Rename) *metapb.Response {
	flags := RenameFlags(op.GetFlags())
	switch {
	case old == nil && to.cookie == 0 && to.held == 0:
		return no(wire.StatusNoSpace)
	case old == nil && n.IsDir() && d != nd && nd.Nlink >= MaxLinks:
		return no(wire.StatusTooManyLinks)
	case old == nil:
	case flags&RenameNoReplace != 0:
		return no(wire.StatusExist)
	case old.Inode == n.Inode:
		return &metapb.Response{} // two names of one inode: POSIX says that both stay
	case n.IsDir() && !old.IsDir():
		return no(wire.StatusNotDir)
	case !n.IsDir() && old.IsDir():
		return no(wire.StatusIsDir)
	case old.IsDir() && old.Size > 0:
		return no(wire.StatusNotEmpty)
	}
	if d != nd {
		reparent(n, d, nd)
	}
	n.Ctime = t.now
	t.putNode(n)
	t.putEntry(nd.Inode, to, op.GetNewName(), n)
	t.delEntry(d.Inode, from)
	come, rep := int64(1), &metapb.Response{}
	if old != nil {
		come = 0
		if old.IsDir() {
			nd.Nlink--
		}
		if flags&renameHold != 0 && id != 0 && old.IsRegular() && old.Nlink == 1 && len(s.opens[old.Inode]) == 0 {
			rep.Attr, rep.Open = attrToPB(&old.Attr), &metapb.OpenResult{}
			s.addOpener(t, id, old.Inode, OpenRead, rep.Open)
		}
		s.dropLink(t, old)
	}
	s.touchBoth(t, d, nd, -1, come)
	return rep
}

func (s *state) setattr(t *tx, id rfs.SessionID, op *metapb.Setattr) *metapb.Response {
	n := t.readNode(rfs.InodeID(op.GetInode()))
	if n == nil {
		return no(wire.StatusStale)
	}
	if op.Size != nil {
		switch {
		case n.IsDir():
			return no(wire.StatusIsDir)
		case !n.IsRegular() || op.GetSize() < 0:
			return no(wire.StatusInvalid)
		case op.GetTag() != nil && len(n.Trims) >= maxTrims:
			return refuse(wire.StatusNoSpace, "%d truncations of the file are under way: have they been carried out?", len(n.Trims))
		}
	}
	n.Ctime = t.now
	if op.Size != nil {
		s.resize(t, id, n, op.GetSize(), tagFromPB(op.GetTag()))
	}
	if op.Mode != nil {
		n.Mode = n.Type() | op.GetMode()&^TypeMask
	}
	if op.Uid != nil {
		n.UID = op.GetUid()
	}
	if op.Gid != nil {
		n.GID = op.GetGid()
	}
	if op.Atime != nil {
		n.Atime = op.GetAtime()
	}
	if op.Mtime != nil {
		n.Mtime = op.GetMtime()
	}
	if op.Ctime != nil {
		n.Ctime = op.GetCtime()
	}
	t.putNode(n)
	return &metapb.Response{Attr: attrToPB(&n.Attr)}
}

// maxTrims bounds the truncations of a file that are under way. Clients finish
// them before they write beyond one, so that more than a few are never needed.
const maxTrims = 256

// resize sets the size. A truncation with a tag is recorded until the targets
// have dropped what is past it; it takes over from those of larger sizes.
func (s *state) resize(t *tx, id rfs.SessionID, n *node, size int64, tag rfs.Tag) {
	n.Mtime = t.now
	n.Size = size
	if tag.IsZero() {
		return
	}
	kept := n.Trims[:0]
	for _, tr := range n.Trims {
		if tr.Size >= size && tr.Tag.Less(tag) || tr.Tag == tag {
			t.del(keyOf(t.half, kTrim).ino(n.Inode).tag(tr.Tag))
			continue
		}
		kept = append(kept, tr)
	}
	n.Trims = append(kept, Trim{Size: size, Tag: tag})
	q := &trimming{session: id, size: size, layout: n.Layout}
	t.set(keyOf(t.half, kTrim).ino(n.Inode).tag(tag), q.encode())
}

func (s *state) trimDone(t *tx, op *metapb.TrimDone) *metapb.Response {
	n, tag := t.readNode(rfs.InodeID(op.GetInode())), tagFromPB(op.GetTag())
	if n == nil {
		return no(wire.StatusStale)
	}
	for i, tr := range n.Trims {
		if tr.Tag == tag {
			n.Trims = append(n.Trims[:i], n.Trims[i+1:]...)
			t.del(keyOf(t.half, kTrim).ino(n.Inode).tag(tag))
			t.putNode(n)
			break
		}
	}
	return &metapb.Response{}
}

// trimSwept says that the cleaner sent the TRIM: what is left is the punch.
func (s *state) trimSwept(t *tx, op *metapb.TrimSwept) *metapb.Response {
	n, tag := t.readNode(rfs.InodeID(op.GetInode())), tagFromPB(op.GetTag())
	t.del(keyOf(t.half, kTrim).ino(rfs.InodeID(op.GetInode())).tag(tag))
	if n == nil {
		return &metapb.Response{}
	}
	for i := range n.Trims {
		if n.Trims[i].Tag == tag {
			n.Trims[i].Swept = true
			t.putNode(n)
		}
	}
	return &metapb.Response{}
}

func (s *state) commitSize(t *tx, op *metapb.Commit) *metapb.Response {
	n := t.readNode(rfs.InodeID(op.GetInode()))
	switch {
	case n == nil:
		return no(wire.StatusStale)
	case !n.IsRegular() || op.GetSize() < 0:
		return no(wire.StatusInvalid)
	}
	size := op.GetSize()
	if !op.GetExact() {
		size = max(size, n.Size)
	}
	changed := size != n.Size
	n.Size = size
	if m := op.GetMtime(); m != 0 && m != n.Mtime {
		n.Mtime, changed = m, true
	}
	if a := op.GetAtime(); a != 0 {
		n.Atime = a
	}
	if changed {
		n.Ctime = max(n.Ctime, n.Mtime)
	}
	t.putNode(n)
	return &metapb.Response{Attr: attrToPB(&n.Attr)}
}

func (s *state) reserveAppend(t *tx, op *metapb.ReserveAppend) *metapb.Response {
	n := t.readNode(rfs.InodeID(op.GetInode()))
	switch {
	case n == nil:
		return no(wire.StatusStale)
	case !n.IsRegular() || op.GetN() < 0:
		return no(wire.StatusInvalid)
	case op.GetN() > MaxFileSize-n.Size:
		return no(wire.StatusFileTooBig)
	}
	off := n.Size
	n.Size += op.GetN()
	n.Mtime, n.Ctime = t.now, t.now
	t.putNode(n)
	return &metapb.Response{Offset: off}
}

func (s *state) setxattr(t *tx, op *metapb.Setxattr) *metapb.Response {
	ino, name, flags := rfs.InodeID(op.GetInode()), op.GetName(), XattrFlags(op.GetFlags())
	n := t.readNode(ino)
	switch {
	case n == nil:
		return no(wire.StatusStale)
	case len(name) == 0 || flags&^(XattrCreate|XattrReplace) != 0 || flags == XattrCreate|XattrReplace:
		return no(wire.StatusInvalid)
	case len(name) > rfs.MaxName:
		return no(wire.StatusNameTooLong)
	case len(op.GetValue()) > MaxXattr:
		return no(wire.StatusNoSpace)
	}
	k := keyOf(t.half, kXattr).ino(ino).bytes(name)
	there := t.read(k) != nil
	switch {
	case there && flags == XattrCreate:
		return no(wire.StatusExist)
	case !there && flags == XattrReplace:
		return no(wire.StatusNoAttr)
	}
	t.set(k, op.GetValue())
	n.Ctime = t.now
	t.putNode(n)
	return &metapb.Response{}
}

func (s *state) removexattr(t *tx, op *metapb.Removexattr) *metapb.Response {
	n := t.readNode(rfs.InodeID(op.GetInode()))
	if n == nil {
		return no(wire.StatusStale)
	}
	k := keyOf(t.half, kXattr).ino(n.Inode).bytes(op.GetName())
	if t.read(k) == nil {
		return no(wire.StatusNoAttr)
	}
	t.del(k)
	n.Ctime = t.now
	t.putNode(n)
	return &metapb.Response{}
}

func (s *state) setLayout(t *tx, op *metapb.SetLayout) *metapb.Response {
	d, st := t.readDir(rfs.InodeID(op.GetInode()))
	if st != wire.StatusOK {
		return no(st)
	}
	if s.cmap.Pool(rfs.PoolID(op.GetPool())) == nil {
		return refuse(wire.StatusNotFound, "there is no pool %d", op.GetPool())
	}
	d.Layout.Pool = rfs.PoolID(op.GetPool())
	d.Ctime = t.now
	t.putNode(d)
	return &metapb.Response{}
}
