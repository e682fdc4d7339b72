package transporttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"rfs/transport"
	"rfs/transport/wire"
)

// What a link does to calls when it breaks, loses, changes, delays.

// once returns a function that closes ch at its first call.
func once(ch chan struct{}) func() { return sync.OnceFunc(func() { close(ch) }) }

// A call whose link is cut while the handler runs is answered by the next link,
// and the handler runs once.
func testCutLink(e *env) {
	running, release := make(chan struct{}, 16), make(chan struct{})
	var runs atomic.Int64
	c, p := e.throughProxy(func(ctx context.Context, r transport.Request) {
		runs.Add(1)
		running <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
		}
		_ = r.Reply(wire.StatusExist, r.Header(), nil, 0)
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			r, err := c.Call(e.ctx, opEcho, []byte{byte(i)}, nil, nil)
			if err != nil || r.Status != wire.StatusExist || len(r.Header) != 1 || r.Header[0] != byte(i) {
				e.Errorf("%+v, %v", r, err)
			}
		})
	}
	for range 8 {
		<-running
	}
	p.Cut()
	close(release)
	wg.Wait()
	if runs.Load() != 8 {
		e.Errorf("8 calls ran %d times", runs.Load())
	}
}

// A pull whose link is cut goes on by the next link, with the right bytes.
func testCutPull(e *env) {
	const n = 2 << 20
	var runs atomic.Int64
	c, p := e.throughProxy(func(ctx context.Context, r transport.Request) {
		runs.Add(1)
		e.echo(ctx, r)
	}, oneLink)
	var once atomic.Bool
	var passed atomic.Int64
	p.Set(func(toServer bool, piece []byte) bool {
		if toServer && passed.Add(int64(len(piece))) > n/2 && once.CompareAndSwap(false, true) {
			p.Cut()
			return false
		}
		return true
	})
	e.checkEcho(c, e.filled(n, 5), e.get(n))
	if !once.Load() || runs.Load() != 1 {
		e.Errorf("cut: %v; the handler ran %d times", once.Load(), runs.Load())
	}
}

// An answer that is lost with its link comes again; the request is applied once.
func testLostReply(e *env) {
	var applied atomic.Int64
	running, release := make(chan struct{}), make(chan struct{})
	c, p := e.throughProxy(func(_ context.Context, r transport.Request) {
		n := applied.Add(1)
		close(running)
		<-release
		_ = r.Reply(wire.StatusNoSpace, []byte{byte(n)}, nil, 0)
	}, oneLink)
	swallowed := make(chan struct{})
	swallow := once(swallowed)
	go func() {
		<-running
		p.Set(func(toServer bool, _ []byte) bool {
			if !toServer {
				swallow()
			}
			return toServer
		})
		close(release)
		<-swallowed
		p.Set(nil)
		p.Cut()
	}()
	r, err := c.Call(e.ctx, opEcho, []byte("put"), nil, nil)
	if err != nil || r.Status != wire.StatusNoSpace || !bytes.Equal(r.Header, []byte{1}) {
		e.Errorf("%+v, %v", r, err)
	}
	if applied.Load() != 1 {
		e.Errorf("applied %d times", applied.Load())
	}
}

// A push that is lost with its link is made again, from a handler that runs again.
func testLostPush(e *env) {
	const n = 300_000
	var runs atomic.Int64
	c, p := e.throughProxy(func(ctx context.Context, r transport.Request) {
		runs.Add(1)
		b, err := e.Mem.Get(ctx, n)
		if err != nil {
			return
		}
		defer b.Release()
		pattern(b.Bytes(), 4)
		_ = r.Reply(wire.StatusOK, nil, b, n)
	}, oneLink)
	var lost atomic.Bool
	var passed atomic.Int64
	p.Set(func(toServer bool, piece []byte) bool {
		if !toServer && passed.Add(int64(len(piece))) > n/2 && lost.CompareAndSwap(false, true) {
			p.Cut()
			return false
		}
		return true
	})
	dst, want := e.get(n), e.filled(n, 4)
	r, err := c.Call(e.ctx, opEcho, nil, nil, dst)
	if err != nil || r.Pushed != n || !bytes.Equal(dst.Bytes(), want.Bytes()) {
		e.Errorf("%+v, %v", r, err)
	}
	if !lost.Load() {
		e.Error("nothing was lost")
	}
}

