package tcp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"rfs/internal/invariants"
	"rfs/transport"
	"rfs/transport/wire"
)

// The data path allocates nothing in either process: client and server are both
// counted here. The budget of half an allocation a call leaves room for what
// the run time does meanwhile (a grown queue, a timer, a worker that was not idle).
func TestCallsAllocateNothing(t *testing.T) {
	if invariants.Enabled {
		t.Skip("the race detector allocates")
	}
	const budget = 0.5
	for _, network := range []string{"unix", "tcp"} {
		for _, n := range []int{0, 4096, 256 << 10} {
			a := newArena(t)
			tr := newTransport(t)
			l, addr := listen(t, network)
			serve(t, tr, l, pullPush(t, a))
			c := dial(t, tr, addr)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			src, dst := mustGet(t, a, n), mustGet(t, a, n)
			hdr, into := make([]byte, 100), make([]byte, 0, 100)
			call := func() {
				r, err := c.CallInto(ctx, wire.OpTest, hdr, src, dst, into)
				if err != nil || r.Status != wire.StatusOK || r.Pushed != n {
					t.Fatalf("%+v, %v", r, err)
				}
			}
			for range 50 {
				call()
			}
			if got := testing.AllocsPerRun(300, call); got > budget {
				t.Errorf("%s, %d bytes: %v allocations a call, at most %v", network, n, got, budget)
			}
			src.Release()
			dst.Release()
		}
	}
}

// pipeEnd is one end of an in-memory stream whose other end the test speaks.
func pipeEnd(t testing.TB) (near, far net.Conn) {
	near, far = net.Pipe()
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// Whatever an authenticated peer sends, a link ends with an error or goes on: it
// does not crash, and does not read what is not there.
func FuzzLink(f *testing.F) {
	frame := func(typ wire.Type, id wire.RequestID, body []byte) []byte {
		h := wire.FrameHeader{Version: wire.Major, Type: typ, ID: id, Length: uint32(len(body)), BodyCRC: wire.CRC(0, body)}
		b := make([]byte, wire.HeaderSize)
		h.Put(b)
		return append(b, body...)
	}
	rh := wire.ReqHeader{Op: wire.OpTest, Attempt: 1, HeaderLen: 3, SrcLen: 5000, DstLen: 100}
	req := make([]byte, wire.ReqHeaderSize)
	rh.Put(req)
	rg := wire.Range{Len: 5000, Pull: 1}
	data := make([]byte, wire.RangeSize+5000)
	rg.Put(data)
	f.Add(frame(wire.TypeReq, 1, append(req, "hdr"...)))
	f.Add(append(frame(wire.TypeReq, 1, append(req, "hdr"...)), frame(wire.TypeData, 1, data)...))
	f.Add(append(frame(wire.TypeReq, 1, append(req, "hdr"...)), frame(wire.TypeCancel, 1, nil)...))
	f.Add(append(frame(wire.TypePing, 0, nil), frame(wire.TypePong, 0, nil)...))
	f.Add(frame(wire.TypeGoaway, 0, (&wire.Goaway{Reason: wire.ReasonBye}).Append(nil)))
	f.Add(frame(wire.TypeResp, 1<<48|1, make([]byte, 16)))
	f.Add(frame(wire.TypeCancel, 1<<63, nil))
	f.Fuzz(func(t *testing.T, sent []byte) {
		reseal(sent)
		tr := newTransport(t, func(c *Config) { c.CancelWait = 10 * time.Millisecond })
		ctx, cancel := context.WithCancel(context.Background())
		h := transport.HandlerFunc(func(ctx context.Context, r transport.Request) {
			b := heapBuf(make([]byte, r.PayloadLen()))
			_ = r.Pull(ctx, b, 0, r.PayloadLen())
			_ = r.Reply(wire.StatusOK, r.Header(), b, min(r.CapLen(), r.PayloadLen()))
		})
		srv := &server{t: tr, h: h, ctx: ctx, stop: cancel, links: map[*link]struct{}{}, drained: make(chan struct{})}
		near, far := pipeEnd(t)
		l := tr.newLink(near, nil)
		l.srv = srv
		l.ep, _ = tr.join(wire.Hello{}, l)
		srv.admitLink(l)
		srv.conns.Go(l.run)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, far) })
		_, _ = far.Write(sent)
		_ = far.Close()
		wg.Wait()
		<-l.gone
		tr.mu.Lock()
		for _, s := range tr.sessions {
			defer s.forget(true)
		}
		tr.mu.Unlock()
		srv.close()
	})
}

