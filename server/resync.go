package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/server/stripe"
	"rfs/transport"
	"rfs/transport/wire"
)

const (
	listRoom  = 128 << 10 // lent for a page of LIST, in bytes
	syncSlots = 4         // slots of a target that are brought up at a time
)

// syncer brings the target's slots up until the server is closed: those in which
// it is a member that may have missed something, and those that move to it. It
// drops what the target has of slots that moved away.
func (s *Server) syncer(t *target) {
	for pause := time.Duration(0); wait(s.ctx, pause, t.changed); {
		m := s.cmap.Load()
		todo := toSync(m, t.id)
		t.syncing.Store(int64(len(todo)))
		pause = time.Hour // until the map changes
		if t.outOfService(time.Now()) != "" || !m.IsUp(t.id) {
			pause = s.opts.Tick
			continue
		}
		if s.syncAll(t, m, todo) > 0 {
			pause = s.opts.Tick
		}
		s.dropStrays(t)
	}
}

// A slotRef names a slot.
type slotRef struct {
	pool rfs.PoolID
	slot rfs.SlotID
}

// needsSync reports whether the target is to be brought up in the slot.
func needsSync(sl *placement.Slot, t rfs.TargetID) bool {
	i := sl.Index(t)
	return i >= 0 && sl.Syncing.Has(uint8(i)) || sl.IncomingIndex(t) >= 0
}

func toSync(m *placement.Map, t rfs.TargetID) (refs []slotRef) {
	for p := range m.Pools {
		for i := range m.Pools[p].Slots {
			if needsSync(&m.Pools[p].Slots[i], t) {
				refs = append(refs, slotRef{m.Pools[p].ID, rfs.SlotID(i)})
			}
		}
	}
	return refs
}

// syncAll brings up slots, a few at a time, and returns how many could not be.
func (s *Server) syncAll(t *target, m *placement.Map, todo []slotRef) (left int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	free := make(chan struct{}, syncSlots)
	for _, ref := range todo {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			if err := s.syncSlot(s.ctx, t, ref); err != nil {
				if s.ctx.Err() == nil {
					s.log.Debug("slot not synced yet", "target", t.name, "pool", ref.pool, "slot", ref.slot, "err", err)
				}
				mu.Lock()
				left++
				mu.Unlock()
				return
			}
			t.syncing.Add(-1)
			s.counts.slotsSynced.Add(1)
		})
	}
	wg.Wait()
	return left
}

// syncSlot brings the target up in one slot, and tells the metadata service.
//
//	LIST all live members at the slot's epoch   from then on none takes anything of an older one
//	compare, stripe by stripe                   stripe.Decide finds what is to be done
//	RESOLVE with FlagSync where there is        the leader gives, takes, completes
//	SlotSynced                                  readable at the next epoch
func (s *Server) syncSlot(ctx context.Context, t *target, ref slotRef) error {
	life := t.life.Load()
	m := s.cmap.Load()
	pool := m.Pool(ref.pool)
	if pool == nil {
		return nil
	}
	sl := &pool.Slots[ref.slot]
	if !needsSync(sl, t.id) {
		return nil
	}
	if err := s.compareSlot(ctx, t, m, pool, sl); err != nil {
		s.noteRefusal(err, m)
		return err
	}
	moving := sl.Index(t.id) < 0
	if moving {
		return s.takeOver(ctx, t, m, ref, sl)
	}
	for {
		err := s.opts.Meta.SlotSynced(ctx, t.id, ref.pool, ref.slot, sl.Epoch)
		if err == nil {
			s.refreshMap(ctx, m.Epoch+1)
			return nil
		}
		// The slot changed. A member that was up all the time has had all writes since.
		if !errors.Is(err, rfs.ErrStaleEpoch) {
			return err
		}
		s.refreshMap(ctx, m.Epoch+1)
		next := s.cmap.Load()
		if next.Epoch == m.Epoch || t.life.Load() != life {
			return err
		}
		m = next
		if sl = &m.Pool(ref.pool).Slots[ref.slot]; sl.Index(t.id) < 0 || !needsSync(sl, t.id) {
			return nil
		}
	}
}

// takeOver makes the target, which a position moves to and which holds all of
// it, the position's member. The old member may not know for a while, and serve
// readers as ignorant as itself. So that they miss no write, the target takes
// none before the old member has the new map, or must have it, or is fenced:
// half a lease later.
func (s *Server) takeOver(ctx context.Context, t *target, m *placement.Map, ref slotRef, sl *placement.Slot) error {
	old := sl.Members[sl.IncomingIndex(t.id)]
	t.holdWrites(ref, 1)
	err := s.opts.Meta.SlotSynced(ctx, t.id, ref.pool, ref.slot, sl.Epoch)
	done := time.Now()
	if err == nil {
		s.refreshMap(ctx, m.Epoch+1)
	}
	s.wg.Go(func() {
		defer t.holdWrites(ref, -1)
		if err == nil && s.hasMap(old, m.Epoch+1) {
			return
		}
		wait(s.ctx, time.Until(done.Add(time.Duration(s.agent.lease.Load())/2)), nil)
	})
	return err
}

