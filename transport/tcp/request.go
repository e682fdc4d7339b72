package tcp

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"rfs/transport"
	"rfs/transport/wire"
)

// request is a call as its server sees it, and then its answer, kept until the
// channel's next.
//
//	begin -> run: handler { Pull..., Reply } -> answered
//	           again: sent by a new link while under way: goes on there
//	                                         answered: the answer once more
//	                                         pushed payload: run again
//
// It is used again when the channel, the handler and the link have let go of it.
type request struct {
	s    *session
	next *request // spare
	refs atomic.Int32

	ctx  callCtx
	done chan struct{} // holds a token when Reply should look again

	// Fixed from begin on.
	srv     *server
	id      wire.RequestID
	op      wire.Op
	session uint32
	in      []byte // header, inline payload
	hdrLen  int
	src     int
	dst     int
	inline  bool
	peer    transport.Peer

	mu        sync.Mutex
	link      *link // where the client waits; nil: its link is gone
	attempt   uint16
	cancel    bool // the client wants no answer
	replied   bool
	replying  bool // Reply has not returned: pushed payload is still there
	pushed    bool
	answering *link // the last link that resp was queued on
	busy      bool  // resp is in that link's hands
	pulls     *pull // waiting
	spare     *pull
	pullID    uint32
	resp      frame
}

// pull is a Pull under way.
type pull struct {
	next  *pull
	id    uint32
	off   uint32
	dst   []byte
	state pullState
	link  *link
	wake  chan struct{} // holds a token when state changed
}

type pullState int

const (
	pullIdle    pullState = iota // to be asked of a link
	pullAsked                    // PULL sent on link
	pullReading                  // DATA is being read into dst
	pullDone
)

var errTwice = errors.New("transport: Reply called twice")

func newRequest(s *session) *request {
	r := &request{s: s, done: make(chan struct{}, 1)}
	r.resp.owner = r
	return r
}

// begin fills r from a REQ. It has two owners then: the channel and the handler.
func (r *request) begin(l *link, h *wire.FrameHeader, rh *wire.ReqHeader, rest []byte) {
	r.refs.Store(2)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.srv, r.id, r.op, r.session = l.srv, h.ID, rh.Op, uint32(h.Session)
	r.in = append(r.in[:0], rest...)
	r.hdrLen, r.src, r.dst = int(rh.HeaderLen), int(rh.SrcLen), int(rh.DstLen)
	r.inline = rh.InlineLen == rh.SrcLen
	r.peer = transport.Peer{Node: r.s.name, Session: r.session, Addr: l.peer, Carrier: l.carrier()}
	r.link, r.attempt = l, rh.Attempt
	r.cancel, r.replied, r.replying, r.pushed, r.answering, r.busy = false, false, false, false, nil, false
	r.ctx.begin(h.Timeout, rh.Trace)
}

func (r *request) unref() {
	if r.refs.Add(-1) == 0 {
		r.s.recycle(r)
	}
}

// run calls the handler and makes sure of an answer.
func (r *request) run(h transport.Handler) {
	defer r.unref()
	defer r.ctx.end()
	defer func() {
		p := recover()
		if p != nil {
			r.s.t.stats.panics.Add(1)
			r.s.t.cfg.Log.Error("transport: handler panicked", "op", r.op, "peer", r.peer.Addr, "trace", r.ctx.trace, "panic", p, "stack", string(debug.Stack()))
		}
		r.mu.Lock()
		silent := !r.replied
		r.mu.Unlock()
		if silent {
			if p == nil {
				r.s.t.cfg.Log.Error("transport: handler did not reply", "op", r.op, "peer", r.peer.Addr, "trace", r.ctx.trace)
			}
			_ = r.Reply(wire.StatusInternal, nil, nil, 0)
		}
	}()
	h.ServeRPC(&r.ctx, r)
}

