package tcp

import (
	"context"
	"sync"

	"rfs/transport/wire"
)

// window is a client's account of the server's credits: requests and payload
// bytes that it may have under way. It also gives out the channels.
type window struct {
	mu         sync.Mutex
	grant      wire.Grant
	messages   uint32 // in use
	bytes      uint64
	channels   []uint16 // free ones; the last used comes first
	next       uint16   // first channel never used
	head, tail *waiter
	spare      *waiter
}

type waiter struct {
	next    *waiter
	cost    uint64
	channel uint16
	ready   chan struct{}
}

// acquire returns a channel and takes the cost, in the order of callers. waited
// tells whether it had to wait; ok is false when ctx or closed ended it.
func (w *window) acquire(ctx context.Context, cost uint64, closed <-chan struct{}) (channel uint16, waited, ok bool) {
	w.mu.Lock()
	if w.head == nil && w.fits(cost) {
		channel = w.take(cost)
		w.mu.Unlock()
		return channel, false, true
	}
	x := w.enqueue(cost)
	w.mu.Unlock()
	left := false
	select {
	case <-x.ready:
	case <-ctx.Done():
		left = w.leave(x)
	case <-closed:
		left = w.leave(x)
	}
	if left {
		return 0, true, false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	channel = x.channel
	x.next, w.spare = w.spare, x
	return channel, true, true
}

// fits reports whether the grant has room. What is larger than the whole grant
// goes when it is alone.
func (w *window) fits(cost uint64) bool {
	return w.messages < w.grant.Messages && (w.bytes == 0 || w.bytes+cost <= w.grant.Bytes)
}

func (w *window) take(cost uint64) uint16 {
	w.messages++
	w.bytes += cost
	if n := len(w.channels); n > 0 {
		ch := w.channels[n-1]
		w.channels = w.channels[:n-1]
		return ch
	}
	w.next++
	return w.next - 1
}

// release gives a channel and its cost back.
func (w *window) release(channel uint16, cost uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.messages--
	w.bytes -= cost
	w.channels = append(w.channels, channel)
	w.serve()
}

// update takes in a grant, unless a later one of the same server came before it.
func (w *window) update(g wire.Grant) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if g.Cookie == w.grant.Cookie && int32(g.Serial-w.grant.Serial) <= 0 {
		return
	}
	g.Messages = min(g.Messages, maxMessages)
	w.grant = g
	w.serve()
}

func (w *window) serve() {
	for w.head != nil && w.fits(w.head.cost) {
		x := w.head
		w.head = x.next
		if w.head == nil {
			w.tail = nil
		}
		x.channel = w.take(x.cost)
		x.ready <- struct{}{}
	}
}

func (w *window) enqueue(cost uint64) *waiter {
	x := w.spare
	if x != nil {
		w.spare = x.next
	} else {
		x = &waiter{ready: make(chan struct{}, 1)}
	}
	x.next, x.cost = nil, cost
	if w.tail == nil {
		w.head = x
	} else {
		w.tail.next = x
	}
	w.tail = x
	return x
}

// leave removes x; it reports false if x was served in the same moment.
func (w *window) leave(x *waiter) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	var prev *waiter
	for at := w.head; at != nil; prev, at = at, at.next {
		if at != x {
			continue
		}
		if prev == nil {
			w.head = x.next
		} else {
			prev.next = x.next
		}
		if w.tail == x {
			w.tail = prev
		}
		w.serve() // who stood behind x may ask for less
		return true
	}
	<-x.ready
	return false
}
