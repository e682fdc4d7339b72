package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rfs"
	"rfs/client"
	"rfs/node"
	"rfs/raftmeta"
	"rfs/transport"
	"rfs/transport/wire"
)

// These run on the real thing: metadata replicas, storage daemons, and the
// transport over Unix sockets, all in this process.

const (
	unit = 64 << 10
	cell = 16 << 10
)

// shared is a cluster whose targets no test stops.
var shared struct {
	sync.Once
	d   *node.DevCluster
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.d != nil {
		if err := shared.d.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close the cluster:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func sharedCluster(t testing.TB) *node.DevCluster {
	t.Helper()
	shared.Do(func() {
		shared.d, shared.err = node.Dev(context.Background(), node.DevOptions{
			Replicas: 1, Unit: unit, Cell: cell, Slots: 16, SessionLease: 5 * time.Second,
		})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.d
}

func startCluster(t testing.TB, o node.DevOptions) *node.DevCluster {
	t.Helper()
	if o.Replicas == 0 {
		o.Replicas = 1
	}
	if o.Unit == 0 {
		o.Unit, o.Cell = unit, cell
	}
	if o.Slots == 0 {
		o.Slots = 16
	}
	if o.TargetLease == 0 {
		o.TargetLease = 2 * time.Second
	}
	d, err := node.Dev(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// newClient returns a client of the cluster, closed when the test ends.
func newClient(t testing.TB, d *node.DevCluster) *client.FS {
	return newClientWith(t, d, client.Config{})
}

func newClientWith(t testing.TB, d *node.DevCluster, cfg client.Config) *client.FS {
	t.Helper()
	c, err := d.Connect()
	if err != nil {
		t.Fatal(err)
	}
	cfg.Meta, cfg.Transport, cfg.Arena, cfg.Memory = c.Meta, c.Transport, c.Arena, 64<<20
	fs, err := client.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := fs.Close(ctx); err != nil {
			t.Error("close the client:", err)
		}
		if err := c.Close(); err != nil {
			t.Error("close the connection:", err)
		}
	})
	return fs
}

func createFile(t testing.TB, fs *client.FS, path string) *client.File {
	t.Helper()
	f, err := fs.CreatePath(t.Context(), path, raftmeta.CreateSpec{Mode: 0o644}, client.OpenRead|client.OpenWrite)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // in vain if the test left the cluster with too few targets to write to
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = f.Close(ctx)
	})
	return f
}

func writeAt(t testing.TB, f *client.File, p []byte, off int64) {
	t.Helper()
	if n, err := f.WriteAt(t.Context(), p, off); n != len(p) || err != nil {
		t.Fatalf("write %d at %d: %d, %v", len(p), off, n, err)
	}
}

func mustSync(t testing.TB, f *client.File) {
	t.Helper()
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), 1})
	_, _ = r.Read(p)
	return p
}

func compare(t testing.TB, f *client.File, want []byte, n int) {
	t.Helper()
	p := make([]byte, n)
	for off := 0; off <= len(want); off += n {
		m, err := f.ReadAt(t.Context(), p, int64(off))
		if err != nil && err != io.EOF {
			t.Fatalf("read %d at %d: %v", n, off, err)
		}
		end := min(off+n, len(want))
		if !bytes.Equal(p[:m], want[off:end]) {
			at := 0
			for at < min(m, end-off) && p[at] == want[off+at] {
				at++
			}
			t.Fatalf("read %d at %d: %d bytes, want %d; the first wrong one is %d", n, off, m, end-off, off+at)
		}
	}
}

func TestWriteReadOnACluster(t *testing.T) {
	d := sharedCluster(t)
	fs := newClient(t, d)
	f := createFile(t, fs, "/a")
	want := pattern(1, 3<<20+4321)
	writeAt(t, f, want, 0)
	compare(t, f, want, 200_000)
	mustSync(t, f)
	compare(t, f, want, 1<<20)
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	g, err := newClient(t, d).OpenPath(t.Context(), "/a", client.OpenRead)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(context.Background())
	compare(t, g, want, 300_000)
	a, err := g.Attr(t.Context())
	if err != nil || a.Size != int64(len(want)) {
		t.Fatalf("size %d, %v", a.Size, err)
	}
}

