package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rfs"
	"rfs/chunkstore"
	"rfs/erasure"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/server/stripe"
	"rfs/transport"
	"rfs/transport/arena"
	"rfs/transport/tcp"
	"rfs/transport/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	unit = 64 << 10
	cell = 16 << 10
)

// meta is the metadata service as far as a server sees it: the transitions of
// the real state machine, without Raft. Leases end when a test says so.
type meta struct {
	mu     sync.Mutex
	m      *placement.Map
	ended  []rfs.SessionID
	lease  time.Duration
	silent bool
	beats  int
}

func (f *meta) change(t testing.TB, do func(m *placement.Map) (*placement.Map, error)) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := do(f.m)
	if err != nil {
		t.Fatal(err)
	}
	f.m = m
}

func (f *meta) get() *placement.Map {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m
}

func (f *meta) RegisterNode(_ context.Context, n placement.Node) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := placement.AddNode(f.m, n)
	if err == nil {
		f.m = m
	}
	return err
}

func (f *meta) RegisterTarget(_ context.Context, t placement.Target, clean bool) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.m.Target(t.ID)
	m, err := placement.AddTarget(f.m, t)
	if err == nil && old != nil && (old.State == placement.Down || !clean) {
		m, err = placement.SetTargetState(m, placement.Up, t.ID)
	}
	if err == nil {
		f.m = m
	}
	return err
}

func (f *meta) Heartbeat(_ context.Context, _ rfs.NodeID, reports []raftmeta.TargetReport, cursor uint32) (r raftmeta.HeartbeatReply, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.beats++
	if f.silent {
		return r, rfs.ErrUnavailable
	}
	for _, t := range reports {
		if t.Failed && f.m.IsUp(t.Target) {
			f.m, err = placement.SetTargetState(f.m, placement.Down, t.Target)
		}
		if !f.m.IsUp(t.Target) {
			r.Down = append(r.Down, t.Target)
		}
	}
	r.MapEpoch, r.Lease = f.m.Epoch, f.lease
	r.Ended, r.Cursor = f.ended[cursor:], uint32(len(f.ended))
	return r, err
}

func (f *meta) Map(context.Context, rfs.Epoch) (*placement.Map, error) { return f.get(), nil }

func (f *meta) SlotSynced(_ context.Context, t rfs.TargetID, p rfs.PoolID, s rfs.SlotID, e rfs.Epoch) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, err := placement.SetSlotSynced(f.m, p, s, t, e)
	if err == nil {
		f.m = m
	}
	return err
}

func (f *meta) ReportTarget(context.Context, rfs.TargetID, string) error { return nil }

// A daemon is one node with one target.
type daemon struct {
	node   placement.Node
	dir    string
	id     rfs.TargetID
	s      *Server
	cancel context.CancelFunc
	done   chan error
	conn   transport.Conn // the test client's
}

// A cluster is daemons over Unix sockets, each with a store on disk.
type cluster struct {
	t       testing.TB
	meta    *meta
	arena   *arena.Arena
	tr      *tcp.Transport
	id      rfs.UUID
	scheme  placement.Scheme
	daemons []*daemon
	opts    Options
	tags    uint32
	session rfs.SessionID
	slotIn  rfs.SlotID
}

