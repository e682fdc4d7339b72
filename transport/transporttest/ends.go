package transporttest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"time"

	"rfs"
	"rfs/transport"
	"rfs/transport/wire"
)

// How connections begin and end.

func testCloseConn(e *env) {
	running := make(chan struct{}, 8)
	s := e.serve(e.transport(), func(ctx context.Context, r transport.Request) {
		running <- struct{}{}
		<-ctx.Done()
		_ = r.Reply(wire.StatusCancelled, nil, nil, 0)
	})
	c, err := e.transport().Dial(e.ctx, s.addr)
	if err != nil {
		e.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		src, dst := e.filled(100_000, 1), e.get(100_000)
		wg.Go(func() {
			if _, err := c.Call(e.ctx, opEcho, nil, src, dst); !errors.Is(err, transport.ErrClosed) {
				e.Errorf("a call under way: %v", err)
			}
		})
	}
	for range 8 {
		<-running
	}
	if err := c.Close(); err != nil {
		e.Error(err)
	}
	wg.Wait()
	e.await("Done", c.Done())
	if _, err := c.Call(e.ctx, opEcho, nil, nil, nil); !errors.Is(err, transport.ErrClosed) {
		e.Errorf("a call after Close: %v", err)
	}
	if err := c.Close(); err != nil {
		e.Errorf("a second Close: %v", err)
	}
}

// A server that stops ends its handlers, and answers what they still say.
func testServerStops(e *env) {
	running := make(chan struct{}, 8)
	s := e.serve(e.transport(), func(ctx context.Context, r transport.Request) {
		running <- struct{}{}
		<-ctx.Done()
		_ = r.Reply(wire.StatusUnavailable, []byte("stopping"), nil, 0)
	})
	c := e.dial(e.transport(), s.addr)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(e.ctx, patience)
			defer cancel()
			r, err := c.Call(ctx, opEcho, nil, nil, nil)
			if err != nil || r.Status != wire.StatusUnavailable || string(r.Header) != "stopping" {
				e.Errorf("%+v, %v", r, err)
			}
		})
	}
	for range 8 {
		<-running
	}
	s.stop()
	wg.Wait()
}

// A server that comes back does not know what it had answered: a call that was
// under way fails rather than be applied twice; new ones go through.
func testServerRestarts(e *env) {
	l, addr := e.Listen(e.T)
	running, release := make(chan struct{}), make(chan struct{})
	first := e.serveOn(e.transport(), l, addr, func(ctx context.Context, r transport.Request) {
		close(running)
		<-release // and no answer can be sent
		_ = r.Reply(wire.StatusOK, nil, nil, 0)
	})
	c := e.dial(e.transport(), addr)
	lost := make(chan error, 1)
	go func() {
		src, err := e.Mem.Get(e.ctx, 100_000)
		if err == nil {
			defer src.Release()
			_, err = c.Call(e.ctx, opOther, nil, src, nil)
		}
		lost <- err
	}()
	<-running
	stopped := make(chan struct{})
	go func() { first.stop(); close(stopped) }()
	close(release)
	e.await("the first server stops", stopped)
	err := <-lost
	if err != nil && !errors.Is(err, transport.ErrBroken) {
		e.Errorf("the call under way: %v", err)
	}
	again, err := net.Listen(addr.Network, addr.Address)
	if err != nil {
		e.Fatal(err)
	}
	e.serveOn(e.transport(), again, addr, ok)
	ctx, cancel := context.WithTimeout(e.ctx, patience)
	defer cancel()
	for {
		r, err := c.Call(ctx, opEcho, nil, nil, nil)
		if errors.Is(err, transport.ErrBroken) && ctx.Err() == nil {
			continue // it went out by the old link, before its end was seen
		}
		if err != nil || r.Status != wire.StatusOK {
			e.Errorf("a new call: %+v, %v", r, err)
		}
		return
	}
}

func testNobodyListens(e *env) {
	l, addr := e.Listen(e.T)
	_ = l.Close()
	_, err := e.transport().Dial(e.ctx, addr)
	if err == nil || !strings.Contains(err.Error(), addr.Address) {
		e.Errorf("the error does not name the address: %v", err)
	}
	_, err = e.transport().Dial(e.ctx, transport.Addr{Network: "carrier pigeon", Address: "x"})
	if err == nil || !strings.Contains(err.Error(), "carrier pigeon") {
		e.Errorf("the error does not name the network: %v", err)
	}
}

func (e *env) refused(o func(*Options), words ...string) {
	e.Helper()
	called := false
	s := e.serve(e.transport(), func(ctx context.Context, r transport.Request) { called = true; ok(ctx, r) })
	_, err := e.transport(o).Dial(e.ctx, s.addr)
	if !errors.Is(err, transport.ErrRefused) {
		e.Fatalf("want ErrRefused: %v", err)
	}
	for _, w := range append(words, s.addr.Address) {
		if !strings.Contains(err.Error(), w) {
			e.Errorf("the error does not say %q: %v", w, err)
		}
	}
	s.stop()
	if called {
		e.Error("the handler was called")
	}
}

func testWrongKey(e *env) {
	e.refused(func(o *Options) { o.Key = []byte(strings.Repeat("another key, ", 4)) }, "cluster key")
}

func testWrongCluster(e *env) {
	other := rfs.UUID{9}
	e.refused(func(o *Options) { o.Cluster = other }, "cluster", other.String())
}