// A random history on one file, while targets go and come back, equals a file in memory.
func TestHistoryWithTargetsLost(t *testing.T) {
	d := startCluster(t, node.DevOptions{})
	fs := newClient(t, d)
	f := createFile(t, fs, "/a")
	r := rand.New(rand.NewPCG(11, 1))
	var want []byte
	for round := range 2 {
		want = history(t, f, want, r, 60, true)
		if err := d.StopTarget(round); err != nil {
			t.Fatal(err)
		}
		want = history(t, f, want, r, 40, false)
		compare(t, f, want, 100_000)
		if err := d.StartTarget(t.Context(), round); err != nil {
			t.Fatal(err)
		}
		want = history(t, f, want, r, 20, false)
		if err := d.WaitSynced(t.Context()); err != nil {
			t.Fatal(err)
		}
		compare(t, f, want, 100_000)
	}
	mustSync(t, f) // with m targets gone nothing can be written
	if err := d.StopTarget(5); err != nil {
		t.Fatal(err)
	}
	if err := d.StopTarget(6); err != nil {
		t.Fatal(err)
	}
	compare(t, f, want, 100_000)
}

// history does random steps on f, whose content is want, and returns what it is then. With cut, truncations are among them.
func history(t *testing.T, f *client.File, want []byte, r *rand.Rand, steps int, cut bool) []byte {
	t.Helper()
	const limit = 1 << 20
	for step := range steps {
		off, n := r.IntN(limit), 1+r.IntN(1<<r.IntN(19))
		switch op := r.IntN(20); {
		case op < 9:
			p := pattern(r.Uint64(), n)
			writeAt(t, f, p, int64(off))
			want = extend(want, off+n)
			copy(want[off:], p)
		case op < 15:
			p := make([]byte, n)
			m, err := f.ReadAt(t.Context(), p, int64(off))
			exp := want[min(off, len(want)):min(off+n, len(want))]
			if err != nil && err != io.EOF || !bytes.Equal(p[:m], exp) {
				t.Fatalf("step %d: read %d at %d of %d: %d, %v", step, n, off, len(want), m, err)
			}
		case op < 16 && cut:
			size := r.IntN(limit)
			if err := f.Truncate(t.Context(), int64(size)); err != nil {
				t.Fatal(err)
			}
			want = extend(want, size)[:size]
		case op == 16:
			if err := f.Punch(t.Context(), int64(off), int64(n)); err != nil {
				t.Fatal(err)
			}
			if off < len(want) {
				clear(want[off:min(off+n, len(want))])
			}
		default:
			mustSync(t, f)
		}
	}
	return want
}

func extend(p []byte, n int) []byte {
	if n > len(p) {
		p = append(p, make([]byte, n-len(p))...)
	}
	return p
}

// What the targets of one client are asked goes through a gate, at which a test
// lets it die: from some PREPARE on nothing leaves it any more.
type gate struct {
	transport.Transport
	left atomic.Int64 // PREPAREs until it dies; negative: it lives on
	dead atomic.Bool
}

func (g *gate) Dial(ctx context.Context, a transport.Addr) (transport.Conn, error) {
	c, err := g.Transport.Dial(ctx, a)
	if err != nil {
		return nil, err
	}
	return &gated{c, g}, nil
}

// waitDead waits until the last PREPARE that was to leave has.
func (g *gate) waitDead(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !g.dead.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the client does not die")
		}
	}
}

type gated struct {
	transport.Conn
	g *gate
}

func (c *gated) Call(ctx context.Context, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	if op == wire.OpPrepare && c.g.left.Load() >= 0 && c.g.left.Add(-1) < 0 {
		c.g.dead.Store(true)
	}
	if c.g.dead.Load() {
		<-ctx.Done()
		return transport.Reply{}, transport.ErrBroken
	}
	return c.Conn.Call(ctx, op, hdr, src, dst)
}

// mortal returns a client that can die, and its gate.
func mortal(t *testing.T, d *node.DevCluster) (*client.FS, *gate) {
	t.Helper()
	c, err := d.Connect()
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Transport: c.Transport}
	g.left.Store(-1)
	var addrs []transport.Addr
	for _, a := range c.Config.Meta {
		addrs = append(addrs, transport.Addr{Network: "unix", Address: strings.TrimPrefix(a, "unix:")})
	}
	meta, err := raftmeta.NewClient(raftmeta.Config{Cluster: c.Identity.ID, Replicas: addrs, Transport: g, Arena: c.Arena})
	if err != nil {
		t.Fatal(err)
	}
	fs, err := client.New(t.Context(), client.Config{Meta: meta, Transport: g, Arena: c.Arena})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // what a dead client says when it is closed does not matter
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		_ = fs.Close(ctx)
		_ = meta.Close(ctx)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return fs, g
}

