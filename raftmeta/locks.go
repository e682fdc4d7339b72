package raftmeta

import (
	"cmp"
	"encoding/binary"
	"slices"

	"google.golang.org/protobuf/proto"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// Locks of files: flock's and POSIX's, which do not see each other.
//
// What an owner holds of a file is in layers. At the bottom is what is settled.
// On it lie the claims, in the order in which they were granted: locks of
// which it is not known yet whether their asker heard of them. A claim that is
// taken is merged into the bottom; one that is given up is lifted off, and what
// was below it, from another request, is there again.
//
//	settled    [ read      ]        [ write ]
//	claim 1          [ write   ]                 granted at once to one who would wait:
//	claim 2             [ write ]                taken when the answer is acknowledged;
//	                                             granted after a wait: by Settle
//
// For others each layer counts, so that lifting one never makes a conflict.

// lockOwner is who locks.
type lockOwner struct {
	session rfs.SessionID
	owner   uint64
}

type span struct{ start, end uint64 } // inclusive

func (s span) overlaps(o span) bool { return s.start <= o.end && o.start <= s.end }

// minus returns what is left of s without o.
func (s span) minus(o span) (out []span) {
	if !s.overlaps(o) {
		return []span{s}
	}
	if s.start < o.start {
		out = append(out, span{s.start, o.start - 1})
	}
	if s.end > o.end {
		out = append(out, span{o.end + 1, s.end})
	}
	return out
}

// lock is a settled lock, or what is asked for.
type lock struct {
	span
	who   lockOwner
	flock bool
	typ   LockType
	pid   uint32
}

func (l *lock) same(o *lock) bool { return l.who == o.who && l.flock == o.flock }

// excludes reports whether l keeps o from being granted.
func (l *lock) excludes(o *lock) bool {
	return l.flock == o.flock && l.who != o.who && (l.typ == WriteLock || o.typ == WriteLock) && l.overlaps(o.span)
}

// waitKey names the request that asked for a lock.
type waitKey struct{ nonce, seq uint64 }

// wait is a request that waits, or was granted and is a claim.
type wait struct {
	key     waitKey
	want    lock
	granted bool
	atOnce  bool   // granted by its command, which has not been acknowledged
	spans   []span // of a claim: what of it later requests of the owner left
}

// lockTable has the locks of one file.
type lockTable struct {
	held  []lock // settled: sorted; those of one owner neither overlap nor touch
	waits []*wait
}

func lockOf(id rfs.SessionID, p *metapb.LockSpec) (lock, bool) {
	l := lock{
		span: span{p.GetStart(), p.GetEnd()}, who: lockOwner{id, p.GetOwner()},
		flock: p.GetFlock(), typ: LockType(p.GetType()), pid: p.GetPid(),
	}
	if l.flock {
		l.span = span{0, ^uint64(0)}
	}
	return l, l.start <= l.end && l.typ <= WriteLock
}

// blockers calls f with each lock that keeps l from being granted, until f returns false.
func (lt *lockTable) blockers(l *lock, f func(*lock) bool) {
	for i := range lt.held {
		if lt.held[i].excludes(l) && !f(&lt.held[i]) {
			return
		}
	}
	for _, w := range lt.waits {
		if !w.granted {
			continue
		}
		for _, s := range w.spans {
			c := w.want
			if c.span = s; c.excludes(l) && !f(&c) {
				return
			}
		}
	}
}

func (lt *lockTable) blocked(l *lock) bool {
	found := false
	lt.blockers(l, func(*lock) bool { found = true; return false })
	return found
}

// put makes l what its owner has settled of l's span (nothing, if l unlocks),
// and takes the span out of the owner's claims that lie below: all of them, or
// those before the one that l is of.
func (lt *lockTable) put(l lock, of *wait) {
	for _, w := range lt.waits {
		if w == of {
			break
		}
		if w.granted && w.want.same(&l) {
			var left []span
			for _, s := range w.spans {
				left = append(left, s.minus(l.span)...)
			}
			w.spans = left
		}
	}
	var next []lock
	for _, h := range lt.held {
		if !h.same(&l) {
			next = append(next, h)
			continue
		}
		for _, s := range h.minus(l.span) {
			c := h
			c.span = s
			next = append(next, c)
		}
	}
	if l.typ != Unlock {
		next = append(next, l)
	}
	lt.held = merged(next)
}

// merged sorts locks and joins those of one owner and type that touch.
func merged(ls []lock) []lock {
	slices.SortFunc(ls, func(a, b lock) int {
		return cmp.Or(cmp.Compare(bit(a.flock), bit(b.flock)), cmp.Compare(a.who.session, b.who.session),
			cmp.Compare(a.who.owner, b.who.owner), cmp.Compare(a.start, b.start))
	})
	out := ls[:0]
	for _, l := range ls {
		if n := len(out); n > 0 && out[n-1].same(&l) && out[n-1].typ == l.typ && out[n-1].end+1 == l.start {
			out[n-1].end = l.end
			continue
		}
		out = append(out, l)
	}
	return out
}

// settle ends a wait or a claim: taken, or given up.
func (lt *lockTable) settle(w *wait, taken bool) {
	if w.granted && taken {
		for _, s := range w.spans {
			l := w.want
			l.span = s
			lt.put(l, w)
		}
	}
	lt.waits = slices.DeleteFunc(lt.waits, func(x *wait) bool { return x == w })
}

// lowers reports whether l turns a write lock of its owner into a read lock.
// That is settled at once: others may be waiting for it.
func (lt *lockTable) lowers(l *lock) bool {
	return l.typ == ReadLock && slices.ContainsFunc(lt.held, func(h lock) bool { return h.same(l) && h.typ == WriteLock && h.overlaps(l.span) })
}

// grant grants what can be, first come first served, and returns it.
func (lt *lockTable) grant() (granted []waitKey) {
	for _, w := range lt.waits {
		if !w.granted && !lt.blocked(&w.want) {
			w.granted, w.spans = true, []span{w.want.span}
			granted = append(granted, w.key)
		}
	}
	return granted
}

func (s *state) table(ino rfs.InodeID) *lockTable {
	if s.locks[ino] == nil {
		s.locks[ino] = &lockTable{}
	}
	return s.locks[ino]
}

// lock grants, refuses or queues a lock.
func (s *state) lock(t *tx, k waitKey, id rfs.SessionID, op *metapb.Lock) *metapb.Response {
	ino := rfs.InodeID(op.GetInode())
	l, ok := lockOf(id, op.GetSpec())
	if !ok || id == 0 {
		return no(wire.StatusInvalid)
	}
	if t.readNode(ino) == nil {
		return no(wire.StatusStale)
	}
	lt := s.table(ino)
	rep := &metapb.Response{}
	switch {
	case l.typ == Unlock:
		lt.put(l, nil)
	case l.flock && slices.ContainsFunc(lt.held, func(h lock) bool { return h.same(&l) && h.typ == l.typ }):
	default:
		if l.flock { // a change of type gives the old lock up first, as Linux does
			lt.put(lock{span: l.span, who: l.who, flock: true, typ: Unlock}, nil)
		}
		rep = s.request(t, lt, &wait{key: k, want: l}, ino, op.GetWait())
	}
	s.storeLocks(t, ino, lt)
	return rep
}

// request grants w, or queues it if it may wait.
func (s *state) request(t *tx, lt *lockTable, w *wait, ino rfs.InodeID, mayWait bool) *metapb.Response {
	rep := &metapb.Response{}
	switch {
	case !lt.blocked(&w.want) && (!mayWait || lt.lowers(&w.want)):
		lt.put(w.want, nil)
		return rep
	case !lt.blocked(&w.want):
		w.granted, w.atOnce, w.spans = true, true, []span{w.want.span}
	case !mayWait:
		return no(wire.StatusWouldBlock)
	case !w.want.flock && s.deadlock(lt, &w.want):
		return no(wire.StatusDeadlock)
	default:
		rep.Waiting = true
	}
	lt.waits = append(lt.waits, w)
	s.waits[w.key] = ino
	return rep
}

// deadlock reports whether the owner of want would wait for itself: whether,
// from those who block it, along what they wait for, it comes back to it.
func (s *state) deadlock(lt *lockTable, want *lock) bool {
	type waiting struct {
		lt *lockTable
		w  *wait
	}
	of := map[lockOwner][]waiting{}
	for k, ino := range s.waits {
		table := s.locks[ino]
		for _, w := range table.waits {
			if w.key == k && !w.granted && !w.want.flock {
				of[w.want.who] = append(of[w.want.who], waiting{table, w})
			}
		}
	}
	seen := map[lockOwner]bool{}
	var reaches func(lt *lockTable, l *lock) bool
	reaches = func(lt *lockTable, l *lock) (found bool) {
		lt.blockers(l, func(b *lock) bool {
			if b.who == want.who {
				found = true
			} else if !seen[b.who] {
				seen[b.who] = true
				for _, x := range of[b.who] {
					found = found || reaches(x.lt, &x.w.want)
				}
			}
			return !found
		})
		return found
	}
	return reaches(lt, want)
}

// settle carries out Settle. A command that is given up before it got here is
// answered in advance, so that it does nothing when it comes.
func (s *state) settle(t *tx, k waitKey, id rfs.SessionID, op *metapb.Settle) *metapb.Response {
	if ino, ok := s.waits[k]; ok {
		s.settleWait(t, ino, k, !op.GetCancel())
		return &metapb.Response{}
	}
	a := s.askers[k.nonce]
	if !op.GetCancel() || a == nil || k.seq < a.low {
		return &metapb.Response{}
	}
	rep := new(metapb.Response)
	if b := a.results[k.seq]; b != nil {
		t.fail(proto.Unmarshal(b, rep))
	}
	if rep.GetOpen() != nil && op.GetOpen() != 0 {
		s.close(t, id, &metapb.Close{Files: []*metapb.CloseOne{{Inode: rep.GetAttr().GetInode(), Mode: op.GetOpen()}}})
	}
	b := []byte{0x08, byte(wire.StatusCancelled)} // a Response with just the status
	a.results[k.seq] = b
	t.set(keyOf(t.half, kResult).u64(k.nonce).u64(k.seq), b)
	return &metapb.Response{}
}

// acknowledged takes the claim that was granted at once by a command whose
// answer its asker now has.
func (s *state) acknowledged(t *tx, k waitKey) {
	ino, ok := s.waits[k]
	if !ok {
		return
	}
	if w := s.locks[ino].find(k); w.atOnce {
		s.settleWait(t, ino, k, true)
	}
}

func (lt *lockTable) find(k waitKey) *wait {
	return lt.waits[slices.IndexFunc(lt.waits, func(w *wait) bool { return w.key == k })]
}

func (s *state) settleWait(t *tx, ino rfs.InodeID, k waitKey, taken bool) {
	lt := s.locks[ino]
	lt.settle(lt.find(k), taken)
	delete(s.waits, k)
	t.effects.waits = append(t.effects.waits, k)
	s.storeLocks(t, ino, lt)
}

// unlockSession drops all that a session holds of a file or waits for.
func (s *state) unlockSession(t *tx, id rfs.SessionID, ino rfs.InodeID) {
	lt := s.locks[ino]
	if !slices.ContainsFunc(lt.held, func(l lock) bool { return l.who.session == id }) &&
		!slices.ContainsFunc(lt.waits, func(w *wait) bool { return w.want.who.session == id }) {
		return
	}
	lt.held = slices.DeleteFunc(lt.held, func(l lock) bool { return l.who.session == id })
	lt.waits = slices.DeleteFunc(lt.waits, func(w *wait) bool {
		if w.want.who.session != id {
			return false
		}
		delete(s.waits, w.key)
		t.effects.waits = append(t.effects.waits, w.key)
		return true
	})
	s.storeLocks(t, ino, lt)
}

// dropLocks drops the locks of a file that is gone.
func (s *state) dropLocks(t *tx, ino rfs.InodeID) {
	lt := s.locks[ino]
	if lt == nil {
		return
	}
	for _, w := range lt.waits {
		delete(s.waits, w.key)
		t.effects.waits = append(t.effects.waits, w.key)
	}
	delete(s.locks, ino)
	t.del(keyOf(t.half, kLocks).ino(ino))
}

// storeLocks grants what can be after a change, and stores the table.
func (s *state) storeLocks(t *tx, ino rfs.InodeID, lt *lockTable) {
	t.effects.waits = append(t.effects.waits, lt.grant()...)
	if len(lt.held)+len(lt.waits) == 0 {
		s.dropLocks(t, ino)
		return
	}
	t.set(keyOf(t.half, kLocks).ino(ino), lt.encode())
}

func (l *lock) append(e *enc) {
	e.u8(bit(l.flock))
	e.u8(uint8(l.typ))
	e.u32(uint32(l.who.session))
	e.u64(l.who.owner)
	e.u64(l.start)
	e.u64(l.end)
	e.u32(l.pid)
}

func (l *lock) take(d *dec) {
	l.flock, l.typ = d.u8()&1 != 0, LockType(d.u8())
	l.who.session, l.who.owner = rfs.SessionID(d.u32()), d.u64()
	l.start, l.end, l.pid = d.u64(), d.u64(), d.u32()
}

const (
	lockSize    = 34
	waitMinSize = 16 + 1 + lockSize + 4
)

func (lt *lockTable) encode() []byte {
	e := make(enc, 0, 9+len(lt.held)*lockSize+len(lt.waits)*(waitMinSize+16))
	e.u8(valueVersion)
	e.u32(uint32(len(lt.held)))
	e.u32(uint32(len(lt.waits)))
	for i := range lt.held {
		lt.held[i].append(&e)
	}
	for _, w := range lt.waits {
		e.u64(w.key.nonce)
		e.u64(w.key.seq)
		e.u8(bit(w.granted) | bit(w.atOnce)<<1)
		w.want.append(&e)
		e.u32(uint32(len(w.spans)))
		for _, s := range w.spans {
			e.u64(s.start)
			e.u64(s.end)
		}
	}
	return e
}

func decodeLocks(b []byte) (*lockTable, error) {
	d := &dec{b: b}
	d.version()
	lt := &lockTable{}
	held, waits := int(d.u32()), int(d.u32())
	for i := 0; i < held && !d.bad; i++ {
		var l lock
		l.take(d)
		lt.held = append(lt.held, l)
	}
	for i := 0; i < waits && !d.bad; i++ {
		w := &wait{key: waitKey{d.u64(), d.u64()}}
		f := d.u8()
		w.granted, w.atOnce = f&1 != 0, f&2 != 0
		w.want.take(d)
		spans := int(d.u32())
		for j := 0; j < spans && !d.bad; j++ {
			w.spans = append(w.spans, span{d.u64(), d.u64()})
		}
		lt.waits = append(lt.waits, w)
	}
	return lt, d.end("locks")
}

func (s *state) loadLocks(k, v []byte) error {
	ino := rfs.InodeID(binary.BigEndian.Uint64(k))
	lt, err := decodeLocks(v)
	if err != nil {
		return err
	}
	s.locks[ino] = lt
	for _, w := range lt.waits {
		s.waits[w.key] = ino
	}
	return nil
}
