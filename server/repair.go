package server

import (
	"context"
	"fmt"
	"slices"

	"rfs"
	"rfs/erasure"
	"rfs/server/stripe"
	"rfs/transport"
	"rfs/transport/wire"
)

// window is how much of a shard is rebuilt at a time, in bytes.
const window = 256 << 10

// repair gives a member a version that it lacks: a copy, if another target has
// just this part, or what the others' parts give.
func (l *lead) repair(ctx context.Context, a stripe.Action, held [][]stripe.Version) error {
	unlock, err := l.s.heavy(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	switch {
	case a.Blank:
		return l.put(ctx, a, 0, nil, nil, nil)
	case a.ID.Kind == wire.Partial:
		return l.repairOverlay(ctx, a, held)
	}
	pos := l.view.Members[a.Member].Pos
	for _, h := range a.From {
		if l.view.Members[h].Pos == pos {
			if err = l.copyFull(ctx, a, h, held); err == nil {
				return nil
			}
		}
	}
	return l.rebuild(ctx, a, held)
}

// heavy admits few at a time to work that takes much memory.
func (s *Server) heavy(ctx context.Context) (unlock func(), err error) {
	select {
	case s.heavies <- struct{}{}:
		return func() { <-s.heavies }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// put stores a's version on its member, as a repair.
func (l *lead) put(ctx context.Context, a stripe.Action, n int, buf transport.Buf, segs []wire.Segment, crcs []uint32) error {
	p := wire.Prepare{Common: l.common(a.Member), Tag: a.ID.Tag, W: a.Version.W, Length: uint32(n)}
	p.Flags = wire.FlagRepair
	if a.ID.Kind == wire.Partial {
		p.Flags |= wire.FlagPartial
	}
	if a.Version.Fold {
		p.Flags |= wire.FlagFold
	}
	if a.Version.State == wire.Complete {
		p.Flags |= wire.FlagComplete
	}
	var src transport.Buf
	if n > 0 {
		src = part{buf, n}
	}
	_, err := l.call(ctx, a.Member, wire.OpPrepare, wire.AppendPrepare(nil, &p, segs, crcs), src, nil)
	l.s.counts.repaired(n, err)
	return err
}

func lengthOn(held []stripe.Version, id stripe.ID) uint32 {
	if i := slices.IndexFunc(held, func(v stripe.Version) bool { return v.ID == id }); i >= 0 {
		return held[i].Length
	}
	return 0
}

// readExact reads bytes of the Full version tag from a member, checks them, and returns how many there are.
func (l *lead) readExact(ctx context.Context, member int, tag rfs.Tag, off, n uint32, buf transport.Buf) (int, error) {
	r := wire.Read{Common: l.common(member), Tag: tag, Off: off, N: n}
	r.Flags = wire.FlagExact
	rep, err := l.call(ctx, member, wire.OpRead, wire.AppendRead(nil, &r), nil, buf)
	if err != nil {
		return 0, err
	}
	_, _, crcs, err := wire.DecodeReadReply(rep.Header)
	if err != nil {
		return 0, err
	}
	_, err = checkRange(r.Key, r.Key.Shard, off, buf.Bytes()[:rep.Pushed], crcs.Append(nil))
	return rep.Pushed, err
}

// copyFull copies a Full version from another target of the same position.
func (l *lead) copyFull(ctx context.Context, a stripe.Action, from int, held [][]stripe.Version) error {
	n := lengthOn(held[from], a.ID)
	if n == 0 {
		return l.put(ctx, a, 0, nil, nil, nil)
	}
	buf, err := l.s.opts.Background.Get(ctx, int(n))
	if err != nil {
		return err
	}
	defer buf.Release()
	got, err := l.readExact(ctx, from, a.ID.Tag, 0, n, buf)
	if err != nil {
		return err
	}
	key := l.common(a.Member).Key
	return l.put(ctx, a, got, buf, nil, appendCRCs(nil, key, key.Shard, 0, buf.Bytes()[:got]))
}

// rebuild computes a Full version's part from k others.
func (l *lead) rebuild(ctx context.Context, a stripe.Action, held [][]stripe.Version) error {
	pos := l.view.Members[a.Member].Pos
	src, size := l.sources(a, held)
	if size == 0 {
		return l.put(ctx, a, 0, nil, nil, nil)
	}
	out, err := l.s.opts.Background.Get(ctx, int(size))
	if err != nil {
		return err
	}
	defer out.Release()
	b := out.Bytes()[:size]
	if err := l.reconstruct(ctx, a.ID.Tag, a.Version.W, src, pos, b); err != nil {
		return err
	}
	if int(pos) < l.view.K { // zeros at the end are not known to have been written
		for len(b) > 0 && b[len(b)-1] == 0 {
			b = b[:len(b)-1]
		}
	}
	key := l.common(a.Member).Key
	return l.put(ctx, a, len(b), out, nil, appendCRCs(nil, key, key.Shard, 0, b))
}

// sources returns one holder of each position, and the length of the longest part.
func (l *lead) sources(a stripe.Action, held [][]stripe.Version) (src map[uint8]int, size uint32) {
	src = make(map[uint8]int)
	for _, h := range a.From {
		pos := l.view.Members[h].Pos
		if old, ok := src[pos]; !ok || !l.view.Members[old].Readable {
			src[pos] = h
		}
		size = max(size, lengthOn(held[h], a.ID))
	}
	return src, size
}

// reconstruct fills dst with the part pos of the Full version tag. src has a
// holder of each position that has one; positions outside of w are zeros.
// A source that fails is done without, as long as k are left.
func (l *lead) reconstruct(ctx context.Context, tag rfs.Tag, w rfs.ShardSet, src map[uint8]int, pos uint8, dst []byte) error {
	code, err := erasure.New(l.view.K, l.view.M)
	if err != nil {
		return err
	}
	bufs := make([]transport.Buf, 0, l.view.K)
	defer func() {
		for _, b := range bufs {
			b.Release()
		}
	}()
	for range l.view.K {
		b, err := l.s.opts.Background.Get(ctx, min(window, max(len(dst), rfs.BlockSize)))
		if err != nil {
			return err
		}
		bufs = append(bufs, b)
	}
	bad := rfs.ShardSet{}
	for off := 0; off < len(dst); {
		n := min(window, len(dst)-off)
		shards := make([][]byte, l.view.K+l.view.M)
		shards[pos] = dst[off : off+n]
		have, err := l.gather(ctx, tag, w, src, pos, &bad, uint32(off), uint32(n), bufs, shards)
		if err != nil {
			return err
		}
		var want rfs.ShardSet
		want.Add(pos)
		if err := code.Reconstruct(shards, have, want); err != nil {
			return err
		}
		off += n
	}
	return nil
}

// gather reads a range of k parts other than pos into shards.
func (l *lead) gather(ctx context.Context, tag rfs.Tag, w rfs.ShardSet, src map[uint8]int, pos uint8, bad *rfs.ShardSet, off, n uint32, bufs []transport.Buf, shards [][]byte) (have rfs.ShardSet, err error) {
	count, used := 0, 0
	var failed error
	for i := range shards {
		p := uint8(i)
		if p == pos || bad.Has(p) || count == l.view.K {
			continue
		}
		if !w.Has(p) {
			have.Add(p)
			count++
			continue
		}
		h, ok := src[p]
		if !ok {
			continue
		}
		got, err := l.readExact(ctx, h, tag, off, n, bufs[used])
		if err != nil {
			bad.Add(p)
			failed = err
			continue
		}
		shards[i] = bufs[used].Bytes()[:got]
		have.Add(p)
		used++
		count++
	}
	if count < l.view.K {
		return have, fmt.Errorf("rebuild position %d of %v/%d: %d parts of version %v, it takes %d: %w", pos, l.Inode, l.Stripe.Stripe, count, tag, l.view.K, cmpErr(failed, rfs.ErrUnavailable))
	}
	return have, nil
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// An overlay is a Partial version, or what it has of one shard, in memory.
type overlay struct {
	buf  transport.Buf
	n    int
	segs []wire.Segment
	crcs []uint32
}

func (o *overlay) free() {
	if o.buf != nil {
		o.buf.Release()
	}
}

// readVersion reads what a member has of a Partial version for shard want.
func (l *lead) readVersion(ctx context.Context, member int, id stripe.ID, want uint8, held [][]stripe.Version) (o overlay, err error) {
	if o.buf, err = l.s.opts.Background.Get(ctx, max(rfs.BlockSize, int(lengthOn(held[member], id)))); err != nil {
		return o, err
	}
	r := wire.Read{Common: l.common(member), Tag: id.Tag, Want: want}
	r.Flags = wire.FlagVersion
	rep, err := l.call(ctx, member, wire.OpRead, wire.AppendRead(nil, &r), nil, o.buf)
	if err != nil {
		o.free()
		return overlay{}, err
	}
	_, segs, crcs, err := wire.DecodeReadReply(rep.Header)
	if err != nil {
		o.free()
		return overlay{}, err
	}
	o.n, o.crcs = rep.Pushed, crcs.Append(nil)
	for i := range segs.Len() {
		o.segs = append(o.segs, segs.At(i))
	}
	p := wire.Prepare{Common: r.Common, Length: uint32(o.n)}
	p.Flags = wire.FlagPartial
	if n, _ := segs.Totals(); n != o.n {
		err = fmt.Errorf("overlay %v of %d bytes: its segments have %d: %w", id.Tag, o.n, n, rfs.ErrCorrupt)
	} else {
		err = checkPayload(&p, segs, o.crcs, o.buf.Bytes()[:o.n])
	}
	if err != nil {
		o.free()
		return overlay{}, err
	}
	return o, nil
}

// repairOverlay copies a Partial version: from who has the same part, from a
// parity position, or, for a parity position, from all data positions of W.
func (l *lead) repairOverlay(ctx context.Context, a stripe.Action, held [][]stripe.Version) error {
	pos, k := l.view.Members[a.Member].Pos, uint8(l.view.K)
	want := uint8(wire.AllShards)
	if pos < k {
		want = pos
	}
	err := error(nil)
	for _, h := range a.From {
		if from := l.view.Members[h].Pos; from != pos && from < k {
			continue
		}
		o, e := l.readVersion(ctx, h, a.ID, want, held)
		if err = e; err != nil {
			continue
		}
		err = l.put(ctx, a, o.n, o.buf, o.segs, o.crcs)
		o.free()
		return err
	}
	if pos < k {
		return cmpErr(err, fmt.Errorf("no position has the overlay %v of %v/%d: %w", a.ID.Tag, l.Inode, l.Stripe.Stripe, rfs.ErrUnavailable))
	}
	return l.joinOverlay(ctx, a, held)
}

// joinOverlay makes a parity position's overlay out of the data positions'.
func (l *lead) joinOverlay(ctx context.Context, a stripe.Action, held [][]stripe.Version) error {
	size := 0
	for _, h := range a.From {
		size += int(lengthOn(held[h], a.ID))
	}
	buf, err := l.s.opts.Background.Get(ctx, max(size, rfs.BlockSize))
	if err != nil {
		return err
	}
	all := overlay{buf: buf}
	defer all.free()
	var done rfs.ShardSet
	for _, h := range a.From {
		pos := l.view.Members[h].Pos
		if done.Has(pos) || int(pos) >= l.view.K {
			continue
		}
		o, err := l.readVersion(ctx, h, a.ID, pos, held)
		if err != nil {
			return err
		}
		done.Add(pos)
		all.n += copy(buf.Bytes()[all.n:], o.buf.Bytes()[:o.n])
		all.segs, all.crcs = append(all.segs, o.segs...), append(all.crcs, o.crcs...)
		o.free()
	}
	for i := range l.view.K {
		if pos := uint8(i); a.Version.W.Has(pos) && !done.Has(pos) {
			return fmt.Errorf("overlay %v of %v/%d: no one has the part of position %d: %w", a.ID.Tag, l.Inode, l.Stripe.Stripe, i, rfs.ErrUnavailable)
		}
	}
	return l.put(ctx, a, all.n, buf, all.segs, all.crcs)
}
