package transporttest

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rfs"
	"rfs/transport"
	"rfs/transport/wire"
)

// Calls on a healthy link.

func testEcho(e *env) {
	c := e.pair(e.echo)
	for i, n := range []int{0, 1, 7, 4095, 4096, 4097, 8192, 65536, 1<<20 - 1, 1 << 20, 4 << 20} {
		e.checkEcho(c, e.filled(n, uint64(i)), e.get(n))
	}
}

func testHeaders(e *env) {
	c := e.pair(e.echo)
	for _, hn := range []int{0, 1, 100, 4096, transport.MaxHeader} {
		for _, pn := range []int{0, 1, transport.MaxInline, transport.MaxInline + 1} {
			hdr := make([]byte, hn)
			pattern(hdr, uint64(hn))
			src, dst := e.filled(pn, uint64(pn)), e.get(pn)
			r, err := c.Call(e.ctx, opEcho, hdr, src, dst)
			if err != nil || r.Status != wire.StatusOK || !bytes.Equal(r.Header, hdr) || !bytes.Equal(src.Bytes(), dst.Bytes()) {
				e.Errorf("header of %d bytes, payload of %d: %v, %v", hn, pn, r.Status, err)
			}
		}
	}
}

// The server takes src in pieces: out of order, twice, several at once.
func testPullInPieces(e *env) {
	const size, piece = 1 << 20, 64 << 10
	c := e.pair(func(ctx context.Context, r transport.Request) {
		whole, err := e.Mem.Get(ctx, size)
		if err != nil {
			return
		}
		defer whole.Release()
		var wg sync.WaitGroup
		var failed atomic.Bool
		for _, i := range rand.Perm(size / piece) {
			pull := func() {
				b, err := e.Mem.Get(ctx, piece)
				if err != nil {
					failed.Store(true)
					return
				}
				defer b.Release()
				for range 2 {
					if r.Pull(ctx, b, i*piece, piece) != nil {
						failed.Store(true)
					}
				}
				copy(whole.Bytes()[i*piece:], b.Bytes())
			}
			if i%3 == 0 {
				pull()
			} else {
				wg.Go(pull)
			}
		}
		wg.Wait()
		if failed.Load() {
			_ = r.Reply(wire.StatusIO, nil, nil, 0)
			return
		}
		_ = r.Reply(wire.StatusOK, r.Header(), whole, size)
	})
	e.checkEcho(c, e.filled(size, 3), e.get(size))
}

// What the server does not push stays as it is.
func testPushPart(e *env) {
	c := e.pair(func(ctx context.Context, r transport.Request) {
		b, err := e.Mem.Get(ctx, 8192)
		if err != nil {
			return
		}
		defer b.Release()
		pattern(b.Bytes(), 9)
		_ = r.Reply(wire.StatusOK, nil, b, 5000)
	})
	dst, want := e.get(8192), e.filled(8192, 9)
	pattern(dst.Bytes(), 10)
	tail := bytes.Clone(dst.Bytes()[5000:])
	r, err := c.Call(e.ctx, opEcho, nil, nil, dst)
	if err != nil || r.Pushed != 5000 {
		e.Fatalf("%+v, %v", r, err)
	}
	if !bytes.Equal(dst.Bytes()[:5000], want.Bytes()[:5000]) || !bytes.Equal(dst.Bytes()[5000:], tail) {
		e.Error("not the pushed bytes, or more than those")
	}
}

func testBadArguments(e *env) {
	c := e.pair(func(ctx context.Context, r transport.Request) {
		b, err := e.Mem.Get(ctx, 8192)
		if err != nil {
			return
		}
		defer b.Release()
		for _, p := range [][2]int{{-1, 1}, {0, 5001}, {5000, 1}, {0, -1}, {4999, 2}} {
			if r.Pull(ctx, b, p[0], p[1]) == nil {
				e.Errorf("pull of %d from %d of 5000 bytes was taken", p[1], p[0])
			}
		}
		for _, n := range []int{-1, 101, 8193} {
			if r.Reply(wire.StatusOK, nil, b, n) == nil {
				e.Errorf("push of %d into 100 bytes was taken", n)
			}
		}
		if r.Reply(wire.StatusOK, make([]byte, transport.MaxHeader+1), nil, 0) == nil {
			e.Error("a header that is too long was taken")
		}
		if r.PayloadLen() != 5000 || r.CapLen() != 100 {
			e.Errorf("lent %d and %d", r.PayloadLen(), r.CapLen())
		}
		_ = r.Reply(wire.StatusNotFound, []byte("why"), nil, 0)
	})
	if _, err := c.Call(e.ctx, opEcho, make([]byte, transport.MaxHeader+1), nil, nil); !errors.Is(err, rfs.ErrInvalid) {
		e.Errorf("a header that is too long: %v", err)
	}
	r, err := c.Call(e.ctx, opEcho, nil, e.filled(5000, 1), e.get(100))
	if err != nil || r.Status != wire.StatusNotFound || string(r.Header) != "why" || r.Pushed != 0 {
		e.Errorf("%+v, %v", r, err)
	}
}