func newTestCluster(t testing.TB, scheme string, targets int, change ...func(*Options)) *cluster {
	t.Helper()
	sch, err := placement.ParseScheme(scheme)
	if err != nil {
		t.Fatal(err)
	}
	a, err := arena.New(arena.Config{Bytes: 256 << 20, NoHugePages: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, arena: a, id: rfs.NewUUID(), scheme: sch, session: 7,
		meta: &meta{m: &placement.Map{Epoch: 1}, lease: time.Hour}}
	c.opts = Options{Meta: c.meta, Arena: a, Tick: 10 * time.Millisecond, ResolveAfter: time.Hour, Fold: stripe.FoldPolicy{Idle: time.Hour}}
	level := slog.LevelError + 4
	if testing.Verbose() && os.Getenv("RFS_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	c.opts.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	for _, f := range change {
		f(&c.opts)
	}
	key := bytes.Repeat([]byte{9}, 32)
	if c.tr, err = tcp.New(tcp.Config{Key: key, Cluster: c.id, Name: "test", Streams: 1, Log: c.opts.Log}); err != nil {
		t.Fatal(err)
	}
	c.opts.Transport = c.tr
	dirs := t.TempDir() // before the cleanup that needs it
	t.Cleanup(func() {
		for _, d := range c.daemons {
			c.stop(d)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	sock, err := os.MkdirTemp("", "rfs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sock) })
	for i := range targets {
		d := &daemon{dir: filepath.Join(dirs, fmt.Sprint("target", i)), id: rfs.NewUUID()}
		d.node = placement.Node{ID: rfs.NewUUID(), Name: fmt.Sprint("n", i), Addr: placement.Addr{Network: "unix", Address: filepath.Join(sock, fmt.Sprint(i))}}
		if err := chunkstore.Format(chunkstore.Options{Dir: d.dir, ClusterID: c.id, TargetID: d.id, Capacity: 64 << 20, SegmentSize: 4 << 20}); err != nil {
			t.Fatal(err)
		}
		c.daemons = append(c.daemons, d)
		c.start(d)
	}
	c.meta.change(t, func(m *placement.Map) (*placement.Map, error) {
		return placement.AddPool(m, "p", sch, unit, cell, 1)
	})
	c.spread()
	return c
}

// start begins (again) to serve a daemon's target.
func (c *cluster) start(d *daemon) {
	c.t.Helper()
	st, err := chunkstore.Open(chunkstore.Options{Dir: d.dir, ClusterID: c.id, TargetID: d.id, MinAvail: -1, NoDirect: true, Log: c.opts.Log})
	if err != nil {
		c.t.Fatal(err)
	}
	o := c.opts
	o.Node, o.Targets = d.node, []TargetOptions{{Name: d.node.Name, Store: st}}
	if d.s, err = New(o); err != nil {
		c.t.Fatal(err)
	}
	os.Remove(d.node.Addr.Address)
	l, err := net.Listen("unix", d.node.Addr.Address)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel, d.done = cancel, make(chan error, 1)
	go func() { d.done <- c.tr.Serve(ctx, l, d.s) }()
	if err := d.s.Start(c.ctx()); err != nil {
		c.t.Fatal(err)
	}
	if d.conn == nil {
		if d.conn, err = c.tr.Dial(c.ctx(), transport.Addr(d.node.Addr)); err != nil {
			c.t.Fatal(err)
		}
	}
}

// stop ends a daemon cleanly.
func (c *cluster) stop(d *daemon) {
	if d.s == nil {
		return
	}
	d.cancel()
	if err := <-d.done; err != nil {
		c.t.Error(err)
	}
	if d.conn != nil {
		d.conn.Close()
		d.conn = nil
	}
	if err := d.s.Close(); err != nil {
		c.t.Error(err)
	}
	d.s = nil
}

// kill ends a daemon and has its next start find the store unclean.
func (c *cluster) kill(d *daemon) {
	c.stop(d)
	if err := os.Remove(filepath.Join(d.dir, "clean")); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.t.Cleanup(cancel)
	return ctx
}

// spread gives all daemons the newest map.
func (c *cluster) spread() {
	for _, d := range c.daemons {
		if d.s != nil {
			d.s.refreshMap(c.ctx(), c.meta.get().Epoch)
		}
	}
}

// down declares a daemon's target down.
func (c *cluster) down(d *daemon) {
	c.meta.change(c.t, func(m *placement.Map) (*placement.Map, error) {
		return placement.SetTargetState(m, placement.Down, d.id)
	})
	c.spread()
}

func (c *cluster) pool() *placement.Pool { return &c.meta.get().Pools[0] }
func (c *cluster) slot() *placement.Slot { return &c.pool().Slots[c.slotIn] }

// member returns the daemon at a position.
func (c *cluster) member(pos int) *daemon { return c.daemon(c.slot().Members[pos]) }

func (c *cluster) daemon(id rfs.TargetID) *daemon {
	for _, d := range c.daemons {
		if d.id == id {
			return d
		}
	}
	c.t.Fatalf("no daemon %v", id)
	return nil
}

// until waits for something to become true.
func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("waited a minute for: %s", what)
		}
	}
}

// synced waits until no member is being synced.
func (c *cluster) synced() {
	c.t.Helper()
	c.until("all slots synced", func() bool { return c.slot().Syncing.IsEmpty() && c.slot().Incoming == nil })
	c.spread()
}

func (c *cluster) nextTag() rfs.Tag {
	c.tags++
	return rfs.Tag{HLC: uint64(time.Now().UnixMicro()) << 12, Session: c.session, Seq: c.tags}
}

func (c *cluster) common(x stripe.Stripe, pos int) wire.Common {
	sl := c.slot()
	return wire.Common{Target: sl.Members[pos], Key: rfs.ShardKey{Inode: x.Inode, Stripe: x.Stripe, Shard: uint8(pos)}, Slot: sl.ID, Epoch: sl.Epoch, Session: c.session}
}

func (c *cluster) buf(b []byte) transport.Buf {
	x, err := c.arena.Get(c.ctx(), max(1, len(b)))
	if err != nil {
		c.t.Fatal(err)
	}
	copy(x.Bytes(), b)
	return x
}

func (c *cluster) call(id rfs.TargetID, op wire.Op, hdr []byte, src, dst transport.Buf) transport.Reply {
	c.t.Helper()
	rep, err := c.daemon(id).conn.Call(c.ctx(), op, hdr, src, dst)
	if err != nil {
		c.t.Fatal(err)
	}
	return rep
}

// A write is a write of a stripe, ready to be sent to its members.
type write struct {
	c      *cluster
	x      stripe.Stripe
	tag    rfs.Tag
	w      rfs.ShardSet
	kind   wire.Kind
	shards [][]byte // Full
	segs   []wire.Segment
	bytes  [][]byte // of segs
}

// full is a write of a whole stripe.
func (c *cluster) full(x stripe.Stripe, data [][]byte) *write {
	w := &write{c: c, x: x, tag: c.nextTag(), shards: make([][]byte, c.n())}
	longest := 0
	for i, d := range data {
		w.shards[i] = d
		longest = max(longest, len(d))
		if len(d) > 0 {
			w.w.Add(uint8(i))
		}
	}
	for j := range int(c.scheme.M) {
		w.shards[int(c.scheme.K)+j] = make([]byte, longest)
		w.w.Add(c.scheme.K + uint8(j))
	}
	code, err := erasure.New(int(c.scheme.K), int(c.scheme.M))
	if err == nil {
		err = code.Encode(w.shards[:c.scheme.K], w.shards[c.scheme.K:])
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return w
}

// partial is a write of ranges; b has the bytes of each that is not Zero.
func (c *cluster) partial(x stripe.Stripe, segs []wire.Segment, b ...[]byte) *write {
	w := &write{c: c, x: x, tag: c.nextTag(), kind: wire.Partial, segs: segs}
	for _, g := range segs {
		w.w.Add(g.Shard)
		if g.Zero {
			w.bytes = append(w.bytes, nil)
			continue
		}
		w.bytes = append(w.bytes, b[0])
		b = b[1:]
	}
	for j := range c.scheme.M {
		w.w.Add(c.scheme.K + j)
	}
	return w
}

func (c *cluster) n() int { return int(c.scheme.K + c.scheme.M) }

// at encodes the PREPARE to a position.
func (w *write) at(pos int) (hdr, payload []byte) {
	p := wire.Prepare{Common: w.c.common(w.x, pos), Tag: w.tag, W: w.w}
	var segs []wire.Segment
	var crcs []uint32
	if w.kind == wire.Full {
		payload = w.shards[pos]
		crcs = appendCRCs(nil, p.Key, uint8(pos), 0, payload)
	} else {
		p.Flags |= wire.FlagPartial
		for i, g := range w.segs {
			if pos >= int(w.c.scheme.K) || int(g.Shard) == pos {
				segs = append(segs, g)
				payload = append(payload, w.bytes[i]...)
				crcs = appendCRCs(crcs, p.Key, g.Shard, g.Off, w.bytes[i])
			}
		}
	}
	p.Length = uint32(len(payload))
	return wire.AppendPrepare(nil, &p, segs, crcs), payload
}

// prepare sends one PREPARE.
func (w *write) prepare(pos int) transport.Reply {
	w.c.t.Helper()
	return w.prepareAt(w.c.slot().Members[pos], pos)
}

func (w *write) prepareAt(id rfs.TargetID, pos int) transport.Reply {
	w.c.t.Helper()
	hdr, payload := w.at(pos)
	copy(hdr[32:48], id[:])
	src := w.c.buf(payload)
	defer src.Release()
	return w.c.call(id, wire.OpPrepare, hdr, part{src, len(payload)}, nil)
}

// live returns the positions of W that take part.
func (w *write) live() (pos []int) {
	m := w.c.meta.get()
	for i := range w.c.n() {
		if w.w.Has(uint8(i)) && m.Writable(w.c.slot(), i) {
			pos = append(pos, i)
		}
	}
	return pos
}

// send prepares all of W's live members, which must accept.
func (w *write) send() *write {
	w.c.t.Helper()
	for _, i := range w.live() {
		if rep := w.prepare(i); rep.Status != wire.StatusOK {
			w.c.t.Fatalf("prepare at %d: %v", i, rep.Status)
		}
		if in := w.c.slot().IncomingAt(i); !in.IsZero() {
			if rep := w.prepareAt(in, i); rep.Status != wire.StatusOK {
				w.c.t.Fatalf("prepare at %d's incoming: %v", i, rep.Status)
			}
		}
	}
	return w
}

// commit sends the hints to the given positions, or to all of W.
func (w *write) commit(pos ...int) *write {
	w.c.t.Helper()
	if pos == nil {
		pos = w.live()
	}
	for _, i := range pos {
		c := w.c.common(w.x, i)
		hdr := wire.AppendCommit(nil, &c, []wire.CommitEntry{{Key: c.Key, Kind: w.kind, Tag: w.tag}})
		if rep := w.c.call(c.Target, wire.OpCommit, hdr, nil, nil); rep.Status != wire.StatusOK {
			w.c.t.Fatalf("commit at %d: %v", i, rep.Status)
		}
	}
	return w
}

// apply lays the write over a model of the stripe.
func (w *write) apply(model [][]byte) {
	if w.kind == wire.Full {
		for i := range model {
			clear(model[i])
			copy(model[i], w.shards[i])
		}
		return
	}
	for i, g := range w.segs {
		b := model[g.Shard][g.Off : g.Off+g.Len]
		clear(b)
		copy(b, w.bytes[i])
	}
}

func (c *cluster) model() [][]byte {
	m := make([][]byte, c.scheme.K)
	for i := range m {
		m[i] = make([]byte, unit)
	}
	return m
}

func random(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// leader returns the position of the stripe's leader.
func (c *cluster) leader() int {
	c.t.Helper()
	i := c.meta.get().Leader(c.pool(), c.slot())
	if i < 0 {
		c.t.Fatal("no leader")
	}
	return i
}

func (c *cluster) resolve(x stripe.Stripe, tag rfs.Tag) transport.Reply {
	c.t.Helper()
	r := wire.TagRequest{Common: c.common(x, c.leader()), Tag: tag}
	return c.call(r.Target, wire.OpResolve, wire.AppendTagRequest(nil, &r), nil, nil)
}

// readAt sends one READ of a whole shard.
func (c *cluster) readAt(x stripe.Stripe, pos int, flags, want uint8, tag rfs.Tag) ([]byte, wire.ReadReply, []wire.Segment, wire.Status) {
	c.t.Helper()
	dst := c.buf(make([]byte, unit))
	defer dst.Release()
	r := wire.Read{Common: c.common(x, pos), Tag: tag, N: unit, Want: want}
	r.Flags = flags
	rep := c.call(r.Target, wire.OpRead, wire.AppendRead(nil, &r), nil, dst)
	if rep.Status != wire.StatusOK && rep.Status != wire.StatusUnresolved {
		return nil, wire.ReadReply{}, nil, rep.Status
	}
	rr, segs, crcs, err := wire.DecodeReadReply(rep.Header)
	if err != nil {
		c.t.Fatal(err)
	}
	if flags&wire.FlagOverlays == 0 && rep.Status == wire.StatusOK {
		if _, err := checkRange(r.Key, uint8(pos), 0, dst.Bytes()[:rep.Pushed], crcs.Append(nil)); err != nil {
			c.t.Fatal(err)
		}
	}
	var list []wire.Segment
	for i := range segs.Len() {
		list = append(list, segs.At(i))
	}
	return append([]byte(nil), dst.Bytes()[:rep.Pushed]...), rr, list, rep.Status
}

// read reads a data shard as a client does: what is unresolved the leader resolves.
func (c *cluster) read(x stripe.Stripe, pos int) []byte {
	c.t.Helper()
	for range 5 {
		b, rr, _, st := c.readAt(x, pos, 0, 0, rfs.Tag{})
		switch st {
		case wire.StatusOK:
			return append(b, make([]byte, unit-len(b))...)
		case wire.StatusUnresolved:
			if rep := c.resolve(x, rr.Unresolved); rep.Status != wire.StatusOK {
				c.t.Fatalf("resolve: %v", rep.Status)
			}
		default:
			c.t.Fatalf("read of position %d: %v", pos, st)
		}
	}
	c.t.Fatal("unresolved after five resolutions")
	return nil
}

// rebuilt reads a data shard from everything but its target.
func (c *cluster) rebuilt(x stripe.Stripe, pos, parity int) []byte {
	c.t.Helper()
	k := int(c.scheme.K)
	over, rr, segs, st := c.readAt(x, parity, wire.FlagOverlays, uint8(pos), rfs.Tag{})
	for st == wire.StatusUnresolved {
		if rep := c.resolve(x, rr.Unresolved); rep.Status != wire.StatusOK {
			c.t.Fatalf("resolve: %v", rep.Status)
		}
		over, rr, segs, st = c.readAt(x, parity, wire.FlagOverlays, uint8(pos), rfs.Tag{})
	}
	if st != wire.StatusOK {
		c.t.Fatalf("overlays at %d: %v", parity, st)
	}
	out := make([]byte, unit)
	if !rr.Base.IsZero() && rr.BaseW.Has(uint8(pos)) {
		shards := make([][]byte, c.n())
		var have, want rfs.ShardSet
		want.Add(uint8(pos))
		shards[pos] = out
		count := 0
		for i := c.n() - 1; i >= 0 && count < k; i-- { // as much parity as there is
			if i == pos {
				continue
			}
			if !rr.BaseW.Has(uint8(i)) {
				have.Add(uint8(i))
				count++
				continue
			}
			if !c.meta.get().Readable(c.slot(), i) {
				continue
			}
			b, _, _, st := c.readAt(x, i, wire.FlagExact, 0, rr.Base)
			if st == wire.StatusGone { // folded meanwhile
				return c.rebuilt(x, pos, parity)
			}
			if st != wire.StatusOK {
				c.t.Fatalf("base %v at %d: %v", rr.Base, i, st)
			}
			shards[i] = b
			have.Add(uint8(i))
			count++
		}
		code, err := erasure.New(k, int(c.scheme.M))
		if err == nil {
			err = code.Reconstruct(shards, have, want)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	for _, g := range segs {
		b := out[g.Off : g.Off+g.Len]
		clear(b)
		if !g.Zero {
			over = over[copy(b, over):]
		}
	}
	return out
}

// check reads the stripe from every side and compares it with the model.
func (c *cluster) check(x stripe.Stripe, model [][]byte) {
	c.t.Helper()
	m := c.meta.get()
	readable := 0
	for i := range c.n() {
		if m.Readable(c.slot(), i) {
			readable++
		}
	}
	for i := range int(c.scheme.K) {
		if m.Readable(c.slot(), i) {
			if got := c.read(x, i); !bytes.Equal(got, model[i]) {
				c.t.Fatalf("shard %d of %v differs at %d", i, x, differ(got, model[i]))
			}
		}
		for p := int(c.scheme.K); p < c.n(); p++ {
			others := readable
			if m.Readable(c.slot(), i) {
				others--
			}
			if m.Readable(c.slot(), p) && others >= int(c.scheme.K) {
				if got := c.rebuilt(x, i, p); !bytes.Equal(got, model[i]) {
					c.t.Fatalf("shard %d of %v, rebuilt through parity %d, differs at %d", i, x, p, differ(got, model[i]))
				}
			}
		}
	}
}

func differ(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}
