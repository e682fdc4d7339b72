package tcp

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"rfs/transport"
	"rfs/transport/wire"
)

// call is the request on one channel. It is used again for the channel's next.
//
//	begin -> dispatch -> (link) -> answer, answered -> wait returns
//	              ^          |
//	              +- detach -+   the link broke: again by another
//
// The caller's memory is lent while pending > 0, reading, or a link is set
// without an answer; wait returns after that.
type call struct {
	c  *Conn
	ch uint16

	wake chan struct{} // holds a token when wait should look again

	mu       sync.Mutex
	active   bool
	id       wire.RequestID
	seq      uint64
	src, dst []byte
	deadline time.Time
	ownCRC   bool

	link    *link // carries it; nil: waits for one
	sent    bool  // to the server of this cookie
	cookie  uint64
	attempt uint16
	pending int // frames of it that a link has

	reading    bool // an answer is being read into dst
	replied    bool
	cancelling bool
	acked      bool
	err        error
	reply      transport.Reply

	req, cancelFrame frame
	data             *frame // spare DATA frames
}

func newCall(c *Conn, ch uint16) *call {
	k := &call{c: c, ch: ch, wake: make(chan struct{}, 1)}
	k.req.owner, k.cancelFrame.owner = k, k
	k.cancelFrame.msg = k.cancelFrame.small[:wire.HeaderSize]
	return k
}

func (k *call) rouse() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// begin lays out the request. The channel is the caller's alone.
func (k *call) begin(ctx context.Context, op wire.Op, hdr, src, dst, into []byte) {
	rh := wire.ReqHeader{Op: op, HeaderLen: uint32(len(hdr)), SrcLen: uint32(len(src)), DstLen: uint32(len(dst)), Trace: transport.TraceID(ctx)}
	const fixed = wire.HeaderSize + wire.ReqHeaderSize
	inline := len(src) <= transport.MaxInline && fixed+len(hdr)+len(src) <= transport.MaxMessage
	if inline {
		rh.InlineLen = uint32(len(src))
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.req.msg = append(k.req.msg[:0], make([]byte, fixed)...)
	rh.Put(k.req.msg[wire.HeaderSize:])
	k.req.msg = append(k.req.msg, hdr...)
	k.req.payload = src[:rh.InlineLen]
	k.seq++
	k.id = wire.NewRequestID(k.ch, k.seq)
	k.src, k.dst, k.ownCRC = src, dst, k.c.t.cfg.OwnCRC(op)
	k.deadline, _ = ctx.Deadline()
	k.link, k.sent, k.attempt = nil, false, 0
	k.reading, k.replied, k.cancelling, k.acked, k.err = false, false, false, false, nil
	k.reply = transport.Reply{Header: into[:0]}
	k.active = true
	select {
	case <-k.c.closed:
		k.err = k.c.err
	default:
	}
}

// waitsForLink reports whether the call should be put on a link. k.mu is held.
func (k *call) waitsForLink() bool {
	return k.active && k.link == nil && !k.replied && !k.cancelling && k.err == nil
}

// dispatch puts the call on a link, if it needs one and one is up.
func (k *call) dispatch(mode sendMode) {
	for {
		k.mu.Lock()
		l := (*link)(nil)
		if k.waitsForLink() {
			l = k.c.pick(k.ch)
		}
		if l == nil {
			k.rouse()
			k.mu.Unlock()
			return
		}
		if k.sent && l.cookie != k.cookie {
			// The server does not know what became of the request: to send it
			// again could apply it twice.
			k.err = fmt.Errorf("%w: the peer was restarted; the request may have been applied", transport.ErrBroken)
			k.rouse()
			k.mu.Unlock()
			return
		}
		k.mount(l)
		k.mu.Unlock()
		if l.send(&k.req, mode) {
			return
		}
		k.mu.Lock()
		k.pending--
		if k.link == l {
			k.link = nil
		}
		k.mu.Unlock()
	}
}

// mount binds the call to l. k.mu is held.
func (k *call) mount(l *link) {
	k.link, k.sent, k.cookie = l, true, l.cookie
	k.attempt++
	k.pending++
	binary.LittleEndian.PutUint16(k.req.msg[wire.HeaderSize+2:], k.attempt)
	k.req.hdr = k.c.t.header(wire.TypeReq)
	k.req.hdr.ID = k.id
	if !k.deadline.IsZero() {
		k.req.hdr.Timeout = uint32(min(max(time.Until(k.deadline).Milliseconds(), 1), 1<<32-1))
	}
}

// detach takes the call off a link that is gone, and reports whether it is to be sent again.
func (k *call) detach(l *link) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.link != l {
		return false
	}
	k.link = nil
	k.rouse()
	return k.waitsForLink()
}

// fail ends the call with err once no link has it.
func (k *call) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.active && k.err == nil {
		k.err = err
	}
	k.rouse()
}

