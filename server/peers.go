package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/transport"
	"rfs/transport/wire"
)

// callTimeout bounds a call to another target. It is above half a lease: who
// does not answer by then has been, or will be, declared down.
const callTimeout = 5 * time.Second

// peers are the connections to other nodes, one each.
type peers struct {
	tr transport.Transport
	mu sync.Mutex
	of map[transport.Addr]*peer
}

type peer struct {
	mu   sync.Mutex // held while dialling
	conn transport.Conn
}

func (p *peers) init(tr transport.Transport) { p.tr, p.of = tr, make(map[transport.Addr]*peer) }

// conn returns the connection to a node, dialled if need be.
func (p *peers) conn(ctx context.Context, a transport.Addr) (transport.Conn, error) {
	p.mu.Lock()
	x := p.of[a]
	if x == nil {
		x = new(peer)
		p.of[a] = x
	}
	p.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.conn != nil {
		select {
		case <-x.conn.Done():
			x.conn.Close()
			x.conn = nil
		default:
			return x.conn, nil
		}
	}
	c, err := p.tr.Dial(ctx, a)
	x.conn = c
	return c, err
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.of {
		x.mu.Lock()
		if x.conn != nil {
			x.conn.Close()
		}
		x.mu.Unlock()
	}
	p.of = nil
}

// call sends a request to a target, here or elsewhere. An answer other than OK is an error, with its reply.
func (s *Server) call(ctx context.Context, m *placement.Map, t rfs.TargetID, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	return s.callFor(ctx, callTimeout, m, t, op, hdr, src, dst)
}

func (s *Server) callFor(ctx context.Context, d time.Duration, m *placement.Map, t rfs.TargetID, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	rep, err := s.send(ctx, m, t, op, hdr, src, dst)
	if err == nil && rep.Status != wire.StatusOK {
		err = &transport.StatusError{Op: op, Status: rep.Status}
	}
	if err != nil {
		return rep, fmt.Errorf("target %v: %w", t, err)
	}
	return rep, nil
}

func (s *Server) send(ctx context.Context, m *placement.Map, t rfs.TargetID, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	if s.targets[t] != nil {
		r := &localRequest{op: op, hdr: hdr, src: src, dst: dst}
		s.ServeRPC(ctx, r)
		return r.rep, nil
	}
	n := m.NodeOf(t)
	if n == nil {
		return transport.Reply{}, fmt.Errorf("not in the map of epoch %d: %w", m.Epoch, rfs.ErrUnavailable)
	}
	c, err := s.peers.conn(ctx, transport.Addr(n.Addr))
	if err != nil {
		return transport.Reply{}, err
	}
	return c.Call(ctx, op, hdr, src, dst)
}

// A localRequest is a call from this server to a target of its own.
type localRequest struct {
	op       wire.Op
	hdr      []byte
	src, dst transport.Buf
	rep      transport.Reply
}

func (r *localRequest) Op() wire.Op          { return r.op }
func (r *localRequest) Header() []byte       { return r.hdr }
func (r *localRequest) Peer() transport.Peer { return transport.Peer{Node: "self", Carrier: "local"} }
func (r *localRequest) PayloadLen() int      { return bufLen(r.src) }
func (r *localRequest) CapLen() int          { return bufLen(r.dst) }

func (r *localRequest) Pull(_ context.Context, dst transport.Buf, off, n int) error {
	copy(dst.Bytes()[:n], r.src.Bytes()[off:off+n])
	return nil
}

func (r *localRequest) Reply(st wire.Status, hdr []byte, push transport.Buf, n int) error {
	r.rep = transport.Reply{Status: st, Header: append([]byte(nil), hdr...), Pushed: n}
	if n > 0 {
		copy(r.dst.Bytes()[:n], push.Bytes()[:n])
	}
	return nil
}

func bufLen(b transport.Buf) int {
	if b == nil {
		return 0
	}
	return len(b.Bytes())
}

// A part is the first n bytes of a buffer, to be lent.
type part struct {
	transport.Buf
	n int
}

func (p part) Bytes() []byte { return p.Buf.Bytes()[:p.n] }

// keyed are locks by name, for work that is too long for a mutex.
type keyed struct {
	mu   sync.Mutex
	held map[any]chan struct{}
}

func (k *keyed) init() { k.held = make(map[any]chan struct{}) }

// lock takes the lock of a name, and returns how to let it go.
func (k *keyed) lock(ctx context.Context, name any) (unlock func(), err error) {
	for {
		k.mu.Lock()
		wait, busy := k.held[name]
		if !busy {
			done := make(chan struct{})
			k.held[name] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, name)
				k.mu.Unlock()
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
