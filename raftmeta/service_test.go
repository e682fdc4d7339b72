package raftmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

func (c *cluster) mkdir(cl *Client, name string) {
	c.t.Helper()
	must[Attr](c.t)(cl.Mkdir(c.ctx(), rfs.RootInode, name, 0o755, 0, 0))
}

// level waits until replica i has applied what the leader has.
func (c *cluster) level(i int) {
	c.t.Helper()
	c.eventually(fmt.Sprint("replica ", i, " that is level"), func() bool {
		l := c.leader()
		mine, theirs := c.replicas[i].r.Stats(), c.replicas[l].r.Stats()
		return mine.Applied >= theirs.Applied && theirs.Applied > initIndex
	})
}

// same compares the states of two replicas, key by key.
func (c *cluster) same(i, j int) {
	c.t.Helper()
	c.eventually("equal states", func() bool {
		a, b := c.dump(i), c.dump(j)
		return a == b
	})
}

func (c *cluster) dump(i int) string {
	c.t.Helper()
	v := c.replicas[i].r.st.view()
	defer v.close()
	var b strings.Builder
	ok(c.t, v.scanAll(key{v.half}, func(k, val []byte) error {
		fmt.Fprintf(&b, "%x=%x\n", k, val)
		return nil
	}))
	return b.String()
}

func TestARestartKeepsEverything(t *testing.T) {
	t.Parallel()
	c := began(t, 1, nil)
	cl := c.session(Events{})
	o := must[OpenResult](t)(cl.Create(c.ctx(), rfs.RootInode, "f", CreateSpec{Open: OpenWrite}))
	ok(t, cl.Lock(c.ctx(), o.Attr.Inode, LockSpec{Owner: 1, Type: WriteLock, End: 9}, false))
	before := c.dump(0)
	c.stop(0)
	c.start(0, false)
	if after := c.dump(0); !strings.Contains(after, before[:strings.Index(before, "46=")]) {
		t.Error("the state changed")
	}
	os := must[[]Opener](t)(cl.Openers(c.ctx(), o.Attr.Inode))
	if len(os) != 1 || os[0].Session != cl.Session() || os[0].Cache != CacheReadWrite {
		t.Errorf("openers %+v", os)
	}
	l := must[*LockSpec](t)(cl.TestLock(c.ctx(), o.Attr.Inode, LockSpec{Owner: 2, Type: ReadLock, End: 0}))
	if l == nil || l.Owner != 1 || l.Session != cl.Session() {
		t.Errorf("lock %+v", l)
	}
}

func TestSnapshotForOneThatWasAway(t *testing.T) {
	t.Parallel()
	c := began(t, 3, func(o *Options) { o.LogEntries = 20 })
	cl := c.session(Events{})
	away := (c.leader() + 1) % 3
	c.stop(away)
	for i := range 120 {
		c.mkdir(cl, fmt.Sprint("d", i))
	}
	if first, _ := c.replicas[c.leader()].r.rlog.span(); first < 50 {
		t.Fatalf("the log still begins at %d", first)
	}
	c.start(away, false)
	c.level(away)
	c.same(away, c.leader())
	c.stop(away) // and again from what the snapshot left
	c.mkdir(cl, "last")
	c.start(away, false)
	c.level(away)
	c.same(away, c.leader())
}

