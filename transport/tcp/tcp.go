// Package tcp carries the transport over streams of bytes: TCP between hosts, a
// Unix socket between processes of one host (a third of TCP's CPU).
//
//	Conn (client)                                         session (server)
//	  channel 0 .. n    window of messages and bytes        channel 0 .. n: the request, its answer
//	      |                                                     |
//	  link 0, link 1  ============ streams ============  link 0, link 1
//
// A link is one stream, with a reader goroutine and a queue of frames. A Conn
// outlives its links: its nonce names it to the server, which keeps, for each
// channel, the request under way or its answer; a request that is sent again
// after a link broke finds it there and is not applied twice. Only a request
// whose pushed payload was lost is executed again.
//
// Rules that keep it live:
//
//   - A reader never writes: it queues, and the writer goroutine or whoever is
//     writing sends. So both ends always drain their sockets.
//   - A caller writes its own request if nobody else is writing and the socket
//     takes it; it never blocks there, so a stopped peer cannot hold it beyond
//     its deadline.
//   - Payload is read from the socket straight into its Buf, and written from it.
//
// Locks: Transport.mu, then Conn.mu or session.mu, then call.mu or request.mu,
// then link.mu. None is held while a frame's owner is told that it was written.
package tcp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"rfs"
	"rfs/internal/hostid"
	"rfs/transport"
	"rfs/transport/wire"
)

// Config is how a Transport is made. Only Key (or TLS) and Cluster are needed.
type Config struct {
	// Key is the cluster key: at least 16 random bytes, the same on all nodes and clients.
	Key []byte
	// Cluster is the id of the cluster. Peers of another are refused.
	Cluster rfs.UUID
	// TLS, if set, encrypts TCP links. Without Key it must require and verify the
	// peer's certificate (mutual TLS), and is used on Unix sockets too.
	TLS *tls.Config
	// Name tells the peer who this process is (Peer.Node); at most 255 bytes.
	Name string
	// HostID is this host's, to compare with Addr.HostID. Default: hostid.Get().
	HostID string

	// Session and MapEpoch stand in every frame sent; OnMapEpoch is called, on a
	// reader's goroutine, when a peer shows a map epoch higher than any before.
	Session    func() rfs.SessionID
	MapEpoch   func() rfs.Epoch
	OnMapEpoch func(rfs.Epoch)

	// Dial opens a stream; it is there for simulated networks. Default: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// OwnCRC tells of which operations the payload is covered by checksums in
	// the operation's own header, checked by whoever uses it, so that the
	// transport need not check it again. Default: none.
	OwnCRC func(wire.Op) bool

	// Streams is the number of links that a Dial opens. Default 2, at most 16.
	Streams int
	// Messages and Bytes are what a server grants one client: requests under
	// way (default 256, at most 1024), and their payload (default 64 MiB).
	Messages int
	Bytes    int64
	// TotalBytes is what a server grants all clients together, as long as each
	// has 4 MiB. Default 512 MiB.
	TotalBytes int64

	// Keepalive is how long a link may be silent before it is pinged, Dead how
	// long before it is torn down. Default 3 s, 10 s.
	Keepalive, Dead time.Duration
	// CancelWait is how long a cancelled call waits for the server's word that it
	// no longer touches the memory, before it tears the link down. Default 1 s.
	CancelWait time.Duration
	// Linger is how long a server remembers a client without links: its answers
	// are kept, and handlers that run for it go on. Default 30 s.
	Linger time.Duration
	// Handshake bounds a connection's set-up. Default 5 s.
	Handshake time.Duration
	// BackoffMin and BackoffMax bound the wait before a link is dialled again. Default 50 ms, 5 s.
	BackoffMin, BackoffMax time.Duration
	// MaxHandshakes is how many peers may be unauthenticated at once. Default 256.
	MaxHandshakes int

	Log *slog.Logger // default: slog.Default()
}

const (
	minKey      = 16
	maxMessages = 1024
	maxStreams  = 16
)

