package verbs

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// CQ is a completion queue with a channel of its own. One goroutine, its poller,
// calls Poll and Next; Close may come from another.
type CQ struct {
	c        *Context
	reserved int // entries that queue pairs may fill; guarded by c.mu
	qps      int // guarded by c.mu

	mu     sync.Mutex // guards the provider's queue against Close
	cq     CQProvider
	closed bool

	// the poller's own
	gap   time.Duration // mean time between two waits that brought something
	last  time.Time
	stats CQStats
}

// CQStats counts what the poller of a queue did.
type CQStats struct {
	Polls, Spins, Arms, Waits, Completions uint64
}

// Spinning pays when the next completion comes sooner than a sleep and a wake take.
const (
	minSpin = 20 * time.Microsecond
	maxSpin = 50 * time.Microsecond
)

// CreateCQ makes a completion queue of at least depth entries.
func (c *Context) CreateCQ(depth int) (*CQ, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, ErrClosed
	case depth < 1 || depth > c.attr.MaxCQE:
		return nil, fmt.Errorf("verbs: a completion queue of %d entries: %s has 1 to %d", depth, c.name, c.attr.MaxCQE)
	}
	p, err := c.dev.CreateCQ(depth)
	if err != nil {
		return nil, fmt.Errorf("verbs: create a completion queue of %d entries on %s: %w", depth, c.name, err)
	}
	cq := &CQ{c: c, cq: p, gap: time.Hour}
	c.cqs[p] = cq
	return cq, nil
}

// Depth returns how many entries the queue has.
func (q *CQ) Depth() int { return q.cq.Depth() }

// Stats returns the counters; only the poller may call it.
func (q *CQ) Stats() CQStats { return q.stats }

// Poll takes up to len(wc) completions, without waiting. In one with an error all
// but ID, Status, VendorErr and QPNum is cleared, as the device leaves it undefined.
func (q *CQ) Poll(wc []WC) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, ErrClosed
	}
	return q.poll(wc)
}

func (q *CQ) poll(wc []WC) (int, error) {
	q.stats.Polls++
	n, err := q.cq.Poll(wc)
	return n, q.took(wc[:n], err)
}

func (q *CQ) took(wc []WC, err error) error {
	if err != nil {
		return fmt.Errorf("verbs: poll a completion queue of %s: %w", q.c.name, err)
	}
	q.stats.Completions += uint64(len(wc))
	for i := range wc {
		if w := &wc[i]; w.Status != 0 {
			*w = WC{ID: w.ID, Status: w.Status, VendorErr: w.VendorErr, QPNum: w.QPNum, Opcode: OpcodeNone}
		}
	}
	return nil
}

// Next takes up to len(wc) completions and waits for the first: it polls, spins
// if the last came in quick succession, arms, polls again, since a completion
// from before the arming makes no event, and then sleeps in the netpoller.
func (q *CQ) Next(ctx context.Context, wc []WC) (int, error) {
	for {
		n, err := q.pollOrArm(wc)
		if n > 0 || err != nil {
			q.note()
			return n, err
		}
		q.stats.Waits++
		if err := q.cq.Wait(ctx); err != nil {
			return 0, err
		}
	}
}

func (q *CQ) pollOrArm(wc []WC) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, ErrClosed
	}
	n, err := q.poll(wc)
	if n > 0 || err != nil {
		return n, err
	}
	if d := q.spin(); d > 0 {
		q.stats.Spins++
		n, err := q.cq.Spin(wc, d)
		if n > 0 || err != nil {
			return n, q.took(wc[:n], err)
		}
	}
	q.stats.Arms++
	if err := q.cq.Arm(false); err != nil {
		return 0, fmt.Errorf("verbs: arm a completion queue of %s: %w", q.c.name, err)
	}
	return q.poll(wc)
}

// spin returns how long to spin: twice the mean gap if that is short.
func (q *CQ) spin() time.Duration {
	if q.gap > maxSpin {
		return 0
	}
	return min(max(2*q.gap, minSpin), maxSpin)
}

// note keeps the mean gap. With one processor it stays long: to spin would keep
// the peer or the device from it.
func (q *CQ) note() {
	if runtime.GOMAXPROCS(0) == 1 {
		return
	}
	now := time.Now()
	d := min(now.Sub(q.last), time.Millisecond)
	q.gap += (d - q.gap) / 8
	q.last = now
}

// Close destroys the queue; a poller that waits gets ErrClosed. It fails with
// ErrBusy while queue pairs use it.
func (q *CQ) Close() error {
	q.c.mu.Lock()
	defer q.c.mu.Unlock()
	if q.closed {
		return nil
	}
	if err := busy("completion queue of "+q.c.name, q.qps, "queue pairs"); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.cq.Destroy(); err != nil {
		return fmt.Errorf("verbs: destroy a completion queue of %s: %w", q.c.name, err)
	}
	q.closed = true
	delete(q.c.cqs, q.cq)
	return nil
}