// hasMap reports whether a target acts by a map of the epoch or a later one, or is down.
func (s *Server) hasMap(t rfs.TargetID, e rfs.Epoch) bool {
	m := s.cmap.Load()
	if m.Epoch >= e && !m.IsUp(t) {
		return true
	}
	rep, err := s.call(s.ctx, m, t, wire.OpTargetStat, wire.AppendCommon(nil, &wire.Common{Target: t, Epoch: m.Epoch}), nil, nil)
	if err != nil {
		return false
	}
	st, err := wire.DecodeTargetStat(rep.Header)
	return err == nil && st.MapEpoch >= e
}

// take1 counts takeovers of a slot under way.
func (t *target) holdWrites(ref slotRef, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taking[ref] += n; t.taking[ref] == 0 {
		delete(t.taking, ref)
	}
}

// takesOver reports whether the target is the slot's member, but must not take writes yet.
func (t *target) takesOver(sl slot) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.taking) > 0 && t.taking[slotRef{sl.pool.ID, sl.ID}] > 0 && sl.Index(t.id) >= 0
}

// compareSlot compares the slot's stripes on all live members, and has the leader see to those that differ.
func (s *Server) compareSlot(ctx context.Context, t *target, m *placement.Map, pool *placement.Pool, sl *placement.Slot) error {
	v, ids := viewOf(m, pool, sl)
	v.Sync = true
	if v.Cold() && !v.Quorate() {
		return fmt.Errorf("slot %d of pool %d: too few members are back: %w", sl.ID, pool.ID, rfs.ErrUnavailable)
	}
	lists, err := s.openLists(ctx, m, pool, sl, &v, ids)
	if err != nil {
		return err
	}
	me := slices.Index(ids, t.id)
	leader := leaderOf(m, pool, sl)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	free := make(chan struct{}, s.opts.SyncStripes)
	defer wg.Wait()
	for {
		x, held, err := nextStripe(ctx, lists)
		if err != nil {
			return err
		}
		if held == nil {
			wg.Wait()
			return failed
		}
		s.counts.compared.Add(1)
		all := unsure(&v, held, me)
		floor := rfs.Tag{}
		for _, vs := range held {
			for i := range vs {
				if all || vs[i].State == wire.Complete {
					floor = maxTag(floor, vs[i].Tag)
				}
			}
		}
		if p := stripe.Decide(&v, floor, t.store.Floor(x.Inode, x.Stripe), held); p.Empty() {
			continue
		}
		select {
		case free <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-free }()
			if err := s.askLeader(ctx, m, pool, sl, leader, x, rfs.Tag{}, wire.FlagSync); err != nil {
				mu.Lock()
				failed = err
				mu.Unlock()
			}
		})
		mu.Lock()
		err = failed
		mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// unsure reports whether, of some version that no readable member says is
// complete, this member has a part and others do not, or the other way round: it
// may be complete and not known to be, or be gone. One that all hold is a write under way, and comes to this member as to all.
func unsure(v *stripe.View, held [][]stripe.Version, me int) bool {
	has := func(i int, id stripe.ID) bool {
		return slices.ContainsFunc(held[i], func(x stripe.Version) bool { return x.ID == id })
	}
	for i, holder := range v.Members {
		for _, x := range held[i] {
			if x.State == wire.Complete && holder.Readable || !x.W.Has(v.Members[me].Pos) {
				continue
			}
			for j, m := range v.Members {
				if x.W.Has(m.Pos) && !has(j, x.ID) {
					return true
				}
			}
		}
	}
	return false
}

// A lister goes through what a member holds of a slot, page by page.
type lister struct {
	s      *Server
	m      *placement.Map
	req    wire.List
	more   bool
	key    rfs.ShardKey
	held   []stripe.Version // of key; nil: at the end
	page   []byte
	left   uint32
	target rfs.TargetID
}

// openLists asks all members for their first page: then all are at the slot's epoch.
func (s *Server) openLists(ctx context.Context, m *placement.Map, pool *placement.Pool, sl *placement.Slot, v *stripe.View, ids []rfs.TargetID) ([]*lister, error) {
	lists := make([]*lister, len(ids))
	errs := make([]error, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		l := &lister{s: s, m: m, more: true, target: id}
		l.req = wire.List{Max: 1 << 20, Common: wire.Common{Target: id, Pool: pool.ID, Slot: sl.ID, Epoch: sl.Epoch}}
		l.req.Key.Shard = v.Members[i].Pos
		lists[i] = l
		wg.Go(func() { errs[i] = l.next(ctx) })
	}
	wg.Wait()
	return lists, errors.Join(errs...)
}

