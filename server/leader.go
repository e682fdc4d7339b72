package server

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rfs"
	"rfs/internal/hlc"
	"rfs/placement"
	"rfs/server/stripe"
	"rfs/transport"
	"rfs/transport/wire"
)

// patience is how old a version must be before its fate is decided for a reader.
const patience = 10 * time.Millisecond

// queryRoom is what is lent for the answer to a QUERY, in bytes: some 800 overlays.
const queryRoom = 64 << 10

// A lead is a stripe seen by its leader under one map.
type lead struct {
	s *Server
	stripe.Stripe
	m    *placement.Map
	pool *placement.Pool
	slot *placement.Slot
	view stripe.View
	ids  []rfs.TargetID // of view.Members
	held [][]stripe.Version
}

func (s *Server) newLead(m *placement.Map, pool *placement.Pool, slot *placement.Slot, x stripe.Stripe) *lead {
	l := &lead{s: s, Stripe: x, m: m, pool: pool, slot: slot}
	l.view, l.ids = viewOf(m, pool, slot)
	return l
}

// viewOf says who takes part in the writes of a slot. A member that is down and
// being drained has been given up.
func viewOf(m *placement.Map, pool *placement.Pool, slot *placement.Slot) (v stripe.View, ids []rfs.TargetID) {
	v.K, v.M = int(pool.Scheme.K), int(pool.Scheme.M)
	for i, id := range slot.Members {
		switch t := m.Target(id); {
		case m.IsUp(id):
			v.Members = append(v.Members, stripe.Member{Pos: uint8(i), Readable: m.Readable(slot, i)})
			ids = append(ids, id)
		case t != nil && !t.Draining:
			v.Absent.Add(uint8(i))
		}
		if in := slot.IncomingAt(i); !in.IsZero() && m.IsUp(in) {
			v.Members = append(v.Members, stripe.Member{Pos: uint8(i)})
			ids = append(ids, in)
		}
	}
	return v, ids
}

// leaderOf returns the position of who settles the slot's stripes: its leader,
// or, when no member is readable, who takes the leader's part in bringing it up.
func leaderOf(m *placement.Map, pool *placement.Pool, slot *placement.Slot) int {
	if i := m.Leader(pool, slot); i >= 0 {
		return i
	}
	for j := range slot.Members {
		i := (int(pool.Scheme.K) + j) % len(slot.Members)
		if m.IsUp(slot.Members[i]) {
			return i
		}
	}
	return -1
}

// admitLeader refuses who mistakes this target for the slot's leader.
func (s *Server) admitLeader(ctx context.Context, q *request) (sl slot, ok bool) {
	if sl, ok = s.admitEpoch(ctx, q); !ok {
		return sl, false
	}
	if i := leaderOf(sl.m, sl.pool, sl.Slot); i < 0 || sl.Members[i] != q.c.Target {
		var id rfs.TargetID
		if i >= 0 {
			id = sl.Members[i]
		}
		q.reply(wire.StatusNotLeader, wire.AppendNotLeader(q.head[:0], id))
		return sl, false
	}
	return sl, true
}

