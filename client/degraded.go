package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rfs"
	"rfs/erasure"
	"rfs/internal/crc"
	"rfs/transport"
	"rfs/transport/wire"
)

// A degraded read of a range of data shard i, in three steps:
//
//	overlays   READ with Overlays of a parity target: the base's tag B, the
//	           positions that B has (the others are zeros), and the bytes that
//	           were logged over shard i's range since
//	base       READ with Exact B of the same range of other positions, until k
//	           are there; pieces that the fetch has read already count, if no
//	           overlay is in them
//	rebuild    the shard's range from those k, then the overlays laid over
//
// A target that no longer has B has folded meanwhile: it begins again.

// errGone means that the base was superseded while it was read.
var errGone = errors.New("the base version was superseded meanwhile")

// errUnresolved means that the leader must be asked first.
var errUnresolved = errors.New("a version is not known complete")

// isFinal says whether another try cannot help: enough targets answered, and what they have does not check.
func isFinal(err error) bool { return errors.Is(err, errTooCorrupt) }

var errTooCorrupt = fmt.Errorf("too many of its stripe's shards: %w", rfs.ErrCorrupt)

// rebuild fills a piece that its own target cannot give.
func (r *fetch) rebuild(ctx context.Context, pc *piece) error {
	fs := r.ino.fs
	var err error
	for range 8 {
		if err = r.rebuildOnce(ctx, pc); err == nil || ctx.Err() != nil {
			return err
		}
		switch {
		case errors.Is(err, errUnresolved):
			if _, err := fs.askLeader(ctx, wire.OpResolve, r.ino, r.stripe, pc.reply.Unresolved); err != nil {
				return err
			}
		case errors.Is(err, errGone):
		default:
			return err
		}
	}
	return err
}

// base is a Full version of the stripe.
type base struct {
	tag    rfs.Tag
	w      rfs.ShardSet
	length uint32 // of its parity: no shard is longer
}

func (r *fetch) rebuildOnce(ctx context.Context, pc *piece) error {
	fs := r.ino.fs
	ctx, cancel := context.WithTimeout(ctx, fs.cfg.CallTimeout)
	defer cancel()
	need := int64(r.ino.layout.K+1) * classSize(pc.end-pc.off)
	if err := fs.flights.Acquire(ctx, need); err != nil {
		return ended(ctx)
	}
	defer fs.flights.Release(need)
	b, over, err := r.overlays(ctx, pc)
	if err != nil {
		return err
	}
	defer over.free()
	if b.tag.IsZero() || !b.w.Has(pc.shard) {
		clear(pc.buf.Bytes()) // never written, or written without bytes here
	} else if err := r.rebuildBase(ctx, pc, b); err != nil {
		return err
	}
	over.apply(pc)
	pc.rebuilt = true
	return nil
}

// overlaid is what was logged over a range of a data shard.
type overlaid struct {
	buf  transport.Buf
	segs wire.Segments
}

func (o *overlaid) free() {
	if o.buf != nil {
		o.buf.Release()
	}
}

// apply lays the segments over the piece, in order.
func (o *overlaid) apply(pc *piece) {
	at := 0
	for i := range o.segs.Len() {
		g := o.segs.At(i)
		off, end := max(g.Off, pc.off), min(g.Off+g.Len, pc.end)
		if off < end {
			dst := pc.buf.Bytes()[off-pc.off : end-pc.off]
			if g.Zero {
				clear(dst)
			} else {
				copy(dst, o.buf.Bytes()[at+int(off-g.Off):])
			}
		}
		if !g.Zero {
			at += int(g.Len)
		}
	}
}

// overlays asks the parity targets, first the leader, for the base and what lies over the piece.
func (r *fetch) overlays(ctx context.Context, pc *piece) (b base, o overlaid, err error) {
	err = fmt.Errorf("slot %d has no live parity target: %w", r.slot.ID, rfs.ErrUnavailable)
	for _, limit := range [2]time.Duration{r.patience(), r.ino.fs.cfg.CallTimeout} { // a slow one is not waited for if another answers
		for p := int(r.ino.layout.K); p < r.ino.layout.Width(); p++ {
			if !r.m.Readable(r.slot, p) {
				continue
			}
			attempt, cancel := context.WithTimeout(ctx, limit)
			b, o, err = r.overlaysAt(attempt, pc, uint8(p))
			cancel()
			if err == nil || errors.Is(err, errUnresolved) || ctx.Err() != nil {
				return b, o, err
			}
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			break
		}
	}
	return b, o, err
}