func TestAReplicaJoinsAndOneLeaves(t *testing.T) {
	t.Parallel()
	c := began(t, 3, func(o *Options) { o.LogEntries = 20 })
	cl := c.session(Events{})
	for i := range 60 {
		c.mkdir(cl, fmt.Sprint("d", i))
	}
	i := c.add(true)
	id := must[uint64](t)(cl.AddMember(c.ctx(), c.replicas[i].addr))
	if again := must[uint64](t)(cl.AddMember(c.ctx(), c.replicas[i].addr)); id != 4 || again != id {
		t.Fatalf("added as %d, then %d", id, again)
	}
	c.level(i)
	c.same(i, c.leader())
	// The leader goes: another takes over, and the new one counts for the quorum.
	gone := c.leader()
	goneID := c.replicas[gone].r.ID()
	ok(t, cl.RemoveMember(c.ctx(), goneID))
	c.eventually("the removed one to know", func() bool { return c.replicas[gone].r.lead.Load() == nil })
	c.stop(gone)
	c.mkdir(cl, "after")
	ms := must[[]Member](t)(cl.Members(c.ctx()))
	if len(ms) != 3 || ms[2].ID != 4 || ms[2].Learner {
		t.Fatalf("members %+v", ms)
	}
	for _, m := range ms {
		if m.ID == goneID {
			t.Errorf("%d is still a member", goneID)
		}
	}
	// Started again, it learns from the others that it was removed.
	c.start(gone, false)
	c.eventually("the removed one to learn of it", func() bool { return c.replicas[gone].r.gone.Load() })
	if err := cl.RemoveMember(c.ctx(), 99); !errors.Is(err, rfs.ErrNotFound) {
		t.Errorf("removing nobody: %v", err)
	}
}

func TestTheLastReplicaStays(t *testing.T) {
	c := began(t, 1, nil)
	if err := c.client().RemoveMember(c.ctx(), 1); !errors.Is(err, rfs.ErrInvalid) {
		t.Errorf("removed: %v", err)
	}
}

func TestInitIsDoneOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3, nil)
	cl := c.client()
	short, cancel := context.WithTimeout(c.ctx(), 200*time.Millisecond)
	defer cancel()
	if _, err := cl.Lookup(short, rfs.RootInode, "x"); !errors.Is(err, rfs.ErrUnavailable) || !strings.Contains(err.Error(), "belongs to no cluster") {
		t.Errorf("before init: %v", err)
	}
	c.stop(2)
	if _, err := cl.ClusterInit(c.ctx2(3 * time.Second)); err == nil || !strings.Contains(err.Error(), c.replicas[2].addr.Address) {
		t.Errorf("init without replica 2: %v", err)
	}
	c.start(2, false)
	id := must[rfs.UUID](t)(cl.ClusterInit(c.ctx()))
	if id != testCluster {
		t.Errorf("cluster %v", id)
	}
	c.leader()
	c.eventually("a second init that is refused", func() bool {
		_, err := cl.ClusterInit(c.ctx())
		return errors.Is(err, rfs.ErrExist)
	})
}

func (c *cluster) ctx2(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	c.t.Cleanup(cancel)
	return ctx
}

func TestNoQuorum(t *testing.T) {
	t.Parallel()
	c := began(t, 3, nil)
	cl := c.session(Events{})
	c.stop(1)
	c.stop(2)
	_, err := cl.Mkdir(c.ctx2(1500*time.Millisecond), rfs.RootInode, "d", 0o755, 0, 0)
	if !errors.Is(err, rfs.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("without a quorum: %v", err)
	}
	for _, s := range c.replicas {
		if !strings.Contains(err.Error(), s.addr.Address) {
			t.Errorf("%v does not name %v", err, s.addr)
		}
	}
	soft, err := NewClient(Config{Replicas: c.addrs(), Transport: c.transport("soft"), Arena: c.arena, Timeout: 300 * time.Millisecond})
	ok(t, err)
	defer soft.Close(context.Background())
	if _, err := soft.Getattr(context.Background(), rfs.RootInode); !errors.Is(err, rfs.ErrUnavailable) {
		t.Errorf("soft: %v", err)
	}
	c.start(1, false)
	c.mkdir(cl, "d2")
}

func TestADamagedLog(t *testing.T) {
	t.Parallel()
	c := began(t, 1, nil)
	cl := c.session(Events{})
	c.mkdir(cl, "d")
	r := c.replicas[0].r
	_, last := r.rlog.span()
	damaged := binary.LittleEndian.AppendUint32(nil, 7)
	ok(t, r.db.Set(entryKey(last-1), append(damaged, "not an entry"...), pebble.Sync))
	c.stop(0)
	o := r.opts
	_, err := Open(o)
	if !errors.Is(err, rfs.ErrCorrupt) || !strings.Contains(err.Error(), o.Dir) || !strings.Contains(err.Error(), "rfs meta remove") {
		t.Fatalf("a damaged log: %v", err)
	}
}