// reseal mends the CRCs of a mutated stream of frames, so that the fuzzer gets beyond them.
func reseal(b []byte) {
	for len(b) >= wire.HeaderSize {
		n := int(uint32(b[8]) | uint32(b[9])<<8 | uint32(b[10])<<16 | uint32(b[11])<<24)
		body := b[wire.HeaderSize:]
		body = body[:min(n, len(body))]
		var h wire.FrameHeader
		put := make([]byte, wire.HeaderSize)
		copy(put, b)
		h.Version, h.Type, h.Length = b[4], wire.Type(b[5]), uint32(n)
		h.ID = wire.RequestID(uint64(b[16]) | uint64(b[22])<<48)
		h.BodyCRC = wire.CRC(0, body)
		h.Put(b)
		b = b[wire.HeaderSize+len(body):]
	}
}

type heapBuf []byte

func (b heapBuf) Bytes() []byte { return b }
func (b heapBuf) Retain()       {}
func (b heapBuf) Release()      {}

// A peer that asks for more than it reads is hung up on.
func TestPeerThatDoesNotRead(t *testing.T) {
	tr := newTransport(t)
	near, far := pipeEnd(t)
	c := &Conn{t: tr}
	l := tr.newLink(near, c)
	var wg sync.WaitGroup
	wg.Go(l.run)
	h := wire.FrameHeader{Version: wire.Major, Type: wire.TypePing}
	ping := make([]byte, wire.HeaderSize)
	h.Put(ping)
	pings := bytes.Repeat(ping, 1000)
	_ = far.SetDeadline(time.Now().Add(time.Minute))
	for {
		if _, err := far.Write(pings); err != nil {
			if errors.Is(err, io.ErrClosedPipe) {
				break
			}
			t.Fatal(err)
		}
	}
	wg.Wait()
	if !errors.Is(l.err, errQueue) {
		t.Errorf("the link ended with: %v", l.err)
	}
}

func TestWindowServesInOrder(t *testing.T) {
	var w window
	w.update(wire.Grant{Messages: 2, Bytes: 100, Serial: 5, Cookie: 1})
	a, waited, ok := w.acquire(t.Context(), 60, nil)
	if waited || !ok {
		t.Fatal("an empty window made a call wait")
	}
	order := make(chan int, 2)
	var wg sync.WaitGroup
	for i, cost := range []uint64{60, 10} { // the second would fit at once
		wg.Go(func() {
			ch, _, _ := w.acquire(context.Background(), cost, nil)
			order <- i
			w.release(ch, cost)
		})
		for { // until it waits
			w.mu.Lock()
			n := 0
			for x := w.head; x != nil; x = x.next {
				n++
			}
			w.mu.Unlock()
			if n == i+1 {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, ok := w.acquire(ctx, 1, nil); ok {
		t.Error("a call went past who waits")
	}
	w.update(wire.Grant{Messages: 1, Bytes: 100, Serial: 7, Cookie: 1})
	w.update(wire.Grant{Messages: 9, Bytes: 900, Serial: 6, Cookie: 1}) // late: not taken
	w.release(a, 60)
	wg.Wait()
	if first := <-order; first != 0 {
		t.Error("the later call went first")
	}
	if w.grant.Messages != 1 || w.messages != 0 || w.bytes != 0 {
		t.Errorf("%+v", w.grant)
	}
	w.update(wire.Grant{Messages: 3, Bytes: 300, Serial: 1, Cookie: 2}) // a server that began anew
	if w.grant.Messages != 3 {
		t.Errorf("%+v", w.grant)
	}
}

func TestHandlerContext(t *testing.T) {
	var c callCtx
	c.begin(0, 5)
	child, cancel := context.WithCancel(&c)
	defer cancel()
	if c.Err() != nil || transport.TraceID(child) != 5 {
		t.Fatal("not a fresh context")
	}
	c.cancel(context.Canceled)
	<-c.Done()
	<-child.Done()
	c.end()
	c.begin(3_600_000, 6) // the next request's
	if c.Err() != nil {
		t.Error("ended before it began")
	}
	if d, ok := c.Deadline(); !ok || time.Until(d) < 50*time.Minute {
		t.Errorf("deadline %v, %v", d, ok)
	}
	select {
	case <-c.Done():
		t.Error("ended before it began")
	default:
	}
	// A child that the handler forgot ends with it.
	forgotten, cancel := context.WithCancel(&c)
	defer cancel()
	c.end()
	<-forgotten.Done()
	c.begin(0, 0)
	c.cancel(context.Canceled)
	if c.Err() == nil {
		t.Error("cancel did nothing")
	}
	c.end()
}
