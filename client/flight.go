package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/transport"
	"rfs/transport/wire"
)

// plan is what kind of version carries a stripe's dirty bytes.
type plan struct {
	kind wire.Kind
	// all puts every data target into W of a Full version, those without bytes
	// too: they may hold an older version that this one takes the place of.
	all bool
}

// plan chooses: Full if every byte is there, or if the others surely read as
// zeros and it costs no more than to log the bytes m+1 times. mu is held.
func (ino *inode) plan(b *stripeBuf) plan {
	start := int64(b.stripe) * ino.layout.StripeSize()
	exclusive := ino.cache == raftmeta.CacheReadWrite
	p := plan{kind: wire.Partial}
	switch {
	case b.full():
		p = plan{wire.Full, true}
	case exclusive && start >= ino.base && b.cheaperFull():
		p = plan{wire.Full, start < ino.fresh}
	}
	end := start + b.end()
	ino.base = max(ino.base, end)
	if ino.fresh < end {
		ino.fresh = end
	}
	return p
}

// cheaperFull says whether a Full version, with zeros in the gaps, moves no more bytes than a Partial one.
func (b *stripeBuf) cheaperFull() bool {
	var full, dirty, longest int64
	for i := range b.shards {
		s := &b.shards[i]
		if s.buf != nil && s.base > 0 {
			return false
		}
		full += int64(s.dirty.end())
		dirty += int64(s.dirty.size())
		longest = max(longest, int64(s.dirty.end()))
	}
	m := int64(b.ino.layout.M)
	return full+m*longest <= (m+1)*dirty
}

// writeStripe writes the bytes of b, which no one changes any more, and returns when they are committed.
func (ino *inode) writeStripe(b *stripeBuf, p plan) error {
	fs := ino.fs
	ctx, done := fs.patience(fs.ctx)
	defer done()
	need := max(int64(ino.layout.M)*int64(ino.layout.Unit), partialMax)
	if err := fs.flights.Acquire(ctx, need); err != nil {
		return ended(ctx)
	}
	defer fs.flights.Release(need)
	w := newVersion(ino, b.stripe, p.kind)
	defer w.free()
	if p.kind == wire.Full {
		if err := w.encode(ctx, b, p.all); err != nil {
			return err
		}
		return w.commit(ctx)
	}
	for at := (cursor{}); ; {
		more, err := w.gather(ctx, b, &at)
		if err != nil || !more {
			return err
		}
		if err := w.commit(ctx); err != nil {
			return err
		}
	}
}

// A version is one tagged version of a stripe on its way to the targets.
type version struct {
	ino    *inode
	stripe uint32
	kind   wire.Kind
	w      rfs.ShardSet
	parts  []part   // by position
	shards [][]byte // by position, while they are encoded
	pieces [][]byte
	ranges [][3]int // of w.crcs by data shard, while an overlay is made

	bufs []transport.Buf // parity, or the gathered segments; ours to release
	segs []wire.Segment  // of all shards, in the order of the payload
	crcs []uint32        // of all parts

	core    writeCore
	slot    *placement.Slot
	legs    []leg
	hdrs    [][]byte // by leg
	answers chan answer
}

// A part is what one position of W is sent. Its slices are views of the version's.
type part struct {
	length uint32 // of the shard (Full) or of the payload (Partial)
	segs   []wire.Segment
	crcs   []uint32
	view   view
}

// view is a piece of a buffer, which it lends as if it were one.
type view struct {
	transport.Buf
	off, n int
}

func (v *view) Bytes() []byte { return v.Buf.Bytes()[v.off : v.off+v.n : v.off+v.n] }

// src returns what the part lends, nil if that is nothing.
func (p *part) src() transport.Buf {
	if p.view.n == 0 {
		return nil
	}
	return &p.view
}

type answer struct {
	leg    int
	act    legAction
	status wire.Status
	held   rfs.Tag
	err    error // there is none
}

var versions = sync.Pool{New: func() any { return new(version) }}

func newVersion(ino *inode, stripe uint32, kind wire.Kind) *version {
	w := versions.Get().(*version)
	width := ino.layout.Width()
	if cap(w.parts) < width {
		w.parts = make([]part, width)
	}
	if cap(w.answers) < 2*width {
		w.answers = make(chan answer, 2*width) // each position has two legs at most
	}
	w.ino, w.stripe, w.kind, w.parts = ino, stripe, kind, w.parts[:width]
	w.reset()
	return w
}

// reset forgets the bytes, so that other ones of the same stripe may be sent.
func (w *version) reset() {
	for _, b := range w.bufs {
		b.Release()
	}
	clear(w.bufs)
	clear(w.parts)
	w.w, w.bufs, w.segs, w.crcs = rfs.ShardSet{}, w.bufs[:0], w.segs[:0], w.crcs[:0]
}

func (w *version) free() {
	w.reset()
	w.ino, w.slot, w.core = nil, nil, writeCore{}
	versions.Put(w)
}

