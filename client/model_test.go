package client

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"rfs"
	"rfs/internal/crc"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/transport"
	"rfs/transport/arena"
	"rfs/transport/wire"
)

// A model is a cluster in memory: the protocol's rules as plainly as they can be
// said, so that a test can break what it likes. The tests in cluster_test.go run
// on the real thing.
type model struct {
	t      testing.TB
	layout rfs.Layout

	mu      sync.Mutex
	m       *placement.Map
	stores  map[rfs.TargetID]*modelTarget
	files   map[rfs.InodeID]*modelFile
	names   map[string]rfs.InodeID
	next    rfs.InodeID
	session rfs.SessionID
	clients []*modelMeta
}

type modelFile struct {
	attr    raftmeta.Attr
	openers map[*modelMeta]int
	writers map[*modelMeta]int
	grant   uint64
}

// modelTarget is a storage target.
type modelTarget struct {
	mu     sync.Mutex
	shards map[rfs.ShardKey][]*modelVersion // in order of tags
	floor  map[rfs.InodeID]rfs.Tag          // of TRIMs, from stripe 0
	calls  map[wire.Op]int
	// answer, if set, may answer in the target's place: ok says that it did.
	answer func(op wire.Op, c wire.Common, hdr []byte) (st wire.Status, rep []byte, ok bool)
	silent bool // answers nothing
	ended  map[rfs.SessionID]bool
}

type modelVersion struct {
	tag    rfs.Tag
	kind   wire.Kind
	done   bool
	w      rfs.ShardSet
	length uint32
	segs   []wire.Segment
	data   []byte
}

// newModel makes a cluster of n targets with one pool of 8 slots.
func newModel(t testing.TB, k, m uint8, unit, cell uint32, n int) *model {
	c := &model{t: t, stores: map[rfs.TargetID]*modelTarget{}, files: map[rfs.InodeID]*modelFile{}, names: map[string]rfs.InodeID{}, next: 100}
	c.layout = rfs.Layout{Pool: 1, K: k, M: m, Unit: unit, Cell: cell}
	cm := &placement.Map{ClusterID: rfs.NewUUID(), Epoch: 1}
	for i := range n {
		id := rfs.NewUUID()
		cm.Nodes = append(cm.Nodes, placement.Node{ID: id, Name: fmt.Sprint(i), Addr: placement.Addr{Network: "model", Address: id.String()}})
		cm.Targets = append(cm.Targets, placement.Target{ID: id, Node: id, Capacity: 1 << 40, State: placement.Up})
		c.stores[id] = &modelTarget{shards: map[rfs.ShardKey][]*modelVersion{}, floor: map[rfs.InodeID]rfs.Tag{}, calls: map[wire.Op]int{}, ended: map[rfs.SessionID]bool{}}
	}
	p := placement.Pool{ID: 1, Name: "p", Scheme: placement.Scheme{K: k, M: m}, Unit: unit, Cell: cell}
	for s := range 8 {
		slot := placement.Slot{ID: rfs.SlotID(s), Epoch: 1}
		for i := range int(k + m) {
			slot.Members = append(slot.Members, cm.Targets[(s+i)%n].ID)
		}
		p.Slots = append(p.Slots, slot)
	}
	cm.Pools = []placement.Pool{p}
	cm.Index()
	c.m = cm
	return c
}

// setState brings a target up or down, as the metadata service would.
func (c *model) setState(id rfs.TargetID, state placement.TargetState) {
	c.mu.Lock()
	m, err := placement.SetTargetState(c.m, state, id)
	if err != nil {
		c.t.Fatal(err)
	}
	c.m = m
	clients := slices.Clone(c.clients)
	c.mu.Unlock()
	for _, cl := range clients {
		if cl.ev.MapChanged != nil {
			cl.ev.MapChanged(m)
		}
	}
}

// kill stops a target's answers and declares it down.
func (c *model) kill(id rfs.TargetID) {
	t := c.stores[id]
	t.mu.Lock()
	t.silent = true
	t.mu.Unlock()
	c.setState(id, placement.Down)
}

