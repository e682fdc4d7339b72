package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rfs"
	"rfs/chunkstore"
	"rfs/internal/crc"
	"rfs/internal/metrics"
	"rfs/server/stripe"
	"rfs/transport"
	"rfs/transport/wire"
)

// prepare stores a version of a shard, not yet known complete.
func (s *Server) prepare(ctx context.Context, q *request) {
	p, segs, crcs, err := wire.DecodePrepare(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	sl, ok := s.admitEpoch(ctx, q)
	if !ok || !s.admitSession(q) {
		return
	}
	if q.t.takesOver(sl) {
		q.reply(wire.StatusUnavailable, nil)
		return
	}
	if int(p.Key.Shard) != sl.pos || int(p.Length) > q.PayloadLen() && p.Flags&wire.FlagLocal == 0 {
		q.fail(wire.StatusBadRequest, fmt.Errorf("PREPARE of shard %d at position %d, %d bytes of which %d are lent", p.Key.Shard, sl.pos, p.Length, q.PayloadLen()))
		return
	}
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	// A PREPARE that will be refused moves no payload.
	verdict, highest, err := q.t.admit(w, &p)
	if err == nil && verdict == stripe.Held && p.Flags&(wire.FlagRepair|wire.FlagComplete) == wire.FlagRepair|wire.FlagComplete {
		verdict, err = q.t.mends(ctx, s, &p)
	}
	if err != nil {
		q.failStore(err)
		return
	}
	if verdict != stripe.Accept {
		q.refuse(verdict, highest)
		return
	}
	if p.Flags&wire.FlagLocal != 0 {
		s.store(q, w, &p, segs, nil, nil)
		return
	}
	s.receive(ctx, q, w, &p, segs, crcs)
}

// receive pulls the payload, checks it and stores it.
func (s *Server) receive(ctx context.Context, q *request, w *scratch, p *wire.Prepare, segs wire.Segments, crcs wire.CRCs) {
	w.crcs = crcs.Append(w.crcs[:0])
	var payload []byte
	if p.Length > 0 {
		buf, err := s.opts.Arena.Get(ctx, int(p.Length))
		if err != nil {
			q.fail(wire.StatusUnavailable, err)
			return
		}
		defer buf.Release()
		if err := q.Pull(ctx, buf, 0, int(p.Length)); err != nil {
			q.fail(wire.StatusCancelled, err)
			return
		}
		payload = buf.Bytes()[:p.Length]
		q.bytes += len(payload)
	}
	if err := checkPayload(p, segs, w.crcs, payload); err != nil {
		metrics.CRCFailures.WithLabelValues("wire", q.t.label).Inc()
		q.fail(wire.StatusBadPayload, err)
		return
	}
	s.store(q, w, p, segs, payload, w.crcs)
}

// admitSession refuses a client whose session ended.
func (s *Server) admitSession(q *request) bool {
	if q.c.Session != 0 && s.ended.has(q.c.Session) {
		q.fail(wire.StatusSessionLost, fmt.Errorf("session %d: %w", q.c.Session, rfs.ErrSessionLost))
		return false
	}
	return true
}

// admit asks stripe.Admit about p.
func (t *target) admit(w *scratch, p *wire.Prepare) (stripe.Verdict, rfs.Tag, error) {
	if err := t.held(w, p.Key); err != nil {
		return 0, rfs.Tag{}, err
	}
	floor, turn := t.limits(stripeOf(p.Key))
	ask := stripe.Ask{ID: stripe.ID{Tag: p.Tag, Kind: p.Kind()}, Session: p.Session, Repair: p.Flags&(wire.FlagRepair|wire.FlagFold) != 0}
	verdict, highest := stripe.Admit(ask, w.held, floor, turn, time.Now())
	return verdict, highest, nil
}

// mends reports, by Accept, whether a repair of a version that is held is
// needed: its bytes do not check. What checks is left alone.
func (t *target) mends(ctx context.Context, s *Server, p *wire.Prepare) (stripe.Verdict, error) {
	buf, err := s.opts.Background.Get(ctx, chunkstore.MaxPayload)
	if err != nil {
		return stripe.Held, nil
	}
	defer buf.Release()
	_, _, err = t.store.ReadVersion(p.Key, p.Tag, storeKind(p.Kind()), buf.Bytes())
	if errors.Is(err, rfs.ErrCorrupt) {
		return stripe.Accept, nil
	}
	return stripe.Held, nil
}

// refuse answers a PREPARE or RETAG that stores nothing.
func (q *request) refuse(v stripe.Verdict, highest rfs.Tag) {
	switch v {
	case stripe.Held, stripe.Superseded:
		q.reply(wire.StatusOK, nil)
	case stripe.Stale:
		q.reply(wire.StatusStaleTag, wire.AppendTagReply(q.head[:0], highest))
	case stripe.Gone:
		q.reply(wire.StatusGone, nil)
	default:
		q.reply(wire.StatusUnavailable, nil)
	}
}

// store admits p once more, now under the gate and the stripe's lock, so that no
// newer epoch and no promise comes between, and puts it.
func (s *Server) store(q *request, w *scratch, p *wire.Prepare, segs wire.Segments, payload []byte, crcs []uint32) {
	s.gate.RLock()
	sl, st := s.locate(&q.c)
	if st == wire.StatusOK && q.t.takesOver(sl) {
		st = wire.StatusUnavailable
	}
	if st != wire.StatusOK {
		s.gate.RUnlock()
		q.epochOK(sl, st)
		return
	}
	verdict, highest, err := q.t.putLocked(w, p, segs, payload, crcs)
	s.gate.RUnlock()
	switch {
	case errors.Is(err, rfs.ErrStaleTag): // superseded or trimmed meanwhile
		if p.Flags&(wire.FlagRepair|wire.FlagFold) != 0 {
			q.reply(wire.StatusOK, nil)
			return
		}
		q.refuse(stripe.Stale, maxTag(highest, q.t.store.Floor(p.Key.Inode, p.Key.Stripe)))
	case err != nil:
		q.failStore(err)
	case verdict != stripe.Accept:
		q.refuse(verdict, highest)
	default:
		q.t.errors.Store(0)
		if q.t.noteWork(p, time.Now()) > s.opts.Fold.Overlays {
			signal(q.t.quick)
		}
		q.reply(wire.StatusOK, nil)
	}
}

// putLocked decides and stores under the stripe's lock.
func (t *target) putLocked(w *scratch, p *wire.Prepare, segs wire.Segments, payload []byte, crcs []uint32) (stripe.Verdict, rfs.Tag, error) {
	defer t.lock(stripeOf(p.Key)).Unlock()
	verdict, highest, err := t.admit(w, p)
	mending := p.Flags&(wire.FlagRepair|wire.FlagComplete) == wire.FlagRepair|wire.FlagComplete
	if err != nil || verdict != stripe.Accept && !(verdict == stripe.Held && mending) {
		return verdict, highest, err
	}
	v := chunkstore.Version{
		Tag: p.Tag, Kind: storeKind(p.Kind()), W: p.W, Pool: p.Pool, Slot: p.Slot,
		Fold: p.Flags&wire.FlagFold != 0, Repair: p.Flags&wire.FlagRepair != 0,
	}
	if p.Kind() == wire.Full {
		v.Length = p.Length
	}
	if p.Flags&wire.FlagComplete != 0 {
		v.State = chunkstore.Complete
	}
	if p.Flags&wire.FlagLocal != 0 {
		return stripe.Accept, highest, t.store.FoldLocal(p.Key, v)
	}
	w.segs = w.segs[:0]
	for i := range segs.Len() {
		w.segs = append(w.segs, chunkstore.Segment(segs.At(i)))
	}
	v.Segments = w.segs
	return stripe.Accept, highest, t.store.Put(p.Key, v, payload, crcs)
}

// checkPayload compares each block of the payload with its checksum.
func checkPayload(p *wire.Prepare, segs wire.Segments, crcs []uint32, payload []byte) error {
	if p.Kind() == wire.Full {
		_, err := checkRange(p.Key, p.Key.Shard, 0, payload, crcs)
		return err
	}
	at := 0
	for i := range segs.Len() {
		g := segs.At(i)
		if g.Zero {
			continue
		}
		n, err := checkRange(p.Key, g.Shard, g.Off, payload[at:at+int(g.Len)], crcs)
		if err != nil {
			return err
		}
		at, crcs = at+int(g.Len), crcs[n:]
	}
	return nil
}

// checkRange compares b, the bytes from off on of a shard, with the checksums of
// the blocks that they touch, and returns how many those are.
func checkRange(key rfs.ShardKey, shard uint8, off uint32, b []byte, crcs []uint32) (n int, err error) {
	of := crc.Of(key.Inode, key.Stripe, shard)
	for len(b) > 0 {
		block := off / rfs.BlockSize
		m := min(int(rfs.BlockSize-off%rfs.BlockSize), len(b))
		if n >= len(crcs) || of.Block(block, b[:m]) != crcs[n] {
			return n, fmt.Errorf("block %d of shard %d of %v: %w", block, shard, key, rfs.ErrCorrupt)
		}
		off, b, n = off+uint32(m), b[m:], n+1
	}
	return n, nil
}

// appendCRCs appends the checksums of b, the bytes from off on of a shard.
func appendCRCs(crcs []uint32, key rfs.ShardKey, shard uint8, off uint32, b []byte) []uint32 {
	of := crc.Of(key.Inode, key.Stripe, shard)
	for len(b) > 0 {
		m := min(int(rfs.BlockSize-off%rfs.BlockSize), len(b))
		crcs = append(crcs, of.Block(off/rfs.BlockSize, b[:m]))
		off, b = off+uint32(m), b[m:]
	}
	return crcs
}

// commit marks versions complete. A client says so of what all of W took, which
// stays true; a leader's word is of its epoch.
func (s *Server) commit(ctx context.Context, q *request) {
	_, entries, err := wire.DecodeCommit(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	if !s.enterLeaders(ctx, q) {
		return
	}
	var missing []uint16
	for i := range entries.Len() {
		e := entries.At(i)
		switch err := q.t.store.Commit(e.Key, e.Tag, storeKind(e.Kind)); {
		case errors.Is(err, rfs.ErrNotFound):
			if !e.Tag.Less(q.t.store.Floor(e.Key.Inode, e.Key.Stripe)) {
				missing = append(missing, uint16(i))
			}
		case err != nil:
			s.leaveLeaders(q)
			q.failStore(err)
			return
		}
		q.t.endTurn(stripeOf(e.Key), e.Tag.Session)
	}
	s.leaveLeaders(q)
	q.reply(wire.StatusOK, wire.AppendCommitReply(q.head[:0], missing))
}

// enterLeaders begins a change that a leader asked for (session 0): under the
// gate, at its slot's epoch. Clients pass.
func (s *Server) enterLeaders(ctx context.Context, q *request) bool {
	if q.c.Session != 0 {
		return true
	}
	if _, ok := s.admitEpoch(ctx, q); !ok {
		return false
	}
	s.gate.RLock()
	if sl, st := s.locate(&q.c); st != wire.StatusOK {
		s.gate.RUnlock()
		q.epochOK(sl, st)
		return false
	}
	return true
}

func (s *Server) leaveLeaders(q *request) {
	if q.c.Session == 0 {
		s.gate.RUnlock()
	}
}

// abort drops versions for a leader. A client does not know enough to: between
// its PREPARE and its ABORT a leader may have completed the version. So a
// client's ABORT has the leader look soon.
func (s *Server) abort(ctx context.Context, q *request) {
	c, entries, err := wire.DecodeCommit(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	if c.Session != 0 {
		for i := range entries.Len() {
			q.t.hasten(stripeOf(entries.At(i).Key))
		}
		signal(q.t.quick)
		q.reply(wire.StatusOK, wire.AppendCommitReply(q.head[:0], nil))
		return
	}
	if !s.enterLeaders(ctx, q) {
		return
	}
	for i := range entries.Len() {
		if err = q.t.drop(entries.At(i)); err != nil {
			break
		}
	}
	s.leaveLeaders(q)
	if err != nil {
		q.failStore(err)
		return
	}
	q.reply(wire.StatusOK, wire.AppendCommitReply(q.head[:0], nil))
}

// drop promises not to take the version (again), and drops it.
func (t *target) drop(e wire.CommitEntry) error {
	defer t.lock(stripeOf(e.Key)).Unlock()
	t.promise(stripeOf(e.Key), e.Tag)
	return t.store.Drop(e.Key, e.Tag, storeKind(e.Kind))
}

// retag gives a prepared version a higher tag.
func (s *Server) retag(ctx context.Context, q *request) {
	r, err := wire.DecodeRetag(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	if _, ok := s.admitEpoch(ctx, q); !ok || !s.admitSession(q) {
		return
	}
	s.gate.RLock()
	sl, st := s.locate(&q.c)
	if st == wire.StatusOK && q.t.takesOver(sl) {
		st = wire.StatusUnavailable
	}
	if st != wire.StatusOK {
		s.gate.RUnlock()
		q.epochOK(sl, st)
		return
	}
	verdict, highest, err := q.t.retagLocked(&r)
	s.gate.RUnlock()
	switch {
	case errors.Is(err, rfs.ErrNotFound) || errors.Is(err, rfs.ErrStaleTag):
		q.refuse(stripe.Gone, highest)
	case err != nil:
		q.failStore(err)
	case verdict == stripe.Accept:
		q.reply(wire.StatusOK, nil)
	default:
		q.refuse(verdict, highest)
	}
}

func (t *target) retagLocked(r *wire.Retag) (stripe.Verdict, rfs.Tag, error) {
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	key := stripeOf(r.Key)
	defer t.lock(key).Unlock()
	if err := t.held(w, r.Key); err != nil {
		return 0, rfs.Tag{}, err
	}
	floor, turn := t.limits(key)
	verdict, highest := stripe.AdmitRetag(stripe.ID{Tag: r.Old, Kind: r.Kind()}, r.New, r.Session, w.held, floor, turn, time.Now())
	if verdict != stripe.Accept {
		return verdict, highest, nil
	}
	return verdict, highest, t.store.Retag(r.Key, r.Old, r.New)
}

func maxTag(a, b rfs.Tag) rfs.Tag {
	if a.Less(b) {
		return b
	}
	return a
}

// read reads a range of a shard and pushes it.
func (s *Server) read(ctx context.Context, q *request) {
	r, err := wire.DecodeRead(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	sl, ok := s.admitEpoch(ctx, q)
	if !ok {
		return
	}
	// Servers read, exactly what they found there, from members that are being synced.
	if q.c.Session != 0 && (sl.Members[sl.pos] != q.c.Target || !sl.m.Readable(sl.Slot, sl.pos)) {
		q.reply(wire.StatusUnavailable, nil)
		return
	}
	if int(r.N) > q.CapLen() {
		q.fail(wire.StatusBadRequest, fmt.Errorf("READ of %d bytes into %d", r.N, q.CapLen()))
		return
	}
	n := int(r.N)
	if r.Flags&wire.FlagVersion != 0 {
		n = q.CapLen()
	}
	var buf transport.Buf
	var dst []byte
	if n > 0 {
		if buf, err = s.opts.Arena.Get(ctx, n); err != nil {
			q.fail(wire.StatusUnavailable, err)
			return
		}
		defer buf.Release()
		dst = buf.Bytes()[:n]
	}
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	switch {
	case r.Flags&wire.FlagOverlays != 0:
		s.readOverlays(q, &r, w, buf, dst)
	case r.Flags&wire.FlagVersion != 0:
		s.readVersion(q, &r, w, buf, dst)
	default:
		s.readMerged(q, &r, w, buf, dst)
	}
}

func (s *Server) readMerged(q *request, r *wire.Read, w *scratch, buf transport.Buf, dst []byte) {
	at := chunkstore.ReadAt{Off: r.Off, N: r.N, CRCs: w.crcs[:0]}
	if r.Flags&wire.FlagExact != 0 {
		at.Exact = r.Tag
	}
	if r.Flags&wire.FlagExact != 0 && r.Tag.IsZero() { // the base of what was never written
		q.reply(wire.StatusOK, wire.AppendReadReply(w.head[:0], &wire.ReadReply{}, nil, nil))
		return
	}
	res, err := q.t.store.Read(r.Key, at, dst)
	if err != nil {
		q.failRead(err)
		return
	}
	if res.CRCs != nil {
		w.crcs = res.CRCs
	}
	rep := wire.ReadReply{Tag: res.Tag, Base: res.Base, Unresolved: res.Unresolved, Length: res.Length}
	if !res.Unresolved.IsZero() {
		q.reply(wire.StatusUnresolved, wire.AppendReadReply(w.head[:0], &rep, nil, nil))
		return
	}
	q.push(wire.StatusOK, wire.AppendReadReply(w.head[:0], &rep, nil, res.CRCs), buf, res.N)
}

func (s *Server) readOverlays(q *request, r *wire.Read, w *scratch, buf transport.Buf, dst []byte) {
	res, err := q.t.store.Overlays(r.Key, r.Want, r.Off, r.N, dst)
	if err != nil {
		q.failRead(err)
		return
	}
	rep := wire.ReadReply{Tag: res.Tag, Base: res.Base, Unresolved: res.Unresolved, BaseW: res.W, Length: res.Length}
	if !res.Unresolved.IsZero() {
		q.reply(wire.StatusUnresolved, wire.AppendReadReply(w.head[:0], &rep, nil, nil))
		return
	}
	s.pushSegments(q, w, &rep, res.Segments, res.CRCs, buf, res.N)
}

// readVersion reads an overlay as it was put, whatever its state.
func (s *Server) readVersion(q *request, r *wire.Read, w *scratch, buf transport.Buf, dst []byte) {
	v, n, err := q.t.store.ReadVersion(r.Key, r.Tag, chunkstore.Partial, dst)
	if err != nil {
		q.failRead(err)
		return
	}
	segs, crcs := v.Segments, v.CRCs()
	if r.Want != wire.AllShards {
		segs, crcs, n = ofShard(segs, crcs, dst, r.Want)
	}
	rep := wire.ReadReply{Tag: v.Tag, BaseW: v.W}
	s.pushSegments(q, w, &rep, segs, crcs, buf, n)
}

// ofShard keeps of an overlay what is of one data shard, and moves its payload to dst's start.
func ofShard(segs []chunkstore.Segment, crcs []uint32, dst []byte, shard uint8) (keep []chunkstore.Segment, sums []uint32, n int) {
	at := 0
	for _, g := range segs {
		blocks, size := 0, 0
		if !g.Zero {
			blocks, size = wire.Blocks(g.Off, g.Len), int(g.Len)
		}
		if g.Shard == shard {
			keep, sums = append(keep, g), append(sums, crcs[:blocks]...)
			n += copy(dst[n:], dst[at:at+size])
		}
		at, crcs = at+size, crcs[blocks:]
	}
	return keep, sums, n
}

func (s *Server) pushSegments(q *request, w *scratch, rep *wire.ReadReply, segs []chunkstore.Segment, crcs []uint32, buf transport.Buf, n int) {
	w.wsegs = w.wsegs[:0]
	for _, g := range segs {
		w.wsegs = append(w.wsegs, wire.Segment(g))
	}
	hdr := wire.AppendReadReply(w.head[:0], rep, w.wsegs, crcs)
	if len(hdr) > transport.MaxHeader {
		q.fail(wire.StatusUnavailable, fmt.Errorf("%d segments and %d checksums do not fit a reply: ask for less", len(segs), len(crcs)))
		return
	}
	q.push(wire.StatusOK, hdr, buf, n)
}

// failRead answers for a read that failed. Bytes that do not check are rebuilt meanwhile.
func (q *request) failRead(err error) {
	if errors.Is(err, chunkstore.ErrGone) {
		q.reply(wire.StatusGone, nil)
		return
	}
	if bad := new(chunkstore.CorruptError); errors.As(err, &bad) {
		s, t, c := q.s, q.t, q.c
		s.wg.Go(func() { s.mend(t, c, stripe.ID{Tag: bad.Tag, Kind: wireKind(bad.Kind)}) })
	}
	q.failStore(err)
}