// displace ends the channel's hold on r: the client has moved on to another
// request. It reports whether nobody else refers to r. s.mu is held.
func (r *request) displace() bool {
	r.mu.Lock()
	if !r.replied {
		r.cancel = true // the client gave it up without our word
	}
	replied := r.replied
	r.link = nil
	r.mu.Unlock()
	if !replied {
		r.ctx.cancel(context.Canceled)
	}
	return r.refs.Add(-1) == 0
}

// cancelFor ends the context of a request that srv runs.
func (r *request) cancelFor(srv *server) {
	if r.srv == srv {
		r.ctx.cancel(context.Canceled)
	}
}

// cancelled takes a CANCEL. No answer and no PULL is queued after it.
func (r *request) cancelled(id wire.RequestID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.id == id {
		r.cancel = true
		r.ctx.cancel(context.Canceled)
	}
}

// detach takes a link that is gone off the request. Its pulls will be asked of the next.
func (r *request) detach(l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.link == l {
		r.link = nil
	}
	for p := r.pulls; p != nil; p = p.next {
		if p.link == l && p.state == pullAsked {
			p.state = pullIdle
			p.rouse()
		}
	}
}

// again takes a copy of the request that came by l. It reports true if the
// request must be run again: its answer pushed payload that is no longer there.
func (r *request) again(l *link, attempt uint16) bool {
	r.mu.Lock()
	if int16(attempt-r.attempt) <= 0 {
		r.mu.Unlock()
		return false // a late copy from a link that the client gave up
	}
	if r.replied && r.pushed && !r.replying {
		r.mu.Unlock()
		return true
	}
	r.attempt, r.link = attempt, l
	for p := r.pulls; p != nil; p = p.next {
		if p.state == pullAsked {
			p.state = pullIdle
		}
		p.rouse()
	}
	r.mu.Unlock()
	r.answer(queueOnly)
	return false
}

func (r *request) Op() wire.Op          { return r.op }
func (r *request) Header() []byte       { return r.in[:r.hdrLen:r.hdrLen] }
func (r *request) PayloadLen() int      { return r.src }
func (r *request) CapLen() int          { return r.dst }
func (r *request) Peer() transport.Peer { return r.peer }

// Pull copies a range of the client's src. See transport.Request.
//
// When the link breaks, it waits for the client to send the request by another,
// and asks there.
func (r *request) Pull(ctx context.Context, dst transport.Buf, off, n int) error {
	b := bytesOf(dst)
	if off < 0 || n < 0 || off+n > r.src || n > len(b) {
		return fmt.Errorf("%v: pull of %d bytes from %d of %d into %d", r.op, n, off, r.src, len(b))
	}
	if r.inline {
		copy(b[:n], r.in[r.hdrLen+off:])
		return nil
	}
	if n == 0 {
		return nil
	}
	p := r.newPull(b[:n], off)
	defer r.endPull(p)
	var err error
	for {
		done, ask := r.step(p, err != nil)
		switch {
		case done:
			return nil
		case ask != nil:
			ask.sendRange(wire.TypePull, r.id, wire.Range{Off: p.off, Len: uint32(n), Pull: p.id}, tryWrite)
		}
		select {
		case <-p.wake:
			continue
		case <-ctx.Done():
			err = ctx.Err()
		case <-r.ctx.Done():
			err = r.ctx.Err()
		}
		if r.giveUp(p) {
			return fmt.Errorf("%v: pull of %d bytes: %w", r.op, n, err)
		}
	}
}

func (r *request) newPull(dst []byte, off int) *pull {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.spare
	if p != nil {
		r.spare = p.next
	} else {
		p = &pull{wake: make(chan struct{}, 1)}
	}
	r.pullID++
	p.id, p.off, p.dst, p.state, p.link = r.pullID, uint32(off), dst, pullIdle, nil
	p.next, r.pulls = r.pulls, p
	return p
}

func (r *request) endPull(p *pull) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for at := &r.pulls; *at != nil; at = &(*at).next {
		if *at == p {
			*at = p.next
			break
		}
	}
	p.dst, p.link = nil, nil
	select {
	case <-p.wake:
	default:
	}
	p.next, r.spare = r.spare, p
}