func (c *model) targetOf(ino rfs.InodeID, stripe uint32, shard int) (rfs.TargetID, *modelTarget) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, slot, err := c.m.Slot(c.files[ino].attr.Layout, stripe)
	if err != nil {
		c.t.Fatal(err)
	}
	return slot.Members[shard], c.stores[slot.Members[shard]]
}

// client returns a client of the cluster, closed when the test ends.
func (c *model) client(cfg Config) *FS {
	c.t.Helper()
	a, err := arena.New(arena.Config{Bytes: 256 << 20})
	if err != nil {
		c.t.Fatal(err)
	}
	cfg.Meta, cfg.Transport, cfg.Arena = &modelMeta{c: c}, modelTransport{c}, a
	if cfg.CallTimeout == 0 {
		cfg.CallTimeout = time.Minute
	}
	fs, err := New(c.t.Context(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if err := fs.Close(context.Background()); err != nil {
			c.t.Error("close:", err)
		}
		if err := a.Close(); err != nil {
			c.t.Error(err)
		}
	})
	return fs
}

// The targets.

type modelTransport struct{ c *model }

func (m modelTransport) Dial(_ context.Context, a transport.Addr) (transport.Conn, error) {
	return &modelConn{m.c, make(chan struct{})}, nil
}

func (modelTransport) Serve(context.Context, net.Listener, transport.Handler) error { return nil }

type modelConn struct {
	c    *model
	done chan struct{}
}

func (m *modelConn) Close() error          { return nil }
func (m *modelConn) Done() <-chan struct{} { return m.done }

func (m *modelConn) Call(ctx context.Context, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	c, err := wire.DecodeCommon(hdr)
	if err != nil {
		return transport.Reply{}, err
	}
	t := m.c.stores[c.Target]
	t.mu.Lock()
	if t.silent {
		t.mu.Unlock()
		<-ctx.Done()
		return transport.Reply{}, ctx.Err()
	}
	defer t.mu.Unlock()
	t.calls[op]++
	if t.answer != nil {
		if st, rep, ok := t.answer(op, c, hdr); ok {
			return transport.Reply{Status: st, Header: rep}, nil
		}
	}
	if st, rep := m.fence(t, op, c); st != wire.StatusOK {
		return transport.Reply{Status: st, Header: rep}, nil
	}
	var payload, into []byte
	if src != nil {
		payload = src.Bytes()
	}
	if dst != nil {
		into = dst.Bytes()
	}
	st, rep, pushed := t.serve(m.c, op, c, hdr, payload, into)
	return transport.Reply{Status: st, Header: rep, Pushed: pushed}, nil
}

// fence refuses ended sessions and old epochs of a slot.
func (m *modelConn) fence(t *modelTarget, op wire.Op, c wire.Common) (wire.Status, []byte) {
	switch op {
	case wire.OpPrepare, wire.OpRetag, wire.OpRead, wire.OpResolve, wire.OpOrder:
	default:
		return wire.StatusOK, nil
	}
	if t.ended[c.Session] {
		return wire.StatusSessionLost, nil
	}
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if now := m.c.m.Pools[0].Slots[c.Slot].Epoch; now != c.Epoch {
		return wire.StatusStaleEpoch, wire.AppendStaleEpoch(nil, now, m.c.m.Epoch)
	}
	return wire.StatusOK, nil
}

