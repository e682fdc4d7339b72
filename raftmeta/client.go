package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// Config is what a Client needs.
type Config struct {
	// Replicas are where the metadata service is. One that answers is enough: it names the leader.
	Replicas []transport.Addr
	// Cluster, if set, is the only cluster that may answer.
	Cluster   rfs.UUID
	Transport transport.Transport
	// Arena lends memory for long messages and answers.
	Arena  Arena
	Logger *slog.Logger // default: none
	// Timeout ends a call that no replica answers, with rfs.ErrUnavailable (a
	// "soft" mount). 0, the default: only the call's context does ("hard").
	Timeout time.Duration
}

func (c *Config) validate() error {
	var errs []error
	if len(c.Replicas) == 0 {
		errs = append(errs, errors.New("no address of a metadata replica: name at least one"))
	}
	if c.Transport == nil {
		errs = append(errs, errors.New("no transport"))
	}
	if c.Arena == nil {
		errs = append(errs, errors.New("no arena"))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("a timeout of %v: want 0 (wait for ever) or more", c.Timeout))
	}
	if len(errs) > 0 {
		return fmt.Errorf("metadata client: %w", errors.Join(errs...))
	}
	return nil
}

const (
	// An attempt is given up and sent again, maybe to another replica, after
	// firstAttempt, and twice as long each time it is, up to lastAttempt. A leader
	// that must wait for something says so (Response.Pending) within half of that.
	firstAttempt = 2 * time.Second
	lastAttempt  = 16 * time.Second
	// Pauses between attempts when all replicas failed.
	firstPause = 10 * time.Millisecond
	lastPause  = 500 * time.Millisecond
)

// A Client speaks with the metadata service. It finds the leader, follows it
// through elections, and sends a command again under its first (nonce, seq)
// until it is answered, so that each is applied once. Its methods may be called
// from any goroutine.
//
// Errors wrap those of package rfs. When no replica leads, a call blocks until
// its context ends (or Config.Timeout), and then returns rfs.ErrUnavailable
// with what each replica said, besides the context's error.
type Client struct {
	cfg   Config
	log   *slog.Logger
	nonce uint64

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	peers []*peer
	lead  int // the peer to ask first

	seqs   seqs
	maps   mapCache
	sess   *session // nil: none
	closes closeQueue
}

// peer is a replica as a client sees it.
type peer struct {
	addr transport.Addr
	mu   sync.Mutex // held while dialling
	conn transport.Conn
}

// NewClient returns a client of the metadata service. It does not wait for it.
func NewClient(cfg Config) (*Client, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, log: orDiscard(cfg.Logger), nonce: rand.Uint64() | 1}
	c.ctx, c.stop = context.WithCancel(context.Background())
	for _, a := range cfg.Replicas {
		c.peers = append(c.peers, &peer{addr: a})
	}
	c.seqs.init()
	c.maps.init()
	c.closes.init()
	return c, nil
}

// Close ends the session, if there is one, and the connections. Calls under way fail.
func (c *Client) Close(ctx context.Context) error {
	err := c.CloseSession(ctx)
	c.stop()
	c.wg.Wait()
	c.mu.Lock()
	peers := c.peers
	c.mu.Unlock()
	// Not under mu: a connection says goodbye with the session's number, which takes it.
	for _, p := range peers {
		p.mu.Lock()
		if p.conn != nil {
			p.conn.Close()
			p.conn = nil
		}
		p.mu.Unlock()
	}
	return err
}

// seqs hands out the sequence numbers of commands and knows the lowest that is
// still to be answered.
type seqs struct {
	mu   sync.Mutex
	next uint64
	low  uint64
	open map[uint64]struct{}
}

func (s *seqs) init() { s.next, s.low, s.open = 1, 1, make(map[uint64]struct{}) }

func (s *seqs) begin() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	seq := s.next
	s.next++
	s.open[seq] = struct{}{}
	return seq
}

func (s *seqs) end(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, seq)
	for s.low < s.next {
		if _, ok := s.open[s.low]; ok {
			return
		}
		s.low++
	}
}

func (s *seqs) ack() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.low
}

// command has cmd applied once and returns its answer.
func (c *Client) command(ctx context.Context, cmd *metapb.Command) (*metapb.Response, error) {
	seq := c.seqs.begin()
	defer c.seqs.end(seq)
	return c.commandAs(ctx, seq, cmd)
}

// commandAs is command under a sequence number that the caller ends.
func (c *Client) commandAs(ctx context.Context, seq uint64, cmd *metapb.Command) (*metapb.Response, error) {
	cmd.Nonce, cmd.Seq, cmd.Ack = c.nonce, seq, c.seqs.ack()
	if cmd.Time == 0 {
		cmd.Time = time.Now().UnixNano()
	}
	rep := new(metapb.Response)
	req := &metapb.Request{Kind: &metapb.Request_Command{Command: cmd}}
	return rep, c.do(ctx, wire.OpMeta, req, rep, 0)
}

