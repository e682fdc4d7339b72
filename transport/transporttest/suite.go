// Package transporttest is the suite that every implementation of transport
// passes. An implementation's test says how to make one:
//
//	func TestTransport(t *testing.T) {
//		transporttest.Run(t, func(t *testing.T) transporttest.Fixture { ... })
//	}
//
// Tests wait for events, never for time. Those that break the link do it in a
// Proxy between the ends, and are skipped where Fixture.Stream is false.
package transporttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rfs"
	"rfs/transport"
	"rfs/transport/wire"
)

// Options are what the suite asks of a transport. Zero fields are the implementation's defaults.
type Options struct {
	Key        []byte
	Cluster    rfs.UUID
	Name       string
	Session    rfs.SessionID
	MapEpoch   rfs.Epoch
	OnMapEpoch func(rfs.Epoch)
	Links      int   // of a connection, where it can be chosen
	Messages   int   // message credits that a server grants a client
	Bytes      int64 // byte credits
	CancelWait time.Duration
	Keepalive  time.Duration
	Dead       time.Duration
	Log        *slog.Logger
	BackoffMax time.Duration
}

// Fixture is an implementation under test.
type Fixture struct {
	New    func(t testing.TB, o Options) transport.Transport
	Listen func(t testing.TB) (net.Listener, transport.Addr)
	Mem    transport.Allocator
	// Stream: the links are streams of bytes to Addr, so that a Proxy can stand between.
	Stream bool
}

// Cluster and Key are those of the suite's transports unless a test says otherwise.
var (
	Cluster = rfs.UUID{0xc1, 0x05, 0x7e, 0x12}
	Key     = bytes.Repeat([]byte("0123456789abcdef"), 2)
)

// patience bounds each wait for an event: only a failing test comes near it.
const patience = 60 * time.Second

// Operations of the suite's handlers.
const (
	opEcho = wire.OpTest + iota
	opOther
)

// Run runs the suite. make is called for each test.
func Run(t *testing.T, make func(t *testing.T) Fixture) {
	for _, tt := range []struct {
		name   string
		stream bool // needs a Proxy
		f      func(*env)
	}{
		{"Echo", false, testEcho},
		{"Headers", false, testHeaders},
		{"PullInPieces", false, testPullInPieces},
		{"PushPart", false, testPushPart},
		{"BadArguments", false, testBadArguments},
		{"Identity", false, testIdentity},
		{"MapEpoch", false, testMapEpoch},
		{"Bytes", false, testBytes},
		{"Writers64", false, testWriters64},
		{"HandlerPanics", false, testHandlerPanics},
		{"HandlerIsSilent", false, testHandlerIsSilent},
		{"ReplyTwice", false, testReplyTwice},
		{"Cancel", false, testCancel},
		{"CancelledPull", false, testCancelledPull},
		{"Deadline", false, testDeadline},
		{"LatePush", false, testLatePush},
		{"MessageCredits", false, testMessageCredits},
		{"ByteCredits", false, testByteCredits},
		{"CreditsBothWays", false, testCreditsBothWays},
		{"CloseConn", false, testCloseConn},
		{"ServerStops", false, testServerStops},
		{"ServerRestarts", false, testServerRestarts},
		{"NobodyListens", false, testNobodyListens},
		{"WrongKey", false, testWrongKey},
		{"WrongCluster", false, testWrongCluster},
		{"WrongVersion", false, testWrongVersion},
		{"Garbage", false, testGarbage},
		{"CutLink", true, testCutLink},
		{"CutPull", true, testCutPull},
		{"LostReply", true, testLostReply},
		{"LostPush", true, testLostPush},
		{"AppliedOnce", true, testAppliedOnce},
		{"BitFlips", true, testBitFlips},
		{"SlowLink", true, testSlowLink},
		{"StalledPeer", true, testStalledPeer},
		{"SilentPeer", true, testSilentPeer},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leaks := goleak.IgnoreCurrent()
			// Registered first, so that it looks after all other clean-ups.
			t.Cleanup(func() {
				if err := goleak.Find(leaks); err != nil {
					t.Error(err)
				}
			})
			f := make(t)
			if tt.stream && !f.Stream {
				t.Skip("not a stream of bytes")
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
			t.Cleanup(cancel)
			tt.f(&env{T: t, Fixture: f, ctx: ctx})
		})
	}
}

// env is one test's world.
type env struct {
	*testing.T
	Fixture
	ctx context.Context // outlives any healthy test
}