func (t *modelTarget) serve(c *model, op wire.Op, h wire.Common, hdr, src, dst []byte) (wire.Status, []byte, int) {
	switch op {
	case wire.OpPrepare:
		st, rep := t.prepare(h, hdr, src)
		return st, rep, 0
	case wire.OpRetag:
		r, _ := wire.DecodeRetag(hdr)
		v := t.find(h.Key, r.Old, r.Kind())
		if v == nil || v.done {
			return wire.StatusGone, nil, 0
		}
		v.tag = r.New
		t.sort(h.Key)
		return wire.StatusOK, nil, 0
	case wire.OpCommit, wire.OpAbort:
		_, entries, _ := wire.DecodeCommit(hdr)
		for i := range entries.Len() {
			e := entries.At(i)
			if v := t.find(e.Key, e.Tag, e.Kind); v != nil && op == wire.OpCommit {
				v.done = true
			} else if v != nil && !v.done {
				t.drop(e.Key, v)
			}
		}
		return wire.StatusOK, wire.AppendCommitReply(nil, nil), 0
	case wire.OpRead:
		r, _ := wire.DecodeRead(hdr)
		return t.read(r, dst)
	case wire.OpResolve:
		return c.resolve(h)
	case wire.OpOrder:
		var top rfs.Tag
		for i := range uint8(c.layout.Width()) {
			key := h.Key
			key.Shard = i
			for _, v := range t.shards[key] {
				top = maxOf(top, v.tag)
			}
		}
		return wire.StatusOK, wire.AppendOrderReply(nil, &wire.OrderReply{Highest: top, Millis: 1000}), 0
	case wire.OpTrim:
		r, _ := wire.DecodeTagRequest(hdr)
		for key, vs := range t.shards {
			if key.Inode == h.Key.Inode && key.Stripe >= h.Key.Stripe {
				t.shards[key] = slices.DeleteFunc(vs, func(v *modelVersion) bool { return v.tag.Less(r.Tag) })
			}
		}
		return wire.StatusOK, nil, 0
	case wire.OpSync:
		return wire.StatusOK, nil, 0
	}
	return wire.StatusUnknownOp, nil, 0
}

func maxOf(a, b rfs.Tag) rfs.Tag {
	if a.Less(b) {
		return b
	}
	return a
}

func (t *modelTarget) find(key rfs.ShardKey, tag rfs.Tag, kind wire.Kind) *modelVersion {
	for _, v := range t.shards[key] {
		if v.tag == tag && v.kind == kind {
			return v
		}
	}
	return nil
}

func (t *modelTarget) sort(key rfs.ShardKey) {
	slices.SortFunc(t.shards[key], func(a, b *modelVersion) int {
		return cmp.Or(a.tag.Compare(b.tag), -cmp.Compare(a.kind, b.kind))
	})
}

func (t *modelTarget) drop(key rfs.ShardKey, v *modelVersion) {
	t.shards[key] = slices.DeleteFunc(t.shards[key], func(o *modelVersion) bool { return o == v })
}

func (t *modelTarget) prepare(h wire.Common, hdr, src []byte) (wire.Status, []byte) {
	p, segs, crcs, err := wire.DecodePrepare(hdr)
	if err != nil {
		return wire.StatusBadRequest, []byte(err.Error())
	}
	if int(p.Length) != len(src) {
		return wire.StatusBadRequest, fmt.Appendf(nil, "%d bytes, length %d", len(src), p.Length)
	}
	v := &modelVersion{tag: p.Tag, kind: p.Kind(), w: p.W, length: p.Length, data: bytes.Clone(src), done: h.Flags&wire.FlagComplete != 0}
	for i := range segs.Len() {
		v.segs = append(v.segs, segs.At(i))
	}
	if !bytes.Equal(crcBytes(h.Key, v), crcs) {
		return wire.StatusBadPayload, nil
	}
	if o := t.find(h.Key, v.tag, v.kind); o != nil {
		if h.Flags&wire.FlagRepair != 0 {
			o.data, o.length = v.data, v.length
		}
		return wire.StatusOK, nil
	}
	if h.Flags&wire.FlagRepair == 0 {
		var top rfs.Tag
		for _, o := range t.shards[h.Key] {
			top = maxOf(top, o.tag)
		}
		if !top.Less(v.tag) {
			return wire.StatusStaleTag, wire.AppendTagReply(nil, top)
		}
	}
	t.shards[h.Key] = append(t.shards[h.Key], v)
	t.sort(h.Key)
	return wire.StatusOK, nil
}

