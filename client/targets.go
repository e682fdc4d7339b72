package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rfs"
	"rfs/internal/metrics"
	"rfs/placement"
	"rfs/transport"
	"rfs/transport/wire"
)

// targets has the connections to the storage daemons, one a node. A Conn mends
// itself; one that ended for good, or whose node moved, is dialled again.
type targets struct {
	fs *FS

	mu       sync.Mutex
	nodes    map[rfs.NodeID]*node
	byTarget map[rfs.TargetID]*seen
	closed   bool
}

// node is a storage daemon as seen from here.
type node struct {
	one  chan struct{} // capacity 1: who holds it dials
	mu   sync.Mutex
	addr placement.Addr
	conn transport.Conn
}

func (t *targets) init(fs *FS) {
	t.fs, t.nodes, t.byTarget = fs, map[rfs.NodeID]*node{}, map[rfs.TargetID]*seen{}
}

// call sends one request to a target, and takes its time.
func (t *targets) call(ctx context.Context, id rfs.TargetID, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	return t.callInto(ctx, id, op, hdr, src, dst, nil)
}

// callInto is call whose reply's header goes into the given memory, if it fits.
func (t *targets) callInto(ctx context.Context, id rfs.TargetID, op wire.Op, hdr []byte, src, dst transport.Buf, into []byte) (transport.Reply, error) {
	conn, err := t.conn(ctx, id)
	if err != nil {
		return transport.Reply{}, fmt.Errorf("target %v: %w", id, err)
	}
	seen := t.seen(id)
	begin := time.Now()
	rep, err := transport.CallInto(ctx, conn, op, hdr, src, dst, into)
	if err != nil {
		return rep, fmt.Errorf("target %v: %v: %w", id, op, err)
	}
	seen.observe(op, time.Since(begin))
	return rep, nil
}

// conn returns the connection to the node of a target.
func (t *targets) conn(ctx context.Context, id rfs.TargetID) (transport.Conn, error) {
	at := t.fs.Map().NodeOf(id)
	if at == nil {
		return nil, errNoTarget
	}
	n, err := t.node(at.ID)
	if err != nil {
		return nil, err
	}
	if c := n.live(at.Addr); c != nil {
		return c, nil
	}
	select {
	case n.one <- struct{}{}:
		defer func() { <-n.one }()
	case <-ctx.Done():
		return nil, ended(ctx)
	}
	if c := n.live(at.Addr); c != nil {
		return c, nil
	}
	c, err := t.fs.cfg.Transport.Dial(ctx, transport.Addr(at.Addr))
	if err != nil {
		return nil, err
	}
	return c, t.use(n, c, at.Addr)
}

func (t *targets) node(id rfs.NodeID) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	n := t.nodes[id]
	if n == nil {
		n = &node{one: make(chan struct{}, 1)}
		t.nodes[id] = n
	}
	return n, nil
}

// live returns the node's connection if it is good and leads to addr.
func (n *node) live(addr placement.Addr) transport.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == nil || n.addr != addr {
		return nil
	}
	select {
	case <-n.conn.Done():
		return nil
	default:
		return n.conn
	}
}

// use puts c in the place of the connection before, unless the client was closed meanwhile.
func (t *targets) use(n *node, c transport.Conn, addr placement.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if t.closed {
		c.Close()
		return ErrClosed
	}
	if n.conn != nil {
		n.conn.Close()
	}
	n.conn, n.addr = c, addr
	return nil
}

// close closes all connections; no call is under way.
func (t *targets) close() {
	t.mu.Lock()
	t.closed = true
	nodes := t.nodes
	t.nodes = nil
	t.mu.Unlock()
	for _, n := range nodes {
		n.mu.Lock()
		if n.conn != nil {
			n.conn.Close()
		}
		n.mu.Unlock()
	}
}

// report tells the metadata service that a target gave no answer, once a second
// at most. Whether it is down is the service's to decide; the map tells.
func (t *targets) report(id rfs.TargetID, err error) {
	fs := t.fs
	seen := t.seen(id)
	t.mu.Lock()
	now := time.Now()
	due := now.Sub(seen.reported) > time.Second
	if due {
		seen.reported = now
	}
	t.mu.Unlock()
	if !due || fs.ctx.Err() != nil {
		return
	}
	metrics.Retries.WithLabelValues("broken").Inc()
	fs.log.Warn("target gave no answer", "target", id, "err", err)
	fs.work.Go(func() {
		ctx, cancel := context.WithTimeout(fs.ctx, fs.cfg.CallTimeout)
		defer cancel()
		if fs.meta.ReportTarget(ctx, id, err.Error()) == nil { // a hint, after which there may be a newer map
			_ = fs.refresh(ctx)
		}
	})
}

// seen is what this client saw of a target.
type seen struct {
	prepare, read, sync prometheus.Observer
	reported            time.Time    // guarded by targets.mu
	mean                atomic.Int64 // ns a READ takes, exponentially weighted
}

// requestSeconds is the latency of requests by target.
var requestSeconds = func() *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "rfs_client_target_seconds",
		Help:    "Time from a request to a target to its answer.",
		Buckets: prometheus.ExponentialBuckets(50e-6, 2, 20),
	}, []string{"op", "target"})
	metrics.Registry.MustRegister(v)
	return v
}()

func (t *targets) seen(id rfs.TargetID) *seen {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byTarget[id]
	if s == nil {
		name := id.String()
		s = &seen{
			prepare: requestSeconds.WithLabelValues(wire.OpPrepare.String(), name),
			read:    requestSeconds.WithLabelValues(wire.OpRead.String(), name),
			sync:    requestSeconds.WithLabelValues(wire.OpSync.String(), name),
		}
		t.byTarget[id] = s
	}
	return s
}

func (s *seen) observe(op wire.Op, d time.Duration) {
	switch op {
	case wire.OpPrepare:
		s.prepare.Observe(d.Seconds())
	case wire.OpSync:
		s.sync.Observe(d.Seconds())
	case wire.OpRead:
		s.read.Observe(d.Seconds())
		old := s.mean.Load()
		s.mean.Store(old + (int64(d)-old)/8) // a lost update is one sample less
	}
}

// mean returns how long a READ of the target takes.
func (t *targets) mean(id rfs.TargetID) time.Duration {
	return time.Duration(t.seen(id).mean.Load())
}