func (r *fetch) overlaysAt(ctx context.Context, pc *piece, parity uint8) (b base, o overlaid, err error) {
	fs := r.ino.fs
	t := r.slot.Members[parity]
	req := wire.Read{Common: r.common(parity), Off: pc.off, N: pc.end - pc.off, Want: pc.shard}
	req.Flags |= wire.FlagOverlays
	if o.buf, err = fs.flightMem.Get(ctx, int(pc.end-pc.off)); err != nil {
		return b, o, err
	}
	defer func() {
		if err != nil {
			o.free()
			o.buf = nil
		}
	}()
	rep, err := fs.targets.call(ctx, t, wire.OpRead, wire.AppendRead(nil, &req), nil, o.buf)
	if err != nil {
		fs.targets.report(t, err)
		return b, o, err
	}
	if rep.Status != wire.StatusOK && rep.Status != wire.StatusUnresolved {
		return b, o, fmt.Errorf("target %v: %w", t, statusError(wire.OpRead, rep))
	}
	reply, segs, crcs, err := wire.DecodeReadReply(rep.Header)
	if err != nil {
		return b, o, err
	}
	if rep.Status == wire.StatusUnresolved {
		pc.reply.Unresolved = reply.Unresolved
		return b, o, errUnresolved
	}
	o.segs = segs
	b = base{reply.Base, reply.BaseW, reply.Length}
	return b, o, r.checkSegments(pc, &o, crcs, rep.Pushed)
}

// checkSegments compares the payload of overlays with its checksums.
func (r *fetch) checkSegments(pc *piece, o *overlaid, crcs wire.CRCs, pushed int) error {
	if n, _ := o.segs.Totals(); n != pushed {
		return fmt.Errorf("overlays of %d bytes in a payload of %d: %w", n, pushed, rfs.ErrCorrupt)
	}
	at := 0
	for i := range o.segs.Len() {
		g := o.segs.At(i)
		if g.Zero {
			continue
		}
		if bad := checkBlocks(r.ino.id, r.stripe, pc.shard, g.Off, o.buf.Bytes()[at:at+int(g.Len)], crcs); bad >= 0 {
			r.ino.fs.stats.crcFailures.inc()
			return fmt.Errorf("overlay of block %d of shard %v/%d/%d: %w", bad, r.ino.id, r.stripe, pc.shard, rfs.ErrCorrupt)
		}
		at += int(g.Len)
		crcs = crcs[4*wire.Blocks(g.Off, g.Len):]
	}
	return nil
}

// source is one position of the base that a rebuild uses.
type source struct {
	shard uint8
	buf   transport.Buf // ours to release
	n     int           // bytes of buf that count
	err   error
}

