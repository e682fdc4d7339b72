package tcp

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rfs"
	"rfs/transport"
	"rfs/transport/wire"
)

func TestConfigValidate(t *testing.T) {
	c := Config{Key: []byte("short"), Name: strings.Repeat("x", 256), Streams: 99, Messages: -1, Bytes: -1, Linger: -1}
	err := c.Validate()
	for _, word := range []string{"key of 5 bytes", "cluster id", "name of 256", "99 streams", "-1 message", "negative", "linger"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("not told of %q: %v", word, err)
		}
	}
	if _, err := New(Config{Cluster: testCluster}); err == nil || !strings.Contains(err.Error(), "no cluster key") {
		t.Errorf("without a key: %v", err)
	}
	if _, err := New(Config{Cluster: testCluster, TLS: &tls.Config{}}); err == nil {
		t.Error("TLS that verifies nobody was taken for authentication")
	}
}

func carrierHandler(_ context.Context, r transport.Request) {
	_ = r.Reply(wire.StatusOK, []byte(r.Peer().Carrier), nil, 0)
}

// A peer of this host is met at its Unix socket; without one, or of another host, by TCP.
func TestPrefersUnixSocket(t *testing.T) {
	tr := newTransport(t, func(c *Config) { c.HostID = "this-host" })
	unixL, unixAddr := listen(t, "unix")
	tcpL, addr := listen(t, "tcp")
	serve(t, tr, unixL, carrierHandler)
	serve(t, tr, tcpL, carrierHandler)
	for _, tt := range []struct{ local, host, want string }{
		{unixAddr.Address, "this-host", "unix"},
		{unixAddr.Address, "another", "tcp"},
		{unixAddr.Address, "", "tcp"},
		{filepath.Join(t.TempDir(), "nothing"), "this-host", "tcp"},
	} {
		a := addr
		a.Local, a.HostID = tt.local, tt.host
		c := dial(t, tr, a)
		r, err := c.Call(t.Context(), wire.OpTest, nil, nil, nil)
		if err != nil || string(r.Header) != tt.want {
			t.Errorf("local %q on %q: by %q, %v", tt.local, tt.host, r.Header, err)
		}
	}
	// The socket alone is an address too.
	c := dial(t, tr, transport.Addr{Local: unixAddr.Address, HostID: "this-host"})
	if r, err := c.Call(t.Context(), wire.OpTest, nil, nil, nil); err != nil || string(r.Header) != "unix" {
		t.Errorf("by the socket alone: %q, %v", r.Header, err)
	}
}

func testCertificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

func TestMutualTLS(t *testing.T) {
	cert, pool := testCertificate(t)
	mutual := func(c *Config) {
		c.Key = nil // the certificates are enough
		c.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	}
	a := newArena(t)
	tr := newTransport(t, mutual)
	l, addr := listen(t, "tcp")
	serve(t, tr, l, pullPush(t, a))
	c := dial(t, tr, addr)
	src, dst := mustGet(t, a, 3<<20), mustGet(t, a, 3<<20)
	defer src.Release()
	defer dst.Release()
	for i := range src.Bytes() {
		src.Bytes()[i] = byte(i >> 3)
	}
	for range 3 {
		r, err := c.Call(t.Context(), wire.OpTest, nil, src, dst)
		if err != nil || r.Status != wire.StatusOK || !bytes.Equal(src.Bytes(), dst.Bytes()) {
			t.Fatalf("%+v, %v", r, err)
		}
	}
	for name, change := range map[string]func(*Config){
		"without TLS":           func(*Config) {},
		"without a certificate": func(c *Config) { mutual(c); c.Key = testKey; c.TLS.Certificates = nil },
		"by another authority":  func(c *Config) { mutual(c); _, c.TLS.RootCAs = testCertificate(t) },
	} {
		if _, err := newTransport(t, change).Dial(t.Context(), addr); err == nil {
			t.Errorf("a client %s was taken", name)
		}
	}
}

