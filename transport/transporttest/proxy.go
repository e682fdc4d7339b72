package transporttest

import (
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"rfs/transport"
)

// A Proxy forwards the streams of a transport and does to them what networks do.
type Proxy struct {
	Addr transport.Addr // where it listens

	l  net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	piece  int // the longest piece forwarded at once
	filter Filter
	conns  map[net.Conn]<-chan struct{} // with what each waits for, if anything
	closed bool
}

// A Filter sees each piece of a stream before it is forwarded, and may change or
// hold it. It reports whether to forward it: a piece that is not leaves a hole,
// so that the stream should be cut next. It is called from many goroutines.
type Filter func(toServer bool, piece []byte) bool

// NewProxy stands before addr until the test ends.
func NewProxy(t testing.TB, addr transport.Addr) *Proxy {
	t.Helper()
	at := "127.0.0.1:0"
	if addr.Network == "unix" {
		at = filepath.Join(t.TempDir(), "proxy")
	}
	l, err := net.Listen(addr.Network, at)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: transport.Addr{Network: addr.Network, Address: l.Addr().String()}, l: l, piece: 32 << 10, conns: map[net.Conn]<-chan struct{}{}}
	p.wg.Go(func() { p.accept(addr) })
	t.Cleanup(p.close)
	return p
}

// Set makes f the filter of all that comes from now on; nil forwards all.
func (p *Proxy) Set(f Filter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filter = f
}

// Shred makes the pieces of streams to come at most n bytes long.
func (p *Proxy) Shred(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.piece = n
}

// Cut breaks all streams.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// silence makes the streams that are there now forward nothing more, without a hang-up, until ch is closed.
func (p *Proxy) silence(ch <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		p.conns[c] = ch
	}
}

func (p *Proxy) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.l.Close()
	p.Cut()
	p.wg.Wait()
}

func (p *Proxy) accept(addr transport.Addr) {
	for {
		in, err := p.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial(addr.Network, addr.Address)
		if err != nil {
			_ = in.Close()
			continue
		}
		if !p.hold(in, out) {
			return
		}
		p.wg.Go(func() { p.forward(out, in, true) })
		p.wg.Go(func() { p.forward(in, out, false) })
	}
}

func (p *Proxy) hold(in, out net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		_ = in.Close()
		_ = out.Close()
		return false
	}
	p.conns[in], p.conns[out] = nil, nil
	return true
}

func (p *Proxy) forward(to, from net.Conn, toServer bool) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
		p.mu.Lock()
		delete(p.conns, from)
		p.mu.Unlock()
	}()
	p.mu.Lock()
	piece := make([]byte, p.piece)
	p.mu.Unlock()
	for {
		n, err := from.Read(piece)
		p.mu.Lock()
		f, until := p.filter, p.conns[from]
		p.mu.Unlock()
		if until != nil {
			<-until
			return
		}
		if n > 0 && (f == nil || f(toServer, piece[:n])) {
			if _, err := to.Write(piece[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if err == io.EOF {
				if cw, ok := to.(interface{ CloseWrite() error }); ok {
					_ = cw.CloseWrite()
				}
			}
			return
		}
	}
}
