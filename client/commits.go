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
	kick chan struct{} // capacity 1: something is due

	mu      sync.Mutex
	by      map[rfs.TargetID]*hints
	waiting int
}

type hints struct {
	entries []wire.CommitEntry
	spare   []wire.CommitEntry
	hdr     []byte
	sending bool
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
	defer c.mu.Unlock()
	h := c.by[t]
	if h == nil {
		h = &hints{}
		c.by[t] = h
	}
	h.entries = append(h.entries, e)
	if c.waiting++; c.waiting == 1 || len(h.entries) == hintsMax {
		c.wake()
	}
}

func (c *commits) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// run sends hints until the client is closed.
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
		c.push(c.fs.ctx)
	}
}

// push sends what is queued, to all targets at once, and returns when they answered.
func (c *commits) push(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var wg sync.WaitGroup
	c.mu.Lock()
	for t, h := range c.by {
		if len(h.entries) > 0 && !h.sending {
			h.sending = true
			wg.Go(func() { c.send(ctx, t, h) })
		}
	}
	c.mu.Unlock()
	wg.Wait()
}

// send sends a target its hints, MaxEntries at a time.
func (c *commits) send(ctx context.Context, t rfs.TargetID, h *hints) {
	for {
		c.mu.Lock()
		batch := h.entries
		h.entries, h.spare = h.spare[:0], nil
		c.waiting -= len(batch)
		if len(batch) == 0 || ctx.Err() != nil {
			h.sending, h.spare = false, batch[:0]
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for rest := batch; len(rest) > 0; {
			n := min(len(rest), wire.MaxEntries)
			h.hdr = wire.AppendCommit(h.hdr[:0], &wire.Common{Target: t, Session: c.fs.Session()}, rest[:n])
			if _, err := c.fs.targets.call(ctx, t, wire.OpCommit, h.hdr, nil, nil); err != nil {
				break
			}
			rest = rest[n:]
		}
		c.mu.Lock()
		h.spare = batch[:0]
		c.mu.Unlock()
	}
}
