package tcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"rfs"
	"rfs/transport"
	"rfs/transport/wire"
)

// server is one Serve: its listener, links, and the goroutines that run the handler.
type server struct {
	t    *Transport
	h    transport.Handler
	ctx  context.Context // ends when Serve is to end
	stop context.CancelFunc

	conns sync.WaitGroup

	mu      sync.Mutex
	closing bool
	links   map[*link]struct{}
	pending map[net.Conn]struct{} // in the handshake
	running int                   // handlers
	drained chan struct{}         // closed when closing and none runs
	idle    []*worker
}

// maxIdle is how many goroutines wait for the next request.
const maxIdle = 64

// worker is a goroutine that runs handlers, kept so that a request costs none.
type worker struct{ next chan *request }

// Serve accepts connections of l. See transport.Transport. It may be called with
// several listeners at once. When ctx ends it says so to the clients, ends the
// handlers' contexts, waits for them, and hangs up.
func (t *Transport) Serve(ctx context.Context, l net.Listener, h transport.Handler) error {
	s := &server{t: t, h: h, links: map[*link]struct{}{}, pending: map[net.Conn]struct{}{}, drained: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(ctx)
	defer s.stop()
	defer context.AfterFunc(s.ctx, func() { _ = l.Close() })()
	err := s.accept(l)
	s.stop()
	_ = l.Close()
	s.close()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve %v: %w", l.Addr(), err)
}

func (s *server) accept(l net.Listener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors, or the peer was gone already: the listener still works.
			var ne net.Error
			if !errors.As(err, &ne) {
				return err
			}
			s.t.cfg.Log.Warn("transport: accept", "listener", l.Addr(), "err", err)
			if !sleep(s.ctx, 50*time.Millisecond) {
				return err
			}
			continue
		}
		s.conns.Go(func() { s.welcome(nc) })
	}
}

// welcome authenticates a new connection and carries its link.
func (s *server) welcome(nc net.Conn) {
	hello, secured, err := s.handshake(nc)
	if err != nil {
		s.hangUp(nc, secured, err)
		return
	}
	_ = nc.SetDeadline(time.Time{})
	l := s.t.newLink(secured, nil)
	l.unix, l.srv, l.stream, l.peer = isUnix(nc), s, int(hello.Stream), fmt.Sprintf("%s (%v)", hello.Name, nc.RemoteAddr())
	if !s.admitLink(l) {
		_ = nc.Close()
		return
	}
	sess, grant := s.t.join(hello, l)
	l.ep = sess
	l.sendGrant(grant)
	l.run()
	s.mu.Lock()
	delete(s.links, l)
	s.mu.Unlock()
}

func (s *server) admitLink(l *link) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.links[l] = struct{}{}
	}
	return !s.closing
}

// hangUp says why, and waits a moment for the peer to have read it: to close a
// socket with bytes unread would throw the words away.
func (s *server) hangUp(nc, secured net.Conn, err error) {
	defer nc.Close()
	var r *refusal
	if !errors.As(err, &r) || secured == nil {
		s.t.cfg.Log.Debug("transport: connection ended in its set-up", "from", nc.RemoteAddr(), "err", err)
		return
	}
	s.t.stats.refused.Add(1)
	s.t.cfg.Log.Warn("transport: connection refused", "from", nc.RemoteAddr(), "err", err)
	s.t.sendGoaway(secured, r)
	if cw, ok := nc.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
	_ = nc.SetReadDeadline(time.Now().Add(time.Second))
	var sink [512]byte
	for range 32 {
		if _, err := nc.Read(sink[:]); err != nil {
			return
		}
	}
}

// handshake bounds the unauthenticated in number and time.
func (s *server) handshake(nc net.Conn) (hello wire.Hello, secured net.Conn, err error) {
	defer s.t.handshakes.Add(-1)
	_ = nc.SetDeadline(time.Now().Add(s.t.cfg.Handshake))
	ctx, cancel := context.WithTimeout(s.ctx, s.t.cfg.Handshake)
	defer cancel()
	defer context.AfterFunc(s.ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })()
	if s.t.handshakes.Add(1) > int32(s.t.cfg.MaxHandshakes) {
		return hello, nc, refuse(wire.ReasonBusy, "%d peers are connecting at once: try again", s.t.cfg.MaxHandshakes)
	}
	if secured, err = s.t.secure(ctx, nc, true, ""); err != nil {
		return hello, nil, err
	}
	hello, err = s.t.admit(secured)
	return hello, secured, err
}