// step moves a pull on: it is done, or the link returned is to be asked.
func (r *request) step(p *pull, stopping bool) (done bool, ask *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case p.state == pullDone:
		return true, nil
	case p.state != pullIdle || stopping || r.cancel || r.link == nil:
		return false, nil
	}
	p.state, p.link = pullAsked, r.link
	return false, p.link
}

// giveUp reports whether the pull's memory is left alone from now on. If the
// reader is at it, it gets a moment to end; then its link is torn down.
func (r *request) giveUp(p *pull) bool {
	r.mu.Lock()
	if p.state != pullReading {
		p.state = pullIdle
		p.link = nil
		r.mu.Unlock()
		return true
	}
	l := p.link
	r.mu.Unlock()
	timer := time.NewTimer(r.s.t.cfg.CancelWait)
	defer timer.Stop()
	for {
		select {
		case <-p.wake:
		case <-timer.C:
			l.fail(errors.New("payload of a request that ended did not come"))
			<-p.wake
		}
		r.mu.Lock()
		state := p.state
		r.mu.Unlock()
		if state != pullReading {
			return state != pullDone // else it came whole, in time
		}
	}
}

func (p *pull) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// arriving returns the pull that a DATA is for, its memory now the reader's; or nil.
func (r *request) arriving(id wire.RequestID, l *link, rg wire.Range) *pull {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.id != id {
		return nil
	}
	for p := r.pulls; p != nil; p = p.next {
		if p.id == rg.Pull && p.link == l && p.state == pullAsked && p.off == rg.Off && len(p.dst) == int(rg.Len) {
			p.state = pullReading
			return p
		}
	}
	return nil
}

// arrived gives the memory back: filled, or to be asked for again.
func (r *request) arrived(p *pull, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.state = pullDone
	if err != nil {
		p.state = pullIdle
		if r.link == p.link {
			r.link = nil
		}
	}
	p.rouse()
}

// Reply answers. See transport.Request. An answer without payload needs no
// link: it is kept for when the client asks again.
func (r *request) Reply(st wire.Status, hdr []byte, push transport.Buf, n int) error {
	if n > 0 {
		return r.reply(st, hdr, push, n, blockWrite)
	}
	return r.reply(st, hdr, push, n, tryWrite)
}

func (r *request) reply(st wire.Status, hdr []byte, push transport.Buf, n int, mode sendMode) error {
	b := bytesOf(push)
	if n < 0 || n > len(b) || n > r.dst || len(hdr) > transport.MaxHeader {
		return fmt.Errorf("%v: reply with a header of %d bytes (at most %d), %d bytes of %d pushed into %d", r.op, len(hdr), transport.MaxHeader, n, len(b), r.dst)
	}
	r.mu.Lock()
	if r.replied {
		r.mu.Unlock()
		return fmt.Errorf("%v: %w", r.op, errTwice)
	}
	const fixed = wire.HeaderSize + wire.RespHeaderSize
	rh := wire.RespHeader{HeaderLen: uint32(len(hdr)), PushedLen: uint32(n)}
	r.resp.msg = append(r.resp.msg[:0], make([]byte, fixed)...)
	rh.Put(r.resp.msg[wire.HeaderSize:])
	r.resp.msg = append(r.resp.msg, hdr...)
	r.resp.payload = b[:n]
	r.resp.hdr = r.s.t.header(wire.TypeResp)
	r.resp.hdr.ID, r.resp.hdr.Status = r.id, st
	if n > 0 && r.s.t.cfg.OwnCRC(r.op) {
		r.resp.hdr.Flags |= wire.FlagOwnCRC
	}
	r.replied, r.pushed, r.replying = true, n > 0, n > 0
	r.mu.Unlock()
	r.answer(mode)
	if n == 0 {
		return nil
	}
	return r.awaitPush()
}