// rebuildBase fills the piece with the base's bytes, from k other positions.
func (r *fetch) rebuildBase(ctx context.Context, pc *piece, b base) error {
	fs, l := r.ino.fs, r.ino.layout
	shards := make([][]byte, l.Width())
	var have, want, tried rfs.ShardSet
	count := 0
	take := func(i uint8, p []byte) { shards[i] = p; have.Add(i); count++ }
	var owned []transport.Buf
	defer func() {
		for _, o := range owned {
			o.Release()
		}
	}()
	tried.Add(pc.shard)
	for i := range uint8(l.Width()) {
		if i == pc.shard || count == int(l.K) {
			continue
		}
		switch {
		case !b.w.Has(i):
			take(i, nil) // zeros
			tried.Add(i)
		case i < l.K && r.hasBase(&r.pieces[i], pc, b):
			o := &r.pieces[i]
			take(i, o.buf.Bytes()[pc.off-o.off:pc.end-o.off])
			tried.Add(i)
		}
	}
	var errs []error
	var slow rfs.ShardSet
	limit := r.patience()
	for count < int(l.K) {
		next := r.nextSources(&tried, int(l.K)-count)
		if len(next) == 0 && !slow.IsEmpty() { // those that were too slow have to be waited for
			for i := range uint8(l.Width()) {
				if slow.Has(i) {
					tried.Remove(i)
				}
			}
			slow, limit, errs = rfs.ShardSet{}, fs.cfg.CallTimeout, nil
			continue
		}
		if len(next) == 0 {
			return tooFew(count, int(l.K), errs)
		}
		r.readBase(ctx, limit, pc, b, next)
		for _, s := range next {
			if s.err != nil {
				errs = append(errs, s.err)
				if errors.Is(s.err, context.DeadlineExceeded) && limit < fs.cfg.CallTimeout {
					slow.Add(s.shard)
				}
				continue
			}
			owned = append(owned, s.buf)
			take(s.shard, s.buf.Bytes()[:s.n])
		}
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	code, err := erasure.New(int(l.K), int(l.M))
	if err != nil {
		return err
	}
	want.Add(pc.shard)
	shards[pc.shard] = pc.buf.Bytes()
	return code.Reconstruct(shards, have, want)
}

// hasBase says whether a piece that was read holds nothing but the base, over pc's range.
func (r *fetch) hasBase(o, pc *piece, b base) bool {
	return o.state == pieceRead && o.buf != nil && o.reply.Tag == b.tag && o.reply.Base == b.tag && o.off <= pc.off && pc.end <= o.end
}

// tooFew is the error of a rebuild that lacks shards.
func tooFew(have, k int, errs []error) error {
	gone, corrupt := false, 0
	for _, e := range errs {
		gone = gone || errors.Is(e, errGone)
		if errors.Is(e, rfs.ErrCorrupt) {
			corrupt++
		}
	}
	switch {
	case gone:
		return errGone
	case corrupt > 0 && corrupt == len(errs):
		return errors.Join(append(errs, errTooCorrupt)...)
	}
	return errors.Join(append(errs, fmt.Errorf("%d shards of %d that a rebuild needs: %w", have, k, rfs.ErrUnavailable))...)
}

// nextSources returns up to n readable positions that were not tried.
func (r *fetch) nextSources(tried *rfs.ShardSet, n int) (next []*source) {
	for i := range uint8(r.ino.layout.Width()) {
		if len(next) < n && !tried.Has(i) && r.m.Readable(r.slot, int(i)) {
			tried.Add(i)
			next = append(next, &source{shard: i})
		}
	}
	return next
}

// readBase reads the piece's range of the base from each source, at once, within the time limit.
func (r *fetch) readBase(ctx context.Context, limit time.Duration, pc *piece, b base, from []*source) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range from {
		wg.Go(func() { s.err = r.readSource(ctx, pc, b, s) })
	}
	wg.Wait()
}

func (r *fetch) readSource(ctx context.Context, pc *piece, b base, s *source) (err error) {
	fs := r.ino.fs
	t := r.slot.Members[s.shard]
	if s.buf, err = fs.flightMem.Get(ctx, int(pc.end-pc.off)); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.buf.Release()
			s.buf = nil
		}
	}()
	req := wire.Read{Common: r.common(s.shard), Tag: b.tag, Off: pc.off, N: pc.end - pc.off}
	req.Flags |= wire.FlagExact
	rep, err := fs.targets.call(ctx, t, wire.OpRead, wire.AppendRead(nil, &req), nil, s.buf)
	switch {
	case err != nil:
		fs.targets.report(t, err)
		return err
	case rep.Status == wire.StatusGone:
		return fmt.Errorf("target %v: %w", t, errGone)
	case rep.Status != wire.StatusOK:
		return fmt.Errorf("target %v: %w", t, statusError(wire.OpRead, rep))
	}
	_, _, crcs, err := wire.DecodeReadReply(rep.Header)
	if err != nil {
		return err
	}
	s.n = rep.Pushed
	if bad := checkBlocks(r.ino.id, r.stripe, s.shard, pc.off, s.buf.Bytes()[:s.n], crcs); bad >= 0 {
		fs.stats.crcFailures.inc()
		return fmt.Errorf("target %v: block %d of shard %v/%d/%d: %w", t, bad, r.ino.id, r.stripe, s.shard, rfs.ErrCorrupt)
	}
	return nil
}

