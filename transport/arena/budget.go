package arena

import (
	"context"
	"fmt"

	"rfs/internal/invariants"
	"rfs/transport"
)

// Budget is a share of an arena. Its methods may be called from any goroutine.
type Budget struct {
	a *Arena

	// guarded by a.mu
	limit, used int64
	head, tail  *waiter
}

// waiter is a Get that waits; the arena keeps used ones.
type waiter struct {
	next     *waiter
	class, n int
	got      *buf
	err      error
	ready    chan struct{} // holds one token when got or err is set
}

// Get is Arena.Get within the budget.
func (b *Budget) Get(ctx context.Context, n int) (transport.Buf, error) {
	if err := b.check(n); err != nil {
		return nil, err
	}
	class, _ := classOf(n)
	b.a.mu.Lock()
	if b.head == nil {
		x, err := b.a.take(b, class, n)
		if x != nil || err != nil {
			b.a.mu.Unlock()
			return hand(x, err)
		}
	}
	w := b.enqueue(class, n)
	b.a.mu.Unlock()

	select {
	case <-w.ready:
	case <-ctx.Done():
		if b.leave(w) {
			return nil, fmt.Errorf("arena: wait for %d bytes (%d of %d in use): %w", n, b.Used(), b.limit, context.Cause(ctx))
		}
		<-w.ready // it was served in the same moment
	}
	b.a.mu.Lock()
	x, err := w.got, w.err
	w.got, w.err = nil, nil
	w.next, b.a.free = b.a.free, w
	b.a.mu.Unlock()
	return hand(x, err)
}

// TryGet is Arena.TryGet within the budget.
func (b *Budget) TryGet(n int) (transport.Buf, bool) {
	if b.check(n) != nil {
		return nil, false
	}
	class, _ := classOf(n)
	b.a.mu.Lock()
	var x *buf
	if b.head == nil {
		x, _ = b.a.take(b, class, n)
	}
	b.a.mu.Unlock()
	if x == nil {
		return nil, false
	}
	h, _ := hand(x, nil)
	return h, true
}

// Used returns the bytes in use, in size classes; Limit the most that may be.
func (b *Budget) Used() int64 {
	b.a.mu.Lock()
	defer b.a.mu.Unlock()
	return b.used
}

func (b *Budget) Limit() int64 { return b.limit }

func hand(x *buf, err error) (transport.Buf, error) {
	if err != nil {
		return nil, err
	}
	if invariants.Enabled {
		x.checkPoison()
	}
	return x, nil
}

func (b *Budget) check(n int) error {
	if _, size := classOf(max(n, 0)); n < 0 || n > MaxClass || int64(size) > b.limit {
		return fmt.Errorf("%w: %d bytes of at most %d", ErrTooBig, n, min(MaxClass, b.limit))
	}
	return nil
}

// enqueue adds a waiter at the end. a.mu is held.
func (b *Budget) enqueue(class, n int) *waiter {
	w := b.a.free
	if w != nil {
		b.a.free = w.next
	} else {
		w = &waiter{ready: make(chan struct{}, 1)}
	}
	w.next, w.class, w.n = nil, class, n
	if b.tail == nil {
		b.head = w
		b.a.waiting[b] = struct{}{}
	} else {
		b.tail.next = w
	}
	b.tail = w
	b.a.stats.Waits++
	return w
}

// leave removes w, or reports false if it was served already.
func (b *Budget) leave(w *waiter) bool {
	b.a.mu.Lock()
	defer b.a.mu.Unlock()
	var prev *waiter
	for at := b.head; at != nil; prev, at = at, at.next {
		if at == w {
			b.unlink(prev, w)
			b.a.serve() // who stood behind w may ask for less
			return true
		}
	}
	return false
}

func (b *Budget) unlink(prev, w *waiter) {
	if prev == nil {
		b.head = w.next
	} else {
		prev.next = w.next
	}
	if b.tail == w {
		b.tail = prev
	}
	if b.head == nil {
		delete(b.a.waiting, b)
	}
}

// serve gives what is free to who waits: budgets in turn, each first come first
// served, so that a large request is not starved by small ones. a.mu is held.
func (a *Arena) serve() {
	for len(a.waiting) > 0 {
		served := false
		for range a.order {
			a.turn = (a.turn + 1) % len(a.order)
			b := a.order[a.turn]
			w := b.head
			if w == nil {
				continue
			}
			x, err := a.take(b, w.class, w.n)
			if x == nil && err == nil {
				continue
			}
			b.unlink(nil, w)
			w.got, w.err = x, err
			w.ready <- struct{}{}
			served = true
		}
		if !served {
			return
		}
	}
}
