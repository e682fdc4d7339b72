package server

import (
	"context"
	"errors"
	"fmt"

	"rfs"
	"rfs/chunkstore"
	"rfs/placement"
	"rfs/transport/wire"
)

// query tells a leader what this member holds of a stripe, and promises the floor it asks for.
func (s *Server) query(ctx context.Context, q *request) {
	r, err := wire.DecodeTagRequest(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	sl, ok := s.admitEpoch(ctx, q)
	if !ok {
		return
	}
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	floor, err := q.t.promiseHeld(w, r.Key, r.Tag)
	if err != nil {
		q.failStore(err)
		return
	}
	rep := wire.QueryReply{Floor: floor, Epoch: sl.Epoch, Trimmed: q.t.store.Floor(r.Key.Inode, r.Key.Stripe)}
	out := newPage(ctx, s, q)
	if out == nil {
		return
	}
	defer out.buf.Release()
	for i := range w.held {
		v := &w.held[i]
		rep.Highest = maxTag(rep.Highest, v.Tag)
		out.version(&w.stored[i], w)
	}
	if !out.fits() {
		q.fail(wire.StatusUnavailable, fmt.Errorf("%d versions of %v do not fit %d bytes", len(w.held), r.Key, q.CapLen()))
		return
	}
	rep.Count, rep.Bytes = uint32(len(w.held)), uint32(len(out.b))
	q.push(wire.StatusOK, wire.AppendQueryReply(q.head[:0], &rep), out.buf, len(out.b))
}

// promiseHeld promises the floor, and reads what is held, at one moment.
func (t *target) promiseHeld(w *scratch, key rfs.ShardKey, floor rfs.Tag) (rfs.Tag, error) {
	defer t.lock(stripeOf(key)).Unlock()
	return t.promise(stripeOf(key), floor), t.held(w, key)
}

// A page is a list that is pushed: it grows in arena memory of the size that the peer lends.
type page struct {
	buf interface {
		Bytes() []byte
		Retain()
		Release()
	}
	max int
	b   []byte
}

// newPage returns a page, or nil and has answered q.
func newPage(ctx context.Context, s *Server, q *request) *page {
	n := max(q.CapLen(), rfs.BlockSize)
	buf, err := s.opts.Arena.Get(ctx, n)
	if err != nil {
		q.fail(wire.StatusUnavailable, err)
		return nil
	}
	return &page{buf: buf, max: q.CapLen(), b: buf.Bytes()[:0:n]}
}

// fits reports whether all that was appended is in the arena's memory: past its
// end append would have moved it to the heap.
func (p *page) fits() bool { return len(p.b) <= p.max && len(p.b) <= len(p.buf.Bytes()) }

func (p *page) version(v *chunkstore.Version, w *scratch) {
	w.wsegs = w.wsegs[:0]
	for _, g := range v.Segments {
		w.wsegs = append(w.wsegs, wire.Segment(g))
	}
	x := wire.Version{Tag: v.Tag, W: v.W, Length: uint32(v.PayloadLen()), Kind: wireKind(v.Kind), Fold: v.Fold}
	if v.State == chunkstore.Complete {
		x.State = wire.Complete
	}
	p.b = wire.AppendVersion(p.b, &x, w.wsegs)
}

// list tells a peer what this target holds of a slot, in the order of stripes.
func (s *Server) list(ctx context.Context, q *request) {
	l, err := wire.DecodeList(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	sl, ok := s.admitEpoch(ctx, q)
	if !ok {
		return
	}
	out := newPage(ctx, s, q)
	if out == nil {
		return
	}
	defer out.buf.Release()
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	var rep wire.ListReply
	from := rfs.ShardKey{Inode: l.Key.Inode, Stripe: l.Key.Stripe}
	for sh, err := range q.t.store.Scan(l.Pool, l.Slot, from) {
		if err != nil {
			q.failStore(err)
			return
		}
		if int(sh.Key.Shard) != sl.pos {
			continue // of a position that it had in an earlier life
		}
		mark := len(out.b)
		out.b = wire.AppendListed(out.b, sh.Key, len(sh.Versions))
		for i := range sh.Versions {
			out.version(&sh.Versions[i], w)
		}
		if rep.Count == l.Max || !out.fits() {
			if rep.Count == 0 {
				q.fail(wire.StatusUnavailable, fmt.Errorf("the versions of %v do not fit %d bytes", sh.Key, q.CapLen()))
				return
			}
			out.b = out.b[:mark]
			rep.More, rep.NextInode, rep.NextStripe = true, sh.Key.Inode, sh.Key.Stripe
			break
		}
		rep.Count++
	}
	rep.Bytes = uint32(len(out.b))
	q.push(wire.StatusOK, wire.AppendListReply(q.head[:0], &rep), out.buf, len(out.b))
}

// sync makes all that was acknowledged durable.
func (s *Server) sync(ctx context.Context, q *request) {
	if err := q.t.store.Sync(ctx); err != nil {
		if ctx.Err() != nil {
			q.fail(wire.StatusCancelled, err)
			return
		}
		q.failStore(err)
		return
	}
	q.reply(wire.StatusOK, nil)
}

// trim drops the stripes of an inode from one on, below a tag.
func (s *Server) trim(ctx context.Context, q *request) {
	r, err := wire.DecodeTagRequest(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	if !s.admitSession(q) {
		return
	}
	if err := q.t.store.Trim(r.Key.Inode, r.Key.Stripe, r.Tag); err != nil {
		q.failStore(err)
		return
	}
	q.reply(wire.StatusOK, nil)
}

// delete drops all of an inode.
func (s *Server) delete(ctx context.Context, q *request) {
	if !s.admitSession(q) {
		return
	}
	if err := q.t.store.Delete(q.c.Key.Inode); err != nil {
		q.failStore(err)
		return
	}
	q.reply(wire.StatusOK, nil)
}

// extent says how far an inode's bytes reach.
func (s *Server) extent(ctx context.Context, q *request) {
	e, err := wire.DecodeExtent(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	end, err := q.t.store.Extent(e.Key.Inode, rfs.Layout{Pool: e.Pool, K: e.K, M: e.M, Unit: e.Unit, Cell: e.Cell})
	if err != nil {
		q.failStore(err)
		return
	}
	q.reply(wire.StatusOK, wire.AppendExtentReply(q.head[:0], end))
}

// targetStat says how full the target is.
func (s *Server) targetStat(ctx context.Context, q *request) {
	if q.c.Epoch > s.cmap.Load().Epoch {
		s.refreshMap(ctx, q.c.Epoch)
	}
	u, err := q.t.store.Stat()
	if err != nil {
		q.failStore(err)
		return
	}
	m := s.cmap.Load()
	st := wire.TargetStat{Capacity: uint64(u.Capacity), Used: uint64(u.Used), MapEpoch: m.Epoch}
	if x := m.Target(q.t.id); x != nil {
		st.State = uint8(x.State)
	}
	q.reply(wire.StatusOK, wire.AppendTargetStat(q.head[:0], &st))
}

// refreshMap takes the map of epoch min or a later one from the metadata
// service, once for all who want it. It is no error that there is none yet.
func (s *Server) refreshMap(ctx context.Context, min rfs.Epoch) {
	select {
	case s.fetch <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-s.fetch }()
	if s.cmap.Load().Epoch >= min {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	m, err := s.opts.Meta.Map(ctx, min)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			s.log.Warn("cluster map not fetched", "epoch", min, "err", err)
		}
		return
	}
	s.setMap(m)
}

// setMap puts m in the old one's place, when nothing is being stored under that.
func (s *Server) setMap(m *placement.Map) {
	s.gate.Lock()
	newer := m.Epoch > s.cmap.Load().Epoch
	if newer {
		s.cmap.Store(m)
	}
	s.gate.Unlock()
	if newer {
		s.log.Debug("cluster map", "epoch", m.Epoch)
		for _, t := range s.targets {
			signal(t.changed)
		}
	}
}