// shardLength returns how far a data shard's bytes reach, and 0 for one that was never written.
func (ino *inode) shardLength(ctx context.Context, stripe uint32, shard uint8) (uint32, error) {
	off := ino.layout.StripeOffset(shard, 0)
	r, err := ino.newFetch(ctx, ino.fs.reads, stripe, off, 1)
	if err != nil {
		return 0, err
	}
	defer r.free()
	if err := r.run(ctx); err != nil {
		return 0, err
	}
	pc := &r.pieces[shard]
	if pc.rebuilt { // the others do not know it
		return ino.layout.Unit, nil
	}
	return pc.reply.Length, nil
}

// repair rewrites a shard whose target holds bytes that do not check, in the
// background: the base's bytes from the others, as the same version. Overlays
// that do not check go when the stripe is folded.
func (ino *inode) repair(stripe uint32, shard uint8) {
	fs := ino.fs
	fs.repairs.Lock()
	defer fs.repairs.Unlock()
	key := rfs.ShardKey{Inode: ino.id, Stripe: stripe, Shard: shard}
	if fs.repairing[key] || fs.ctx.Err() != nil {
		return
	}
	fs.repairing[key] = true
	fs.work.Go(func() {
		err := ino.repairNow(stripe, shard)
		if err != nil {
			fs.log.Warn("repair of a shard", "shard", key, "err", err)
		} else {
			fs.stats.repairs.inc()
			fs.log.Info("repaired a shard that did not check", "shard", key)
		}
		fs.repairs.Lock()
		delete(fs.repairing, key)
		fs.repairs.Unlock()
	})
}

func (ino *inode) repairNow(stripe uint32, shard uint8) error {
	fs := ino.fs
	ctx, cancel := context.WithTimeout(fs.ctx, 2*fs.cfg.CallTimeout)
	defer cancel()
	r, err := ino.newFetch(ctx, ino.fs.reads, stripe, 0, 0)
	if err != nil {
		return err
	}
	defer r.free()
	if err := r.remap(ctx); err != nil {
		return err
	}
	pc := &r.pieces[shard]
	pc.off, pc.end = 0, ino.layout.Unit
	r.held = classSize(pc.end)
	if err := fs.reads.Acquire(ctx, r.held); err != nil {
		r.held = 0
		return ended(ctx)
	}
	if pc.buf, err = fs.readMem.Get(ctx, int(pc.end)); err != nil {
		return err
	}
	return r.rewrite(ctx, pc)
}

// rewrite rebuilds the base's bytes of the whole shard, and sends them to its target as a Repair.
func (r *fetch) rewrite(ctx context.Context, pc *piece) error {
	fs, l := r.ino.fs, r.ino.layout
	need := int64(l.K+1) * classSize(pc.end)
	if err := fs.flights.Acquire(ctx, need); err != nil {
		return ended(ctx)
	}
	defer fs.flights.Release(need)
	b, over, err := r.overlays(ctx, pc)
	if err != nil {
		return err
	}
	over.free()
	if b.tag.IsZero() || !b.w.Has(pc.shard) {
		return nil // its base has no bytes here: what does not check is an overlay
	}
	if err := r.rebuildBase(ctx, pc, b); err != nil {
		return err
	}
	req := wire.Prepare{Common: r.common(pc.shard), Tag: b.tag, W: b.w, Length: b.length}
	req.Flags |= wire.FlagRepair | wire.FlagComplete
	v := &view{pc.buf, 0, int(b.length)}
	crcs := appendCRCs(nil, crc.Of(r.ino.id, r.stripe, pc.shard), 0, v.Bytes())
	rep, err := fs.targets.call(ctx, req.Target, wire.OpPrepare, wire.AppendPrepare(nil, &req, nil, crcs), v, nil)
	if err == nil && rep.Status != wire.StatusOK {
		err = statusError(wire.OpPrepare, rep)
	}
	return err
}