// raw opens a connection that speaks for itself.
func (e *env) raw(addr transport.Addr) net.Conn {
	e.Helper()
	nc, err := net.Dial(addr.Network, addr.Address)
	if err != nil {
		e.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	e.Cleanup(func() { _ = nc.Close() })
	return nc
}

func frame(h wire.FrameHeader, body []byte) []byte {
	h.Length, h.BodyCRC = uint32(len(body)), wire.CRC(0, body)
	b := make([]byte, wire.HeaderSize, wire.HeaderSize+len(body))
	h.Put(b)
	return append(b, body...)
}

// goaway reads all that the server says, which must be one GOAWAY, and the end.
func (e *env) goaway(nc net.Conn) (g wire.Goaway) {
	e.Helper()
	said, err := io.ReadAll(nc)
	var h wire.FrameHeader
	if err != nil || len(said) < wire.HeaderSize {
		e.Fatalf("the server said %d bytes, then %v", len(said), err)
	}
	if err := h.Parse(said); err != nil || h.Type != wire.TypeGoaway || int(h.Length) != len(said)-wire.HeaderSize {
		e.Fatalf("the server said %+v (%v) in %d bytes, want one GOAWAY", h, err, len(said))
	}
	if err := g.Parse(said[wire.HeaderSize:]); err != nil {
		e.Fatal(err)
	}
	return g
}

func testWrongVersion(e *env) {
	s := e.serve(e.transport(), ok)
	hello := wire.Hello{Major: 9, Minor: 3, Cluster: Cluster, Name: "from the future"}
	for _, version := range []uint8{9, wire.Major} { // by the frame's header, by the HELLO
		nc := e.raw(s.addr)
		if _, err := nc.Write(frame(wire.FrameHeader{Version: version, Type: wire.TypeHello}, hello.Append(nil))); err != nil {
			e.Fatal(err)
		}
		g := e.goaway(nc)
		if g.Reason != wire.ReasonVersion || !strings.Contains(g.Text, "version 1") || !strings.Contains(g.Text, "version 9") {
			e.Errorf("%+v does not name both versions", g)
		}
	}
	// And the other way: a server of another version.
	l, addr := e.Listen(e.T)
	defer l.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		_, _ = io.ReadFull(nc, make([]byte, wire.HeaderSize))
		g := wire.Goaway{Major: 9, Reason: wire.ReasonVersion, Text: "we speak version 9, you version 1"}
		_, _ = nc.Write(frame(wire.FrameHeader{Version: 9, Type: wire.TypeGoaway}, g.Append(nil)))
		_, _ = io.Copy(io.Discard, nc)
	})
	_, err := e.transport().Dial(e.ctx, addr)
	if !errors.Is(err, transport.ErrRefused) || !strings.Contains(err.Error(), "version 9") {
		e.Errorf("dial a server of version 9: %v", err)
	}
}

// Whatever comes before authentication is answered with at most one GOAWAY and
// the end, and harms nobody else.
func testGarbage(e *env) {
	s := e.serve(e.transport(), e.echo)
	c := e.dial(e.transport(), s.addr)
	hello := wire.Hello{Major: wire.Major, Cluster: Cluster, Name: "x"}
	whole := frame(wire.FrameHeader{Version: wire.Major, Type: wire.TypeHello}, hello.Append(nil))
	flipped := append([]byte(nil), whole...)
	flipped[len(flipped)-1] ^= 1
	huge := append([]byte(nil), whole...)
	binary.LittleEndian.PutUint32(huge[8:], 4<<20)
	binary.LittleEndian.PutUint32(huge[44:], wire.CRC(0, huge[:44]))
	noise := make([]byte, 4096)
	pattern(noise, rand.Uint64())
	req := wire.ReqHeader{Op: opEcho}
	reqBody := make([]byte, wire.ReqHeaderSize)
	req.Put(reqBody)
	for name, bytes := range map[string][]byte{
		"http":             []byte("GET / HTTP/1.1\r\nHost: a-server-of-quite-another-kind\r\n\r\n"),
		"noise":            noise,
		"a truncated head": whole[:20],
		"a truncated body": whole[:len(whole)-3],
		"a flipped bit":    flipped,
		"a huge body":      huge,
		"a request":        frame(wire.FrameHeader{Version: wire.Major, Type: wire.TypeReq}, reqBody),
		"nothing":          nil,
	} {
		nc := e.raw(s.addr)
		if _, err := nc.Write(bytes); err != nil {
			e.Errorf("%s: %v", name, err)
		}
		if cw, ok := nc.(interface{ CloseWrite() error }); ok {
			_ = cw.CloseWrite()
		}
		said, err := io.ReadAll(nc)
		if err == nil && len(said) > wire.HeaderSize+wire.MaxHandshake {
			e.Errorf("%s: the server said %d bytes", name, len(said))
		}
	}
	// A good HELLO, then a READY that does not prove the key.
	nc := e.raw(s.addr)
	if _, err := nc.Write(whole); err != nil {
		e.Fatal(err)
	}
	head := make([]byte, wire.HeaderSize)
	var h wire.FrameHeader
	if _, err := io.ReadFull(nc, head); err != nil || h.Parse(head) != nil || h.Type != wire.TypeAck {
		e.Fatalf("%+v, %v: want ACK", h, err)
	}
	if _, err := io.ReadFull(nc, make([]byte, h.Length)); err != nil {
		e.Fatal(err)
	}
	if _, err := nc.Write(frame(wire.FrameHeader{Version: wire.Major, Type: wire.TypeReady}, make([]byte, wire.ProofSize))); err != nil {
		e.Fatal(err)
	}
	if g := e.goaway(nc); g.Reason != wire.ReasonAuth || !strings.Contains(g.Text, "key") {
		e.Errorf("%+v", g)
	}
	e.checkEcho(c, e.filled(10_000, 1), e.get(10_000))
}