// crcBytes is the list of checksums of a version's payload.
func crcBytes(key rfs.ShardKey, v *modelVersion) (b []byte) {
	add := func(shard uint8, off uint32, p []byte) {
		for _, c := range appendCRCs(nil, crc.Of(key.Inode, key.Stripe, shard), off, p) {
			b = append(b, byte(c), byte(c>>8), byte(c>>16), byte(c>>24))
		}
	}
	if v.kind == wire.Full {
		add(key.Shard, 0, v.data)
		return b
	}
	at := uint32(0)
	for _, g := range v.segs {
		if !g.Zero {
			add(g.Shard, g.Off, v.data[at:at+g.Len])
			at += g.Len
		}
	}
	return b
}

// base returns the newest complete Full version, and what is above it.
func (t *modelTarget) base(key rfs.ShardKey) (b *modelVersion, above []*modelVersion) {
	vs := t.shards[key]
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].kind == wire.Full && vs[i].done {
			return vs[i], vs[i+1:]
		}
	}
	return &modelVersion{}, vs
}

func (t *modelTarget) read(r wire.Read, dst []byte) (wire.Status, []byte, int) {
	if r.Flags&wire.FlagExact != 0 {
		v := t.find(r.Key, r.Tag, wire.Full)
		if v == nil {
			return wire.StatusGone, nil, 0
		}
		return push(r, &wire.ReadReply{Tag: v.tag, Base: v.tag, BaseW: v.w, Length: v.length}, v.data, dst)
	}
	b, above := t.base(r.Key)
	rep := &wire.ReadReply{Tag: b.tag, Base: b.tag, BaseW: b.w, Length: b.length}
	want := r.Key.Shard
	if r.Flags&wire.FlagOverlays != 0 {
		want = r.Want
	}
	data := b.data
	if len(above) > 0 {
		data = bytes.Clone(data)
	}
	var over extents
	for _, v := range above {
		at := uint32(0)
		touches := v.kind == wire.Full
		for _, g := range v.segs {
			p := make([]byte, g.Len)
			if !g.Zero {
				at += uint32(copy(p, v.data[at:]))
			}
			if g.Shard != want || g.Off >= r.Off+r.N || g.Off+g.Len <= r.Off {
				continue
			}
			touches = true
			if n := int(g.Off + g.Len); len(data) < n {
				data = append(data, make([]byte, n-len(data))...)
			}
			copy(data[g.Off:], p)
			over.add(g.Off, g.Off+g.Len)
			rep.Tag, rep.Length = v.tag, max(rep.Length, g.Off+g.Len)
		}
		if touches && !v.done {
			rep.Unresolved = v.tag
		}
	}
	if !rep.Unresolved.IsZero() {
		return wire.StatusUnresolved, wire.AppendReadReply(nil, rep, nil, nil), 0
	}
	if r.Flags&wire.FlagOverlays == 0 {
		return push(r, rep, data, dst)
	}
	var segs []wire.Segment
	var crcs []uint32
	n := 0
	for _, x := range over {
		x.off, x.end = max(x.off, r.Off), min(x.end, r.Off+r.N)
		if x.off < x.end {
			segs = append(segs, wire.Segment{Shard: want, Off: x.off, Len: x.len()})
			crcs = appendCRCs(crcs, crc.Of(r.Key.Inode, r.Key.Stripe, want), x.off, data[x.off:x.end])
			n += copy(dst[n:], data[x.off:x.end])
		}
	}
	return wire.StatusOK, wire.AppendReadReply(nil, rep, segs, crcs), n
}

// push answers a READ with what data has of the range.
func push(r wire.Read, rep *wire.ReadReply, data, dst []byte) (wire.Status, []byte, int) {
	p := data[min(int(r.Off), len(data)):min(int(r.Off+r.N), len(data))]
	crcs := appendCRCs(nil, crc.Of(r.Key.Inode, r.Key.Stripe, r.Key.Shard), r.Off, p)
	return wire.StatusOK, wire.AppendReadReply(nil, rep, nil, crcs), copy(dst, p)
}

