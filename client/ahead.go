package client

import (
	"context"
	"errors"
	"slices"
	"sync"

	"rfs/raftmeta"
)

// stream is what is read ahead for one handle. The inode's mu guards it.
//
// A handle that reads on where it left off gets its stripe and the next few
// fetched whole, and the reads are copies from those. What was fetched is void
// when the inode's readGens rises: a write of this client landed, or the lease
// that lets it be kept was recalled.
type stream struct {
	next   int64 // where a sequential read would go on
	run    int   // bytes read in sequence
	gen    uint64
	stripe []*ahead // in order
}

// ahead is one stripe, fetched or being fetched.
type ahead struct {
	of     *stream
	ino    *inode
	stripe uint32
	ready  chan struct{} // closed when r or err is set
	r      *fetch
	err    error
	users  int  // readers that copy from it, and the fetch itself
	old    bool // dropped: the last user frees it
}

const (
	// streamRun is how many bytes in sequence make a stream.
	streamRun = 256 << 10
	// jump is how far from the expected offset a read of a stream may be: several
	// requests of one read(2) arrive in any order.
	jump = 2 << 20
)

// readAhead notes a read of n bytes at off, and begins what it predicts.
func (f *File) readAhead(off int64, n int, size int64) {
	ino := f.ino
	ino.mu.Lock()
	defer ino.mu.Unlock()
	s := &f.ahead
	if s.gen != ino.readGens {
		s.drop()
		s.gen = ino.readGens
	}
	if d := off - s.next; d < -jump || d > jump {
		s.drop()
		s.run = 0
	}
	s.run += n
	s.next = max(off+int64(n), s.next)
	if ino.fs.cfg.ReadAhead < 0 || ino.cache == raftmeta.CacheNone || f.flags&OpenDirect != 0 || s.run < streamRun {
		return
	}
	first, in := ino.layout.Stripe(off)
	if in > 0 && !s.has(first) && s.run == n {
		first++ // a first read in the middle: its own fetch is enough
	}
	last, _ := ino.layout.Stripe(size - 1)
	last = min(last, first+uint32(ino.fs.cfg.ReadAhead))
	back, _ := ino.layout.Stripe(max(s.next-jump, 0))
	s.dropBelow(back)
	for stripe := first; stripe <= last; stripe++ {
		if !s.has(stripe) && !s.begin(ino, stripe, size) {
			return
		}
	}
}

func (s *stream) has(stripe uint32) bool { return s.find(stripe) != nil }

func (s *stream) find(stripe uint32) *ahead {
	for _, a := range s.stripe {
		if a.stripe == stripe {
			return a
		}
	}
	return nil
}

// begin fetches a stripe up to the file's size. mu is held.
func (s *stream) begin(ino *inode, stripe uint32, size int64) bool {
	n := min(ino.layout.StripeSize(), size-int64(stripe)*ino.layout.StripeSize())
	if n <= 0 || ino.fs.ctx.Err() != nil {
		return false
	}
	a := &ahead{of: s, ino: ino, stripe: stripe, ready: make(chan struct{}), users: 1}
	s.stripe = append(s.stripe, a)
	ino.fs.work.Go(func() { a.fetch(int(n)) })
	return true
}

// errNoRoom means that there is no memory to read ahead.
var errNoRoom = errors.New("no memory to read ahead")

func (a *ahead) fetch(n int) {
	fs := a.ino.fs
	ctx, done := fs.patience(fs.ctx)
	defer done()
	r, err := (*fetch)(nil), errNoRoom
	if need := int64(a.ino.layout.K) * classSize(a.ino.layout.Unit); fs.roomAhead(need) {
		r, err = a.ino.newFetch(ctx, fs.aheads, a.stripe, 0, n)
	}
	if err == nil {
		if err = r.run(ctx); err != nil {
			r.free()
			r = nil
		}
	}
	a.ino.mu.Lock()
	defer a.ino.mu.Unlock()
	a.r, a.err = r, err
	close(a.ready)
	if r != nil && !a.old {
		fs.idle.add(a)
	}
	a.leave()
}

// roomAhead says whether there is memory to read ahead n bytes. It takes that of the
// streams which have been idle longest, if need be.
func (fs *FS) roomAhead(n int64) bool {
	for {
		if fs.aheads.TryAcquire(n) {
			fs.aheads.Release(n) // the fetch takes just what it needs
			return true
		}
		a := fs.idle.take()
		if a == nil {
			return false
		}
		a.ino.mu.Lock()
		a.of.remove(a)
		a.ino.mu.Unlock()
	}
}

// dropAhead forgets all that was read ahead.
func (fs *FS) dropAhead() {
	for a := fs.idle.take(); a != nil; a = fs.idle.take() {
		a.ino.mu.Lock()
		a.of.remove(a)
		a.ino.mu.Unlock()
	}
}

// aheadList has the stripes that were read ahead, oldest first.
type aheadList struct {
	mu   sync.Mutex // may be taken inside an inode's mu
	list []*ahead
}

func (l *aheadList) add(a *ahead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, a)
}

// take removes the oldest and returns it, nil if there is none.
func (l *aheadList) take() (a *ahead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.list) > 0 {
		a = l.list[0]
		l.list = slices.Delete(l.list, 0, 1)
	}
	return a
}

func (l *aheadList) remove(a *ahead) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.list, a); i >= 0 {
		l.list = slices.Delete(l.list, i, i+1)
	}
}

// leave drops one use. mu is held.
func (a *ahead) leave() {
	a.users--
	if a.users == 0 && a.old && a.r != nil {
		a.r.free()
		a.r = nil
	}
}

// drop forgets all that was read ahead. mu is held.
func (s *stream) drop() { s.dropBelow(^uint32(0)) }

func (s *stream) dropBelow(stripe uint32) {
	for i := len(s.stripe) - 1; i >= 0; i-- {
		if a := s.stripe[i]; a.stripe < stripe {
			s.remove(a)
		}
	}
}

// remove forgets a, if it is still there; its last user frees the memory. mu is held.
func (s *stream) remove(a *ahead) {
	i := slices.Index(s.stripe, a)
	if i < 0 {
		return
	}
	s.stripe = slices.Delete(s.stripe, i, i+1)
	a.ino.fs.idle.remove(a)
	a.old = true
	a.users++
	a.leave()
}

// readFromAhead copies p, which begins at offset in of the stripe, from what was read ahead, if it is there and good.
func (f *File) readFromAhead(ctx context.Context, stripe uint32, in int64, p []byte) (hit bool, err error) {
	ino := f.ino
	ino.mu.Lock()
	a := f.ahead.find(stripe)
	if a == nil || f.ahead.gen != ino.readGens {
		ino.mu.Unlock()
		return false, nil
	}
	a.users++
	gen := f.ahead.gen
	ino.mu.Unlock()
	select {
	case <-a.ready:
	case <-ctx.Done():
		err = ended(ctx)
	}
	ino.mu.Lock()
	good := err == nil && a.err == nil && a.r.holds(in, len(p)) && gen == ino.readGens && ino.fs.leaseHolds()
	ino.mu.Unlock()
	if good {
		a.r.copyTo(p, in)
		ino.fs.stats.hits.inc()
	}
	ino.mu.Lock()
	a.leave()
	ino.mu.Unlock()
	return good, err
}

// holds says whether the fetch has file range [in, in+n) of its stripe.
func (r *fetch) holds(in int64, n int) bool {
	for i := range r.pieces {
		pc := &r.pieces[i]
		if off, end := shardRange(r.ino.layout, in, n, uint8(i)); off < end && (off < pc.off || end > pc.end) {
			return false
		}
	}
	return true
}
