package tcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"rfs"
	"rfs/transport"
	"rfs/transport/wire"
)

// Conn is the client's end of a connection.
type Conn struct {
	t     *Transport
	addr  transport.Addr
	nonce rfs.UUID

	life context.Context // ends with the Conn
	stop context.CancelFunc
	wg   sync.WaitGroup // its goroutines

	win   window
	links [maxStreams]atomic.Pointer[link]
	calls [maxMessages]atomic.Pointer[call] // by channel

	localOnce sync.Once // the Unix socket did not work: logged once

	mu     sync.Mutex
	err    error // why it is closed
	shut   bool
	closed chan struct{}
}

var (
	_ transport.Conn       = (*Conn)(nil)
	_ transport.IntoCaller = (*Conn)(nil)
)

// Dial connects to a peer. See transport.Transport.
func (t *Transport) Dial(ctx context.Context, addr transport.Addr) (transport.Conn, error) {
	c := &Conn{t: t, addr: addr, nonce: rfs.NewUUID(), closed: make(chan struct{})}
	c.life, c.stop = context.WithCancel(context.Background())
	l, err := c.connect(ctx, 0)
	if err != nil {
		c.stop()
		return nil, fmt.Errorf("dial %v: %w", addr, err)
	}
	t.cfg.Log.Info("transport: connected", "peer", addr, "carrier", l.carrier())
	c.up(l)
	c.wg.Go(func() { c.keep(0, l) })
	for i := 1; i < t.cfg.Streams; i++ {
		c.wg.Go(func() { c.keep(i, nil) })
	}
	return c, nil
}

// keep holds a stream up: whenever its link is gone it dials again.
func (c *Conn) keep(stream int, l *link) {
	backoff := c.t.cfg.BackoffMin
	for {
		if l != nil {
			<-l.gone
			l, backoff = nil, c.t.cfg.BackoffMin
			if !c.pause(&backoff) {
				return
			}
		}
		ctx, cancel := context.WithTimeout(c.life, 2*c.t.cfg.Handshake)
		next, err := c.connect(ctx, stream)
		cancel()
		switch {
		case err == nil:
			l = next
			c.up(l)
		case errors.Is(err, transport.ErrRefused):
			c.close(fmt.Errorf("%v: %w", c.addr, err))
			return
		default:
			c.t.cfg.Log.Debug("transport: dial again", "peer", c.addr, "stream", stream, "after", backoff, "err", err)
			if !c.pause(&backoff) {
				return
			}
		}
	}
}

// pause waits between half of and the whole back-off, and doubles it.
func (c *Conn) pause(backoff *time.Duration) bool {
	d := *backoff/2 + rand.N(*backoff/2+1)
	*backoff = min(2**backoff, c.t.cfg.BackoffMax)
	return sleep(c.life, d)
}

// connect dials one link: by the Unix socket if the peer is on this host.
func (c *Conn) connect(ctx context.Context, stream int) (*link, error) {
	if c.addr.Local != "" && c.addr.HostID != "" && c.addr.HostID == c.t.cfg.HostID {
		l, err := c.connectTo(ctx, "unix", c.addr.Local, stream)
		if err == nil || c.addr.Network == "" {
			return l, err
		}
		c.localOnce.Do(func() {
			c.t.cfg.Log.Info("transport: peer is on this host but not by its Unix socket", "peer", c.addr, "socket", c.addr.Local, "err", err)
		})
	}
	return c.connectTo(ctx, c.addr.Network, c.addr.Address, stream)
}

func (c *Conn) connectTo(ctx context.Context, network, address string, stream int) (*link, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, fmt.Errorf("network %q: want tcp or unix", network)
	}
	ctx, cancel := context.WithTimeout(ctx, c.t.cfg.Handshake)
	defer cancel()
	nc, err := c.t.cfg.Dial(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("%w (is rfsd running there?)", err)
	}
	l, err := c.setUp(ctx, nc, stream)
	if err != nil {
		_ = nc.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", err, ctx.Err())
		}
		return nil, err
	}
	l.peer = network + "://" + address
	c.wg.Go(l.run)
	return l, nil
}

