package raftmeta

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// links are the ways to the other replicas. Each has a queue and a goroutine
// that sends what has gathered in it, one request at a time: Raft pipelines, and
// makes good what is lost.
type links struct {
	r    *Replica
	mu   sync.Mutex
	to   map[uint64]*link
	hint map[uint64]transport.Addr // of replicas that spoke to us before we knew them
}

const (
	// linkQueue bounds the messages that wait for one replica; more are dropped.
	linkQueue = 4096
	// linkBatch bounds what goes in one request, in bytes.
	linkBatch = 2 << 20
	linkPause = 100 * time.Millisecond
)

type link struct {
	id   uint64
	addr transport.Addr
	stop context.CancelFunc
	kick chan struct{} // capacity 1

	mu   sync.Mutex
	msgs []*raftpb.Message

	connMu sync.Mutex // held while dialling
	conn   transport.Conn
}

func (ls *links) init(r *Replica) {
	ls.r, ls.to, ls.hint = r, map[uint64]*link{}, map[uint64]transport.Addr{}
}

// addr returns where a replica is.
func (ls *links) addr(id uint64) (transport.Addr, bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.to[id]; l != nil {
		return l.addr, true
	}
	a, ok := ls.hint[id]
	return a, ok
}

// update makes the links those of the members.
func (ls *links) update(ms []Member) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	now := map[uint64]transport.Addr{}
	for _, m := range ms {
		if m.ID != ls.r.ID() {
			now[m.ID] = m.Addr
		}
	}
	for id, l := range ls.to {
		if a, ok := now[id]; !ok || a != l.addr {
			l.stop()
			delete(ls.to, id)
		}
	}
	for id, a := range now {
		if ls.to[id] == nil {
			ls.open(id, a)
		}
	}
}

// heard makes a link to a replica that is no member here yet: to the leader of a cluster that we join.
func (ls *links) heard(id uint64, a transport.Addr) {
	if a.Address == "" {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.to[id]; l == nil {
		ls.hint[id] = a
		ls.open(id, a)
	}
}

func (ls *links) open(id uint64, a transport.Addr) {
	ctx, cancel := context.WithCancel(ls.r.ctx)
	l := &link{id: id, addr: a, stop: cancel, kick: make(chan struct{}, 1)}
	ls.to[id] = l
	ls.r.wg.Go(func() { l.run(ctx, ls.r) })
}

func (ls *links) get(id uint64) *link {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.to[id]
}

// send queues a message, or starts to send a snapshot.
func (r *Replica) send(m *raftpb.Message) {
	l := r.links.get(m.GetTo())
	if l == nil {
		return
	}
	if m.GetType() == raftpb.MsgSnap {
		r.sendSnapshot(l, m)
		return
	}
	l.mu.Lock()
	if len(l.msgs) < linkQueue {
		l.msgs = append(l.msgs, m)
	}
	l.mu.Unlock()
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// take returns what waits, marshalled, up to a request's size.
func (l *link) take() (out [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	size, n := 0, 0
	for _, m := range l.msgs {
		if size += proto.Size(m); size > linkBatch && n > 0 {
			break
		}
		n++
		b, err := proto.Marshal(m)
		if err != nil {
			continue // a message of our own: it cannot fail
		}
		out = append(out, b)
	}
	l.msgs = l.msgs[n:]
	if len(l.msgs) == 0 {
		l.msgs = nil
	}
	return out
}

func (l *link) run(ctx context.Context, r *Replica) {
	defer l.hangUp()
	for {
		select {
		case <-l.kick:
		case <-ctx.Done():
			return
		}
		for msgs := l.take(); len(msgs) > 0 && ctx.Err() == nil; msgs = l.take() {
			if err := l.deliver(ctx, r, msgs); err != nil {
				r.tell(func() { r.raft.ReportUnreachable(l.id) })
				sleep(ctx, linkPause)
			}
		}
	}
}

// deliver sends messages in one request.
func (l *link) deliver(ctx context.Context, r *Replica, msgs [][]byte) error {
	self := r.self.Load()
	ctx, cancel := context.WithTimeout(ctx, 2*electionTicks*r.opts.Tick)
	defer cancel()
	conn, err := l.dial(ctx, r)
	if err != nil {
		return err
	}
	rep := new(metapb.Response)
	st, err := exchange(ctx, conn, r.opts.Arena, wire.OpRaft, &metapb.RaftBatch{
		Cluster: self.cluster[:], From: self.id, To: l.id, FromAddr: addrToPB(r.opts.Addr), Messages: msgs,
	}, rep, 0)
	if err != nil {
		return err
	}
	if st == wire.StatusGone {
		r.removed()
	}
	return status(wire.OpRaft, st, rep)
}

func (l *link) dial(ctx context.Context, r *Replica) (transport.Conn, error) {
	l.connMu.Lock()
	defer l.connMu.Unlock()
	if l.conn != nil {
		select {
		case <-l.conn.Done():
			l.conn.Close()
			l.conn = nil
		default:
			return l.conn, nil
		}
	}
	conn, err := r.opts.Transport.Dial(ctx, l.addr)
	if err == nil {
		l.conn = conn
	}
	return conn, err
}

func (l *link) hangUp() {
	l.connMu.Lock()
	defer l.connMu.Unlock()
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// removed notes that the cluster has taken this replica out.
func (r *Replica) removed() {
	if r.gone.CompareAndSwap(false, true) {
		r.log.Warn("this metadata replica was removed from the cluster: stop it and empty its directory", "replica", r.ID(), "dir", r.opts.Dir)
	}
}
