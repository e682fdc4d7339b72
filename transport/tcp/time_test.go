package tcp

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rfs/transport"
	"rfs/transport/wire"
)

// memNet is a network in memory, so that tests of time run in a synctest bubble.
type memNet struct {
	accept chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu     sync.Mutex
	down   bool
	dials  []time.Time
	opened []*memConn // the server's ends
}

// memConn is the server's end of a stream; what is written to a silent one goes nowhere.
type memConn struct {
	net.Conn
	mu     sync.Mutex
	silent bool
}

func (c *memConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	silent := c.silent
	c.mu.Unlock()
	if silent {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func newMemNet() *memNet {
	return &memNet{accept: make(chan net.Conn, 16), closed: make(chan struct{})}
}

func (n *memNet) Accept() (net.Conn, error) {
	select {
	case c := <-n.accept:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

func (n *memNet) Close() error   { n.once.Do(func() { close(n.closed) }); return nil }
func (n *memNet) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

func (n *memNet) dial(context.Context, string, string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials = append(n.dials, time.Now())
	if n.down {
		return nil, errors.New("the network is down")
	}
	a, b := net.Pipe()
	far := &memConn{Conn: b}
	n.opened = append(n.opened, far)
	n.accept <- far
	return a, nil
}

// cut ends all streams, or with silent makes them swallow what the server writes.
func (n *memNet) cut(silent bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.opened {
		if silent {
			c.mu.Lock()
			c.silent = true
			c.mu.Unlock()
		} else {
			c.Close()
		}
	}
	n.opened = nil
}

func (n *memNet) setDown(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down, n.dials = down, nil
}

// inBubble runs f with a client whose peer answers by h, in simulated time.
func inBubble(t *testing.T, h transport.HandlerFunc, f func(t *testing.T, n *memNet, c *Conn, srv *Transport)) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		tr := newTransport(t, func(c *Config) { c.Dial, c.Streams = n.dial, 1 })
		srv := newTransport(t)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Serve(ctx, n, h) })
		c, err := tr.Dial(t.Context(), transport.Addr{Network: "unix", Address: "memory"})
		if err != nil {
			t.Fatal(err)
		}
		f(t, n, c.(*Conn), srv)
		c.Close()
		cancel()
		wg.Wait()
	})
}

func answer(_ context.Context, r transport.Request) { _ = r.Reply(wire.StatusOK, nil, nil, 0) }

// The waits between dials double from 50 ms to 5 s, each cut by up to a half.
func TestBackoff(t *testing.T) {
	inBubble(t, answer, func(t *testing.T, n *memNet, c *Conn, _ *Transport) {
		n.setDown(true)
		broke := time.Now()
		n.cut(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		n.mu.Lock()
		dials := n.dials
		n.mu.Unlock()
		last, want := broke, 50*time.Millisecond
		for i, at := range dials {
			if d := at.Sub(last); d < want/2 || d > want {
				t.Errorf("dial %d came %v after the one before, want %v to %v", i, d, want/2, want)
			}
			last, want = at, min(2*want, 5*time.Second)
		}
		if len(dials) < 15 {
			t.Errorf("%d dials in a minute", len(dials))
		}
		if c.Carrier() != "" {
			t.Error("carried by", c.Carrier())
		}
		n.setDown(false)
		if r, err := c.Call(t.Context(), wire.OpTest, nil, nil, nil); err != nil || r.Status != wire.StatusOK {
			t.Errorf("when the network is back: %+v, %v", r, err)
		}
	})
}

// A call waits for a link until its context ends, and says that it had none.
func TestNoLink(t *testing.T) {
	inBubble(t, answer, func(t *testing.T, n *memNet, c *Conn, _ *Transport) {
		n.setDown(true)
		n.cut(false)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		begin := time.Now()
		_, err := c.Call(ctx, wire.OpTest, nil, nil, nil)
		if !errors.Is(err, transport.ErrBroken) || !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if d := time.Since(begin); d != 7*time.Second {
			t.Errorf("after %v", d)
		}
	})
}

// An idle link is pinged and stays; a silent one is given up after Dead.
func TestKeepalive(t *testing.T) {
	inBubble(t, answer, func(t *testing.T, n *memNet, c *Conn, srv *Transport) {
		l := c.links[0].Load()
		time.Sleep(time.Hour)
		if l.dead.Load() {
			t.Fatalf("an idle link was given up: %v", l.err)
		}
		n.cut(true)
		begin := time.Now()
		<-l.gone
		if d := time.Since(begin); d < 6*time.Second || d > 15*time.Second {
			t.Errorf("a silent link was given up after %v", d)
		}
		if !errors.Is(l.err, errDead) {
			t.Error(l.err)
		}
		if r, err := c.Call(t.Context(), wire.OpTest, nil, nil, nil); err != nil || r.Status != wire.StatusOK {
			t.Errorf("by the next link: %+v, %v", r, err)
		}
	})
}

// A peer that is silent holds a call for its deadline and CancelWait, no longer.
func TestDeadlineOfASilentPeer(t *testing.T) {
	inBubble(t, answer, func(t *testing.T, n *memNet, c *Conn, _ *Transport) {
		n.cut(true)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		begin := time.Now()
		_, err := c.Call(ctx, wire.OpTest, nil, nil, nil)
		if d := time.Since(begin); !errors.Is(err, context.DeadlineExceeded) || d != 3*time.Second {
			t.Errorf("%v after %v", err, d)
		}
	})
}

// A client that went away without a word is forgotten after Linger, and its handlers are told.
func TestLinger(t *testing.T) {
	ended := make(chan time.Time, 1)
	waits := func(ctx context.Context, r transport.Request) {
		<-ctx.Done()
		ended <- time.Now()
		_ = r.Reply(wire.StatusCancelled, nil, nil, 0)
	}
	inBubble(t, waits, func(t *testing.T, n *memNet, c *Conn, srv *Transport) {
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := c.Call(t.Context(), wire.OpTest, nil, nil, nil)
			if !errors.Is(err, transport.ErrBroken) {
				t.Error(err)
			}
		})
		synctest.Wait()
		n.setDown(true)
		n.cut(false)
		begin := time.Now()
		synctest.Wait()
		time.Sleep(29 * time.Second)
		if s := srv.Stats(); s.Clients != 1 {
			t.Errorf("%d clients within Linger", s.Clients)
		}
		time.Sleep(2 * time.Second)
		if s := srv.Stats(); s.Clients != 0 {
			t.Errorf("%d clients after Linger", s.Clients)
		}
		if d := (<-ended).Sub(begin); d != 30*time.Second {
			t.Errorf("the handler was told after %v", d)
		}
		n.setDown(false)
		wg.Wait()
	})
}

// A client that says nothing in its set-up is hung up on.
func TestSilentHandshake(t *testing.T) {
	inBubble(t, answer, func(t *testing.T, n *memNet, _ *Conn, srv *Transport) {
		near, far := net.Pipe()
		n.accept <- far
		begin := time.Now()
		if _, err := near.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		if d := time.Since(begin); d != 5*time.Second {
			t.Errorf("hung up on after %v", d)
		}
		near.Close()
	})
}