// Under cuts at random moments each write is applied exactly once.
func testAppliedOnce(e *env) {
	const writers, writes = 8, 40
	var mu sync.Mutex
	applied := map[uint64]int{}
	c, p := e.throughProxy(func(ctx context.Context, r transport.Request) {
		b, err := e.Mem.Get(ctx, r.PayloadLen())
		if err != nil {
			return
		}
		defer b.Release()
		if r.Pull(ctx, b, 0, r.PayloadLen()) != nil {
			return
		}
		id := binary.LittleEndian.Uint64(r.Header())
		mu.Lock()
		applied[id]++
		mu.Unlock()
		_ = r.Reply(wire.StatusOK, r.Header(), nil, 0)
	})
	seed := rand.Uint64()
	e.Logf("seed %d", seed)
	cuts := rand.New(rand.NewPCG(seed, 0))
	var left, cutting = int64(500_000), sync.Mutex{}
	p.Set(func(_ bool, piece []byte) bool {
		cutting.Lock()
		defer cutting.Unlock()
		if left -= int64(len(piece)); left < 0 {
			left = 200_000 + cuts.Int64N(1_500_000)
			p.Cut()
			return false
		}
		return true
	})
	var wg sync.WaitGroup
	for w := range writers {
		src := e.filled(20_000, uint64(w))
		wg.Go(func() {
			for i := range writes {
				hdr := binary.LittleEndian.AppendUint64(nil, uint64(w*writes+i))
				r, err := c.Call(e.ctx, opEcho, hdr, src, nil)
				if err != nil || r.Status != wire.StatusOK || !bytes.Equal(r.Header, hdr) {
					e.Errorf("write %d of %d: %+v, %v", i, w, r, err)
					return
				}
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	for id := range uint64(writers * writes) {
		if applied[id] != 1 {
			e.Errorf("write %d was applied %d times", id, applied[id])
		}
	}
}

// Bits that flip on the link break it; they are never taken for data.
func testBitFlips(e *env) {
	const n = 50_000
	c, p := e.throughProxy(e.echo)
	seed := rand.Uint64()
	e.Logf("seed %d", seed)
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 0))
	flips := 0
	p.Set(func(_ bool, piece []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if rng.IntN(12) == 0 {
			bit := rng.IntN(len(piece) * 8)
			piece[bit/8] ^= 1 << (bit % 8)
			flips++
		}
		return true
	})
	var wg sync.WaitGroup
	for i := range 4 {
		src, dst := e.filled(n, uint64(i)), e.get(n)
		wg.Go(func() {
			for range 10 {
				e.checkEcho(c, src, dst)
			}
		})
	}
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if flips == 0 {
		e.Error("no bit was flipped")
	}
}

// Frames that come in small pieces are put together.
func testSlowLink(e *env) {
	s := e.serve(e.transport(), e.echo)
	p := NewProxy(e.T, s.addr)
	p.Shred(7)
	c := e.dial(e.transport(), p.Addr)
	for _, n := range []int{0, 1, 4096, 4097, 20_000} {
		e.checkEcho(c, e.filled(n, uint64(n)), e.get(n))
	}
}

// A peer that stops reading and writing, like a stopped process, does not hold a
// call beyond its deadline; and what it sends when it goes on touches nothing.
func testStalledPeer(e *env) {
	running, release := make(chan struct{}), make(chan struct{})
	c, p := e.throughProxy(func(_ context.Context, r transport.Request) {
		if r.Op() == opEcho {
			_ = r.Reply(wire.StatusOK, nil, nil, 0)
			return
		}
		close(running)
		<-release
		b := e.filled(100_000, 7)
		_ = r.Reply(wire.StatusOK, nil, b, 100_000)
	}, func(o *Options) { o.CancelWait = 50 * time.Millisecond; o.Links = 1 })
	goOn := make(chan struct{})
	go func() {
		<-running
		p.Set(func(bool, []byte) bool { <-goOn; return true })
		close(release)
	}()
	dst := e.get(100_000)
	ctx, cancel := context.WithCancel(e.ctx)
	go func() { <-release; cancel() }()
	_, err := c.Call(ctx, opOther, nil, e.filled(100_000, 1), dst)
	if !errors.Is(err, context.Canceled) {
		e.Errorf("the call: %v", err)
	}
	pattern(dst.Bytes(), 2)
	// A call that begins while the peer is stalled ends with its context too.
	ctx, cancel = context.WithTimeout(e.ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, opEcho, nil, e.filled(1<<20, 1), nil); !errors.Is(err, context.DeadlineExceeded) {
		e.Errorf("a call to a stalled peer: %v", err)
	}
	p.Set(nil)
	close(goOn)
	if r, err := c.Call(e.ctx, opEcho, nil, nil, nil); err != nil || r.Status != wire.StatusOK {
		e.Errorf("when it goes on: %+v, %v", r, err)
	}
	if want := e.filled(100_000, 2); !bytes.Equal(dst.Bytes(), want.Bytes()) {
		e.Error("memory was written after its call had returned")
	}
}

// A peer that falls silent without hanging up is noticed by keepalive; calls
// without a deadline go on by a new link.
func testSilentPeer(e *env) {
	running, release := make(chan struct{}), make(chan struct{})
	c, p := e.throughProxy(func(_ context.Context, r transport.Request) {
		close(running)
		<-release
		_ = r.Reply(wire.StatusExist, nil, nil, 0)
	}, func(o *Options) { o.Keepalive, o.Dead, o.Links = 50*time.Millisecond, 500*time.Millisecond, 1 })
	hole := make(chan struct{})
	go func() {
		<-running
		// What is there now falls silent for ever; what is dialled later works.
		p.silence(hole)
		close(release)
	}()
	defer close(hole)
	r, err := c.Call(context.Background(), opEcho, nil, nil, nil)
	if err != nil || r.Status != wire.StatusExist {
		e.Errorf("%+v, %v", r, err)
	}
}