// holder is a session that does as it is told by events.
type holder struct {
	*Client
	mu     sync.Mutex
	grants map[rfs.InodeID]uint64
	recall chan Recall
}

func (c *cluster) holder(flush func(h *holder, ino rfs.InodeID)) *holder {
	h := &holder{grants: map[rfs.InodeID]uint64{}, recall: make(chan Recall, 16)}
	ready := make(chan struct{})
	h.Client = c.session(Events{
		Recall: func(r Recall) {
			<-ready
			h.mu.Lock()
			stale := r.At < h.grants[r.Inode]
			h.mu.Unlock()
			if !stale && flush != nil {
				flush(h, r.Inode)
			}
			h.recall <- r
		},
		SizeWanted: func(ino rfs.InodeID) {
			<-ready
			if flush != nil {
				flush(h, ino)
			}
		},
	})
	close(ready)
	return h
}

func TestASecondOpenRecallsTheCache(t *testing.T) {
	t.Parallel()
	c := began(t, 3, nil)
	a := c.holder(func(h *holder, ino rfs.InodeID) {
		must[Attr](t)(h.Commit(c.ctx(), ino, CommitSpec{Size: 1234, Mtime: 5}))
	})
	b := c.session(Events{})
	o := must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "f", CreateSpec{Open: OpenWrite}))
	if at := must[Attr](t)(b.Getattr(c.ctx(), o.Attr.Inode)); at.Size != 1234 || !at.Writers {
		t.Errorf("the writer was not asked: %+v", at)
	}
	must[Attr](t)(a.Commit(c.ctx(), o.Attr.Inode, CommitSpec{Size: 1, Exact: true}))
	p := must[OpenResult](t)(b.Open(c.ctx(), o.Attr.Inode, OpenRead))
	if p.Cache != CacheNone || p.Attr.Size != 1234 || p.Grant <= o.Grant {
		t.Errorf("opened %+v", p)
	}
	if r := <-a.recall; r.Mode != CacheNone || r.Inode != o.Attr.Inode || r.At < p.Grant {
		t.Errorf("recalled %+v", r)
	}
	// Released files are closed soon, and then another may cache again.
	a.Release(o.Attr.Inode, OpenWrite)
	b.Release(o.Attr.Inode, OpenRead)
	c.eventually("closed file", func() bool {
		return len(must[[]Opener](t)(a.Openers(c.ctx(), o.Attr.Inode))) == 0
	})
}

// A leader that dies while it recalls leaves the recall to the next.
func TestARecallOutlivesItsLeader(t *testing.T) {
	t.Parallel()
	c := began(t, 3, nil)
	hold := make(chan struct{})
	a := c.holder(func(*holder, rfs.InodeID) { <-hold })
	b := c.session(Events{})
	o := must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "f", CreateSpec{Open: OpenWrite}))
	opened := make(chan error, 1)
	go func() {
		_, err := b.Open(c.ctx(), o.Attr.Inode, OpenRead)
		opened <- err
	}()
	c.eventually("open that waits", func() bool {
		return len(must[[]Opener](t)(a.Openers(c.ctx(), o.Attr.Inode))) == 2
	})
	l := c.leader()
	c.stop(l)
	c.leader()
	select {
	case err := <-opened:
		t.Fatalf("opened before the cache was flushed: %v", err)
	default:
	}
	close(hold)
	ok(t, <-opened)
	for _, x := range must[[]Opener](t)(a.Openers(c.ctx(), o.Attr.Inode)) {
		if x.Cache != CacheNone {
			t.Errorf("opener %+v", x)
		}
	}
}