// commit brings the version to all live members of W. It returns nil when they
// have it, and an error when it never will be: what some of them took is
// then taken back.
func (w *version) commit(ctx context.Context) error {
	fs := w.ino.fs
	w.core = writeCore{}
	var backoff backoff
	next := func(err error) error { // starts over with a newer map
		if err == nil {
			err = w.members(ctx)
		}
		if err == nil {
			w.core.begin(w.legs, fs.tag())
		}
		return err
	}
	err := next(nil)
	for err == nil {
		switch w.core.step() {
		case stepSend:
			err = w.send(ctx)
		case stepRetag:
			fs.stats.retags.inc()
			err = w.retag()
		case stepOrder:
			fs.stats.orders.inc()
			if err = w.order(ctx); err == nil {
				err = w.retag()
			}
		case stepRemap:
			fs.stats.retries.inc()
			err = next(w.remap(ctx, &backoff))
		case stepWait:
			fs.stats.retries.inc()
			news := fs.newMap()
			if err = fs.pause(ctx, backoff.next(), news); err == nil {
				w.core.resume()
			}
		case stepFail:
			err = w.core.err
		case stepDone:
			w.committed()
			return nil
		}
	}
	w.abort()
	return err
}

// members takes the slot's members from the newest map; it waits while too few are live.
func (w *version) members(ctx context.Context) error {
	fs := w.ino.fs
	var backoff backoff
	for {
		news := fs.newMap()
		m := fs.Map()
		pool, slot, err := m.Slot(w.ino.layout, w.stripe)
		if err == nil && m.CanWrite(pool, slot) {
			w.slot = slot
			w.legs = w.legs[:0]
			for i := range slot.Members {
				if w.w.Has(uint8(i)) {
					w.addLeg(m, uint8(i), slot.Members[i])
					w.addLeg(m, uint8(i), slot.IncomingAt(i))
				}
			}
			return nil
		}
		if err := fs.pause(ctx, backoff.next(), news); err != nil {
			return fmt.Errorf("slot of stripe %d has too few live targets: %w", w.stripe, err)
		}
		if err := fs.refresh(ctx); err != nil {
			return err
		}
	}
}

func (w *version) addLeg(m *placement.Map, shard uint8, t rfs.TargetID) {
	if !t.IsZero() && m.IsUp(t) {
		w.legs = append(w.legs, leg{shard: shard, target: t})
	}
}

// send sends each leg what is next for it and waits for the answers. When the
// slot changes meanwhile, the answers that are still out are given up.
func (w *version) send(ctx context.Context) error {
	fs := w.ino.fs
	ctx, cancel := context.WithTimeout(ctx, fs.cfg.CallTimeout)
	defer cancel()
	for len(w.hdrs) < len(w.legs) {
		w.hdrs = append(w.hdrs, nil)
	}
	news := fs.newMap()
	if w.outdated() {
		cancel()
	}
	for i := range w.legs { // data before parity: legs are in the order of positions
		if act := w.core.next(i); act != actNone {
			go w.call(ctx, i, act, w.legs[i])
		}
	}
	w.legs = w.core.legs
	for w.core.open > 0 {
		select {
		case a := <-w.answers:
			w.take(a)
		case <-news:
			news = fs.newMap()
			if w.outdated() {
				cancel()
			}
		}
	}
	return nil
}

// outdated says whether the slot has changed since its members were taken.
func (w *version) outdated() bool {
	_, slot, err := w.ino.fs.Map().Slot(w.ino.layout, w.stripe)
	return err == nil && slot.Epoch > w.slot.Epoch
}

// take brings an answer to the core.
func (w *version) take(a answer) {
	if a.err != nil {
		if !errors.Is(a.err, context.Canceled) {
			w.ino.fs.targets.report(w.legs[a.leg].target, a.err)
		}
		w.core.lost(a.leg)
		return
	}
	w.core.answered(a.leg, a.act, a.status, a.held)
}

// call carries out one action of a leg.
func (w *version) call(ctx context.Context, i int, act legAction, l leg) {
	fs := w.ino.fs
	p := &w.parts[l.shard]
	c := w.common(l)
	op, hdr, src := wire.OpPrepare, w.hdrs[i][:0], p.src()
	if act == actRetag {
		op, src = wire.OpRetag, nil
		hdr = wire.AppendRetag(hdr, &wire.Retag{Common: c, Old: l.tag, New: w.core.tag})
	} else {
		hdr = wire.AppendPrepare(hdr, &wire.Prepare{Common: c, Tag: w.core.tag, W: w.w, Length: p.length}, p.segs, p.crcs)
	}
	w.hdrs[i] = hdr
	rep, err := fs.targets.call(ctx, l.target, op, hdr, src, nil)
	a := answer{leg: i, act: act, status: rep.Status, err: err}
	switch {
	case err != nil:
	case rep.Status == wire.StatusStaleTag:
		if a.held, err = wire.DecodeTagReply(rep.Header); err != nil {
			a.err = err
		}
	}
	w.answers <- a
}