// close ends what Serve began.
func (s *server) close() {
	s.mu.Lock()
	s.closing = true
	if s.running == 0 {
		close(s.drained)
	}
	links := make([]*link, 0, len(s.links))
	for l := range s.links {
		links = append(links, l)
	}
	s.mu.Unlock()
	for _, l := range links {
		l.sendGoaway(wire.ReasonClosing, "the server is stopping")
	}
	s.t.cancelRequests(s)
	<-s.drained
	for _, l := range links {
		l.drain(s.t.cfg.CancelWait)
		l.fail(errHangup)
	}
	s.mu.Lock()
	for _, w := range s.idle {
		close(w.next)
	}
	s.idle = nil
	s.mu.Unlock()
	s.conns.Wait()
}

// start runs the handler for r on a worker. It reports false when the server is closing.
func (s *server) start(r *request) bool {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return false
	}
	s.running++
	var w *worker
	if n := len(s.idle); n > 0 {
		w = s.idle[n-1]
		s.idle = s.idle[:n-1]
	}
	s.mu.Unlock()
	s.t.stats.served.Add(1)
	if w == nil {
		w = &worker{next: make(chan *request, 1)}
		s.conns.Go(func() { s.work(w) })
	}
	w.next <- r
	return true
}

func (s *server) work(w *worker) {
	for r := range w.next {
		r.run(s.h)
		if !s.rest(w) {
			return
		}
	}
}

// rest counts a handler as ended and reports whether w is to wait for another.
func (s *server) rest(w *worker) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	if s.closing {
		if s.running == 0 {
			close(s.drained)
		}
		return false
	}
	if len(s.idle) >= maxIdle {
		return false
	}
	s.idle = append(s.idle, w)
	return true
}

// session is what a server knows of one client's Conn.
type session struct {
	t      *Transport
	nonce  rfs.UUID
	name   string
	cookie uint64

	mu     sync.Mutex
	links  map[*link]struct{}
	calls  []*request // by channel: under way, or answered
	spare  *request
	expiry *time.Timer // while it has no links
	ended  bool        // forgotten: no more requests
}

// join adds a link to its client's session, which is made if there is none.
func (t *Transport) join(hello wire.Hello, l *link) (*session, wire.Grant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sessions[hello.Nonce]
	if s == nil {
		s = &session{t: t, nonce: hello.Nonce, name: hello.Name, cookie: rand.Uint64(), links: map[*link]struct{}{}}
		t.sessions[hello.Nonce] = s
		t.regrant(s)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links[l] = struct{}{}
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
	g := t.grant
	g.Cookie = s.cookie
	return s, g
}

// regrant divides TotalBytes among the clients, and tells them if their share
// changed. Shares change by powers of two, so that it seldom does. t.mu is held.
func (t *Transport) regrant(except *session) {
	share := t.cfg.TotalBytes
	for n := 1; n < len(t.sessions); n *= 2 {
		share /= 2
	}
	bytes := uint64(min(max(share, transport.MaxPayload), t.cfg.Bytes))
	if bytes == t.grant.Bytes {
		return
	}
	t.grant.Bytes = bytes
	t.grant.Serial++
	for _, s := range t.sessions {
		if s == except {
			continue
		}
		g := t.grant
		g.Cookie = s.cookie
		s.mu.Lock()
		for l := range s.links {
			l.sendGrant(g)
			break
		}
		s.mu.Unlock()
	}
}

func (s *session) goaway(l *link, g wire.Goaway) {
	if g.Reason == wire.ReasonBye {
		s.forget(true)
	}
	l.fail(errHangup)
}

// linkGone takes the link off its requests. Without any link the session lingers.
func (s *session) linkGone(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.links, l)
	for _, r := range s.calls {
		if r != nil {
			r.detach(l)
		}
	}
	if len(s.links) == 0 && s.expiry == nil && !s.ended {
		s.expiry = time.AfterFunc(s.t.cfg.Linger, func() { s.forget(false) })
	}
}

// forget ends the session: its requests' contexts end, its answers are dropped.
// Unless for sure, one that has a link again stays.
func (s *session) forget(sure bool) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.t.sessions[s.nonce] != s || !sure && len(s.links) > 0 {
		return
	}
	delete(s.t.sessions, s.nonce)
	s.ended = true
	for l := range s.links {
		l.fail(errHangup)
	}
	for _, r := range s.calls {
		if r != nil {
			r.ctx.cancel(context.Canceled)
		}
	}
	s.calls = nil
	s.t.regrant(s)
}