// Validate reports everything wrong with c.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("tcp: "+format, args...)) }
	switch {
	case len(c.Key) == 0 && (c.TLS == nil || c.TLS.ClientAuth != tls.RequireAndVerifyClientCert):
		bad("no cluster key: set one, or TLS that requires and verifies certificates of both ends")
	case len(c.Key) > 0 && len(c.Key) < minKey:
		bad("cluster key of %d bytes: want at least %d random ones", len(c.Key), minKey)
	}
	if c.Cluster.IsZero() {
		bad("no cluster id")
	}
	if len(c.Name) > wire.MaxPeerName {
		bad("name of %d bytes: at most %d", len(c.Name), wire.MaxPeerName)
	}
	if c.Streams < 0 || c.Streams > maxStreams {
		bad("%d streams: want 1 to %d, or 0 for the default", c.Streams, maxStreams)
	}
	if c.Messages < 0 || c.Messages > maxMessages {
		bad("%d message credits: want 1 to %d, or 0 for the default", c.Messages, maxMessages)
	}
	if c.Bytes < 0 || c.TotalBytes < 0 || c.MaxHandshakes < 0 {
		bad("negative bytes or handshakes")
	}
	for name, d := range map[string]time.Duration{"keepalive": c.Keepalive, "dead": c.Dead, "cancel wait": c.CancelWait,
		"linger": c.Linger, "handshake": c.Handshake, "back-off": c.BackoffMin, "longest back-off": c.BackoffMax} {
		if d < 0 {
			bad("%s of %v: want more than 0, or 0 for the default", name, d)
		}
	}
	return errors.Join(errs...)
}

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Keepalive, 3*time.Second)
	def(&c.Dead, 10*time.Second)
	def(&c.CancelWait, time.Second)
	def(&c.Linger, 30*time.Second)
	def(&c.Handshake, 5*time.Second)
	def(&c.BackoffMin, 50*time.Millisecond)
	def(&c.BackoffMax, 5*time.Second)
	c.BackoffMax = max(c.BackoffMax, c.BackoffMin)
	if c.Streams == 0 {
		c.Streams = 2
	}
	if c.Messages == 0 {
		c.Messages = 256
	}
	if c.Bytes == 0 {
		c.Bytes = 64 << 20
	}
	if c.TotalBytes == 0 {
		c.TotalBytes = 512 << 20
	}
	if c.MaxHandshakes == 0 {
		c.MaxHandshakes = 256
	}
	if c.HostID == "" {
		c.HostID = hostid.Get()
	}
	if c.Session == nil {
		c.Session = func() rfs.SessionID { return 0 }
	}
	if c.MapEpoch == nil {
		c.MapEpoch = func() rfs.Epoch { return 0 }
	}
	if c.OnMapEpoch == nil {
		c.OnMapEpoch = func(rfs.Epoch) {}
	}
	if c.OwnCRC == nil {
		c.OwnCRC = func(wire.Op) bool { return false }
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// Transport is a transport.Transport over TCP and Unix sockets.
type Transport struct {
	cfg   Config
	nonce rfs.UUID // of this process, as a server
	epoch atomic.Uint32
	stats counters

	handshakes atomic.Int32 // unauthenticated peers now

	mu       sync.Mutex
	sessions map[rfs.UUID]*session // by the client's nonce
	grant    wire.Grant            // what each session has now
}

var _ transport.Transport = (*Transport)(nil)

// New returns a Transport. It does nothing until Dial or Serve.
func New(cfg Config) (*Transport, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	t := &Transport{cfg: cfg, nonce: rfs.NewUUID(), sessions: map[rfs.UUID]*session{}}
	t.grant = wire.Grant{Messages: uint32(cfg.Messages), Bytes: uint64(cfg.Bytes), Serial: 1}
	return t, nil
}

// header returns a frame header of the type, with what all frames tell.
func (t *Transport) header(typ wire.Type) wire.FrameHeader {
	return wire.FrameHeader{Version: wire.Major, Type: typ, Session: t.cfg.Session(), MapEpoch: t.cfg.MapEpoch()}
}

// sawEpoch takes note of a peer's map epoch.
func (t *Transport) sawEpoch(e rfs.Epoch) {
	for {
		seen := t.epoch.Load()
		if uint32(e) <= seen {
			return
		}
		if t.epoch.CompareAndSwap(seen, uint32(e)) {
			t.cfg.OnMapEpoch(e)
			return
		}
	}
}

// Stats counts what a Transport did since it was made.
type Stats struct {
	LinksTCP, LinksUnix int64 // up now
	Clients             int64 // sessions that the server side remembers
	FramesIn, FramesOut int64
	BytesIn, BytesOut   int64
	Calls, Served       int64 // as client, as server
	Resent              int64 // requests sent again after a link broke
	Duplicates          int64 // requests that were known already when they came
	Executed            int64 // of those, executed again because pushed payload was lost
	Cancels             int64
	CreditWaits         int64 // calls that waited for the server's credits
	LinkErrors          int64 // links that ended with an error
	BadFrames           int64 // of those, by bytes that do not check or make no sense
	Refused             int64 // handshakes refused, as server
	Panics              int64 // of handlers
}

type counters struct {
	linksTCP, linksUnix, framesIn, framesOut, bytesIn, bytesOut, calls, served, resent, duplicates,
	executed, cancels, creditWaits, linkErrors, badFrames, refused, panics atomic.Int64
}

// Stats returns the counts so far.
func (t *Transport) Stats() Stats {
	c := &t.stats
	t.mu.Lock()
	clients := len(t.sessions)
	t.mu.Unlock()
	return Stats{
		LinksTCP: c.linksTCP.Load(), LinksUnix: c.linksUnix.Load(), Clients: int64(clients),
		FramesIn: c.framesIn.Load(), FramesOut: c.framesOut.Load(), BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(),
		Calls: c.calls.Load(), Served: c.served.Load(), Resent: c.resent.Load(), Duplicates: c.duplicates.Load(),
		Executed: c.executed.Load(), Cancels: c.cancels.Load(), CreditWaits: c.creditWaits.Load(),
		LinkErrors: c.linkErrors.Load(), BadFrames: c.badFrames.Load(), Refused: c.refused.Load(), Panics: c.panics.Load(),
	}
}

// sleep waits for d or the end of ctx, and reports whether d passed.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