// definite reports whether err is an answer, so that what was asked for is
// known not to have happened.
func definite(err error) bool {
	var answer *transport.StatusError
	return errors.As(err, &answer)
}

// sessionCommand is command in the client's session.
func (c *Client) sessionCommand(ctx context.Context, cmd *metapb.Command) (*metapb.Response, error) {
	id := c.Session()
	if id == 0 {
		return nil, fmt.Errorf("metadata: no session is open: %w", rfs.ErrSessionLost)
	}
	cmd.Session = uint32(id)
	return c.command(ctx, cmd)
}

// query asks without changing anything; up to lend bytes may be answered without asking twice.
func (c *Client) query(ctx context.Context, q *metapb.Query, lend int) (*metapb.Response, error) {
	if q.Session == 0 {
		q.Session = uint32(c.Session())
	}
	rep := new(metapb.Response)
	return rep, c.do(ctx, wire.OpMeta, &metapb.Request{Kind: &metapb.Request_Query{Query: q}}, rep, lend)
}

// do sends req to the leader until it is answered.
//
// Each round asks one replica. One that is not the leader may name it: it is
// asked next. One that does not answer, or knows no leader, gives way to the
// next; after each time round all of them there is a pause.
func (c *Client) do(ctx context.Context, op wire.Op, req proto.Message, rep *metapb.Response, lend int) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(transport.ErrClosed) })()
	answered := func() {}
	if c.cfg.Timeout > 0 {
		soft := time.AfterFunc(c.cfg.Timeout, func() { cancel(context.DeadlineExceeded) })
		defer soft.Stop()
		answered = func() { soft.Reset(c.cfg.Timeout) }
	}

	said := map[*peer]error{}
	wait, pause, fails := firstAttempt, firstPause, 0
	for ctx.Err() == nil {
		p := c.leader()
		attempt, done := context.WithTimeout(ctx, wait)
		st, err := c.ask(attempt, p, op, req, rep, lend)
		late := attempt.Err() != nil
		done()
		switch {
		case err == nil && rep.GetPending():
			answered()
			fails = 0
			continue
		case err == nil && st == wire.StatusNotLeader:
			said[p] = errors.New(orText(rep.GetDetail(), "does not lead"))
			if c.follow(p, rep.GetLeaderAddr()) && fails < 2*c.peerCount() {
				fails++
				continue
			}
		case err == nil && (st == wire.StatusUnavailable || st == wire.StatusCancelled): // it is stopping, or starting
			said[p] = errors.New(orText(rep.GetDetail(), "unavailable"))
			c.pass(p)
		case err == nil:
			return status(op, st, rep)
		default:
			if ctx.Err() != nil {
				if errors.Is(ctx.Err(), context.DeadlineExceeded) {
					c.pass(p) // a caller with less time than an attempt takes must not ask a dead replica for ever
				}
				break
			}
			if late {
				wait = min(2*wait, lastAttempt)
			}
			said[p] = err
			c.pass(p)
		}
		if fails++; fails%c.peerCount() == 0 {
			if err := c.refused(op, said); err != nil {
				return err
			}
			sleep(ctx, pause/2+rand.N(pause))
			pause = min(2*pause, lastPause)
		}
	}
	return c.unavailable(ctx, op, said)
}

// refused is the error when every replica refuses to speak with this client at
// all: the key or the version is wrong, and waiting does not help.
func (c *Client) refused(op wire.Op, said map[*peer]error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var last error
	for _, p := range c.peers {
		if last = said[p]; !errors.Is(last, transport.ErrRefused) {
			return nil
		}
	}
	return fmt.Errorf("metadata %v: %w", op, last)
}

// status turns an answer other than OK into an error.
func status(op wire.Op, st wire.Status, rep *metapb.Response) error {
	if st == wire.StatusOK {
		return nil
	}
	return &transport.StatusError{Op: op, Status: st, Detail: rep.GetDetail()}
}

