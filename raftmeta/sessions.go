package raftmeta

import (
	"encoding/binary"
	"maps"
	"slices"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// Commands on sessions and what they have open.
//
// A session's cache mode of a file is state: it is what the session was last
// granted, or acknowledged to have come down to. A file's openers may have:
//
//	one session                    read-write if it has the file open for writing, else read
//	more, none of them writing     read
//	more, some of them writing     none
//
// An Open takes effect at once; the sessions that then have more than they may
// are recalled by the leader, whoever it is, before the Open is answered.

func (s *state) openSession(t *tx, nonce uint64, op *metapb.OpenSession) *metapb.Response {
	id := s.counters.nextSession
	if id == 0 {
		return refuse(wire.StatusNoSpace, "session numbers are used up")
	}
	s.counters.nextSession++
	l := &live{nonce: nonce, name: op.GetName(), opens: map[rfs.InodeID]struct{}{}}
	s.sessions[rfs.SessionID(id)] = l
	t.set(keyOf(t.half, kSession).u32(id), l.encode())
	return &metapb.Response{Session: id}
}

// endSessions ends those of the sessions that have not: their files are closed,
// their locks go. One that did not end them itself may have written more of a
// file than it said: the size is recovered.
func (s *state) endSessions(t *tx, op *metapb.EndSession) *metapb.Response {
	for _, id := range op.GetSessions() {
		if l := s.sessions[rfs.SessionID(id)]; l != nil {
			s.endSession(t, rfs.SessionID(id), l, op.GetExpired())
		}
	}
	return &metapb.Response{}
}

func (s *state) endSession(t *tx, id rfs.SessionID, l *live, expired bool) {
	for _, ino := range slices.Sorted(maps.Keys(l.opens)) {
		o := s.opens[ino][id]
		if n := t.readNode(ino); expired && o.writers > 0 && n != nil && n.Nlink > 0 {
			s.addRecover(t, n)
		}
		o.readers, o.writers = 0, 0
		s.closed(t, id, ino, o)
	}
	for _, ino := range slices.Sorted(maps.Keys(s.locks)) {
		s.unlockSession(t, id, ino)
	}
	delete(s.sessions, id)
	t.del(keyOf(t.half, kSession).u32(uint32(id)))
	if a := s.askers[l.nonce]; a != nil && a.session == id {
		a.session = 0
		t.dirty[l.nonce] = struct{}{}
	}
	n := s.counters.nextEnded
	s.counters.nextEnded++
	s.ended[n] = id
	t.set(keyOf(t.half, kEnded).u32(n), binary.BigEndian.AppendUint32(nil, uint32(id)))
	if n > maxEnded {
		delete(s.ended, n-maxEnded)
		t.del(keyOf(t.half, kEnded).u32(n - maxEnded))
	}
	t.effects.ended = append(t.effects.ended, id)
}

func (s *state) addOpen(ino rfs.InodeID, id rfs.SessionID, o *open) {
	if s.opens[ino] == nil {
		s.opens[ino] = map[rfs.SessionID]*open{}
	}
	s.opens[ino][id] = o
	if l := s.sessions[id]; l != nil {
		l.opens[ino] = struct{}{}
	}
}

func openKey(half byte, ino rfs.InodeID, id rfs.SessionID) key {
	return keyOf(half, kOpen).ino(ino).u32(uint32(id))
}

// allowed returns what a session may cache of a file.
func (s *state) allowed(ino rfs.InodeID, id rfs.SessionID) CacheMode {
	openers := s.opens[ino]
	writers := false
	for _, o := range openers {
		writers = writers || o.writers > 0
	}
	switch {
	case !writers:
		return CacheRead
	case len(openers) == 1 && openers[id] != nil:
		return CacheReadWrite
	}
	return CacheNone
}

// recalls returns the openers that have more than they may, but for the session id.
func (s *state) recalls(ino rfs.InodeID, id rfs.SessionID) (out map[rfs.SessionID]CacheMode) {
	for other, o := range s.opens[ino] {
		if may := s.allowed(ino, other); other != id && o.cache > may {
			if out == nil {
				out = map[rfs.SessionID]CacheMode{}
			}
			out[other] = may
		}
	}
	return out
}

func (s *state) open(t *tx, id rfs.SessionID, op *metapb.Open) *metapb.Response {
	n := t.readNode(rfs.InodeID(op.GetInode()))
	mode := OpenMode(op.GetMode())
	switch {
	case n == nil:
		return no(wire.StatusStale)
	case n.IsDir():
		return no(wire.StatusIsDir)
	case !n.IsRegular() || mode == 0 || mode&^(OpenRead|OpenWrite) != 0 || id == 0:
		return no(wire.StatusInvalid)
	}
	if mode&OpenWrite != 0 && !n.written {
		n.written = true
		t.set(keyOf(t.half, kInode).ino(n.Inode), n.encode()) // no change that anyone sees
	}
	rep := &metapb.Response{Open: &metapb.OpenResult{}}
	s.addOpener(t, id, n.Inode, mode, rep.Open)
	rep.Attr = attrToPB(&n.Attr)
	return rep
}

// addOpener records one more opening of the file.
func (s *state) addOpener(t *tx, id rfs.SessionID, ino rfs.InodeID, mode OpenMode, res *metapb.OpenResult) {
	o := s.opens[ino][id]
	if o == nil {
		o = &open{}
		s.addOpen(ino, id, o)
	}
	if mode&OpenRead != 0 {
		o.readers++
	}
	if mode&OpenWrite != 0 {
		o.writers++
	}
	o.cache, o.grant = s.allowed(ino, id), t.index
	t.set(openKey(t.half, ino, id), o.encode())
	res.Cache, res.Grant = uint32(o.cache), o.grant
	t.effects.opens = append(t.effects.opens, ino)
}

func (s *state) close(t *tx, id rfs.SessionID, op *metapb.Close) *metapb.Response {
	for _, f := range op.GetFiles() {
		ino := rfs.InodeID(f.GetInode())
		o := s.opens[ino][id]
		if o == nil {
			continue // closed already: the session's record was dropped with the file
		}
		n := max(f.GetCount(), 1)
		if OpenMode(f.GetMode())&OpenRead != 0 {
			o.readers -= min(n, o.readers)
		}
		if OpenMode(f.GetMode())&OpenWrite != 0 {
			o.writers -= min(n, o.writers)
		}
		s.closed(t, id, ino, o)
	}
	return &metapb.Response{}
}

// closed stores what is left of an open. With the last of a file without name, the file goes.
func (s *state) closed(t *tx, id rfs.SessionID, ino rfs.InodeID, o *open) {
	t.effects.opens = append(t.effects.opens, ino)
	if o.readers+o.writers > 0 {
		if o.writers == 0 {
			o.cache = min(o.cache, CacheRead)
		}
		t.set(openKey(t.half, ino, id), o.encode())
		return
	}
	t.del(openKey(t.half, ino, id))
	delete(s.opens[ino], id)
	if l := s.sessions[id]; l != nil {
		delete(l.opens, ino)
	}
	if len(s.opens[ino]) > 0 {
		return
	}
	delete(s.opens, ino)
	if n := t.readNode(ino); n != nil && n.Nlink == 0 {
		s.dropNode(t, n)
	}
}

// recallDone lowers what a session caches, unless it was granted anew since.
func (s *state) recallDone(t *tx, id rfs.SessionID, op *metapb.RecallDone) *metapb.Response {
	ino := rfs.InodeID(op.GetInode())
	o := s.opens[ino][id]
	if o == nil || o.grant > op.GetAt() {
		return &metapb.Response{}
	}
	o.cache = min(o.cache, CacheMode(op.GetMode()))
	t.set(openKey(t.half, ino, id), o.encode())
	t.effects.opens = append(t.effects.opens, ino)
	return &metapb.Response{}
}

func (s *state) addRecover(t *tx, n *node) {
	e := enc{}
	e.layout(n.Layout)
	s.recover[n.Inode] = n.Layout
	t.set(keyOf(t.half, kRecover).ino(n.Inode), e)
	t.effects.queued = true
}

func (s *state) dropRecover(t *tx, ino rfs.InodeID) {
	if _, ok := s.recover[ino]; ok {
		delete(s.recover, ino)
		t.del(keyOf(t.half, kRecover).ino(ino))
		t.effects.opens = append(t.effects.opens, ino)
	}
}

// recovered ends the recovery of a file's size, which the targets know.
func (s *state) recovered(t *tx, op *metapb.Recovered) *metapb.Response {
	n := t.readNode(rfs.InodeID(op.GetInode()))
	s.dropRecover(t, rfs.InodeID(op.GetInode()))
	if n != nil && op.GetSize() > n.Size {
		n.Size = op.GetSize()
		t.putNode(n)
	}
	return &metapb.Response{}
}

// purged moves targets' cursors through the queue, and drops what all have passed.
func (s *state) purged(t *tx, op *metapb.Purged) *metapb.Response {
	for _, c := range op.GetCursors() {
		id := uuidFrom(c.GetTarget())
		if s.cmap.Target(id) == nil || c.GetSeq() <= s.cursors[id] {
			continue
		}
		s.cursors[id] = c.GetSeq()
		t.set(keyOf(t.half, kCursor).bytes(id[:]), binary.BigEndian.AppendUint64(nil, c.GetSeq()))
	}
	s.dropPurged(t)
	return &metapb.Response{}
}

// dropPurged drops the queued inodes that every target of the map has passed.
func (s *state) dropPurged(t *tx) {
	if len(s.cmap.Targets) == 0 {
		return
	}
	passed := s.counters.nextPurge
	for i := range s.cmap.Targets {
		passed = min(passed, s.cursors[s.cmap.Targets[i].ID])
	}
	prefix := keyOf(t.half, kPurge)
	t.fail(t.scan(prefix, nil, func(k, _ []byte) (bool, error) {
		n := binary.BigEndian.Uint64(k)
		if n > passed {
			return false, nil
		}
		t.del(keyOf(t.half, kPurge).u64(n))
		s.purges--
		return true, nil
	}))
}