// written is told by the link that a frame is out, or never will be.
func (k *call) written(f *frame, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pending--
	if f != &k.req && f != &k.cancelFrame {
		f.payload = nil
		f.next, k.data = k.data, f
	}
	if k.pending == 0 && (k.replied || k.cancelling || k.err != nil) {
		k.rouse()
	}
}

// carries reports whether l carries the request id now. k.mu is held.
func (k *call) carries(id wire.RequestID, l *link) bool {
	return k.active && k.id == id && k.link == l
}

// answer takes the header of an answer and returns where its payload goes. It
// reports false if nobody waits for it.
func (k *call) answer(id wire.RequestID, l *link, hdr []byte) (dst []byte, ok bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.carries(id, l) || k.replied || k.acked {
		return nil, false
	}
	k.reading = true
	k.reply.Header = append(k.reply.Header[:0], hdr...)
	return k.dst, true
}

// answered ends what answer began: the payload is in dst, or the link broke.
func (k *call) answered(st wire.Status, pushed int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reading = false
	if err == nil {
		k.replied = true
		k.reply.Status, k.reply.Pushed = st, pushed
	}
	k.rouse()
}

// pulled queues a range of src.
func (k *call) pulled(id wire.RequestID, l *link, r wire.Range) error {
	k.mu.Lock()
	if !k.carries(id, l) || k.replied || k.cancelling {
		k.mu.Unlock()
		return nil
	}
	if uint64(r.Off)+uint64(r.Len) > uint64(len(k.src)) {
		k.mu.Unlock()
		return fmt.Errorf("%w: PULL of %d bytes from %d of %d", wire.ErrFrame, r.Len, r.Off, len(k.src))
	}
	f := k.data
	if f != nil {
		k.data = f.next
	} else {
		f = &frame{owner: k}
		f.msg = f.small[:wire.HeaderSize+wire.RangeSize]
	}
	f.hdr = k.c.t.header(wire.TypeData)
	f.hdr.ID = id
	if k.ownCRC {
		f.hdr.Flags |= wire.FlagOwnCRC
	}
	r.Put(f.msg[wire.HeaderSize:])
	f.payload = k.src[r.Off : r.Off+r.Len]
	k.pending++
	k.mu.Unlock()
	if !l.send(f, queueOnly) {
		k.written(f, errHangup)
	}
	return nil
}

// cancelled takes the server's word that it no longer touches the memory.
func (k *call) cancelled(id wire.RequestID, l *link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.carries(id, l) && k.cancelling {
		k.acked = true
		k.rouse()
	}
}

// wait returns the answer, or an error, when nothing touches the caller's memory any more.
func (k *call) wait(ctx context.Context) (transport.Reply, error) {
	done := ctx.Done()
	var overdue <-chan time.Time
	for {
		if r, settled, err := k.settle(ctx); settled {
			return r, err
		}
		select {
		case <-k.wake:
		case <-done:
			done = nil
			timer := time.NewTimer(k.c.t.cfg.CancelWait)
			defer timer.Stop()
			overdue = timer.C
			k.cancel()
		case <-overdue:
			overdue = nil
			k.tearDown()
		}
	}
}

// settle ends the call if it is over.
func (k *call) settle(ctx context.Context) (r transport.Reply, settled bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	over := k.replied || k.acked || k.link == nil && (k.cancelling || k.err != nil)
	if !over || k.pending > 0 || k.reading {
		return r, false, nil
	}
	switch {
	case k.replied:
		r = k.reply
	case k.err != nil:
		err = k.err
	case k.acked:
		err = ctx.Err()
	default:
		err = fmt.Errorf("%w: no link: %w", transport.ErrBroken, ctx.Err())
	}
	k.active, k.link = false, nil
	k.src, k.dst, k.reply = nil, nil, transport.Reply{}
	return r, true, err
}

// cancel asks the server to let go of the memory.
func (k *call) cancel() {
	k.c.t.stats.cancels.Add(1)
	k.mu.Lock()
	l := k.link
	if k.replied || k.err != nil {
		l = nil // it is over but for frames under way
	} else {
		k.cancelling = true
	}
	if l == nil {
		k.mu.Unlock()
		return
	}
	k.pending++
	k.cancelFrame.hdr = k.c.t.header(wire.TypeCancel)
	k.cancelFrame.hdr.ID = k.id
	k.mu.Unlock()
	if !l.send(&k.cancelFrame, tryWrite) {
		k.written(&k.cancelFrame, errHangup)
	}
}

// tearDown ends the link: the peer did not answer a CANCEL in time.
func (k *call) tearDown() {
	k.mu.Lock()
	l := k.link
	k.mu.Unlock()
	if l != nil {
		l.fail(fmt.Errorf("no answer to a CANCEL in %v", k.c.t.cfg.CancelWait))
		<-l.gone
	}
}