// awaitPush waits until no link has the pushed payload.
func (r *request) awaitPush() error {
	for {
		r.mu.Lock()
		if !r.busy && (r.link == nil || r.link == r.answering || r.cancel) {
			r.replying = false
			r.resp.payload = nil
			lost := r.link == nil || r.cancel
			r.mu.Unlock()
			if lost {
				return fmt.Errorf("%v: answer not sent: %w", r.op, transport.ErrBroken)
			}
			return nil
		}
		r.mu.Unlock()
		<-r.done
	}
}

// answer queues the answer on the client's link, if it is not there yet.
func (r *request) answer(mode sendMode) {
	for {
		r.mu.Lock()
		l := r.link
		if !r.replied || r.busy || r.cancel || l == nil || l == r.answering || r.pushed && !r.replying {
			select {
			case r.done <- struct{}{}:
			default:
			}
			r.mu.Unlock()
			return
		}
		r.answering, r.busy = l, true
		r.refs.Add(1)
		r.mu.Unlock()
		if l.send(&r.resp, mode) {
			return
		}
		r.release(errHangup)
		r.unref()
	}
}

// release takes resp back from a link.
func (r *request) release(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy = false
	if err != nil && r.link == r.answering {
		r.link = nil
	}
}

// written is told by the link that the answer is out, or never will be.
func (r *request) written(_ *frame, err error) {
	r.release(err)
	r.answer(queueOnly) // the client may wait at another link by now
	r.unref()
}

// callCtx is the context of a handler. Its Done is made when it is first asked
// for, and used again by the next request unless it was closed.
type callCtx struct {
	trace uint64

	mu       sync.Mutex
	deadline time.Time
	timer    *time.Timer
	done     chan struct{}
	err      error
	ended    bool
	after    map[*func()]struct{}
}

func (c *callCtx) begin(timeoutMS uint32, trace uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.trace, c.deadline, c.ended = trace, time.Time{}, false
	if c.err != nil {
		c.err, c.done = nil, nil
	}
	if timeoutMS == 0 {
		return
	}
	d := time.Duration(timeoutMS) * time.Millisecond
	c.deadline = time.Now().Add(d)
	if c.timer == nil {
		c.timer = time.AfterFunc(d, c.expire)
	} else {
		c.timer.Reset(d)
	}
}

// expire ends the context at its deadline; a timer of an earlier request may come late.
func (c *callCtx) expire() {
	c.mu.Lock()
	due := !c.ended && !c.deadline.IsZero() && !time.Now().Before(c.deadline)
	c.mu.Unlock()
	if due {
		c.cancel(context.DeadlineExceeded)
	}
}

func (c *callCtx) cancel(err error) {
	c.mu.Lock()
	if c.ended || c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	if c.done != nil {
		close(c.done)
	}
	after := c.after
	c.after = nil
	c.mu.Unlock()
	for f := range after {
		go (*f)()
	}
}

// end is called when the handler returned. Contexts derived from c end.
func (c *callCtx) end() {
	c.mu.Lock()
	c.ended = true
	after := c.after
	c.after = nil
	if c.timer != nil {
		c.timer.Stop()
	}
	if len(after) > 0 && c.err == nil {
		c.err = context.Canceled
		if c.done != nil {
			close(c.done)
		}
	}
	c.mu.Unlock()
	for f := range after {
		go (*f)()
	}
}

func (c *callCtx) Deadline() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deadline, !c.deadline.IsZero()
}

func (c *callCtx) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

func (c *callCtx) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *callCtx) Value(key any) any {
	if transport.IsTraceKey(key) {
		return &c.trace
	}
	return nil
}

// AfterFunc spares contexts derived from c a goroutine; see context.AfterFunc.
func (c *callCtx) AfterFunc(f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.ended {
		go f()
		return func() bool { return false }
	}
	if c.after == nil {
		c.after = map[*func()]struct{}{}
	}
	key := &f
	c.after[key] = struct{}{}
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, waiting := c.after[key]
		delete(c.after, key)
		return waiting
	}
}