// More clients get smaller windows, down to one largest payload each.
func TestShareOfTheWindow(t *testing.T) {
	srv := newTransport(t, func(c *Config) { c.TotalBytes, c.Bytes = 64<<20, 32<<20 })
	l, addr := listen(t, "unix")
	serve(t, srv, l, carrierHandler)
	tr := newTransport(t, func(c *Config) { c.Streams = 1 })
	granted := func(c *Conn) uint64 {
		c.win.mu.Lock()
		defer c.win.mu.Unlock()
		return c.win.grant.Bytes
	}
	settles := func(conns []*Conn, want uint64) {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			right := 0
			for _, c := range conns {
				if granted(c) == want {
					right++
				}
			}
			if right == len(conns) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d of %d clients have %d bytes", right, len(conns), want)
			}
		}
	}
	var conns []*Conn
	for i := range 40 {
		conns = append(conns, dial(t, tr, addr))
		switch i + 1 {
		case 1, 2:
			settles(conns, 32<<20)
		case 4:
			settles(conns, 16<<20)
		}
	}
	settles(conns, 4<<20)
	for _, c := range conns[2:] {
		c.Close()
	}
	settles(conns[:2], 32<<20)
}

// Peers that connect and say nothing do not keep others out for ever, nor take memory.
func TestHandshakesAreBounded(t *testing.T) {
	srv := newTransport(t, func(c *Config) { c.MaxHandshakes = 2 })
	l, addr := listen(t, "tcp")
	serve(t, srv, l, carrierHandler)
	for range 2 {
		nc, err := net.Dial("tcp", addr.Address)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
	}
	for srv.handshakes.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	_, err := newTransport(t).Dial(t.Context(), addr)
	if err == nil || errors.Is(err, transport.ErrRefused) || !strings.Contains(err.Error(), "try again") {
		t.Errorf("the third peer: %v", err)
	}
}

// A server that forgot a client (it was away for longer than Linger) does not run its old requests again.
func TestForgottenClient(t *testing.T) {
	srv := newTransport(t)
	l, addr := listen(t, "unix")
	running, release := make(chan struct{}), make(chan struct{})
	serve(t, srv, l, func(ctx context.Context, r transport.Request) {
		close(running)
		<-release
		_ = r.Reply(wire.StatusOK, nil, nil, 0)
	})
	c := dial(t, newTransport(t, func(c *Config) { c.Streams = 1 }), addr)
	answer := make(chan error, 1)
	go func() {
		_, err := c.Call(context.Background(), wire.OpTest, nil, nil, nil)
		answer <- err
	}()
	<-running
	srv.mu.Lock()
	s := srv.sessions[c.nonce]
	srv.mu.Unlock()
	s.forget(true) // as when Linger has passed
	if err := <-answer; !errors.Is(err, transport.ErrBroken) || !strings.Contains(err.Error(), "may have been applied") {
		t.Error(err)
	}
	close(release)
}

// Payload whose operation checks it itself is not covered twice; all else still is.
func TestOwnCRC(t *testing.T) {
	a := newArena(t)
	own := func(c *Config) { c.OwnCRC = func(op wire.Op) bool { return op == wire.OpTest } }
	l, addr := listen(t, "unix")
	serve(t, newTransport(t, own), l, pullPush(t, a))
	c := dial(t, newTransport(t, own), addr)
	src, dst := mustGet(t, a, 1<<20), mustGet(t, a, 1<<20)
	defer src.Release()
	defer dst.Release()
	for _, op := range []wire.Op{wire.OpTest, wire.OpTest + 1} {
		for i := range src.Bytes() {
			src.Bytes()[i] = byte(i>>5) ^ byte(op)
		}
		r, err := c.Call(t.Context(), op, []byte("h"), src, dst)
		if err != nil || r.Pushed != 1<<20 || string(r.Header) != "h" || !bytes.Equal(src.Bytes(), dst.Bytes()) {
			t.Errorf("%v: %+v, %v", op, r, err)
		}
	}
}

func TestStats(t *testing.T) {
	tr := newTransport(t)
	l, addr := listen(t, "unix")
	serve(t, tr, l, carrierHandler)
	c := dial(t, tr, addr)
	for range 5 {
		if _, err := c.Call(t.Context(), wire.OpTest, nil, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := tr.Stats()
	if s.Calls != 5 || s.Served != 5 || s.Clients != 1 || s.LinksUnix < 2 || s.FramesIn < 10 || s.BytesOut < 10*wire.HeaderSize || s.BadFrames != 0 {
		t.Errorf("%+v", s)
	}
	if _, err := newTransport(t, func(c *Config) { c.Cluster = rfs.UUID{5} }).Dial(t.Context(), addr); err == nil {
		t.Error("a client of another cluster was taken")
	}
	if n := tr.Stats().Refused; n != 1 {
		t.Errorf("%d refused, want 1", n)
	}
}