func TestBlockedLocks(t *testing.T) {
	t.Parallel()
	c := began(t, 3, nil)
	a, b := c.session(Events{}), c.session(Events{})
	ino := must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "f", CreateSpec{Open: OpenWrite})).Attr.Inode
	w := LockSpec{Owner: 1, Type: WriteLock, End: ^uint64(0)}
	ok(t, a.Lock(c.ctx(), ino, w, true))
	if err := b.Lock(c.ctx(), ino, w, false); !errors.Is(err, rfs.ErrWouldBlock) {
		t.Fatalf("a held lock: %v", err)
	}
	waits := func() int {
		l := c.replicas[c.leader()].r.st
		l.mu.RLock()
		defer l.mu.RUnlock()
		return len(l.waits)
	}
	// A wait that is given up leaves nothing behind.
	ctx, cancel := context.WithCancel(c.ctx())
	done := make(chan error, 1)
	go func() { done <- b.Lock(ctx, ino, w, true) }()
	c.eventually("wait", func() bool { return waits() > 0 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	c.eventually("wait that is gone", func() bool { a.Unlink(c.ctx(), ino, ""); return waits() == 0 })
	// One that goes on is granted, through a change of leader.
	go func() { done <- b.Lock(c.ctx(), ino, w, true) }()
	c.eventually("wait", func() bool { return waits() > 0 })
	c.stop(c.leader())
	c.leader()
	ok(t, a.Lock(c.ctx(), ino, LockSpec{Owner: 1, End: ^uint64(0)}, false))
	ok(t, <-done)
	if err := a.Lock(c.ctx(), ino, w, false); !errors.Is(err, rfs.ErrWouldBlock) {
		t.Errorf("after the grant: %v", err)
	}
	ok(t, b.CloseSession(c.ctx()))
	ok(t, a.Lock(c.ctx(), ino, w, false))
}

// A client that falls silent loses its session, and what it held.
func TestASilentSessionEnds(t *testing.T) {
	c := began(t, 1, func(o *Options) { o.SessionLease = 700 * time.Millisecond })
	lost := make(chan error, 1)
	a := c.client()
	must[rfs.SessionID](t)(a.OpenSession(c.ctx(), "a", Events{Lost: func(err error) { lost <- err }}))
	o := must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "f", CreateSpec{Open: OpenWrite}))
	ok(t, a.Lock(c.ctx(), o.Attr.Inode, LockSpec{Owner: 1, Type: WriteLock, End: 9}, true))
	if until := a.LeaseUntil(); until.Before(time.Now().Add(-patience)) {
		t.Errorf("lease until %v", until)
	}
	// It lives as long as it polls, and not when it does not.
	s := a.session()
	s.stop()
	<-s.done
	b := c.session(Events{})
	ok(t, b.Lock(c.ctx(), o.Attr.Inode, LockSpec{Owner: 1, Type: WriteLock, End: 9}, true))
	if _, err := a.Mkdir(c.ctx(), rfs.RootInode, "d", 0o755, 0, 0); !errors.Is(err, rfs.ErrSessionLost) {
		t.Errorf("a command of a session that ended: %v", err)
	}
	ctx, stop := context.WithCancel(c.ctx())
	defer stop()
	a.poll(ctx, s)
	if err := <-lost; !errors.Is(err, rfs.ErrSessionLost) {
		t.Errorf("lost: %v", err)
	}
	if a.Session() != 0 || !a.LeaseUntil().IsZero() {
		t.Error("the client still thinks that it has a session")
	}
	ok(t, a.CloseSession(c.ctx()))
	must[rfs.SessionID](t)(a.OpenSession(c.ctx(), "again", Events{}))
}

// storage answers the data requests of targets, and counts them.
type storage struct {
	mu      sync.Mutex
	deleted map[rfs.TargetID]map[rfs.InodeID]bool
	trimmed map[rfs.TargetID]uint32
	extent  int64
}

func (s *storage) ServeRPC(ctx context.Context, r transport.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, err := wire.DecodeCommon(r.Header())
	if err != nil {
		r.Reply(wire.StatusBadRequest, nil, nil, 0)
		return
	}
	var rep []byte
	switch r.Op() {
	case wire.OpDelete:
		if s.deleted[h.Target] == nil {
			s.deleted[h.Target] = map[rfs.InodeID]bool{}
		}
		s.deleted[h.Target][h.Key.Inode] = true
	case wire.OpTrim:
		s.trimmed[h.Target] = h.Key.Stripe
	case wire.OpExtent:
		s.extent += 1000
		rep = wire.AppendExtentReply(nil, s.extent)
	}
	r.Reply(wire.StatusOK, rep, nil, 0)
}

