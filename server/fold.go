package server

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"rfs"
	"rfs/erasure"
	"rfs/server/stripe"
	"rfs/transport"
	"rfs/transport/wire"
)

// errCannotFold means that the stripe's members are not as a fold needs them.
var errCannotFold = errors.New("stripe cannot be folded now")

// fold makes a new full version out of the base and the complete overlays, on all live members:
//
//	settle everything held   so that up to the fold's tag nothing can come any more
//	read the k base shards   of the base's tag exactly
//	lay the overlays over    from this parity target's own store, in order
//	encode
//	PREPARE to all           parity gets the bytes, data targets merge what they hold
//	COMMIT to all
//
// The fold has the tag of the last overlay in it: its content is not new, and a
// reader may see either. If anything fails the fold is dropped again.
func (l *lead) fold(ctx context.Context, t *target) (err error) {
	unlock, err := l.s.leads.lock(ctx, l.Stripe)
	if err != nil {
		return err
	}
	defer unlock()
	f, err := l.planFold(ctx, t)
	if err != nil {
		return err
	}
	done, err := l.s.heavy(ctx)
	if err != nil {
		return err
	}
	defer done()
	defer f.free()
	if err = f.run(ctx); err != nil {
		l.s.counts.foldErrors.Add(1)
		l.s.log.Warn("fold failed", "inode", l.Inode, "stripe", l.Stripe.Stripe, "err", err)
		return err
	}
	l.s.counts.folds.Add(1)
	return nil
}

// A folding is one fold under way.
type folding struct {
	*lead
	t        *target
	key      rfs.ShardKey // of the leader's own shard
	base     stripe.Version
	overlays []stripe.Version // complete, in order
	id       stripe.ID
	length   []uint32 // of each position's new version
	shards   []transport.Buf
}

// planFold settles the stripe and checks that every member is as it must be.
func (l *lead) planFold(ctx context.Context, t *target) (*folding, error) {
	for _, m := range l.view.Members {
		if !m.Readable {
			return nil, errCannotFold
		}
	}
	f := &folding{lead: l, t: t, key: rfs.ShardKey{Inode: l.Inode, Stripe: l.Stripe.Stripe, Shard: uint8(l.slot.Index(t.id))}}
	vs, err := t.versions(f.key)
	if err != nil {
		return nil, err
	}
	floor := foldFloor(vs)
	if _, err := l.settleLocked(ctx, floor); err != nil {
		return nil, err
	}
	if vs, err = t.versions(f.key); err != nil {
		return nil, err
	}
	if b := stripe.Base(vs); b != nil {
		f.base = *b
	}
	for _, v := range vs {
		switch {
		case floor.Less(v.Tag) || !f.base.ID.Less(v.ID):
		case v.State == wire.Prepared:
			return nil, fmt.Errorf("%w: version %v is not settled", errCannotFold, v.Tag)
		case v.Kind == wire.Partial:
			f.overlays = append(f.overlays, v)
		}
	}
	if len(f.overlays) == 0 {
		return nil, errCannotFold
	}
	f.id = stripe.ID{Tag: f.overlays[len(f.overlays)-1].Tag, Kind: wire.Full}
	return f, f.lengths()
}

// foldFloor is up to where to fold: the last overlay known complete. What is on
// its way above that is left alone.
func foldFloor(vs []stripe.Version) (t rfs.Tag) {
	for i := range vs {
		if vs[i].Kind == wire.Partial && vs[i].State == wire.Complete {
			t = maxTag(t, vs[i].Tag)
		}
	}
	return t
}

// lengths checks that all members have the base, and works out how long the new shards are.
func (f *folding) lengths() error {
	f.length = make([]uint32, f.view.K+f.view.M)
	longest := f.base.Length // the parity's is the longest's
	for i := range f.view.K {
		if f.base.W.Has(uint8(i)) {
			f.length[i] = f.base.Length // at most, if it is not live
		}
	}
	for i, m := range f.view.Members {
		b := stripe.Base(f.held[i])
		if b == nil {
			b = new(stripe.Version)
		}
		if b.Tag != f.base.Tag && (f.base.W.Has(m.Pos) || !b.Tag.IsZero()) {
			return fmt.Errorf("%w: position %d has the base %v, the leader %v", errCannotFold, m.Pos, b.Tag, f.base.Tag)
		}
		if int(m.Pos) < f.view.K {
			f.length[m.Pos] = b.Length
		}
	}
	for _, o := range f.overlays {
		for _, g := range o.Segments {
			if !g.Zero && int(g.Shard) < f.view.K {
				f.length[g.Shard] = max(f.length[g.Shard], g.Off+g.Len)
			}
		}
	}
	for i := range f.view.K {
		longest = max(longest, f.length[i])
	}
	for i := range f.view.M {
		f.length[f.view.K+i] = longest
	}
	return nil
}

func (f *folding) free() {
	for _, b := range f.shards {
		if b != nil {
			b.Release()
		}
	}
}