// resolve is the leader's part, seen from above: it knows all members' versions.
func (c *model) resolve(h wire.Common) (wire.Status, []byte, int) {
	c.mu.Lock()
	slot := c.m.Pools[0].Slots[h.Slot]
	live := map[int]*modelTarget{}
	for i, id := range slot.Members {
		if c.m.IsUp(id) {
			live[i] = c.stores[id]
		}
	}
	c.mu.Unlock()
	type id struct {
		tag  rfs.Tag
		kind wire.Kind
	}
	have := map[id]map[int]*modelVersion{}
	for i, t := range live { // the caller holds the leader's mu: the others are quiet in tests that resolve
		if i != int(h.Key.Shard) {
			t.mu.Lock()
			defer t.mu.Unlock()
		}
		key := h.Key
		key.Shard = uint8(i)
		for _, v := range t.shards[key] {
			n := id{v.tag, v.kind}
			if have[n] == nil {
				have[n] = map[int]*modelVersion{}
			}
			have[n][i] = v
		}
	}
	for n, by := range have {
		forward := false
		for _, v := range by {
			forward = forward || v.done
			missing := 0
			for i := range live {
				if v.w.Has(uint8(i)) && by[i] == nil {
					missing++
				}
			}
			forward = forward || missing == 0
		}
		for i, v := range by {
			key := h.Key
			key.Shard = uint8(i)
			if forward {
				v.done = true
			} else {
				live[i].drop(key, v)
			}
		}
		_ = n
	}
	return wire.StatusOK, wire.AppendResolveReply(nil, &wire.ResolveReply{}), 0
}

// The metadata service.

type modelMeta struct {
	Meta // the calls that no test on the model makes
	c    *model
	ev   raftmeta.Events
	id   rfs.SessionID
}

func (m *modelMeta) OpenSession(_ context.Context, _ string, ev raftmeta.Events) (rfs.SessionID, error) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	m.c.session++
	m.ev, m.id = ev, m.c.session
	m.c.clients = append(m.c.clients, m)
	return m.id, nil
}

func (m *modelMeta) CloseSession(context.Context) error { return nil }
func (m *modelMeta) LeaseUntil() time.Time              { return time.Now().Add(time.Hour) }
func (m *modelMeta) CachedMap() *placement.Map {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	return m.c.m
}
func (m *modelMeta) Map(context.Context, rfs.Epoch) (*placement.Map, error) {
	return m.CachedMap(), nil
}
func (m *modelMeta) RefreshMap(context.Context) (*placement.Map, error) { return m.CachedMap(), nil }
func (m *modelMeta) ReportTarget(context.Context, rfs.TargetID, string) error {
	return nil
}

func (m *modelMeta) file(id rfs.InodeID) *modelFile {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	return m.c.files[id]
}

func (m *modelMeta) attr(id rfs.InodeID) (raftmeta.Attr, error) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if f := m.c.files[id]; f != nil {
		return f.attr, nil
	}
	return raftmeta.Attr{}, rfs.ErrNotFound
}

func (m *modelMeta) Getattr(_ context.Context, id rfs.InodeID) (raftmeta.Attr, error) {
	f := m.file(id)
	m.c.mu.Lock()
	var ask []*modelMeta
	for o := range f.writers {
		if o != m {
			ask = append(ask, o)
		}
	}
	m.c.mu.Unlock()
	for _, o := range ask {
		o.ev.SizeWanted(id)
	}
	return m.attr(id)
}

func (m *modelMeta) GetattrLazy(_ context.Context, id rfs.InodeID) (raftmeta.Attr, error) {
	return m.attr(id)
}

