package client

import (
	"context"
	"sync"
	"time"

	"rfs"
	"rfs/transport/wire"
)

// commits gathers COMMIT hints by target. They are sent when a target has
// hintsMax of them, when the oldest is hintAge old, and before anything that
// wants to find its versions complete. A hint that is lost costs a reader a
// RESOLVE, no more.
type commits struct {
	fs   *FS
	kick chan struct{} // capacity 1: hints wait

	mu sync.Mutex
	by map[rfs.TargetID]*hints
}

// hints are those of one target.
type hints struct {
	one     chan struct{}      // capacity 1: who holds it sends
	entries []wire.CommitEntry // guarded by commits.mu
	batch   []wire.CommitEntry // these two are the sender's
	hdr     []byte
}

const (
	hintsMax = 64
	hintAge  = 5 * time.Millisecond
)

func (c *commits) init(fs *FS) {
	c.fs, c.kick, c.by = fs, make(chan struct{}, 1), map[rfs.TargetID]*hints{}
}

// add queues a hint.
func (c *commits) add(t rfs.TargetID, e wire.CommitEntry) {
	c.mu.Lock()
	h := c.by[t]
	if h == nil {
		h = &hints{one: make(chan struct{}, 1)}
		c.by[t] = h
	}
	h.entries = append(h.entries, e)
	full := len(h.entries) == hintsMax
	c.mu.Unlock()
	if full {
		c.fs.work.Go(func() { c.send(c.fs.ctx, t, h) })
		return
	}
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// run sends hints of hintAge until the client is closed.
func (c *commits) run() {
	for {
		select {
		case <-c.kick:
		case <-c.fs.ctx.Done():
			return
		}
		if c.fs.pause(c.fs.ctx, hintAge, nil) != nil {
			return
		}
		c.each(func(t rfs.TargetID, h *hints) {
			c.fs.work.Go(func() { c.send(c.fs.ctx, t, h) })
		})
	}
}

// push sends what is queued, and returns when it, and what is on its way, has been answered.
func (c *commits) push(ctx context.Context) {
	var wg sync.WaitGroup
	c.each(func(t rfs.TargetID, h *hints) {
		wg.Go(func() { c.send(ctx, t, h) })
	})
	wg.Wait()
}

// each calls f for each target with hints that wait or are on their way.
func (c *commits) each(f func(t rfs.TargetID, h *hints)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t, h := range c.by {
		if len(h.entries) > 0 || len(h.one) > 0 {
			f(t, h)
		}
	}
}

// send sends a target its hints, MaxEntries at a time. What does not arrive is dropped.
func (c *commits) send(ctx context.Context, t rfs.TargetID, h *hints) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	select {
	case h.one <- struct{}{}:
		defer func() { <-h.one }()
	case <-ctx.Done():
		return
	}
	c.mu.Lock()
	h.entries, h.batch = h.batch[:0], h.entries
	c.mu.Unlock()
	for rest := h.batch; len(rest) > 0 && c.fs.Map().IsUp(t); {
		n := min(len(rest), wire.MaxEntries)
		h.hdr = wire.AppendCommit(h.hdr[:0], &wire.Common{Target: t, Session: c.fs.Session()}, rest[:n])
		if _, err := c.fs.targets.call(ctx, t, wire.OpCommit, h.hdr, nil, nil); err != nil {
			return
		}
		rest = rest[n:]
	}
}