func testIdentity(e *env) {
	type seen struct {
		op       wire.Op
		trace    uint64
		peer     transport.Peer
		deadline bool
	}
	got := make(chan seen, 1)
	s := e.serve(e.transport(), func(ctx context.Context, r transport.Request) {
		_, deadline := ctx.Deadline()
		got <- seen{r.Op(), transport.TraceID(ctx), r.Peer(), deadline}
		ok(ctx, r)
	})
	c := e.dial(e.transport(func(o *Options) { o.Name = "client-7"; o.Session = 42 }), s.addr)
	const trace = 0xfeedfacecafebeef
	if _, err := c.Call(transport.WithTrace(e.ctx, trace), opOther, nil, nil, nil); err != nil {
		e.Fatal(err)
	}
	v := <-got
	if v.op != opOther || v.trace != trace || v.peer.Node != "client-7" || v.peer.Session != 42 || v.peer.Carrier == "" || v.peer.Addr == "" || !v.deadline {
		e.Errorf("the server saw %+v", v)
	}
	if _, err := c.Call(context.Background(), opEcho, nil, nil, nil); err != nil {
		e.Fatal(err)
	}
	if v := <-got; v.deadline || v.trace != 0 {
		e.Errorf("without deadline and trace the server saw %+v", v)
	}
}

// Each end learns of the other's map epoch by any frame.
func testMapEpoch(e *env) {
	server, client := make(chan rfs.Epoch, 8), make(chan rfs.Epoch, 8)
	s := e.serve(e.transport(func(o *Options) { o.MapEpoch = 7; o.OnMapEpoch = func(x rfs.Epoch) { server <- x } }), ok)
	c := e.dial(e.transport(func(o *Options) { o.MapEpoch = 9; o.OnMapEpoch = func(x rfs.Epoch) { client <- x } }), s.addr)
	for range 3 {
		if _, err := c.Call(e.ctx, opEcho, nil, nil, nil); err != nil {
			e.Fatal(err)
		}
	}
	if a, b := <-server, <-client; a != 9 || b != 7 {
		e.Errorf("the server learnt %d, the client %d", a, b)
	}
	if len(server)+len(client) > 0 {
		e.Error("told more than once of one epoch")
	}
}

// Requests and replies of bytes travel whatever their length.
func testBytes(e *env) {
	c := e.pair(func(ctx context.Context, r transport.Request) {
		b, err := transport.ReadAll(ctx, r, e.Mem)
		if err != nil {
			return
		}
		_ = transport.ReplyBytes(ctx, r, e.Mem, wire.StatusExist, b)
	})
	for _, n := range []int{0, 1, transport.MaxHeader, transport.MaxHeader + 1, 100_000, 4 << 20} {
		req := make([]byte, n)
		pattern(req, uint64(n))
		got, st, err := transport.CallBytes(e.ctx, c, e.Mem, opEcho, req, n)
		if err != nil || st != wire.StatusExist || !bytes.Equal(got, req) {
			e.Errorf("%d bytes: %d came back, %v, %v", n, len(got), st, err)
		}
	}
	got, st, err := transport.CallBytes(e.ctx, c, e.Mem, opEcho, make([]byte, 100_000), 50_000)
	if err != nil || st != wire.StatusInternal || !strings.Contains(string(got), "maxReply") {
		e.Errorf("a reply longer than asked for: %q, %v, %v", got, st, err)
	}
	if _, _, err := transport.CallBytes(e.ctx, c, e.Mem, opEcho, make([]byte, 4<<20+1), 0); err == nil {
		e.Error("5 MiB were taken")
	}
}

