// Package server is a storage daemon: the targets of a node answering data
// requests, and the agent that keeps them in the cluster.
//
// The way of a write, one function a step:
//
//	Server.ServeRPC        which target; is it fenced, is the slot's epoch right
//	Server.prepare         admit -> take memory -> pull -> check CRCs -> store
//	  target.admit         stripe.Admit on what is held, promised, and whose turn it is
//	  transport.Request.Pull
//	  target.store         once more admitted, under the locks; chunkstore.Put
//
// and around it
//
//	leader.go    the first readable parity position of a stripe settles versions that
//	             are not known complete (stripe.Resolver), orders writers, folds overlays
//	resync.go    a target that was away compares itself with its peers, slot by slot
//	agent.go     registration, heartbeats, the map, fencing
//	janitor.go   what was left prepared, and what may be folded
//
// # Locks
//
// In the order in which they are taken; no call to a peer is made under any.
//
//	Server.gate      shared: from the check of a slot's epoch until the change is stored;
//	                 exclusive: while a newer map takes its place. So once a member
//	                 has answered under an epoch, nothing of an older one appears in it.
//	target.stripes   one of 1024 by stripe: a promise (floor) and a store exclude each other
//	target.mu        the floors and turns themselves
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"rfs"
	"rfs/chunkstore"
	"rfs/internal/hlc"
	"rfs/internal/metrics"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/server/stripe"
	"rfs/transport"
	"rfs/transport/wire"
)

// Meta is what a server needs of the metadata service; *raftmeta.Client is one.
type Meta interface {
	RegisterNode(ctx context.Context, n placement.Node) error
	RegisterTarget(ctx context.Context, t placement.Target, clean bool) error
	Heartbeat(ctx context.Context, node rfs.NodeID, targets []raftmeta.TargetReport, cursor uint32) (raftmeta.HeartbeatReply, error)
	// Map returns the cluster map, of epoch min or later.
	Map(ctx context.Context, min rfs.Epoch) (*placement.Map, error)
	SlotSynced(ctx context.Context, t rfs.TargetID, pool rfs.PoolID, slot rfs.SlotID, epoch rfs.Epoch) error
	ReportTarget(ctx context.Context, t rfs.TargetID, detail string) error
}

// Arena lends memory for payload.
type Arena interface {
	Get(ctx context.Context, n int) (transport.Buf, error)
}

// TargetOptions are one target of the node.
type TargetOptions struct {
	Name   string // for people; unique on the node
	Store  *chunkstore.Store
	Weight float64
}

// Options say what a Server serves. Node, Targets, Meta, Transport and Arena have no default.
type Options struct {
	Node    placement.Node
	Targets []TargetOptions
	Meta    Meta
	// Transport reaches the other nodes.
	Transport transport.Transport
	// Arena is for the payload of requests; Background for rebuilding and
	// folding, which must not starve each other. Default of Background: Arena.
	Arena      Arena
	Background Arena
	Log        *slog.Logger // default: slog.Default()

	Fold stripe.FoldPolicy
	// ResolveAfter is how long a version may stay prepared before its stripe's
	// leader is asked what became of its writer. Default 5 s.
	ResolveAfter time.Duration
	// Tick is how often the janitor looks. Default 1 s.
	Tick time.Duration
	// SyncStripes is how many stripes of a slot are resynced at a time. Default 4.
	SyncStripes int
	// MaxErrors is after how many disk errors in a row a target is taken out of service. Default 5.
	MaxErrors int
}