func (m *modelMeta) Create(ctx context.Context, _ rfs.InodeID, name string, spec raftmeta.CreateSpec) (raftmeta.OpenResult, error) {
	m.c.mu.Lock()
	id, ok := m.c.names[name]
	if !ok {
		id = m.c.next
		m.c.next++
		m.c.names[name] = id
		l := m.c.layout
		l.Start = rfs.SlotID(id % 8)
		m.c.files[id] = &modelFile{
			attr:    raftmeta.Attr{Inode: id, Mode: raftmeta.TypeFile | 0o644, Nlink: 1, Layout: l},
			openers: map[*modelMeta]int{}, writers: map[*modelMeta]int{},
		}
	}
	m.c.mu.Unlock()
	res, err := m.Open(ctx, id, spec.Open)
	res.Created = !ok
	return res, err
}

func (m *modelMeta) Open(_ context.Context, id rfs.InodeID, mode raftmeta.OpenMode) (raftmeta.OpenResult, error) {
	f := m.file(id)
	if f == nil {
		return raftmeta.OpenResult{}, rfs.ErrNotFound
	}
	m.c.mu.Lock()
	f.openers[m]++
	if mode&raftmeta.OpenWrite != 0 {
		f.writers[m]++
	}
	f.grant++
	grant, cache := f.grant, raftmeta.CacheReadWrite
	var recall []*modelMeta
	if len(f.openers) > 1 {
		cache = raftmeta.CacheRead
		if len(f.writers) > 0 {
			cache = raftmeta.CacheNone
		}
		for o := range f.openers {
			if o != m {
				recall = append(recall, o)
			}
		}
	}
	m.c.mu.Unlock()
	for _, o := range recall {
		o.ev.Recall(raftmeta.Recall{Inode: id, Mode: cache, At: grant})
	}
	a, err := m.attr(id)
	return raftmeta.OpenResult{Attr: a, Cache: cache, Grant: grant}, err
}

func (m *modelMeta) CloseFile(_ context.Context, id rfs.InodeID, mode raftmeta.OpenMode) error {
	m.Release(id, mode)
	return nil
}

func (m *modelMeta) Release(id rfs.InodeID, mode raftmeta.OpenMode) {
	f := m.file(id)
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if f.openers[m]--; f.openers[m] == 0 {
		delete(f.openers, m)
	}
	if mode&raftmeta.OpenWrite != 0 {
		if f.writers[m]--; f.writers[m] == 0 {
			delete(f.writers, m)
		}
	}
}

func (m *modelMeta) Commit(_ context.Context, id rfs.InodeID, spec raftmeta.CommitSpec) (raftmeta.Attr, error) {
	f := m.file(id)
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	f.attr.Size = max(f.attr.Size, spec.Size)
	f.attr.Mtime = max(f.attr.Mtime, spec.Mtime)
	return f.attr, nil
}

func (m *modelMeta) Setattr(_ context.Context, id rfs.InodeID, set raftmeta.SetAttr) (raftmeta.Attr, error) {
	f := m.file(id)
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if set.Size != nil {
		if *set.Size < f.attr.Size {
			f.attr.Trims = append(f.attr.Trims, raftmeta.Trim{Size: *set.Size, Tag: set.Tag})
		}
		f.attr.Size = *set.Size
	}
	a := f.attr
	a.Trims = slices.Clone(a.Trims)
	return a, nil
}

func (m *modelMeta) TrimDone(_ context.Context, id rfs.InodeID, tag rfs.Tag) error {
	f := m.file(id)
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	f.attr.Trims = slices.DeleteFunc(f.attr.Trims, func(t raftmeta.Trim) bool { return t.Tag == tag })
	return nil
}

func (m *modelMeta) ReserveAppend(_ context.Context, id rfs.InodeID, n int64) (int64, error) {
	f := m.file(id)
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	off := f.attr.Size
	f.attr.Size += n
	return off, nil
}

func arenaOf(t testing.TB) (*arena.Arena, error) { return arena.New(arena.Config{Bytes: 256 << 20}) }

// waitFor polls until ok, a minute at most.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatal("waited a minute")
		}
		time.Sleep(time.Millisecond)
	}
}
