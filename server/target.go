package server

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"rfs"
	"rfs/chunkstore"
	"rfs/internal/hlc"
	"rfs/internal/metrics"
	"rfs/server/stripe"
	"rfs/transport/wire"
)

// maxFloors is how many stripes' promises a target remembers one by one.
const maxFloors = 1 << 16

// A target is one store being served.
type target struct {
	id     rfs.TargetID
	name   string
	label  string // of metrics
	weight float64
	store  *chunkstore.Store

	// serveUntil is when the lease's half is over, in nanoseconds since start; 0: fenced.
	serveUntil atomic.Int64
	errors     atomic.Int64           // disk errors in a row
	failed     atomic.Pointer[string] // out of service for good: why
	down       atomic.Bool            // the map has it so, and it is not registered again yet
	life       atomic.Int64           // rises when it is registered (again)
	syncing    atomic.Int64           // slots to be brought up
	changed    chan struct{}          // the map changed

	quick   chan struct{}    // the janitor has something to do now
	stripes [1024]sync.Mutex // see Server's Locks

	mu     sync.Mutex // guards all below
	floors *stripe.Floors
	turns  map[stripe.Stripe]stripe.Turn
	taking map[slotRef]int // slots that it takes over, and in which it takes no PREPARE yet

	work backlog
}

// started is the zero of monotonic times here.
var started = time.Now()

// newTarget begins with a floor under everything: promises are kept in memory,
// and those of the last run were all below its clock.
func newTarget(o TargetOptions, clock *hlc.Clock) *target {
	t := &target{
		id: o.Store.Identity().Target, name: o.Name, weight: o.Weight, store: o.Store,
		floors: stripe.NewFloors(maxFloors), turns: make(map[stripe.Stripe]stripe.Turn), taking: make(map[slotRef]int),
	}
	t.label = t.id.String()[:8]
	t.floors.Raise(rfs.Tag{HLC: clock.Now()})
	t.work.init()
	t.changed, t.quick = make(chan struct{}, 1), make(chan struct{}, 1)
	return t
}

// outOfService says why the target answers nothing now, or "".
func (t *target) outOfService(now time.Time) string {
	if why := t.failed.Load(); why != nil {
		return *why
	}
	if int64(now.Sub(started)) >= t.serveUntil.Load() {
		return "fenced: the metadata service has not acknowledged this target for half a lease"
	}
	return ""
}

// lock takes the stripe's lock.
func (t *target) lock(s stripe.Stripe) *sync.Mutex {
	h := (uint64(s.Inode)*0x9e3779b97f4a7c15 ^ uint64(s.Stripe)*0xff51afd7ed558ccd)
	mu := &t.stripes[h>>54]
	mu.Lock()
	return mu
}

func (t *target) promise(s stripe.Stripe, tag rfs.Tag) rfs.Tag {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.floors.Promise(s, tag)
	return t.floors.Of(s)
}

// limits returns the stripe's floor and whose turn it is.
func (t *target) limits(s stripe.Stripe) (rfs.Tag, stripe.Turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.floors.Of(s), t.turns[s]
}

// giveTurn lets only the session write the stripe for a while; false: another one has the turn.
func (t *target) giveTurn(s stripe.Stripe, id rfs.SessionID, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.turns[s].Excludes(id, now) {
		return false
	}
	for k, turn := range t.turns { // few: a turn is for writers that collided three times
		if !now.Before(turn.Until) {
			delete(t.turns, k)
		}
	}
	t.turns[s] = stripe.Turn{Session: id, Until: now.Add(stripe.TurnTime)}
	return true
}

// endTurn ends the session's turn: its write is complete.
func (t *target) endTurn(s stripe.Stripe, id rfs.SessionID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.turns) > 0 && t.turns[s].Session == id {
		delete(t.turns, s)
	}
}

func stripeOf(k rfs.ShardKey) stripe.Stripe {
	return stripe.Stripe{Inode: k.Inode, Stripe: k.Stripe}
}

// scratch is what a request needs and the next can use again.
type scratch struct {
	stored []chunkstore.Version
	held   []stripe.Version
	segs   []chunkstore.Segment
	wsegs  []wire.Segment
	crcs   []uint32
	head   []byte
}

var scratches = sync.Pool{New: func() any { return &scratch{head: make([]byte, 0, 8<<10)} }}

// held reads what the target holds of a shard into w.
func (t *target) held(w *scratch, key rfs.ShardKey) (err error) {
	w.held = w.held[:0]
	if w.stored, err = t.store.AppendVersions(w.stored[:0], key); err != nil {
		return err
	}
	for i := range w.stored {
		w.held = append(w.held, versionOf(&w.stored[i]))
	}
	return nil
}

func versionOf(v *chunkstore.Version) stripe.Version {
	x := stripe.Version{ID: stripe.ID{Tag: v.Tag, Kind: wireKind(v.Kind)}, W: v.W, Length: v.Length, Fold: v.Fold}
	if v.State == chunkstore.Complete {
		x.State = wire.Complete
	}
	if v.Kind == chunkstore.Partial {
		x.Length = uint32(v.PayloadLen())
		x.Segments = make([]wire.Segment, len(v.Segments))
		for i, g := range v.Segments {
			x.Segments[i] = wire.Segment(g)
		}
	}
	return x
}

func wireKind(k chunkstore.Kind) wire.Kind {
	if k == chunkstore.Partial {
		return wire.Partial
	}
	return wire.Full
}

func storeKind(k wire.Kind) chunkstore.Kind {
	if k == wire.Partial {
		return chunkstore.Partial
	}
	return chunkstore.Full
}

// versions returns what the target holds of a shard, for keeps.
func (t *target) versions(key rfs.ShardKey) ([]stripe.Version, error) {
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	if err := t.held(w, key); err != nil {
		return nil, err
	}
	return slices.Clone(w.held), nil
}

// statusOf says what an error of the store means to who asked, and counts it:
// a disk that keeps failing takes its target out of service.
func (t *target) statusOf(s *Server, err error) wire.Status {
	switch {
	case err == nil:
		t.errors.Store(0)
		return wire.StatusOK
	case errors.Is(err, rfs.ErrNoSpace):
		return wire.StatusNoSpace
	case errors.Is(err, rfs.ErrCorrupt):
		metrics.CRCFailures.WithLabelValues("disk", t.label).Inc()
		return wire.StatusCorrupt
	case errors.Is(err, rfs.ErrStaleTag):
		return wire.StatusStaleTag
	case errors.Is(err, rfs.ErrNotFound):
		return wire.StatusNotFound
	case errors.Is(err, rfs.ErrInvalid):
		return wire.StatusInvalid
	case errors.Is(err, rfs.ErrUnavailable):
		return wire.StatusUnavailable
	}
	if n := t.errors.Add(1); n >= int64(s.opts.MaxErrors) || errors.Is(err, rfs.ErrReadOnly) {
		why := "the disk of target " + t.name + " failed: " + err.Error() + ": replace it, or restart rfsd once it is mended"
		if t.failed.CompareAndSwap(nil, &why) {
			s.log.Error("target out of service", "target", t.name, "err", err, "errors", n)
			signal(s.agent.beat)
		}
	}
	return wire.StatusIO
}