func orText(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// unavailable is the error of a call that ended without an answer.
func (c *Client) unavailable(ctx context.Context, op wire.Op, said map[*peer]error) error {
	var b strings.Builder
	c.mu.Lock()
	for _, p := range c.peers {
		what := "did not answer in time"
		if err := said[p]; err != nil {
			what = err.Error()
		}
		fmt.Fprintf(&b, "; replica %v: %s", p.addr, what)
	}
	c.mu.Unlock()
	cause := context.Cause(ctx)
	if errors.Is(cause, context.Canceled) && len(said) == 0 {
		return fmt.Errorf("metadata %v: %w", op, cause) // the caller gave up: nothing is known to be wrong
	}
	return fmt.Errorf("metadata %v: %w: no leader answered%s (%w)", op, rfs.ErrUnavailable, b.String(), cause)
}

// ask sends req to one replica, once.
func (c *Client) ask(ctx context.Context, p *peer, op wire.Op, req proto.Message, rep *metapb.Response, lend int) (wire.Status, error) {
	conn, err := c.dial(ctx, p)
	if err != nil {
		return 0, err
	}
	return exchange(ctx, conn, c.cfg.Arena, op, req, rep, lend)
}

// dial returns p's connection. A Conn mends itself: it is dialled again only when it ended for good.
func (c *Client) dial(ctx context.Context, p *peer) (transport.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		select {
		case <-p.conn.Done():
			p.conn.Close()
			p.conn = nil
		default:
			return p.conn, nil
		}
	}
	conn, err := c.cfg.Transport.Dial(ctx, p.addr)
	if err != nil {
		return nil, err
	}
	p.conn = conn
	return conn, nil
}

func (c *Client) peerCount() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.peers)
}

func (c *Client) leader() *peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peers[c.lead]
}

// pass moves on from p, unless another call has already.
func (c *Client) pass(p *peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers[c.lead] == p {
		c.lead = (c.lead + 1) % len(c.peers)
	}
}

// follow goes to the leader that p named. It reports false if it named none, or itself.
func (c *Client) follow(p *peer, hint *metapb.Addr) bool {
	a := addrFromPB(hint)
	if a.Address == "" || sameAddr(a, p.addr) {
		c.pass(p)
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.peers, func(q *peer) bool { return sameAddr(q.addr, a) })
	if i < 0 { // joined after this client was configured
		i = len(c.peers)
		c.peers = append(c.peers, &peer{addr: a})
	}
	c.lead = i
	return true
}

func sameAddr(a, b transport.Addr) bool { return a.Network == b.Network && a.Address == b.Address }

// mapCache holds the newest map that the client saw.
type mapCache struct {
	mu  sync.Mutex
	m   *placement.Map
	one chan struct{} // capacity 1: one fetches at a time
}

func (m *mapCache) init() { m.one = make(chan struct{}, 1) }

func (m *mapCache) get() *placement.Map {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m
}

// put keeps the newer of the two and returns it.
func (m *mapCache) put(n *placement.Map) *placement.Map {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil || m.m.Epoch <= n.Epoch {
		m.m = n
	}
	return m.m
}

// Map returns a cluster map of epoch min or newer: the cached one if it will
// do, else it asks, and waits until there is one.
func (c *Client) Map(ctx context.Context, min rfs.Epoch) (*placement.Map, error) {
	if m := c.maps.get(); m != nil && m.Epoch >= min {
		return m, nil
	}
	select {
	case c.maps.one <- struct{}{}:
		defer func() { <-c.maps.one }()
	case <-ctx.Done():
		return nil, fmt.Errorf("metadata: cluster map of epoch %d: %w", min, ctx.Err())
	}
	if m := c.maps.get(); m != nil && m.Epoch >= min {
		return m, nil // fetched meanwhile
	}
	return c.fetchMap(ctx, min)
}

// RefreshMap asks for the newest map, whatever is cached.
func (c *Client) RefreshMap(ctx context.Context) (*placement.Map, error) {
	return c.fetchMap(ctx, 0)
}

// CachedMap returns the newest map that the client has, or nil.
func (c *Client) CachedMap() *placement.Map { return c.maps.get() }

// mapChunk is how much of a map is asked for at a time.
const mapChunk = 1 << 20

// fetchMap reads the encoded map piece by piece, from the start again if it changes meanwhile.
func (c *Client) fetchMap(ctx context.Context, min rfs.Epoch) (*placement.Map, error) {
	var body []byte
	of := uint32(0)
	for {
		q := &metapb.GetMap{Min: uint32(min), Offset: uint64(len(body)), Of: of}
		rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_GetMap{GetMap: q}}, mapChunk+4096)
		if err != nil {
			return nil, fmt.Errorf("cluster map of epoch %d: %w", min, err)
		}
		chunk := rep.GetMap()
		if chunk.GetOffset() == 0 {
			body, of = body[:0], chunk.GetSum()
		}
		body = append(body, chunk.GetData()...)
		if uint64(len(body)) == chunk.GetSize() {
			break
		}
	}
	m, err := decodeMap(body)
	if err != nil {
		return nil, err
	}
	return c.maps.put(m), nil
}
