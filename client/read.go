package client

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"rfs"
	"rfs/internal/crc"
	"rfs/internal/metrics"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/transport"
	"rfs/transport/wire"
)

// The way of a read:
//
//	read          clip to the size, cut at stripes
//	readStripe    is it dirty here? else what was read ahead, else fetch; dirty bytes are laid over
//	fetch         one READ to each data target, in parallel, into arena memory; checksums
//	  rebuild     what is missing, slow or does not check, from the others (degraded.go)

func (ino *inode) read(ctx context.Context, f *File, p []byte, off int64) (n int, err error) {
	ctx, done := ino.fs.patience(ctx)
	defer done()
	size, err := ino.sizeNow(ctx)
	switch {
	case err != nil:
		return 0, err
	case len(p) == 0:
		return 0, nil
	case off >= size:
		return 0, io.EOF
	}
	eof := int64(len(p)) > size-off
	p = p[:min(int64(len(p)), size-off)]
	f.readAhead(off, len(p), size)
	if err := ino.readStripes(ctx, f, p, off); err != nil {
		return 0, fmt.Errorf("read %d bytes at %d of %v: %w", len(p), off, ino.id, err)
	}
	ino.fs.stats.read.add(int64(len(p)))
	if eof {
		return len(p), io.EOF
	}
	return len(p), nil
}

// sizeNow returns the file's size as a read must see it.
func (ino *inode) sizeNow(ctx context.Context) (int64, error) {
	ino.mu.Lock()
	size, cached := ino.size, ino.cache != raftmeta.CacheNone
	ino.mu.Unlock()
	if cached && ino.fs.leaseHolds() {
		return size, nil
	}
	// The others write through: the metadata service knows the size of every write that returned.
	a, err := ino.fs.meta.GetattrLazy(ctx, ino.id)
	if err != nil {
		return 0, err
	}
	ino.learn(&a)
	ino.overlayAttr(&a)
	return a.Size, nil
}