func (o Options) withDefaults() Options {
	if o.Background == nil {
		o.Background = o.Arena
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Fold = o.Fold.WithDefaults()
	if o.ResolveAfter == 0 {
		o.ResolveAfter = 5 * time.Second
	}
	if o.Tick == 0 {
		o.Tick = time.Second
	}
	if o.SyncStripes == 0 {
		o.SyncStripes = 4
	}
	if o.MaxErrors == 0 {
		o.MaxErrors = 5
	}
	return o
}

func (o *Options) validate() error {
	var errs []error
	if o.Node.ID.IsZero() {
		errs = append(errs, errors.New("no node id"))
	}
	if len(o.Targets) == 0 {
		errs = append(errs, errors.New("no target: give at least one directory"))
	}
	for _, t := range o.Targets {
		if t.Store == nil {
			errs = append(errs, fmt.Errorf("target %q: no store", t.Name))
		}
	}
	if o.Meta == nil {
		errs = append(errs, errors.New("no metadata service"))
	}
	if o.Transport == nil {
		errs = append(errs, errors.New("no transport"))
	}
	if o.Arena == nil {
		errs = append(errs, errors.New("no arena"))
	}
	if len(errs) > 0 {
		return fmt.Errorf("storage server: %w", errors.Join(errs...))
	}
	return nil
}

// A Server answers the data requests of a node's targets. It is a transport.Handler.
type Server struct {
	opts    Options
	log     *slog.Logger
	clock   *hlc.Clock
	targets map[rfs.TargetID]*target
	peers   peers
	leads   keyed // stripes whose leader is at work here

	gate      sync.RWMutex // see Locks
	cmap      atomic.Pointer[placement.Map]
	fetch     chan struct{} // holds one token: who fetches the map
	agent     agent
	ended     sessions
	counts    counters
	heavies   chan struct{} // tokens of repairs and folds under way
	unmeasure func()        // takes its metrics back

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// New returns a Server of o's targets, which are its own from now on: Close
// closes their stores. It serves nothing before Start has registered it.
func New(o Options) (*Server, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	s := &Server{
		opts: o, log: o.Log.With("node", o.Node.Name), clock: hlc.New(nil),
		targets: make(map[rfs.TargetID]*target), fetch: make(chan struct{}, 1), heavies: make(chan struct{}, 2),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.peers.init(o.Transport)
	s.leads.init()
	s.agent.init()
	s.cmap.Store(&placement.Map{})
	for _, to := range o.Targets {
		t := newTarget(to, s.clock)
		if s.targets[t.id] != nil {
			s.stop()
			return nil, fmt.Errorf("storage server: target %v is given twice, as %q and %q", t.id, s.targets[t.id].name, t.name)
		}
		s.targets[t.id] = t
	}
	s.unmeasure = metrics.AddSource(s.measure)
	return s, nil
}

// Close stops all background work and closes the stores, so that their next
// open finds them clean. No request may be under way, or come after: end Serve before.
func (s *Server) Close() error {
	s.stop()
	s.wg.Wait()
	s.unmeasure()
	s.peers.close()
	var errs []error
	for _, t := range s.targets {
		if err := t.store.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close target %s: %w", t.name, err))
		}
	}
	return errors.Join(errs...)
}

// Map returns the cluster map that the server acts by.
func (s *Server) Map() *placement.Map { return s.cmap.Load() }

// ServeRPC answers one data request.
func (s *Server) ServeRPC(ctx context.Context, r transport.Request) {
	start := time.Now()
	q := requests.Get().(*request)
	defer requests.Put(q)
	q.Request, q.s, q.t, q.op, q.c, q.bytes = r, s, nil, r.Op(), wire.Common{}, 0
	c, err := wire.DecodeCommon(r.Header())
	if err != nil {
		q.fail(wire.StatusBadRequest, err)
		return
	}
	q.c = c
	t := s.targets[c.Target]
	if t == nil {
		q.reply(wire.StatusNotFound, nil)
		return
	}
	q.t = t
	defer metrics.Begin(metrics.Server, t.label).Dec()
	defer func() {
		metrics.Observe(metrics.Server, q.op.String(), t.label, q.status.String(), start, q.bytes)
	}()
	if why := t.outOfService(time.Now()); why != "" {
		q.fail(wire.StatusUnavailable, errors.New(why))
		return
	}
	s.dispatch(ctx, q)
}

func (s *Server) dispatch(ctx context.Context, q *request) {
	switch q.op {
	case wire.OpPrepare:
		s.prepare(ctx, q)
	case wire.OpCommit:
		s.commit(ctx, q)
	case wire.OpRetag:
		s.retag(ctx, q)
	case wire.OpAbort:
		s.abort(ctx, q)
	case wire.OpRead:
		s.read(ctx, q)
	case wire.OpResolve:
		s.resolve(ctx, q)
	case wire.OpQuery:
		s.query(ctx, q)
	case wire.OpOrder:
		s.order(ctx, q)
	case wire.OpSync:
		s.sync(ctx, q)
	case wire.OpTrim:
		s.trim(ctx, q)
	case wire.OpDelete:
		s.delete(ctx, q)
	case wire.OpList:
		s.list(ctx, q)
	case wire.OpExtent:
		s.extent(ctx, q)
	case wire.OpTargetStat:
		s.targetStat(ctx, q)
	default:
		q.reply(wire.StatusUnknownOp, nil)
	}
}

var requests = sync.Pool{New: func() any { return new(request) }}

// A request is one request under way at a target. It is used again for another: nothing keeps it.
type request struct {
	transport.Request
	s      *Server
	t      *target
	op     wire.Op
	c      wire.Common
	status wire.Status
	bytes  int
	head   [512]byte // room for reply headers
}

func (q *request) reply(st wire.Status, hdr []byte) { q.push(st, hdr, nil, 0) }

func (q *request) push(st wire.Status, hdr []byte, buf transport.Buf, n int) {
	q.status = st
	q.bytes += n
	if err := q.Reply(st, hdr, buf, n); err != nil {
		q.s.log.Debug("reply not sent", "op", q.op, "peer", q.Peer().Addr, "err", err)
	}
}

// fail answers with a status that carries no header, and logs why when that is not the client's daily life.
func (q *request) fail(st wire.Status, err error) {
	level := slog.LevelDebug
	if st == wire.StatusInternal || st == wire.StatusIO || st == wire.StatusBadRequest || st == wire.StatusCorrupt {
		level = slog.LevelWarn
	}
	q.s.log.Log(context.Background(), level, "request refused", "op", q.op, "target", q.c.Target, "key", q.c.Key,
		"peer", q.Peer().Addr, "status", st, "err", err)
	q.reply(st, nil)
}

// failStore answers with what an error of the store means.
func (q *request) failStore(err error) { q.fail(q.t.statusOf(q.s, err), err) }

// slot is where a stripe is, under one map.
type slot struct {
	m    *placement.Map
	pool *placement.Pool
	*placement.Slot
	pos int // of the target asked
}

// locate finds the slot that a request is about, and refuses it if its epoch is
// not the slot's. A newer epoch than is known here fetches the map first.
// With the gate held shared the answer holds until it is let go.
func (s *Server) locate(c *wire.Common) (sl slot, st wire.Status) {
	sl.m = s.cmap.Load()
	sl.pool = sl.m.Pool(c.Pool)
	if sl.pool == nil || int(c.Slot) >= len(sl.pool.Slots) {
		return sl, wire.StatusUnavailable // a pool that is not known here yet
	}
	sl.Slot = &sl.pool.Slots[c.Slot]
	switch {
	case c.Epoch < sl.Epoch:
		return sl, wire.StatusStaleEpoch
	case c.Epoch > sl.Epoch:
		return sl, wire.StatusUnavailable
	}
	sl.pos = sl.Position(c.Target)
	if sl.pos < 0 || !sl.m.IsUp(c.Target) {
		return sl, wire.StatusUnavailable
	}
	return sl, wire.StatusOK
}

// admitEpoch is locate with the map fetched if the request knows a newer one. It has answered q if not ok.
func (s *Server) admitEpoch(ctx context.Context, q *request) (sl slot, ok bool) {
	sl, st := s.locate(&q.c)
	if st == wire.StatusUnavailable && (sl.Slot == nil || q.c.Epoch > sl.Epoch) {
		s.refreshMap(ctx, sl.m.Epoch+1)
		sl, st = s.locate(&q.c)
	}
	return sl, q.epochOK(sl, st)
}

// epochOK answers q if st, of locate, is not OK.
func (q *request) epochOK(sl slot, st wire.Status) bool {
	switch st {
	case wire.StatusOK:
		return true
	case wire.StatusStaleEpoch:
		q.reply(st, wire.AppendStaleEpoch(q.head[:0], sl.Epoch, sl.m.Epoch))
	default:
		q.fail(st, fmt.Errorf("slot %d of pool %d, epoch %d: not this target's, or not yet known under map epoch %d", q.c.Slot, q.c.Pool, q.c.Epoch, sl.m.Epoch))
	}
	return false
}

// sessions are those that ended.
type sessions struct {
	mu  sync.RWMutex
	ids map[rfs.SessionID]struct{}
}

func (e *sessions) add(ids []rfs.SessionID) {
	if len(ids) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ids == nil {
		e.ids = make(map[rfs.SessionID]struct{})
	}
	for _, id := range ids {
		e.ids[id] = struct{}{}
	}
}

func (e *sessions) has(id rfs.SessionID) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	_, ok := e.ids[id]
	return ok
}