// setUp authenticates both ends of a new stream.
func (c *Conn) setUp(ctx context.Context, plain net.Conn, stream int) (*link, error) {
	defer context.AfterFunc(ctx, func() { _ = plain.SetDeadline(time.Unix(1, 0)) })()
	host, _, _ := net.SplitHostPort(c.addr.Address)
	nc, err := c.t.secure(ctx, plain, false, host)
	if err != nil {
		return nil, err
	}
	_, grant, err := c.t.greet(nc, c.nonce, stream)
	if err != nil {
		return nil, err
	}
	l := c.t.newLink(nc, c)
	l.unix, l.stream, l.cookie = isUnix(plain), stream, grant.Cookie
	c.win.update(grant)
	return l, nil
}

// up publishes a link, and sends the calls that wait for one.
func (c *Conn) up(l *link) {
	c.links[l.stream].Store(l)
	c.t.cfg.Log.Debug("transport: link up", "peer", l.peer, "stream", l.stream, "carrier", l.carrier())
	if c.life.Err() != nil {
		l.fail(errHangup) // closed in the meantime
	}
	for _, k := range c.all() {
		k.dispatch(queueOnly)
	}
}

func (c *Conn) linkGone(l *link) {
	c.links[l.stream].CompareAndSwap(l, nil)
	for _, k := range c.all() {
		if k.detach(l) {
			c.t.stats.resent.Add(1)
			k.dispatch(queueOnly)
		}
	}
}

// all returns the calls of all channels ever used.
func (c *Conn) all() []*call {
	var ks []*call
	for i := range c.calls {
		k := c.calls[i].Load()
		if k != nil {
			ks = append(ks, k)
		}
	}
	return ks
}

// pick returns a link for a channel, or nil if none is up. One whose server
// said that it is stopping takes no more.
func (c *Conn) pick(ch uint16) *link {
	n := c.t.cfg.Streams
	for i := range n {
		l := c.links[(int(ch)+i)%n].Load()
		if l != nil && !l.dead.Load() && !l.draining.Load() {
			return l
		}
	}
	return nil
}

// Call makes a call. See transport.Conn.
func (c *Conn) Call(ctx context.Context, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	return c.CallInto(ctx, op, hdr, src, dst, nil)
}

// CallInto is Call with memory for the reply's header. See transport.IntoCaller.
func (c *Conn) CallInto(ctx context.Context, op wire.Op, hdr []byte, src, dst transport.Buf, into []byte) (transport.Reply, error) {
	from, to := bytesOf(src), bytesOf(dst)
	if len(hdr) > transport.MaxHeader || len(from) > transport.MaxPayload || len(to) > transport.MaxPayload {
		return transport.Reply{}, fmt.Errorf("%v to %v: header of %d bytes (at most %d), src %d, dst %d (at most %d): %w",
			op, c.addr, len(hdr), transport.MaxHeader, len(from), len(to), transport.MaxPayload, rfs.ErrInvalid)
	}
	if err := ctx.Err(); err != nil {
		return transport.Reply{}, fmt.Errorf("%v to %v: %w", op, c.addr, err)
	}
	cost := uint64(len(from) + len(to))
	ch, waited, ok := c.win.acquire(ctx, cost, c.closed)
	if waited {
		c.t.stats.creditWaits.Add(1)
	}
	if !ok {
		return transport.Reply{}, fmt.Errorf("%v to %v: wait for credits: %w", op, c.addr, c.ended(ctx))
	}
	c.t.stats.calls.Add(1)
	k := c.channel(ch)
	k.begin(ctx, op, hdr, from, to, into)
	k.dispatch(tryWrite)
	r, err := k.wait(ctx)
	c.win.release(ch, cost)
	if err != nil {
		err = fmt.Errorf("%v to %v: %w", op, c.addr, err)
	}
	return r, err
}

func bytesOf(b transport.Buf) []byte {
	if b == nil {
		return nil
	}
	return b.Bytes()
}