// cancelRequests ends the contexts of the requests that srv runs.
func (t *Transport) cancelRequests(srv *server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.sessions {
		s.mu.Lock()
		for _, r := range s.calls {
			if r != nil {
				r.cancelFor(srv)
			}
		}
		s.mu.Unlock()
	}
}

// receive handles a frame of the client.
func (s *session) receive(l *link, h *wire.FrameHeader) error {
	if int(h.ID.Channel()) >= s.t.cfg.Messages {
		return fmt.Errorf("%w: %v on channel %d with %d message credits", wire.ErrFrame, h.Type, h.ID.Channel(), s.t.cfg.Messages)
	}
	switch h.Type {
	case wire.TypeReq:
		return s.onReq(l, h)
	case wire.TypeData:
		return s.onData(l, h)
	case wire.TypeCancel:
		if _, err := l.body(h); err != nil {
			return err
		}
		if r := s.find(h.ID); r != nil {
			r.cancelled(h.ID)
		}
		l.control(wire.TypeCancelAck, h.ID, queueOnly)
		return nil
	}
	return fmt.Errorf("%w: %v from a client", wire.ErrFrame, h.Type)
}

// find returns the request of the id's channel, which may be another by now.
func (s *session) find(id wire.RequestID) *request {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ch := int(id.Channel()); ch < len(s.calls) {
		return s.calls[ch]
	}
	return nil
}

func (s *session) onReq(l *link, h *wire.FrameHeader) error {
	if h.Length > transport.MaxMessage-wire.HeaderSize {
		return fmt.Errorf("%w: REQ with a body of %d bytes", wire.ErrFrame, h.Length)
	}
	body, err := l.body(h)
	if err != nil {
		return err
	}
	var rh wire.ReqHeader
	if err := rh.Parse(body); err != nil {
		return err
	}
	r := s.place(l, h, &rh, body[wire.ReqHeaderSize:])
	if r != nil && !l.srv.start(r) {
		_ = r.reply(wire.StatusUnavailable, nil, nil, 0, queueOnly)
		r.unref()
	}
	return nil
}

// place finds what the request is to the session: new (it is returned, to be
// run), known (its answer goes to l, now or later), or a late copy (dropped).
func (s *session) place(l *link, h *wire.FrameHeader, rh *wire.ReqHeader, rest []byte) *request {
	ch, seq := int(h.ID.Channel()), h.ID.Sequence()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	for ch >= len(s.calls) {
		s.calls = append(s.calls, nil)
	}
	old := s.calls[ch]
	if old != nil {
		switch at := old.id.Sequence(); {
		case seq < at:
			return nil
		case seq == at:
			s.t.stats.duplicates.Add(1)
			if !old.again(l, rh.Attempt) {
				return nil
			}
			s.t.stats.executed.Add(1)
		}
	}
	r := s.spare
	if r != nil {
		s.spare = r.next
	} else {
		r = newRequest(s)
	}
	r.begin(l, h, rh, rest)
	s.calls[ch] = r
	if old != nil && old.displace() {
		old.next, s.spare = s.spare, old
	}
	return r
}

// recycle keeps a request that nobody refers to.
func (s *session) recycle(r *request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.next, s.spare = s.spare, r
}

// onData reads pulled payload into the memory of the pull that waits for it.
func (s *session) onData(l *link, h *wire.FrameHeader) error {
	var rg wire.Range
	b, err := l.rd.message(min(wire.RangeSize, int(h.Length)))
	if err == nil {
		err = rg.Parse(b)
	}
	if err != nil {
		return err
	}
	n := int(h.Length) - wire.RangeSize
	if int(rg.Len) != n {
		return fmt.Errorf("%w: DATA of %d bytes with %d", wire.ErrFrame, rg.Len, n)
	}
	crc := wire.CRC(0, b)
	r := s.find(h.ID)
	if r == nil {
		return l.discard(h, crc, n)
	}
	p := r.arriving(h.ID, l, rg)
	if p == nil {
		return l.discard(h, crc, n)
	}
	err = l.payload(h, crc, p.dst)
	r.arrived(p, err)
	return err
}