func (f *folding) run(ctx context.Context) error {
	if err := f.read(ctx); err != nil {
		return err
	}
	if err := f.lay(ctx); err != nil {
		return err
	}
	if err := f.encode(); err != nil {
		return err
	}
	if err := f.each(func(i int) error { return f.prepare(ctx, i) }); err != nil {
		// Dropping is safe: no one has been told to commit.
		drop := f.each(func(i int) error { _, err := f.tell(ctx, i, wire.OpAbort, f.id); return err })
		return errors.Join(err, drop)
	}
	return f.each(func(i int) error { _, err := f.tell(ctx, i, wire.OpCommit, f.id); return err })
}

// each does f for all members at once.
func (f *folding) each(do func(member int) error) error {
	errs := make([]error, len(f.ids))
	var wg sync.WaitGroup
	for i := range f.ids {
		wg.Go(func() { errs[i] = do(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// read fills the data shards with the base's bytes.
func (f *folding) read(ctx context.Context) error {
	f.shards = make([]transport.Buf, f.view.K+f.view.M)
	src := make(map[uint8]int)
	for i, m := range f.view.Members {
		src[m.Pos] = i
	}
	for i := range f.shards {
		if f.length[i] == 0 {
			continue
		}
		var err error
		if f.shards[i], err = f.s.opts.Background.Get(ctx, int(f.length[i])); err != nil {
			return err
		}
		if i >= f.view.K {
			continue
		}
		if err = f.readShard(ctx, uint8(i), src); err != nil {
			return err
		}
	}
	return nil
}

func (f *folding) readShard(ctx context.Context, pos uint8, src map[uint8]int) error {
	b := f.shards[pos].Bytes()
	if f.base.Tag.IsZero() || !f.base.W.Has(pos) {
		clear(b)
		return nil
	}
	if member, ok := src[pos]; ok {
		n, err := f.readExact(ctx, member, f.base.Tag, 0, uint32(len(b)), f.shards[pos])
		if err == nil {
			clear(b[n:])
			return nil
		}
		f.s.log.Warn("base shard is rebuilt for a fold", "inode", f.Inode, "stripe", f.Stripe.Stripe, "position", pos, "err", err)
	}
	clear(b)
	n := min(len(b), int(f.base.Length))
	return f.reconstruct(ctx, f.base.Tag, f.base.W, src, pos, b[:n])
}

// lay puts the overlays over the data shards.
func (f *folding) lay(ctx context.Context) error {
	for _, o := range f.overlays {
		buf, err := f.s.opts.Background.Get(ctx, max(rfs.BlockSize, int(o.Length)))
		if err != nil {
			return err
		}
		err = f.layOne(o, buf.Bytes())
		buf.Release()
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *folding) layOne(o stripe.Version, p []byte) error {
	if _, _, err := f.t.store.ReadVersion(f.key, o.Tag, storeKind(o.Kind), p); err != nil {
		return err
	}
	for _, g := range o.Segments {
		if int(g.Shard) >= f.view.K {
			return fmt.Errorf("overlay %v has a segment of shard %d: %w", o.Tag, g.Shard, rfs.ErrCorrupt)
		}
		var b []byte
		if x := f.shards[g.Shard]; x != nil {
			b = x.Bytes()
			b = b[min(int(g.Off), len(b)):min(int(g.Off+g.Len), len(b))]
		}
		if g.Zero {
			clear(b)
			continue
		}
		copy(b, p[:g.Len])
		p = p[g.Len:]
	}
	return nil
}

func (f *folding) encode() error {
	code, err := erasure.New(f.view.K, f.view.M)
	if err != nil {
		return err
	}
	all := make([][]byte, len(f.shards))
	for i, b := range f.shards {
		if b != nil {
			all[i] = b.Bytes()
		}
	}
	if f.length[f.view.K] == 0 {
		return nil // zeros over zeros
	}
	return code.Encode(all[:f.view.K], all[f.view.K:])
}

// prepare sends one member its part. A data target merges what it holds itself.
func (f *folding) prepare(ctx context.Context, member int) error {
	c := f.common(member)
	pos := c.Key.Shard
	p := wire.Prepare{Common: c, Tag: f.id.Tag, Length: f.length[pos]}
	for i := range f.shards {
		p.W.Add(uint8(i))
	}
	p.Flags = wire.FlagFold
	if int(pos) < f.view.K {
		p.Flags |= wire.FlagLocal
		_, err := f.call(ctx, member, wire.OpPrepare, wire.AppendPrepare(nil, &p, nil, nil), nil, nil)
		return err
	}
	var src transport.Buf
	var crcs []uint32
	if f.shards[pos] != nil {
		src = f.shards[pos]
		crcs = appendCRCs(nil, c.Key, pos, 0, src.Bytes())
	}
	_, err := f.call(ctx, member, wire.OpPrepare, wire.AppendPrepare(nil, &p, nil, crcs), src, nil)
	return err
}