func testWriters64(e *env) {
	c := e.pair(e.echo)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 0))
			src, err1 := e.Mem.Get(e.ctx, 256<<10)
			dst, err2 := e.Mem.Get(e.ctx, 256<<10)
			if err1 != nil || err2 != nil {
				e.Error(err1, err2)
				return
			}
			defer src.Release()
			defer dst.Release()
			pattern(src.Bytes(), uint64(i))
			for range 8 {
				n := 1 + rng.IntN(256<<10)
				hdr := []byte{byte(i), byte(n), byte(n >> 8)}
				clear(dst.Bytes()[:n])
				r, err := c.Call(e.ctx, opEcho, hdr, part{src, n}, part{dst, n})
				if err != nil || r.Pushed != n || !bytes.Equal(r.Header, hdr) || !bytes.Equal(src.Bytes()[:n], dst.Bytes()[:n]) {
					e.Errorf("writer %d: %d bytes: %+v, %v", i, n, r, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// part is the start of a Buf.
type part struct {
	transport.Buf
	n int
}

func (p part) Bytes() []byte { return p.Buf.Bytes()[:p.n] }

func testHandlerPanics(e *env) {
	var log syncBuffer
	c := e.pair(func(ctx context.Context, r transport.Request) {
		if r.Op() == opOther {
			panic("the handler's own fault")
		}
		ok(ctx, r)
	}, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for range 3 {
		r, err := c.Call(e.ctx, opOther, nil, nil, nil)
		if err != nil || r.Status != wire.StatusInternal {
			e.Fatalf("%+v, %v", r, err)
		}
	}
	if !strings.Contains(log.String(), "the handler's own fault") {
		e.Errorf("the panic was not logged: %s", log.String())
	}
	if r, err := c.Call(e.ctx, opEcho, nil, nil, nil); err != nil || r.Status != wire.StatusOK {
		e.Errorf("after it: %+v, %v", r, err)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func testHandlerIsSilent(e *env) {
	c := e.pair(func(context.Context, transport.Request) {})
	for range 3 {
		r, err := c.Call(e.ctx, opEcho, nil, e.filled(10000, 1), nil)
		if err != nil || r.Status != wire.StatusInternal {
			e.Fatalf("%+v, %v", r, err)
		}
	}
}

func testReplyTwice(e *env) {
	second := make(chan error, 1)
	c := e.pair(func(ctx context.Context, r transport.Request) {
		_ = r.Reply(wire.StatusNoSpace, nil, nil, 0)
		second <- r.Reply(wire.StatusOK, nil, nil, 0)
	})
	r, err := c.Call(e.ctx, opEcho, nil, nil, nil)
	if err != nil || r.Status != wire.StatusNoSpace {
		e.Errorf("%+v, %v", r, err)
	}
	if <-second == nil {
		e.Error("a second Reply was taken")
	}
}

// A cancelled call returns, and the handler learns of it.
func testCancel(e *env) {
	running, ended := make(chan struct{}), make(chan error, 1)
	c := e.pair(func(ctx context.Context, r transport.Request) {
		if r.Op() == opEcho {
			ok(ctx, r)
			return
		}
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		close(running)
		<-child.Done()
		ended <- ctx.Err()
		_ = r.Reply(wire.StatusCancelled, nil, nil, 0)
	})
	ctx, cancel := context.WithCancel(e.ctx)
	go func() { <-running; cancel() }()
	if _, err := c.Call(ctx, opOther, nil, e.filled(100_000, 1), e.get(100_000)); !errors.Is(err, context.Canceled) {
		e.Errorf("the call: %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		e.Errorf("the handler: %v", err)
	}
	if _, err := c.Call(ctx, opEcho, nil, nil, nil); !errors.Is(err, context.Canceled) {
		e.Errorf("a call with an ended context: %v", err)
	}
	if r, err := c.Call(e.ctx, opEcho, nil, nil, nil); err != nil || r.Status != wire.StatusOK {
		e.Errorf("after it: %+v, %v", r, err)
	}
}

// A pull after the client has cancelled fails, and leaves the server's memory alone.
func testCancelledPull(e *env) {
	running, pulled := make(chan struct{}), make(chan error, 1)
	c := e.pair(func(ctx context.Context, r transport.Request) {
		close(running)
		<-ctx.Done()
		b := e.get(100_000)
		pulled <- r.Pull(ctx, b, 0, 100_000)
		_ = r.Reply(wire.StatusCancelled, nil, nil, 0)
	})
	ctx, cancel := context.WithCancel(e.ctx)
	go func() { <-running; cancel() }()
	if _, err := c.Call(ctx, opOther, nil, e.filled(100_000, 1), nil); !errors.Is(err, context.Canceled) {
		e.Errorf("the call: %v", err)
	}
	if <-pulled == nil {
		e.Error("memory that was no longer lent was pulled")
	}
}

// The handler's context ends with the call's deadline.
func testDeadline(e *env) {
	ended := make(chan error, 64)
	c := e.pair(func(ctx context.Context, r transport.Request) {
		<-ctx.Done()
		ended <- ctx.Err()
		_ = r.Reply(wire.StatusCancelled, nil, nil, 0)
	})
	dst := e.get(5000)
	// On a busy machine a short deadline may pass before the call is even sent: then a longer one.
	for d := 50 * time.Millisecond; d < patience; d *= 2 {
		ctx, cancel := context.WithTimeout(e.ctx, d)
		r, err := c.Call(ctx, opEcho, nil, nil, dst)
		cancel()
		if err == nil && r.Status != wire.StatusCancelled || err != nil && !errors.Is(err, context.DeadlineExceeded) {
			e.Errorf("the call: %+v, %v", r, err)
		}
		select {
		case err := <-ended:
			if err == nil {
				e.Error("the handler's context had ended without an error")
			}
			return
		case <-time.After(time.Second):
		}
	}
	e.Error("the handler's context did not end")
}

// A push that comes after the call was given up does not reach the memory.
func testLatePush(e *env) {
	running, release, pushed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	c := e.pair(func(ctx context.Context, r transport.Request) {
		if r.Op() == opEcho {
			ok(ctx, r)
			return
		}
		b, err := e.Mem.Get(e.ctx, 1<<20)
		if err != nil {
			return
		}
		defer b.Release()
		pattern(b.Bytes(), 66)
		close(running)
		<-release // whatever ctx says
		_ = r.Reply(wire.StatusOK, nil, b, 1<<20)
		close(pushed)
	}, oneLink)
	dst := e.get(1 << 20)
	ctx, cancel := context.WithCancel(e.ctx)
	go func() { <-running; cancel() }()
	_, err := c.Call(ctx, opOther, nil, nil, dst)
	if !errors.Is(err, context.Canceled) {
		e.Fatalf("the call: %v", err)
	}
	pattern(dst.Bytes(), 1) // the canary: the memory is the caller's again
	close(release)
	e.await("the late Reply returns", pushed)
	for range 2 { // whatever the server sent before has arrived with these answers
		if _, err := c.Call(e.ctx, opEcho, nil, nil, nil); err != nil {
			e.Fatal(err)
		}
	}
	if want := e.filled(1<<20, 1); !bytes.Equal(dst.Bytes(), want.Bytes()) {
		e.Error("memory was written after its call had returned")
	}
}

func raise(most *atomic.Int64, v int64) {
	for m := most.Load(); v > m && !most.CompareAndSwap(m, v); m = most.Load() {
	}
}

// However many call, no more requests are under way than the server granted.
func testMessageCredits(e *env) {
	const credits = 4
	var now, most atomic.Int64
	gate := make(chan struct{})
	c := e.pair(func(ctx context.Context, r transport.Request) {
		raise(&most, now.Add(1))
		select {
		case <-gate:
		case <-ctx.Done():
		}
		now.Add(-1)
		ok(ctx, r)
	}, func(o *Options) { o.Messages = credits })
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if _, err := c.Call(e.ctx, opEcho, nil, nil, nil); err != nil {
				e.Error(err)
			}
		})
	}
	e.until("the credits are used up", func() bool { return now.Load() == credits })
	// One that gives up waiting for credits says so, and takes none.
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	if _, err := c.Call(ctx, opEcho, nil, nil, nil); !errors.Is(err, context.Canceled) {
		e.Error(err)
	}
	close(gate)
	wg.Wait()
	if most.Load() > credits {
		e.Errorf("%d requests at once with %d credits", most.Load(), credits)
	}
}

// 64 writers hold no more of the server's memory than it granted; a call larger
// than the whole grant goes alone.
func testByteCredits(e *env) {
	const window = 1 << 20
	var now, most atomic.Int64
	c := e.pair(func(ctx context.Context, r transport.Request) {
		n := r.PayloadLen()
		if v := now.Add(int64(n)); n <= window {
			raise(&most, v)
		}
		b, err := e.Mem.Get(ctx, n)
		if err == nil {
			err = r.Pull(ctx, b, 0, n)
			b.Release()
		}
		now.Add(-int64(n))
		if err == nil {
			ok(ctx, r)
		}
	}, func(o *Options) { o.Bytes = window })
	src := e.filled(300<<10, 1)
	large := e.filled(4<<20, 1)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			b := src
			if i%32 == 7 {
				b = large
			}
			if r, err := c.Call(e.ctx, opEcho, nil, b, nil); err != nil || r.Status != wire.StatusOK {
				e.Error(r.Status, err)
			}
		})
	}
	wg.Wait()
	if most.Load() > window {
		e.Errorf("%d bytes at once, %d granted", most.Load(), window)
	}
}

// until waits for a condition that no event tells of.
func (e *env) until(what string, cond func() bool) {
	e.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			e.Fatalf("%s: did not happen in %v", what, patience)
		}
	}
}

// Two processes that call each other with all their credits in use do not lock up.
func testCreditsBothWays(e *env) {
	few := func(o *Options) { o.Messages, o.Bytes = 4, 2<<20 }
	a, b := e.transport(few), e.transport(few)
	toA, toB := e.dial(b, e.serve(a, e.echo).addr), e.dial(a, e.serve(b, e.echo).addr)
	var wg sync.WaitGroup
	for i := range 32 {
		c := []transport.Conn{toA, toB}[i%2]
		src, dst := e.filled(512<<10, uint64(i)), e.get(512<<10)
		wg.Go(func() {
			for range 4 {
				e.checkEcho(c, src, dst)
			}
		})
	}
	wg.Wait()
}