// storages serves the six targets of began's pool.
func (c *cluster) storages(cl *Client) *storage {
	c.t.Helper()
	s := &storage{deleted: map[rfs.TargetID]map[rfs.InodeID]bool{}, trimmed: map[rfs.TargetID]uint32{}}
	addr := filepath.Join(c.dir, "storage")
	l := must[net.Listener](c.t)(net.Listen("unix", addr))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	tr := c.transport("storage")
	go func() { served <- tr.Serve(ctx, l, s) }()
	c.t.Cleanup(func() { cancel(); <-served })
	m := must[*placement.Map](c.t)(cl.Map(c.ctx(), 1))
	n := m.Nodes[0]
	n.Addr = placement.Addr{Network: "unix", Address: addr}
	ok(c.t, cl.RegisterNode(c.ctx(), n))
	return s
}

func TestRemovedFilesAreDeletedOnEachTarget(t *testing.T) {
	t.Parallel()
	c := began(t, 3, nil)
	cl := c.session(Events{})
	s := c.storages(cl)
	down := rfs.UUID{1, 5}
	must[HeartbeatReply](t)(cl.Heartbeat(c.ctx(), rfs.UUID{}, []TargetReport{{Target: down, Failed: true, Detail: "test"}}, 0))
	m := must[*placement.Map](t)(cl.RefreshMap(c.ctx()))
	if m.IsUp(down) {
		t.Fatal("a target whose daemon says that it failed is up")
	}
	files := map[rfs.InodeID]bool{}
	for i := range 20 {
		n := fmt.Sprint("f", i)
		o := must[OpenResult](t)(cl.Create(c.ctx(), rfs.RootInode, n, CreateSpec{Open: OpenWrite}))
		files[o.Attr.Inode] = true
		must[Attr](t)(cl.Unlink(c.ctx(), rfs.RootInode, n))
		cl.Release(o.Attr.Inode, OpenWrite)
	}
	all := func(id rfs.TargetID) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.deleted[id]) == len(files)
	}
	for i := range byte(5) {
		c.eventually(fmt.Sprint("files deleted on target ", i), func() bool { return all(rfs.UUID{1, i}) })
	}
	if n := c.replicas[c.leader()].r.Stats().Purges; n != 20 || all(down) {
		t.Errorf("%d files wait for the target that is down, want 20", n)
	}
	c.stop(c.leader()) // the next goes on
	ok(t, cl.RegisterTarget(c.ctx(), placement.Target{ID: down, Node: m.Nodes[0].ID, Name: "t5", Capacity: 1 << 40}, false))
	c.eventually("files deleted on the target that was down", func() bool { return all(down) })
	c.eventually("empty queue", func() bool { return c.replicas[c.leader()].r.Stats().Purges == 0 })
}

func TestTheCleanerFinishesForTheDead(t *testing.T) {
	t.Parallel()
	c := began(t, 1, nil)
	cl := c.session(Events{})
	s := c.storages(cl)
	o := must[OpenResult](t)(cl.Create(c.ctx(), rfs.RootInode, "f", CreateSpec{Open: OpenWrite}))
	g := must[OpenResult](t)(cl.Create(c.ctx(), rfs.RootInode, "g", CreateSpec{Open: OpenWrite}))
	stripe := o.Attr.Layout.StripeSize()
	must[Attr](t)(cl.Setattr(c.ctx(), o.Attr.Inode, SetAttr{Size: new(3*stripe + 1), Tag: rfs.Tag{HLC: 9}}))
	// The session ends as if its lease had.
	r := c.replicas[c.leader()].r
	r.order(c.ctx(), &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: []uint32{uint32(cl.Session())}, Expired: true}}})
	b := c.session(Events{})
	p := must[OpenResult](t)(b.Open(c.ctx(), g.Attr.Inode, OpenRead))
	if p.Attr.Size < 6000 {
		t.Errorf("opened with size %d: it was to be recovered first", p.Attr.Size)
	}
	c.eventually("swept truncation", func() bool {
		a := must[Attr](t)(b.Getattr(c.ctx(), o.Attr.Inode))
		return len(a.Trims) == 1 && a.Trims[0].Swept && a.Size == 3*stripe+1
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.trimmed) != 6 || s.trimmed[rfs.UUID{1, 0}] != 4 {
		t.Errorf("trimmed %v", s.trimmed)
	}
}

