package raftmeta

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"rfs"
	"rfs/placement"
	"rfs/transport"
	"rfs/transport/arena"
	"rfs/transport/tcp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of the tests.
const patience = 60 * time.Second

var testCluster = rfs.UUID{0xc1}

// cluster is a metadata service over Unix sockets.
type cluster struct {
	t        testing.TB
	dir      string
	arena    *arena.Arena
	options  func(*Options)
	replicas []*server
}

// server is one replica with its listener.
type server struct {
	addr transport.Addr
	fs   vfs.FS
	r    *Replica
	stop func() error
}

func newCluster(t testing.TB, n int, options func(*Options)) *cluster {
	t.Helper()
	a, err := arena.New(arena.Config{Bytes: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: t.TempDir(), arena: a, options: options}
	t.Cleanup(func() {
		for i := range c.replicas {
			c.stop(i)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	for range n {
		c.add(false)
	}
	return c
}

func (c *cluster) transport(name string) transport.Transport {
	tr, err := tcp.New(tcp.Config{
		Key: bytes.Repeat([]byte{7}, 32), Cluster: testCluster, Name: name, Streams: 1,
		BackoffMin: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
		Log: orDiscard(nil),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return tr
}

// add starts one more replica with an empty store.
func (c *cluster) add(join bool) int {
	i := len(c.replicas)
	c.replicas = append(c.replicas, &server{
		addr: transport.Addr{Network: "unix", Address: filepath.Join(c.dir, fmt.Sprint("r", i))}, fs: vfs.NewMem(),
	})
	c.start(i, join)
	return i
}

// start opens replica i on its store and serves it.
func (c *cluster) start(i int, join bool) {
	c.t.Helper()
	s := c.replicas[i]
	o := Options{
		Dir: "store", FS: s.fs, Addr: s.addr, Transport: c.transport(fmt.Sprint("replica", i)), Arena: c.arena,
		Join: join, Tick: 20 * time.Millisecond,
	}
	if c.options != nil {
		c.options(&o)
	}
	r, err := Open(o)
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := net.Listen("unix", s.addr.Address)
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- o.Transport.Serve(ctx, l, r) }()
	s.r = r
	s.stop = sync.OnceValue(func() error {
		err := r.Close()
		cancel()
		return errors.Join(err, <-served)
	})
}

func (c *cluster) stop(i int) {
	if err := c.replicas[i].stop(); err != nil {
		c.t.Error(err)
	}
}

func (c *cluster) addrs() (out []transport.Addr) {
	for _, s := range c.replicas {
		out = append(out, s.addr)
	}
	return out
}

// client returns a client without session, closed when the test ends.
func (c *cluster) client() *Client {
	c.t.Helper()
	cl, err := NewClient(Config{Replicas: c.addrs(), Cluster: testCluster, Transport: c.transport("client"), Arena: c.arena})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		cl.Close(ctx)
	})
	return cl
}

// session returns a client with a session.
func (c *cluster) session(ev Events) *Client {
	c.t.Helper()
	cl := c.client()
	if _, err := cl.OpenSession(c.ctx(), "test", ev); err != nil {
		c.t.Fatal(err)
	}
	return cl
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	c.t.Cleanup(cancel)
	return ctx
}

// leader waits until there is one, and returns its number.
func (c *cluster) leader() int {
	c.t.Helper()
	found := -1
	c.eventually("a leader", func() bool {
		for i, s := range c.replicas {
			if s.r.lead.Load() != nil {
				found = i
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) eventually(what string, f func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("no %s within %v", what, patience)
		}
	}
}

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// began makes a cluster of n replicas with six targets and a pool.
func began(t testing.TB, n int, options func(*Options)) *cluster {
	t.Helper()
	c := newCluster(t, n, func(o *Options) {
		o.TargetLease = time.Hour // nobody serves them
		if options != nil {
			options(o)
		}
	})
	cl := c.client()
	if id := must[rfs.UUID](t)(cl.ClusterInit(c.ctx())); id.IsZero() {
		t.Fatal("no cluster id")
	}
	node := placement.Node{ID: rfs.NewUUID(), Name: "n", Addr: placement.Addr{Network: "unix", Address: filepath.Join(c.dir, "none")}}
	ok(t, cl.RegisterNode(c.ctx(), node))
	for i := range 6 {
		ok(t, cl.RegisterTarget(c.ctx(), placement.Target{ID: rfs.UUID{1, byte(i)}, Node: node.ID, Name: fmt.Sprint("t", i), Capacity: 1 << 40}, true))
	}
	must[rfs.PoolID](t)(cl.CreatePool(c.ctx(), PoolSpec{Name: "p", Scheme: placement.Scheme{K: 4, M: 2}, Slots: 16}))
	return c
}

func TestClusterOfThree(t *testing.T) {
	c := began(t, 3, nil)
	cl := c.session(Events{})
	o := must[OpenResult](t)(cl.Create(c.ctx(), rfs.RootInode, "file", CreateSpec{Mode: 0o644, Open: OpenRead | OpenWrite, Excl: true}))
	if !o.Created || o.Cache != CacheReadWrite || o.Attr.Layout.K != 4 {
		t.Fatalf("created %+v", o)
	}
	a := must[Attr](t)(cl.Commit(c.ctx(), o.Attr.Inode, CommitSpec{Size: 100}))
	if b := must[Attr](t)(cl.Lookup(c.ctx(), rfs.RootInode, "file")); b.Size != 100 || b.Change != a.Change {
		t.Fatalf("looked up %+v after %+v", b, a)
	}
	m := must[*placement.Map](t)(cl.Map(c.ctx(), 1))
	if len(m.Targets) != 6 || len(m.Pools) != 1 {
		t.Fatalf("map %+v", m)
	}
	for _, s := range cl.ClusterStatus(c.ctx()) {
		if s.Err != nil || s.ID == 0 || len(s.Members) != 3 {
			t.Errorf("status %+v", s)
		}
	}
}

func TestFilesSurviveTheirLeader(t *testing.T) {
	t.Parallel()
	c := began(t, 3, nil)
	cl := c.session(Events{})
	for i := range 30 {
		if i == 10 || i == 20 {
			l := c.leader()
			c.stop(l)
			c.mkdir(cl, fmt.Sprint("without", i))
			c.start(l, false)
		}
		c.mkdir(cl, fmt.Sprint("d", i))
	}
	ents, eof, err := cl.Readdir(c.ctx(), rfs.RootInode, 0, 0, true)
	ok(t, err)
	if len(ents) != 32 || !eof {
		t.Fatalf("%d entries, eof %v", len(ents), eof)
	}
	for i := range c.replicas {
		c.level(i)
		c.same(i, c.leader())
	}
}