// common is the first part of a request to the leg.
func (w *version) common(l leg) wire.Common {
	c := wire.Common{
		Target:  l.target,
		Key:     rfs.ShardKey{Inode: w.ino.id, Stripe: w.stripe, Shard: l.shard},
		Pool:    w.ino.layout.Pool,
		Slot:    w.slot.ID,
		Epoch:   w.slot.Epoch,
		Session: w.ino.fs.Session(),
	}
	if w.kind == wire.Partial {
		c.Flags |= wire.FlagPartial
	}
	if w.core.turns >= roundsPerTurn {
		c.Flags |= wire.FlagOrdered
	}
	return c
}

// retag begins a round above what refused this one.
func (w *version) retag() error {
	tag, err := w.ino.fs.tagAbove(w.core.held)
	if err == nil {
		w.core.retag(tag)
	}
	return err
}

// order asks the slot's leader for a turn. Without an answer the writers go on
// contending, which is no worse than before.
func (w *version) order(ctx context.Context) error {
	fs := w.ino.fs
	rep, err := fs.askLeader(ctx, wire.OpOrder, w.ino, w.stripe, w.core.held)
	if err != nil || rep.Status != wire.StatusOK {
		return fs.pause(ctx, 10*time.Millisecond, nil)
	}
	o, err := wire.DecodeOrderReply(rep.Header)
	if err == nil && w.core.held.Less(o.Highest) {
		w.core.held = o.Highest
	}
	return err
}

// remap waits a little for a map in which the slot has changed.
func (w *version) remap(ctx context.Context, b *backoff) error {
	fs := w.ino.fs
	news := fs.newMap()
	if err := fs.refresh(ctx); err != nil {
		return err
	}
	if _, slot, err := fs.Map().Slot(w.ino.layout, w.stripe); err == nil && slot.Epoch != w.slot.Epoch {
		return nil
	}
	return fs.pause(ctx, b.next(), news)
}

// committed queues the COMMIT hints and notes who must SYNC.
func (w *version) committed() {
	fs, ino := w.ino.fs, w.ino
	for _, l := range w.core.legs {
		fs.commits.add(l.target, wire.CommitEntry{
			Key:  rfs.ShardKey{Inode: ino.id, Stripe: w.stripe, Shard: l.shard},
			Kind: w.kind,
			Tag:  w.core.tag,
		})
	}
	if w.kind == wire.Full {
		fs.stats.full.inc()
	} else {
		fs.stats.partial.inc()
	}
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.touched[w.slot.ID] == nil {
		ino.touched[w.slot.ID] = &touch{epoch: w.slot.Epoch}
	}
}

// abort tells those that took the version to drop it. It is best effort: a leader rolls back what is left.
func (w *version) abort() {
	fs := w.ino.fs
	if fs.ctx.Err() != nil || w.slot == nil {
		return
	}
	ctx, cancel := context.WithTimeout(fs.ctx, time.Second)
	defer cancel()
	for _, l := range w.core.legs {
		if l.state != legTaken {
			continue
		}
		e := wire.CommitEntry{Key: rfs.ShardKey{Inode: w.ino.id, Stripe: w.stripe, Shard: l.shard}, Kind: w.kind, Tag: l.tag}
		c := w.common(l)
		if _, err := fs.targets.call(ctx, l.target, wire.OpAbort, wire.AppendCommit(nil, &c, []wire.CommitEntry{e}), nil, nil); err != nil {
			return
		}
	}
}

// A backoff is how long to wait before the next try: from 5 ms, doubling up to 500 ms.
type backoff time.Duration

func (b *backoff) next() time.Duration {
	d := max(time.Duration(*b), 5*time.Millisecond)
	*b = backoff(min(2*d, 500*time.Millisecond))
	return d
}

// askLeader sends RESOLVE or ORDER of a stripe to its slot's leader.
func (fs *FS) askLeader(ctx context.Context, op wire.Op, ino *inode, stripe uint32, tag rfs.Tag) (transport.Reply, error) {
	m := fs.Map()
	pool, slot, err := m.Slot(ino.layout, stripe)
	if err != nil {
		return transport.Reply{}, err
	}
	leader := m.Leader(pool, slot)
	if leader < 0 {
		return transport.Reply{}, fmt.Errorf("slot %d has no live parity target: %w", slot.ID, rfs.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, fs.cfg.CallTimeout)
	defer cancel()
	t := slot.Members[leader]
	rep, err := fs.targets.call(ctx, t, op, wire.AppendTagRequest(nil, &wire.TagRequest{Common: wire.Common{
		Target:  t,
		Key:     rfs.ShardKey{Inode: ino.id, Stripe: stripe, Shard: uint8(leader)},
		Pool:    pool.ID,
		Slot:    slot.ID,
		Epoch:   slot.Epoch,
		Session: fs.Session(),
	}, Tag: tag}), nil, nil)
	if err != nil {
		fs.targets.report(t, err)
	}
	return rep, err
}

var errNoTarget = errors.New("not in the cluster map")