// transport makes a transport of the suite's cluster.
func (e *env) transport(change ...func(*Options)) transport.Transport {
	e.Helper()
	o := Options{Key: Key, Cluster: Cluster, Name: e.Name(), Log: slog.New(slog.DiscardHandler), BackoffMax: 200 * time.Millisecond}
	for _, f := range change {
		f(&o)
	}
	return e.New(e.T, o)
}

// server is a running Serve.
type server struct {
	addr transport.Addr
	stop func() // and wait
}

// serve serves h by tr until the test's end or stop.
func (e *env) serve(tr transport.Transport, h transport.HandlerFunc) *server {
	e.Helper()
	l, addr := e.Listen(e.T)
	return e.serveOn(tr, l, addr, h)
}

func (e *env) serveOn(tr transport.Transport, l net.Listener, addr transport.Addr, h transport.HandlerFunc) *server {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := tr.Serve(ctx, l, h); err != nil {
			e.Errorf("serve: %v", err)
		}
	}()
	s := &server{addr: addr, stop: func() {
		cancel()
		e.await("Serve returns", done)
	}}
	e.Cleanup(s.stop)
	return s
}

func (e *env) dial(tr transport.Transport, addr transport.Addr) transport.Conn {
	e.Helper()
	c, err := tr.Dial(e.ctx, addr)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		if err := c.Close(); err != nil {
			e.Error(err)
		}
	})
	return c
}

// pair is a client's connection to a server with the handler.
func (e *env) pair(h transport.HandlerFunc, change ...func(*Options)) transport.Conn {
	e.Helper()
	s := e.serve(e.transport(change...), h)
	return e.dial(e.transport(change...), s.addr)
}

// throughProxy is pair with a Proxy between.
func (e *env) throughProxy(h transport.HandlerFunc, change ...func(*Options)) (transport.Conn, *Proxy) {
	e.Helper()
	s := e.serve(e.transport(change...), h)
	p := NewProxy(e.T, s.addr)
	return e.dial(e.transport(change...), p.Addr), p
}

func (e *env) await(what string, ch <-chan struct{}) {
	e.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		e.Errorf("%s: did not happen in %v", what, patience)
	}
}

// get returns memory, released at the test's end.
func (e *env) get(n int) transport.Buf {
	e.Helper()
	b, err := e.Mem.Get(e.ctx, n)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(b.Release)
	return b
}

// filled is get with bytes that depend on the seed and on their place.
func (e *env) filled(n int, seed uint64) transport.Buf {
	e.Helper()
	b := e.get(n)
	pattern(b.Bytes(), seed)
	return b
}

func pattern(b []byte, seed uint64) {
	r := rand.NewPCG(seed, 1)
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, r.Uint64())
		b = b[8:]
	}
	for i := range b {
		b[i] = byte(r.Uint64())
	}
}

// echo pulls src, and pushes it back as far as dst takes it.
func (e *env) echo(ctx context.Context, r transport.Request) {
	b, err := e.Mem.Get(ctx, r.PayloadLen())
	if err != nil {
		_ = r.Reply(wire.StatusUnavailable, nil, nil, 0)
		return
	}
	defer b.Release()
	if err := r.Pull(ctx, b, 0, r.PayloadLen()); err != nil {
		_ = r.Reply(wire.StatusCancelled, nil, nil, 0)
		return
	}
	_ = r.Reply(wire.StatusOK, r.Header(), b, min(r.PayloadLen(), r.CapLen()))
}

// checkEcho makes an echo call and checks what comes back.
func (e *env) checkEcho(c transport.Conn, src, dst transport.Buf) {
	e.Helper()
	hdr := []byte("the header")
	r, err := c.Call(e.ctx, opEcho, hdr, src, dst)
	n := len(src.Bytes())
	switch {
	case err != nil:
		e.Errorf("echo of %d bytes: %v", n, err)
	case r.Status != wire.StatusOK || !bytes.Equal(r.Header, hdr) || r.Pushed != n:
		e.Errorf("echo of %d bytes: %v, header %q, %d pushed", n, r.Status, r.Header, r.Pushed)
	case !bytes.Equal(src.Bytes(), dst.Bytes()[:n]):
		e.Errorf("echo of %d bytes: they came back changed", n)
	}
}

func ok(_ context.Context, r transport.Request) { _ = r.Reply(wire.StatusOK, nil, nil, 0) }

func oneLink(o *Options) { o.Links = 1 }
