package server

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/server/stripe"
	"rfs/transport/wire"
)

// A backlog is the stripes that changed lately: of which some version may stay
// prepared because its writer died, or which may be worth folding.
type backlog struct {
	mu    sync.Mutex
	items map[stripe.Stripe]item
}

// An item is one such stripe.
type item struct {
	pool     rfs.PoolID
	slot     rfs.SlotID
	shard    uint8
	last     time.Time // of its last PREPARE
	overlays int       // since the item is there
	due      bool      // to be looked at now
}

func (b *backlog) init() { b.items = make(map[stripe.Stripe]item) }

// noteWork notes a PREPARE, and returns how many overlays came since the stripe was looked at.
func (t *target) noteWork(p *wire.Prepare, now time.Time) int {
	t.work.mu.Lock()
	defer t.work.mu.Unlock()
	x := t.work.items[stripeOf(p.Key)]
	x.pool, x.slot, x.shard, x.last = p.Pool, p.Slot, p.Key.Shard, now
	if p.Kind() == wire.Partial {
		x.overlays++
	}
	t.work.items[stripeOf(p.Key)] = x
	return x.overlays
}

// hasten has the stripe looked at soon.
func (t *target) hasten(s stripe.Stripe) {
	t.work.mu.Lock()
	defer t.work.mu.Unlock()
	if x, ok := t.work.items[s]; ok {
		x.due = true
		t.work.items[s] = x
	}
}

// take returns the items that are due, and leaves them there.
func (t *target) take(p stripe.FoldPolicy, quiet time.Duration, now time.Time) map[stripe.Stripe]item {
	t.work.mu.Lock()
	defer t.work.mu.Unlock()
	due := make(map[stripe.Stripe]item)
	for s, x := range t.work.items {
		if x.due || x.overlays > p.Overlays || now.Sub(x.last) >= quiet {
			due[s] = x
		}
	}
	return due
}

// finish drops an item that was dealt with, unless it changed meanwhile, or puts it off.
func (t *target) finish(s stripe.Stripe, was item, done bool) {
	t.work.mu.Lock()
	defer t.work.mu.Unlock()
	x, ok := t.work.items[s]
	if !ok {
		return
	}
	if done && x.last.Equal(was.last) {
		delete(t.work.items, s)
		return
	}
	x.due, x.overlays = false, x.overlays-was.overlays
	if !done {
		x.last = time.Now()
	}
	t.work.items[s] = x
}

// janitor settles what writers left behind and folds overlays, until the server is closed.
func (s *Server) janitor(t *target) {
	s.recall(t)
	quiet := min(s.opts.ResolveAfter, s.opts.Fold.Idle)
	for wait(s.ctx, s.opts.Tick, t.quick) {
		if t.outOfService(time.Now()) != "" {
			continue
		}
		due := t.take(s.opts.Fold, quiet, time.Now())
		for _, x := range slices.SortedFunc(maps.Keys(due), func(a, b stripe.Stripe) int { return due[a].last.Compare(due[b].last) }) {
			if s.ctx.Err() != nil {
				return
			}
			t.finish(x, due[x], s.tidy(t, x, due[x]))
		}
	}
}

// recall puts what the last run left on the backlog.
func (s *Server) recall(t *target) {
	m := s.cmap.Load()
	for p := range m.Pools {
		for i := range m.Pools[p].Slots {
			pool, sl := &m.Pools[p], &m.Pools[p].Slots[i]
			pos := sl.Position(t.id)
			if pos < 0 {
				continue
			}
			for sh, err := range t.store.Scan(pool.ID, sl.ID, rfs.ShardKey{}) {
				if err != nil || s.ctx.Err() != nil {
					break
				}
				n := len(sh.Versions)
				if int(sh.Key.Shard) == pos && (n > 1 || versionOf(&sh.Versions[n-1]).State == wire.Prepared) {
					t.noteWork(&wire.Prepare{Common: wire.Common{Key: sh.Key, Pool: pool.ID, Slot: sl.ID}}, time.Now())
				}
			}
		}
	}
}

// tidy looks after one stripe; false: it has to be looked at again.
func (s *Server) tidy(t *target, x stripe.Stripe, it item) (done bool) {
	m := s.cmap.Load()
	pool := m.Pool(it.pool)
	if pool == nil || int(it.slot) >= len(pool.Slots) {
		return false
	}
	sl := &pool.Slots[it.slot]
	if sl.Position(t.id) != int(it.shard) {
		return true // it moved away
	}
	vs, err := t.versions(rfs.ShardKey{Inode: x.Inode, Stripe: x.Stripe, Shard: it.shard})
	if err != nil {
		return false
	}
	leader := leaderOf(m, pool, sl)
	if leader < 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(s.ctx, 4*callTimeout)
	defer cancel()
	since := time.Since(it.last)
	if tag := highestPrepared(vs); !tag.IsZero() {
		aged := since >= s.opts.ResolveAfter || it.due
		if !aged && it.overlays <= s.opts.Fold.Overlays {
			return false
		}
		if aged && s.askLeader(ctx, m, pool, sl, leader, x, tag, 0) != nil {
			return false
		}
		if vs, err = t.versions(rfs.ShardKey{Inode: x.Inode, Stripe: x.Stripe, Shard: it.shard}); err != nil {
			return false
		}
	}
	if sl.Members[leader] != t.id || !hasOverlays(vs) {
		return true
	}
	if !s.opts.Fold.Want(vs, since) {
		return since >= s.opts.Fold.Idle
	}
	if err := s.newLead(m, pool, sl, x).fold(ctx, t); err != nil {
		s.log.Debug("stripe not folded", "inode", x.Inode, "stripe", x.Stripe, "err", err)
		return false
	}
	return true
}

func highestPrepared(vs []stripe.Version) (t rfs.Tag) {
	for i := range vs {
		if vs[i].State == wire.Prepared {
			t = maxTag(t, vs[i].Tag)
		}
	}
	return t
}

func hasOverlays(vs []stripe.Version) bool {
	return slices.ContainsFunc(vs, func(v stripe.Version) bool { return v.Kind == wire.Partial })
}

// askLeader sends RESOLVE to a stripe's leader.
func (s *Server) askLeader(ctx context.Context, m *placement.Map, pool *placement.Pool, sl *placement.Slot, leader int, x stripe.Stripe, tag rfs.Tag, flags uint8) error {
	r := wire.TagRequest{Tag: tag, Common: wire.Common{
		Target: sl.Members[leader], Pool: pool.ID, Slot: sl.ID, Epoch: sl.Epoch, Flags: flags,
		Key: rfs.ShardKey{Inode: x.Inode, Stripe: x.Stripe, Shard: uint8(leader)},
	}}
	_, err := s.callFor(ctx, 4*callTimeout, m, r.Target, wire.OpResolve, wire.AppendTagRequest(nil, &r), nil, nil)
	if err != nil {
		s.noteRefusal(err, m)
	}
	return err
}