// channel returns the call of a channel, which the caller has acquired.
func (c *Conn) channel(ch uint16) *call {
	k := c.calls[ch].Load()
	if k == nil {
		k = newCall(c, ch)
		c.calls[ch].Store(k)
	}
	return k
}

// ended says why a wait was given up.
func (c *Conn) ended(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return ctx.Err()
}

// Close hangs up. Calls under way return ErrClosed. It waits for the Conn's goroutines.
func (c *Conn) Close() error {
	c.close(transport.ErrClosed)
	c.wg.Wait()
	return nil
}

func (c *Conn) Done() <-chan struct{} { return c.closed }

// Carrier returns what carries new calls now: "unix", "tcp", or "" while no link is up.
func (c *Conn) Carrier() string {
	if l := c.pick(0); l != nil {
		return l.carrier()
	}
	return ""
}

// close ends the Conn for the reason given, once.
func (c *Conn) close(err error) {
	c.mu.Lock()
	if c.shut {
		c.mu.Unlock()
		return
	}
	c.shut, c.err = true, err
	close(c.closed)
	c.mu.Unlock()
	c.stop()
	for _, k := range c.all() {
		k.fail(err)
	}
	for i := range c.links {
		if l := c.links[i].Load(); l != nil {
			l.sendGoaway(wire.ReasonBye, "connection closed")
			l.fail(errHangup)
		}
	}
}

// receive handles a frame of the server.
func (c *Conn) receive(l *link, h *wire.FrameHeader) error {
	switch h.Type {
	case wire.TypeResp:
		return c.onResp(l, h)
	case wire.TypePull:
		return c.onPull(l, h)
	case wire.TypeCancelAck:
		if _, err := l.body(h); err != nil {
			return err
		}
		if k := c.find(h.ID); k != nil {
			k.cancelled(h.ID, l)
		}
		return nil
	case wire.TypeCredit:
		var g wire.Grant
		b, err := l.body(h)
		if err == nil {
			err = g.Parse(b)
		}
		if err == nil {
			c.win.update(g)
		}
		return err
	}
	return fmt.Errorf("%w: %v from a server", wire.ErrFrame, h.Type)
}

func (c *Conn) find(id wire.RequestID) *call {
	if id.Channel() >= maxMessages {
		return nil
	}
	return c.calls[id.Channel()].Load()
}

// onResp takes an answer: the header to the caller's memory, the pushed payload into dst.
func (c *Conn) onResp(l *link, h *wire.FrameHeader) error {
	var rh wire.RespHeader
	b, err := l.rd.message(wire.RespHeaderSize)
	if err != nil {
		return err
	}
	if err := rh.Parse(b, int(h.Length)); err != nil {
		return err
	}
	crc := wire.CRC(0, b)
	if b, err = l.rd.message(int(rh.HeaderLen)); err != nil {
		return err
	}
	crc = wire.CRC(crc, b)
	k := c.find(h.ID)
	if k == nil {
		return l.discard(h, crc, int(rh.PushedLen))
	}
	dst, ok := k.answer(h.ID, l, b)
	if !ok {
		return l.discard(h, crc, int(rh.PushedLen))
	}
	if int(rh.PushedLen) > len(dst) {
		err = fmt.Errorf("%w: %d bytes pushed into %d", wire.ErrFrame, rh.PushedLen, len(dst))
	} else {
		err = l.payload(h, crc, dst[:rh.PushedLen])
	}
	k.answered(h.Status, int(rh.PushedLen), err)
	return err
}

// onPull queues the range of src that the server asks for.
func (c *Conn) onPull(l *link, h *wire.FrameHeader) error {
	var r wire.Range
	b, err := l.body(h)
	if err == nil {
		err = r.Parse(b)
	}
	if err != nil {
		return err
	}
	if k := c.find(h.ID); k != nil {
		return k.pulled(h.ID, l, r)
	}
	return nil
}

func (c *Conn) goaway(l *link, g wire.Goaway) {
	l.draining.Store(true)
	if g.Reason.Final() {
		c.close(fmt.Errorf("%v: %w", c.addr, goawayError(g)))
	}
}