// A target that is silent for a lease is down; one that comes back is told so.
func TestSilentTargetsGoDown(t *testing.T) {
	t.Parallel()
	c := began(t, 3, nil)
	for i := range c.replicas { // now with a short lease
		c.stop(i)
	}
	c.options = func(o *Options) { o.TargetLease = time.Second }
	for i := range c.replicas {
		c.start(i, false)
	}
	changed := make(chan *placement.Map, 64)
	cl := c.session(Events{MapChanged: func(m *placement.Map) { changed <- m }})
	must[*placement.Map](t)(cl.Map(c.ctx(), 1))
	node := cl.CachedMap().Nodes[0].ID
	id := rfs.UUID{1, 0}
	others := func() (up int) {
		m := must[*placement.Map](t)(cl.RefreshMap(c.ctx()))
		for i := range byte(5) {
			if m.IsUp(rfs.UUID{1, i + 1}) {
				up++
			}
		}
		return up
	}
	c.eventually("five silent targets down", func() bool {
		must[HeartbeatReply](t)(cl.Heartbeat(c.ctx(), node, []TargetReport{{Target: id, Capacity: 1 << 40}}, 0))
		return others() == 0
	})
	<-changed
	h := must[HeartbeatReply](t)(cl.Heartbeat(c.ctx(), node, []TargetReport{{Target: rfs.UUID{1, 3}, Capacity: 1 << 40}}, 0))
	if len(h.Down) != 1 || h.Lease != time.Second {
		t.Errorf("reply %+v", h)
	}
	ok(t, cl.RegisterTarget(c.ctx(), placement.Target{ID: rfs.UUID{1, 3}, Node: node, Name: "t3", Capacity: 1 << 40}, true))
	if m := must[*placement.Map](t)(cl.RefreshMap(c.ctx())); !m.IsUp(rfs.UUID{1, 3}) || m.Readable(&m.Pools[0].Slots[0], m.Pools[0].Slots[0].Index(rfs.UUID{1, 3})) {
		t.Error("it is not up, or is read before it has synced")
	}
}

// Long requests and answers go as payload.
func TestLongMessages(t *testing.T) {
	t.Parallel()
	c := began(t, 1, nil)
	cl := c.session(Events{})
	value := []byte(strings.Repeat("v", MaxXattr))
	ok(t, cl.Setxattr(c.ctx(), rfs.RootInode, "user.long", value, 0))
	if got := must[[]byte](t)(cl.Getxattr(c.ctx(), rfs.RootInode, "user.long")); string(got) != string(value) {
		t.Errorf("%d bytes came back", len(got))
	}
	long := strings.Repeat("n", 250)
	for i := range 300 {
		c.mkdir(cl, fmt.Sprintf("%s%d", long, i))
	}
	ents, eof, err := cl.Readdir(c.ctx(), rfs.RootInode, 0, 0, true)
	if err != nil || !eof || len(ents) != 300 || ents[0].Attr == nil {
		t.Errorf("%d entries, %v, %v", len(ents), eof, err)
	}
	if _, err := cl.Mkdir(c.ctx(), rfs.RootInode, strings.Repeat("n", 256), 0, 0, 0); !errors.Is(err, rfs.ErrNameTooLong) {
		t.Errorf("a long name: %v", err)
	}
}

func TestOptionsSayAllThatIsWrong(t *testing.T) {
	_, err := Open(Options{Tick: -1})
	for _, w := range []string{"no directory", "no address", "no transport", "tick"} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not say %q", err, w)
		}
	}
	if _, err := NewClient(Config{Timeout: -1}); err == nil || !strings.Contains(err.Error(), "no arena") {
		t.Errorf("client: %v", err)
	}
}