// resolve settles a stripe for a reader, or for a target that is being synced.
func (s *Server) resolve(ctx context.Context, q *request) {
	r, err := wire.DecodeTagRequest(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	sl, ok := s.admitLeader(ctx, q)
	if !ok {
		return
	}
	l := s.newLead(sl.m, sl.pool, sl.Slot, stripeOf(r.Key))
	l.view.Sync = r.Flags&wire.FlagSync != 0
	// A reader that met a write under way had better wait than stop it: its
	// promises would have the writer send again what has not arrived yet.
	if young := patience - time.Since(hlc.Time(r.Tag.HLC)); r.Session != 0 && young > 0 {
		wait(ctx, min(young, patience), nil)
	}
	res, err := l.settle(ctx, r.Tag)
	if err != nil {
		q.fail(wire.StatusUnavailable, err)
		return
	}
	rep := wire.ResolveReply{Newest: res.Newest, Forward: uint16(res.Forward), Back: uint16(res.Back)}
	q.reply(wire.StatusOK, wire.AppendResolveReply(q.head[:0], &rep))
}

// errUnsettled means that the stripe could not be settled now: some member did not answer, or too few hold enough.
var errUnsettled = fmt.Errorf("versions of the stripe cannot be settled now: %w", rfs.ErrUnavailable)

// settle runs a Resolver while no one else here is at the stripe.
func (l *lead) settle(ctx context.Context, floor rfs.Tag) (stripe.Result, error) {
	unlock, err := l.s.leads.lock(ctx, l.Stripe)
	if err != nil {
		return stripe.Result{}, err
	}
	defer unlock()
	return l.settleLocked(ctx, floor)
}

// settleLocked carries out a Resolver's actions, each on a goroutine of its own.
func (l *lead) settleLocked(ctx context.Context, floor rfs.Tag) (stripe.Result, error) {
	r, todo := stripe.NewResolver(&l.view, floor)
	events := make(chan stripe.Event)
	for {
		for _, a := range todo {
			if a.Do == stripe.Answer {
				l.held = r.Held()
				l.s.counts.resolved(a.Result)
				if a.Result.Lost > 0 {
					l.s.log.Error("complete versions were lost: too few members still have them", "inode", l.Inode, "stripe", l.Stripe.Stripe, "versions", a.Result.Lost)
				}
				if !a.Result.Settled {
					return a.Result, errUnsettled
				}
				return a.Result, nil
			}
			go func() { events <- l.do(ctx, r, a) }()
		}
		todo = r.Step(<-events)
	}
}

func (l *lead) do(ctx context.Context, r *stripe.Resolver, a stripe.Action) stripe.Event {
	e := stripe.Event{Do: a.Do, Member: a.Member}
	var err error
	switch a.Do {
	case stripe.Query:
		e.Held, e.Trimmed, err = l.query(ctx, a.Member, a.Floor)
	case stripe.Drop:
		_, err = l.tell(ctx, a.Member, wire.OpAbort, a.ID)
	case stripe.Commit:
		e.Missing, err = l.tell(ctx, a.Member, wire.OpCommit, a.ID)
	case stripe.Repair:
		err = l.repair(ctx, a, r.Held())
	}
	if e.OK = err == nil; err != nil {
		l.s.log.Debug("stripe not settled", "inode", l.Inode, "stripe", l.Stripe.Stripe, "do", a.Do, "position", l.view.Members[a.Member].Pos, "err", err)
		l.s.noteRefusal(err, l.m)
	}
	return e
}

// noteRefusal has the map fetched if a peer knows a newer one.
func (s *Server) noteRefusal(err error, m *placement.Map) {
	if errors.Is(err, rfs.ErrStaleEpoch) {
		s.refreshMap(s.ctx, m.Epoch+1)
	}
}

// common is the first part of a request to a member.
func (l *lead) common(member int) wire.Common {
	return wire.Common{
		Target: l.ids[member], Pool: l.pool.ID, Slot: l.slot.ID, Epoch: l.slot.Epoch,
		Key: rfs.ShardKey{Inode: l.Inode, Stripe: l.Stripe.Stripe, Shard: l.view.Members[member].Pos},
	}
}

func (l *lead) call(ctx context.Context, member int, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	return l.s.call(ctx, l.m, l.ids[member], op, hdr, src, dst)
}

func (l *lead) query(ctx context.Context, member int, floor rfs.Tag) ([]stripe.Version, rfs.Tag, error) {
	buf, err := l.s.opts.Background.Get(ctx, queryRoom)
	if err != nil {
		return nil, rfs.Tag{}, err
	}
	defer buf.Release()
	rep, err := l.call(ctx, member, wire.OpQuery, wire.AppendTagRequest(nil, &wire.TagRequest{Common: l.common(member), Tag: floor}), nil, buf)
	if err != nil {
		return nil, rfs.Tag{}, err
	}
	qr, err := wire.DecodeQueryReply(rep.Header)
	if err != nil {
		return nil, rfs.Tag{}, err
	}
	vs, _, err := decodeVersions(buf.Bytes()[:rep.Pushed], int(qr.Count))
	return vs, qr.Trimmed, err
}

// decodeVersions decodes n versions, for keeps, and returns what follows them.
func decodeVersions(b []byte, n int) (vs []stripe.Version, rest []byte, err error) {
	for range n {
		var v wire.Version
		if v, b, err = wire.DecodeVersion(b); err != nil {
			return nil, nil, err
		}
		x := stripe.Version{ID: stripe.ID{Tag: v.Tag, Kind: v.Kind}, State: v.State, W: v.W, Length: v.Length, Fold: v.Fold}
		for i := range v.Segments.Len() {
			x.Segments = append(x.Segments, v.Segments.At(i))
		}
		vs = append(vs, x)
	}
	return vs, b, nil
}

// tell commits or drops a version on a member.
func (l *lead) tell(ctx context.Context, member int, op wire.Op, id stripe.ID) (missing bool, err error) {
	c := l.common(member)
	hdr := wire.AppendCommit(nil, &c, []wire.CommitEntry{{Key: c.Key, Kind: id.Kind, Tag: id.Tag}})
	rep, err := l.call(ctx, member, op, hdr, nil, nil)
	if err != nil {
		return false, err
	}
	gone, err := wire.DecodeCommitReply(rep.Header, nil)
	return len(gone) > 0, err
}

// order gives a session a turn to write the stripe, and says what tag to get above.
func (s *Server) order(ctx context.Context, q *request) {
	r, err := wire.DecodeTagRequest(q.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	sl, ok := s.admitLeader(ctx, q)
	if !ok || !s.admitSession(q) {
		return
	}
	key := stripeOf(r.Key)
	if !q.t.giveTurn(key, q.c.Session, time.Now()) {
		q.reply(wire.StatusUnavailable, nil)
		return
	}
	l := s.newLead(sl.m, sl.pool, sl.Slot, key)
	rep := wire.OrderReply{Highest: maxTag(r.Tag, l.highest(ctx)), Millis: uint32(stripe.TurnTime.Milliseconds())}
	q.reply(wire.StatusOK, wire.AppendOrderReply(q.head[:0], &rep))
}

// highest returns the highest tag that any member that answers holds or promised.
func (l *lead) highest(ctx context.Context) (t rfs.Tag) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for i := range l.ids {
		wg.Go(func() {
			buf, err := l.s.opts.Background.Get(ctx, queryRoom)
			if err != nil {
				return
			}
			defer buf.Release()
			rep, err := l.call(ctx, i, wire.OpQuery, wire.AppendTagRequest(nil, &wire.TagRequest{Common: l.common(i)}), nil, buf)
			if err != nil {
				return
			}
			if qr, err := wire.DecodeQueryReply(rep.Header); err == nil {
				mu.Lock()
				t = maxTag(t, maxTag(qr.Highest, qr.Floor))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return t
}