// next goes to the member's next stripe.
func (l *lister) next(ctx context.Context) (err error) {
	for l.left == 0 {
		if !l.more {
			l.held = nil
			return nil
		}
		if err := l.fetch(ctx); err != nil {
			return err
		}
	}
	l.left--
	var n int
	if l.key, n, l.page, err = wire.DecodeListed(l.page); err != nil {
		return err
	}
	l.held, l.page, err = decodeVersions(l.page, n)
	return err
}

func (l *lister) fetch(ctx context.Context) error {
	buf, err := l.s.opts.Background.Get(ctx, listRoom)
	if err != nil {
		return err
	}
	defer buf.Release()
	rep, err := l.s.call(ctx, l.m, l.target, wire.OpList, wire.AppendList(nil, &l.req), nil, buf)
	if err != nil {
		return err
	}
	r, err := wire.DecodeListReply(rep.Header)
	if err != nil {
		return err
	}
	l.page, l.left = append(l.page[:0], buf.Bytes()[:rep.Pushed]...), r.Count
	l.more, l.req.Key.Inode, l.req.Key.Stripe = r.More, r.NextInode, r.NextStripe
	return nil
}

// nextStripe takes the lowest stripe that any member has off the lists. held is nil at the end.
func nextStripe(ctx context.Context, lists []*lister) (x stripe.Stripe, held [][]stripe.Version, err error) {
	low := rfs.ShardKey{}
	for _, l := range lists {
		if l.held != nil && (held == nil || (rfs.ShardKey{Inode: l.key.Inode, Stripe: l.key.Stripe}).Compare(low) < 0) {
			low = rfs.ShardKey{Inode: l.key.Inode, Stripe: l.key.Stripe}
			held = make([][]stripe.Version, len(lists))
		}
	}
	if held == nil {
		return x, nil, nil
	}
	x = stripeOf(low)
	for i, l := range lists {
		if l.held != nil && stripeOf(l.key) == x {
			held[i] = l.held
			if err := l.next(ctx); err != nil {
				return x, nil, err
			}
		}
	}
	return x, held, nil
}

// dropStrays drops what the target holds of slots, or of positions, that it does not have any more.
func (s *Server) dropStrays(t *target) {
	m := s.cmap.Load()
	for p := range m.Pools {
		for i := range m.Pools[p].Slots {
			pool, sl := &m.Pools[p], &m.Pools[p].Slots[i]
			member, incoming := sl.Index(t.id), sl.IncomingIndex(t.id)
			for sh, err := range t.store.Scan(pool.ID, sl.ID, rfs.ShardKey{}) {
				if err != nil || s.ctx.Err() != nil {
					return
				}
				if pos := int(sh.Key.Shard); pos == member || pos == incoming {
					if member < 0 || incoming < 0 {
						break // shards of one position only, till the stray is seen
					}
					continue
				}
				for _, v := range sh.Versions {
					if err := t.store.Drop(sh.Key, v.Tag, v.Kind); err != nil {
						s.log.Warn("stray shard not dropped", "target", t.name, "key", sh.Key, "err", err)
						return
					}
				}
			}
		}
	}
}

// mend gives the target back the bytes of a version of its own that do not check.
func (s *Server) mend(t *target, c wire.Common, id stripe.ID) {
	if s.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.ctx, 4*callTimeout)
	defer cancel()
	unlock, err := s.leads.lock(ctx, mending{t.id, c.Key})
	if err != nil {
		return
	}
	defer unlock()
	c.Target, c.Session = t.id, 0
	sl, st := s.locate(&c)
	if st != wire.StatusOK {
		return
	}
	l := s.newLead(sl.m, sl.pool, sl.Slot, stripeOf(c.Key))
	if err := l.mend(ctx, t.id, id); err != nil {
		s.log.Warn("corrupt shard not mended", "target", t.name, "key", c.Key, "version", id.Tag, "err", err)
		return
	}
	s.log.Info("corrupt shard mended", "target", t.name, "key", c.Key, "version", id.Tag)
}

type mending struct {
	t   rfs.TargetID
	key rfs.ShardKey
}

// mend rebuilds a version from the members that hold it but t.
func (l *lead) mend(ctx context.Context, t rfs.TargetID, id stripe.ID) error {
	a := stripe.Action{Do: stripe.Repair, Member: slices.Index(l.ids, t), ID: id}
	held := make([][]stripe.Version, len(l.ids))
	for i := range l.ids {
		var err error
		if held[i], _, err = l.query(ctx, i, rfs.Tag{}); err != nil {
			continue // done without
		}
		for _, v := range held[i] {
			if v.ID != id {
				continue
			}
			if i == a.Member {
				a.Version = v
			} else {
				a.From = append(a.From, i)
			}
		}
	}
	if a.Member < 0 || a.Version.Tag.IsZero() {
		return nil // superseded meanwhile
	}
	a.Version.State = wire.Complete
	return l.repair(ctx, a, held)
}

var _ transport.Handler = (*Server)(nil)