// readStripes reads p, all its stripes at once.
func (ino *inode) readStripes(ctx context.Context, f *File, p []byte, off int64) error {
	stripe, in := ino.layout.Stripe(off)
	if int64(len(p)) <= ino.layout.StripeSize()-in {
		return ino.readStripe(ctx, f, stripe, in, p)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for len(p) > 0 {
		n := min(int64(len(p)), ino.layout.StripeSize()-in)
		s, o, piece := stripe, in, p[:n]
		g.Go(func() error { return ino.readStripe(ctx, f, s, o, piece) })
		p, stripe, in = p[n:], stripe+1, 0
	}
	return g.Wait()
}

// readStripe reads p from offset in of a stripe.
//
// The buffers that are dirty or on their way when it begins are pinned, and laid
// over what the targets give: they may not have it yet. What became dirty
// meanwhile is laid over that.
func (ino *inode) readStripe(ctx context.Context, f *File, stripe uint32, in int64, p []byte) error {
	ino.mu.Lock()
	var pinned [2]*stripeBuf // older first
	for i, b := range [2]*stripeBuf{ino.flying[stripe], ino.dirty[stripe]} {
		if b == nil || !b.listed {
			continue
		}
		if b.covers(in, len(p)) {
			for _, o := range pinned[:i] {
				if o != nil {
					o.unpin()
				}
			}
			b.overlay(p, in)
			if d := ino.dirty[stripe]; d != nil && d != b && d.listed {
				d.overlay(p, in)
			}
			ino.mu.Unlock()
			return nil
		}
		b.pins++
		pinned[i] = b
	}
	ino.mu.Unlock()

	hit, err := f.readFromAhead(ctx, stripe, in, p)
	if err == nil && !hit {
		err = ino.fetchInto(ctx, stripe, in, p)
	}

	ino.mu.Lock()
	defer ino.mu.Unlock()
	for _, b := range [4]*stripeBuf{pinned[0], pinned[1], ino.flying[stripe], ino.dirty[stripe]} {
		if b != nil && b.listed && err == nil {
			b.overlay(p, in)
		}
	}
	for _, b := range pinned {
		if b != nil {
			b.unpin()
		}
	}
	if err == nil && ino.gone != nil {
		err = ino.gone
	}
	return err
}

// fetchInto reads p from the targets.
func (ino *inode) fetchInto(ctx context.Context, stripe uint32, in int64, p []byte) error {
	r, err := ino.newFetch(ctx, ino.fs.reads, stripe, in, len(p))
	if err != nil {
		return err
	}
	defer r.free()
	if err := r.run(ctx); err != nil {
		return err
	}
	r.copyTo(p, in)
	return nil
}

// A fetch reads a range of each data shard of a stripe. Ranges are whole blocks,
// as checksums are of blocks.
type fetch struct {
	ino    *inode
	stripe uint32
	pieces []piece // by data shard
	budget *semaphore.Weighted
	held   int64 // of budget
	done   chan int
	asked  bool // our own COMMITs were sent: what is unresolved now is for the leader

	// of the map that the round uses
	m    *placement.Map
	pool *placement.Pool
	slot *placement.Slot
}

// A piece is the range of one data shard.
type piece struct {
	shard    uint8
	off, end uint32 // on blocks; off == end: nothing wanted
	buf      transport.Buf
	state    pieceState
	reply    wire.ReadReply
	hdr, rep []byte
	why      error // of pieceLost
	corrupt  bool  // the target's own bytes do not check: repair it
	rebuilt  bool
}

type pieceState uint8

const (
	pieceIdle       pieceState = iota
	pieceSent                  // READ is outstanding
	pieceRead                  // buf has the bytes
	pieceUnresolved            // a version is not known complete: ask the leader
	pieceStale                 // the map has changed
	pieceBusy                  // the target cannot now
	pieceLost                  // to be rebuilt from the others
)

var fetches = sync.Pool{New: func() any { return new(fetch) }}

// newFetch takes memory for file range [in, in+n) of the stripe.
func (ino *inode) newFetch(ctx context.Context, budget *semaphore.Weighted, stripe uint32, in int64, n int) (*fetch, error) {
	r := fetches.Get().(*fetch)
	k := int(ino.layout.K)
	if cap(r.pieces) < k {
		r.pieces, r.done = make([]piece, k), make(chan int, k)
	}
	r.ino, r.stripe, r.pieces, r.budget, r.held, r.asked = ino, stripe, r.pieces[:k], budget, 0, false
	for i := range r.pieces {
		pc := &r.pieces[i]
		*pc = piece{shard: uint8(i), hdr: pc.hdr[:0], rep: pc.rep[:0]}
		if off, end := shardRange(ino.layout, in, n, uint8(i)); off < end {
			pc.off, pc.end = blocksAround(off, end)
			r.held += classSize(pc.end - pc.off)
		}
	}
	if err := budget.Acquire(ctx, r.held); err != nil {
		r.held = 0
		r.free()
		return nil, ended(ctx)
	}
	for i := range r.pieces {
		pc := &r.pieces[i]
		if pc.off == pc.end {
			pc.state = pieceRead
			continue
		}
		buf, err := ino.fs.readMem.Get(ctx, int(pc.end-pc.off))
		if err != nil {
			r.free()
			return nil, err
		}
		pc.buf = buf
	}
	return r, nil
}

// blocksAround widens a range of a shard to whole blocks.
func blocksAround(off, end uint32) (uint32, uint32) {
	const b = rfs.BlockSize
	return off / b * b, (end + b - 1) / b * b
}

// classSize is what the arena takes for n bytes: a power of two of blocks.
func classSize(n uint32) int64 {
	size := int64(rfs.BlockSize)
	for size < int64(n) {
		size *= 2
	}
	return size
}

func (r *fetch) free() {
	for i := range r.pieces {
		if b := r.pieces[i].buf; b != nil {
			b.Release()
			r.pieces[i].buf = nil
		}
	}
	r.budget.Release(r.held)
	r.ino, r.m, r.pool, r.slot = nil, nil, nil, nil
	fetches.Put(r)
}

// copyTo copies the fetched bytes to p, which begins at offset in of the stripe.
func (r *fetch) copyTo(p []byte, in int64) {
	eachPiece(r.ino.layout, in, len(p), func(shard uint8, off uint32, at, n int) {
		pc := &r.pieces[shard]
		copy(p[at:at+n], pc.buf.Bytes()[off-pc.off:])
	})
}

// run reads all pieces. Each round asks the data targets for what is not there
// yet; what a target cannot give is rebuilt from the others; what depends on a
// version that is not known complete waits for the leader's word.
func (r *fetch) run(ctx context.Context) error {
	fs := r.ino.fs
	var back backoff
	for rounds := 1; ; rounds++ {
		news := fs.newMap()
		if err := r.remap(ctx); err != nil {
			return err
		}
		r.round(ctx, news)
		if err := ctx.Err(); err != nil {
			return ended(ctx)
		}
		again, err := r.mend(ctx)
		if err != nil {
			return err
		}
		if !again {
			return nil
		}
		if r.any(pieceBusy) || r.any(pieceLost) || rounds > 4 {
			if err := fs.pause(ctx, back.next(), news); err != nil {
				return err
			}
			if err := fs.refresh(ctx); err != nil {
				return err
			}
		}
		// What was read before a version was settled may be of before that version: all are read again.
		settled := r.any(pieceUnresolved)
		for i := range r.pieces {
			if pc := &r.pieces[i]; pc.state != pieceRead || settled && pc.buf != nil {
				pc.state = pieceIdle
			}
		}
	}
}

func (r *fetch) any(s pieceState) bool {
	for i := range r.pieces {
		if r.pieces[i].state == s {
			return true
		}
	}
	return false
}

// remap takes the slot from the newest map.
func (r *fetch) remap(ctx context.Context) (err error) {
	fs := r.ino.fs
	if r.any(pieceStale) {
		if err := fs.refresh(ctx); err != nil {
			return err
		}
	}
	r.m = fs.Map()
	r.pool, r.slot, err = r.m.Slot(r.ino.layout, r.stripe)
	return err
}

// round sends a READ for each idle piece and takes the answers. A target that is
// much slower than usual is not waited for if the others suffice.
func (r *fetch) round(ctx context.Context, news <-chan struct{}) {
	fs := r.ino.fs
	ctx, cancel := context.WithTimeout(ctx, fs.cfg.CallTimeout)
	defer cancel()
	open := 0
	for i := range r.pieces {
		pc := &r.pieces[i]
		if pc.state != pieceIdle {
			continue
		}
		if !r.m.Readable(r.slot, i) {
			pc.state, pc.why = pieceLost, fmt.Errorf("target %v is down or syncing: %w", r.slot.Members[i], rfs.ErrUnavailable)
			continue
		}
		pc.state = pieceSent
		open++
	}
	for i := range r.pieces {
		if r.pieces[i].state == pieceSent {
			go func() { r.readPiece(ctx, i); r.done <- i }()
		}
	}
	r.await(cancel, news, open)
}

// await waits for open READs. When only few are out and they take much longer
// than these targets do, they are cancelled, and rebuilt like lost ones; so are all when the slot changes.
func (r *fetch) await(cancel context.CancelFunc, news <-chan struct{}, open int) {
	fs := r.ino.fs
	patience := time.NewTimer(r.patience())
	defer patience.Stop()
	late, given := false, false
	for open > 0 {
		if late && !given && open <= int(r.ino.layout.M) {
			given = true
			fs.stats.hedged.inc()
			cancel()
		}
		select {
		case <-r.done:
			open--
		case <-patience.C:
			late = true
		case <-news:
			news = fs.newMap()
			if _, slot, err := fs.Map().Slot(r.ino.layout, r.stripe); err == nil && slot.Epoch > r.slot.Epoch {
				cancel()
			}
		}
	}
}

// patience is how long the slot's data targets may take for a READ: four times what they do.
func (r *fetch) patience() time.Duration {
	d := r.ino.fs.cfg.SlowRead
	for i := range r.pieces {
		d = max(d, 4*r.ino.fs.targets.mean(r.slot.Members[i]))
	}
	return d
}

// readPiece asks a data target for its piece, and checks what comes.
func (r *fetch) readPiece(ctx context.Context, i int) {
	fs := r.ino.fs
	pc := &r.pieces[i]
	t := r.slot.Members[i]
	pc.hdr = wire.AppendRead(pc.hdr[:0], &wire.Read{Common: r.common(uint8(i)), Off: pc.off, N: pc.end - pc.off})
	rep, err := fs.targets.callInto(ctx, t, wire.OpRead, pc.hdr, nil, pc.buf, pc.rep)
	pc.rep = rep.Header
	if err != nil {
		pc.state, pc.why = pieceLost, err
		if ctx.Err() != context.Canceled {
			fs.targets.report(t, err)
		}
		return
	}
	switch rep.Status {
	case wire.StatusOK:
		pc.state, pc.why = pieceRead, r.check(pc, t, rep)
		if pc.why != nil {
			pc.state = pieceLost
		}
	case wire.StatusUnresolved:
		pc.state = pieceUnresolved
		if pc.reply, _, _, err = wire.DecodeReadReply(rep.Header); err != nil {
			pc.state, pc.why = pieceLost, err
		}
	case wire.StatusStaleEpoch:
		pc.state = pieceStale
	case wire.StatusUnavailable, wire.StatusCancelled:
		pc.state = pieceBusy
		pc.why = fmt.Errorf("target %v: %w", t, statusError(wire.OpRead, rep))
	default:
		pc.state, pc.corrupt = pieceLost, rep.Status == wire.StatusCorrupt
		pc.why = fmt.Errorf("target %v: %w", t, statusError(wire.OpRead, rep))
		if pc.corrupt {
			fs.stats.crcFailures.inc()
			metrics.CRCFailures.WithLabelValues("disk", t.String()).Inc()
		}
	}
}

func statusError(op wire.Op, rep transport.Reply) error {
	return &transport.StatusError{Op: op, Status: rep.Status}
}

func (r *fetch) common(shard uint8) wire.Common {
	return wire.Common{
		Target:  r.slot.Members[shard],
		Key:     rfs.ShardKey{Inode: r.ino.id, Stripe: r.stripe, Shard: shard},
		Pool:    r.pool.ID,
		Slot:    r.slot.ID,
		Epoch:   r.slot.Epoch,
		Session: r.ino.fs.Session(),
	}
}

// check compares what was pushed with its checksums, and puts zeros behind it.
func (r *fetch) check(pc *piece, t rfs.TargetID, rep transport.Reply) error {
	reply, _, crcs, err := wire.DecodeReadReply(rep.Header)
	if err != nil {
		return err
	}
	pc.reply = reply
	p := pc.buf.Bytes()
	if bad := checkBlocks(r.ino.id, r.stripe, pc.shard, pc.off, p[:rep.Pushed], crcs); bad >= 0 {
		r.ino.fs.stats.crcFailures.inc()
		metrics.CRCFailures.WithLabelValues("wire", t.String()).Inc()
		pc.corrupt = true
		return fmt.Errorf("target %v: block %d of shard %v/%d/%d: %w", t, bad, r.ino.id, r.stripe, pc.shard, rfs.ErrCorrupt)
	}
	clear(p[rep.Pushed:])
	return nil
}

// checkBlocks returns the first block of p, which lies at off of the shard, that does not match its checksum, or -1.
func checkBlocks(id rfs.InodeID, stripe uint32, shard uint8, off uint32, p []byte, crcs wire.CRCs) int {
	name := crc.Of(id, stripe, shard)
	for i := 0; len(p) > 0; i++ {
		n := min(len(p), int(rfs.BlockSize-off%rfs.BlockSize))
		block := off / rfs.BlockSize
		if i >= crcs.Len() || name.Block(block, p[:n]) != crcs.At(i) {
			return int(block)
		}
		p, off = p[n:], off+uint32(n)
	}
	return -1
}

// mend brings about what the round did not give, and says whether another round is needed.
func (r *fetch) mend(ctx context.Context) (again bool, err error) {
	fs := r.ino.fs
	if r.any(pieceUnresolved) {
		if err := r.resolve(ctx); err != nil {
			return false, err
		}
		return true, nil
	}
	if r.any(pieceStale) {
		return true, nil
	}
	for i := range r.pieces {
		pc := &r.pieces[i]
		if pc.state != pieceLost && pc.state != pieceBusy {
			continue
		}
		fs.stats.degraded.inc()
		switch err := r.rebuild(ctx, pc); {
		case err == nil:
			pc.state = pieceRead
			if pc.corrupt {
				r.ino.repair(r.stripe, pc.shard)
			}
		case ctx.Err() != nil:
			return false, ended(ctx)
		case pc.corrupt && isFinal(err):
			return false, fmt.Errorf("shard %v/%d/%d: %w, and cannot be rebuilt: %w", r.ino.id, r.stripe, pc.shard, pc.why, err)
		default:
			fs.log.Debug("degraded read waits", "inode", r.ino.id, "stripe", r.stripe, "shard", pc.shard, "lost", pc.why, "err", err)
			again = true
		}
	}
	return again, nil
}

// resolve brings it about that no version of the stripe is in doubt: mine, by
// sending the COMMITs that wait; another's, by asking the slot's leader.
func (r *fetch) resolve(ctx context.Context) error {
	fs := r.ino.fs
	fs.stats.resolves.inc()
	mine, highest := true, rfs.Tag{}
	for i := range r.pieces {
		if pc := &r.pieces[i]; pc.state == pieceUnresolved {
			mine = mine && pc.reply.Unresolved.Session == fs.Session()
			if highest.Less(pc.reply.Unresolved) {
				highest = pc.reply.Unresolved
			}
		}
	}
	if mine && !r.asked {
		r.asked = true
		fs.commits.push(ctx)
		return nil
	}
	rep, err := fs.askLeader(ctx, wire.OpResolve, r.ino, r.stripe, highest)
	if err == nil && rep.Status == wire.StatusOK {
		return nil
	}
	if ctx.Err() != nil {
		return ended(ctx)
	}
	news := fs.newMap()
	if err := fs.pause(ctx, 20*time.Millisecond, news); err != nil {
		return err
	}
	return fs.refresh(ctx)
}