// A writer dies when some of a stripe's targets have its PREPARE: the next who
// opens the file finds the stripe as it was, or, if k of them have it, as it was to be.
func TestWriterDies(t *testing.T) {
	d := sharedCluster(t)
	fs := newClient(t, d)
	cases := []int64{1, 3, 4, 5}
	for _, n := range cases {
		victim, g := mortal(t, d)
		f, err := victim.CreatePath(t.Context(), fmt.Sprint("/dies", n), raftmeta.CreateSpec{Mode: 0o644}, client.OpenRead|client.OpenWrite)
		if err != nil {
			t.Fatal(err)
		}
		writeAt(t, f, pattern(uint64(n), 4*unit), 0)
		mustSync(t, f)
		g.left.Store(n)
		writeAt(t, f, pattern(uint64(n)+100, 4*unit), 0)
		g.waitDead(t)
	}
	for _, n := range cases { // each open waits until the session of the dead has ended
		h, err := fs.OpenPath(t.Context(), fmt.Sprint("/dies", n), client.OpenRead|client.OpenWrite)
		if err != nil {
			t.Fatal(err)
		}
		want := pattern(uint64(n), 4*unit)
		if n >= 4 {
			want = pattern(uint64(n)+100, 4*unit)
		}
		compare(t, h, want, 100_000)
		writeAt(t, h, []byte("alive"), 5)
		copy(want[5:], "alive")
		mustSync(t, h)
		compare(t, h, want, 4*unit)
		if err := h.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Two clients write records of their own, which lie side by side in the same
// stripes, at the same time: no byte of either is lost.
func TestClientsContend(t *testing.T) {
	d := sharedCluster(t)
	const record, records = 5000, 60
	want := pattern(7, record*records)
	files := [2]*client.File{createFile(t, newClient(t, d), "/shared"), nil}
	var err error
	if files[1], err = newClient(t, d).OpenPath(t.Context(), "/shared", client.OpenRead|client.OpenWrite); err != nil {
		t.Fatal(err)
	}
	defer files[1].Close(context.Background())
	var wg sync.WaitGroup
	for i, f := range files {
		for j := range 2 {
			wg.Go(func() {
				for r := 2*j + i; r < records; r += 4 {
					if _, err := f.WriteAt(t.Context(), want[r*record:(r+1)*record], int64(r*record)); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	for _, f := range files {
		compare(t, f, want, 65_536)
	}
}

// One client writes and truncates while another reads: each byte is the one that
// belongs there, or zero where it was cut off; never one of before the cut.
func TestTruncateRaces(t *testing.T) {
	d := sharedCluster(t)
	const limit = 600_000
	want := pattern(9, limit)
	f := createFile(t, newClient(t, d), "/cut")
	g, err := newClient(t, d).OpenPath(t.Context(), "/cut", client.OpenRead)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(context.Background())
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		p := make([]byte, 100_000)
		for r := rand.New(rand.NewPCG(3, 3)); ; {
			select {
			case <-done:
				return
			default:
			}
			off := r.IntN(limit)
			n, err := g.ReadAt(t.Context(), p, int64(off))
			if err != nil && err != io.EOF {
				t.Error(err)
				return
			}
			for i, b := range p[:n] {
				if b != 0 && b != want[off+i] {
					t.Errorf("byte %d is %x, neither zero nor %x", off+i, b, want[off+i])
					return
				}
			}
		}
	})
	r := rand.New(rand.NewPCG(4, 4))
	for range 40 {
		off := r.IntN(limit - 60_000)
		writeAt(t, f, want[off:off+60_000], int64(off))
		if err := f.Truncate(t.Context(), int64(r.IntN(limit))); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
	if err := f.Truncate(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(t.Context(), limit); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, limit)
	for _, h := range []*client.File{f, g} {
		if n, err := h.ReadAt(t.Context(), p, 0); n != limit || err != nil && err != io.EOF {
			t.Fatal(n, err)
		}
		if !bytes.Equal(p[1000:], make([]byte, limit-1000)) {
			t.Error("bytes of before the truncation came back")
		}
	}
}

// A stream in stripes of full size, read back whole, and with m targets gone.
func TestBigStream(t *testing.T) {
	d := startCluster(t, node.DevOptions{Unit: rfs.DefaultUnit, Cell: rfs.DefaultCell})
	f := createFile(t, newClient(t, d), "/big")
	want := pattern(5, 12<<20+777)
	for off := 0; off < len(want); off += 1 << 20 {
		writeAt(t, f, want[off:min(off+1<<20, len(want))], int64(off))
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	fs := newClient(t, d)
	g, err := fs.OpenPath(t.Context(), "/big", client.OpenRead)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(context.Background())
	compare(t, g, want, 1<<20)
	if fs.Stats().ReadAheadHits == 0 {
		t.Error("nothing was read ahead")
	}
	for i := range 2 {
		if err := d.StopTarget(i); err != nil {
			t.Fatal(err)
		}
	}
	compare(t, g, want, 1<<20)
	if fs.Stats().DegradedReads == 0 {
		t.Error("no read was degraded")
	}
}

// Bytes that rot on a disk are never returned: they are rebuilt, and written again.
func TestRotIsMended(t *testing.T) {
	d := sharedCluster(t)
	fs := newClientWith(t, d, client.Config{ReadAhead: -1, SlowRead: time.Minute})
	f := createFile(t, fs, "/rot")
	want := pattern(6, 4*unit)
	writeAt(t, f, want, 0)
	mustSync(t, f)
	if !rot(t, d.Dir(), want[5000:5064]) {
		t.Fatal("the bytes are on no disk")
	}
	end := time.Now().Add(time.Minute)
	for met := false; ; {
		before := fs.Stats().CRCFailures
		compare(t, f, want, 4*unit)
		failed := fs.Stats().CRCFailures > before
		if met = met || failed; met && !failed {
			break // it was there, and is there no more
		}
		if time.Now().After(end) {
			t.Fatalf("after a minute: met %v, still failing %v", met, failed)
		}
	}
	if fs.Stats().DegradedReads == 0 {
		t.Error("no read was degraded")
	}
}

// rot flips a bit of the first place below dir where the bytes stand.
func rot(t *testing.T, dir string, bytesThere []byte) (found bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || found || !e.Type().IsRegular() {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		found, err = rotFile(f, bytesThere)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// rotFile looks at the beginning of a file: segments are long, and filled from there.
func rotFile(f *os.File, bytesThere []byte) (bool, error) {
	b := make([]byte, 32<<20)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	i := bytes.Index(b[:n], bytesThere)
	if i < 0 {
		return false, nil
	}
	_, err = f.WriteAt([]byte{b[i] ^ 1}, int64(i))
	return true, err
}

// Copies instead of parity: the same protocol with k = 1.
func TestReplicas(t *testing.T) {
	d := startCluster(t, node.DevOptions{Scheme: "replica:3", Targets: 4})
	fs := newClient(t, d)
	f := createFile(t, fs, "/a")
	r := rand.New(rand.NewPCG(12, 1))
	want := history(t, f, nil, r, 60, true)
	if err := d.StopTarget(0); err != nil {
		t.Fatal(err)
	}
	want = history(t, f, want, r, 40, true)
	mustSync(t, f)
	if err := d.StopTarget(1); err != nil {
		t.Fatal(err)
	}
	compare(t, f, want, 100_000)
}

// Names by path, symbolic links, rename, and a file that lives on without a name.
func TestPaths(t *testing.T) {
	ctx := t.Context()
	d := sharedCluster(t)
	fs := newClient(t, d)
	dir, err := fs.Mkdir(ctx, rfs.RootInode, "dir", 0o755, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := createFile(t, fs, "/dir/file")
	writeAt(t, f, []byte("content"), 0)
	if _, err := fs.Symlink(ctx, rfs.RootInode, "link", "dir/file", 0, 0); err != nil {
		t.Fatal(err)
	}
	a, err := fs.Walk(ctx, "/link")
	if err != nil || a.Inode != f.Inode() || a.Size != 7 {
		t.Fatalf("walk: %+v, %v", a, err)
	}
	if a, err = fs.WalkNoFollow(ctx, "link"); err != nil || a.Type() != raftmeta.TypeLink {
		t.Fatalf("walk to the link: %+v, %v", a, err)
	}
	if err := fs.Rename(ctx, dir.Inode, "file", rfs.RootInode, "file", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Walk(ctx, "/link"); !errors.Is(err, rfs.ErrNotFound) {
		t.Fatalf("walk of a dangling link: %v", err)
	}
	if err := fs.Unlink(ctx, rfs.RootInode, "file"); err != nil {
		t.Fatal(err)
	}
	writeAt(t, f, []byte("still"), 0)
	compare(t, f, []byte("stillnt"), 100)
	if _, err := fs.OpenPath(ctx, "/dir", client.OpenRead); !errors.Is(err, rfs.ErrInvalid) {
		t.Errorf("open of a directory: %v", err)
	}
}
