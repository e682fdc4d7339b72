package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/transport/wire"
)

// small is a layout of 4+2 with stripes of 256 KiB.
func small(t testing.TB) *model { return newModel(t, 4, 2, 64<<10, 16<<10, 7) }

func create(t testing.TB, fs *FS, name string) *File {
	t.Helper()
	f, _, err := fs.Create(t.Context(), rfs.RootInode, name, raftmeta.CreateSpec{Mode: 0o644}, OpenRead|OpenWrite)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close(context.Background()) })
	return f
}

func randomBytes(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = r.Read(p)
	return p
}

func write(t testing.TB, f *File, p []byte, off int64) {
	t.Helper()
	if n, err := f.WriteAt(t.Context(), p, off); n != len(p) || err != nil {
		t.Fatalf("write %d at %d: %d, %v", len(p), off, n, err)
	}
}

// check reads the whole file in pieces of n bytes, and compares.
func check(t testing.TB, f *File, want []byte, n int) {
	t.Helper()
	p := make([]byte, n)
	for off := 0; off <= len(want); off += n {
		m, err := f.ReadAt(t.Context(), p, int64(off))
		end := min(off+n, len(want))
		if err != nil && err != io.EOF || (err == io.EOF) != (off+n > len(want)) {
			t.Fatalf("read %d at %d: %d, %v", n, off, m, err)
		}
		if !bytes.Equal(p[:m], want[off:end]) {
			t.Fatalf("read %d at %d: %d bytes, want %d; the first wrong one is %d", n, off, m, end-off, off+firstWrong(p[:m], want[off:end]))
		}
	}
}

func firstWrong(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func syncFile(t testing.TB, f *File) {
	t.Helper()
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestStreamWritesFullStripes(t *testing.T) {
	c := small(t)
	fs := c.client(Config{})
	f := create(t, fs, "a")
	want := randomBytes(1, 3<<20+12345)
	for off := 0; off < len(want); off += 100_000 {
		write(t, f, want[off:min(off+100_000, len(want))], int64(off))
	}
	check(t, f, want, 70_000)
	syncFile(t, f)
	check(t, f, want, 70_000)
	check(t, f, want, 1<<20)
	if s := fs.Stats(); s.FullWrites != 13 || s.PartialWrites != 0 {
		t.Errorf("%d full and %d partial writes, want 13 and 0", s.FullWrites, s.PartialWrites)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	g, err := c.client(Config{}).Open(t.Context(), f.Inode(), OpenRead)
	if err != nil {
		t.Fatal(err)
	}
	check(t, g, want, 1<<20)
}

// A file of up to one cell costs m+1 messages, and they carry only its bytes.
func TestSmallFileCostsOneDataShard(t *testing.T) {
	c := small(t)
	fs := c.client(Config{})
	f := create(t, fs, "a")
	want := randomBytes(2, 10_000)
	write(t, f, want, 0)
	syncFile(t, f)
	prepares := 0
	for _, s := range c.stores {
		s.mu.Lock()
		prepares += s.calls[wire.OpPrepare]
		s.mu.Unlock()
	}
	if prepares != 3 {
		t.Errorf("%d PREPAREs, want 3", prepares)
	}
	check(t, f, want, 4096)
}

// A random history of writes, reads, truncations, punches and syncs on one file,
// with targets that go and come back (having missed nothing that matters, as the
// model has no resync: they stay readable only if they were not written), equals a file in memory.
func TestRandomHistory(t *testing.T) {
	for seed := range uint64(6) {
		c := small(t)
		fs := c.client(Config{Memory: 8 << 20})
		f := create(t, fs, "a")
		r := rand.New(rand.NewPCG(seed, 7))
		runHistory(t, c, f, r, seed)
	}
}

func runHistory(t *testing.T, c *model, f *File, r *rand.Rand, seed uint64) {
	const limit = 1 << 20
	var want []byte
	killed := 0
	grow := func(n int) {
		if n > len(want) {
			want = append(want, make([]byte, n-len(want))...)
		}
	}
	for step := range 300 {
		off, n := r.IntN(limit), 1+r.IntN(1<<r.IntN(19))
		switch op := r.IntN(20); {
		case op < 9:
			p := randomBytes(seed<<20|uint64(step), n)
			write(t, f, p, int64(off))
			grow(off + n)
			copy(want[off:], p)
		case op < 14:
			p := make([]byte, n)
			m, err := f.ReadAt(t.Context(), p, int64(off))
			end := max(min(off+n, len(want)), min(off, len(want)))
			exp := want[min(off, len(want)):end]
			if err != nil && err != io.EOF || !bytes.Equal(p[:m], exp) {
				t.Fatalf("seed %d step %d: read %d at %d of %d: %d, %v, wrong at %d", seed, step, n, off, len(want), m, err, firstWrong(p[:m], exp))
			}
		case op < 15:
			size := r.IntN(limit)
			if err := f.Truncate(t.Context(), int64(size)); err != nil {
				t.Fatal(err)
			}
			grow(size)
			want = want[:size]
		case op < 16:
			if err := f.Punch(t.Context(), int64(off), int64(n)); err != nil {
				t.Fatal(err)
			}
			if off < len(want) {
				clear(want[off:min(off+n, len(want))])
			}
		case op < 17:
			syncFile(t, f)
		case op < 18:
			o, m, err := f.Append(t.Context(), randomBytes(uint64(step), n%5000))
			if err != nil || o != int64(len(want)) || m != n%5000 {
				t.Fatalf("append: %d, %d, %v", o, m, err)
			}
			want = append(want, randomBytes(uint64(step), n%5000)...)
		case op < 19 && step > 150 && killed < 1 && seed%2 == 1:
			killed++
			c.kill(c.m.Targets[r.IntN(len(c.m.Targets))].ID)
		}
	}
	check(t, f, want, 50_000)
	syncFile(t, f)
	check(t, f, want, 300_000)
}

// With m targets gone each byte is read back; a write of a slot with one member gone is degraded.
func TestTargetsLost(t *testing.T) {
	c := small(t)
	fs := c.client(Config{})
	f := create(t, fs, "a")
	want := randomBytes(3, 2<<20)
	write(t, f, want, 0)
	write(t, f, []byte("overlay"), 300_000)
	copy(want[300_000:], "overlay")
	syncFile(t, f)
	c.kill(c.m.Targets[0].ID)
	check(t, f, want, 65_536)
	write(t, f, want[:500_000], 700_000)
	copy(want[700_000:], want[:500_000])
	syncFile(t, f)
	c.kill(c.m.Targets[1].ID)
	check(t, f, want, 65_536)
	check(t, f, want, 1<<20)
	if s := fs.Stats(); s.DegradedReads == 0 {
		t.Error("no degraded reads were counted")
	}
}

// A target that falls silent in the middle of writes: they wait for the map and go on.
func TestTargetSilentWhileWriting(t *testing.T) {
	c := small(t)
	fs := c.client(Config{})
	f := create(t, fs, "a")
	want := randomBytes(4, 4<<20)
	id := c.m.Targets[2].ID
	s := c.stores[id]
	s.mu.Lock()
	s.silent = true
	s.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { write(t, f, want, 0); syncFile(t, f) })
	c.setState(id, placement.Down)
	wg.Wait()
	check(t, f, want, 1<<20)
}

// Bytes that rot on a target are rebuilt from the others, and written again.
func TestCorruptShardIsRepaired(t *testing.T) {
	c := small(t)
	fs := c.client(Config{ReadAhead: -1})
	f := create(t, fs, "a")
	want := randomBytes(5, 256<<10)
	write(t, f, want, 0)
	syncFile(t, f)
	_, s := c.targetOf(f.Inode(), 0, 1)
	key := rfs.ShardKey{Inode: f.Inode(), Shard: 1}
	corrupt := true
	s.mu.Lock()
	s.answer = func(op wire.Op, c wire.Common, hdr []byte) (wire.Status, []byte, bool) {
		if op == wire.OpRead && c.Key == key && corrupt {
			return wire.StatusCorrupt, nil, true
		}
		if op == wire.OpPrepare && c.Flags&wire.FlagRepair != 0 {
			corrupt = false
		}
		return 0, nil, false
	}
	v, _ := s.base(key)
	right := bytes.Clone(v.data)
	v.data[5000] ^= 1
	s.mu.Unlock()
	check(t, f, want, 100_000)
	waitFor(t, func() bool { return fs.Stats().Repairs > 0 })
	s.mu.Lock()
	if !bytes.Equal(v.data, right) {
		t.Error("the shard was not rewritten")
	}
	s.mu.Unlock()
	check(t, f, want, 100_000)
	if s := fs.Stats(); s.CRCFailures == 0 || s.DegradedReads == 0 {
		t.Errorf("%+v", s)
	}
}

// Two writers of one stripe: a refusal makes the second tag above the first, whatever the clocks say.
func TestConflictRetags(t *testing.T) {
	c := small(t)
	fs := c.client(Config{})
	f := create(t, fs, "a")
	want := randomBytes(6, 256<<10)
	_, s := c.targetOf(f.Inode(), 0, 2)
	high := rfs.Tag{HLC: fs.clock.Now() + 1<<30, Session: 99}
	refused := 0
	s.mu.Lock()
	s.answer = func(op wire.Op, c wire.Common, hdr []byte) (wire.Status, []byte, bool) {
		if op != wire.OpPrepare || refused == 5 {
			return 0, nil, false
		}
		refused++
		high.HLC += 1 << 20
		return wire.StatusStaleTag, wire.AppendTagReply(nil, high), true
	}
	s.mu.Unlock()
	write(t, f, want, 0)
	syncFile(t, f)
	s.mu.Lock()
	v, _ := s.base(rfs.ShardKey{Inode: f.Inode(), Shard: 2})
	if !high.Less(v.tag) {
		t.Errorf("the version has tag %v, not above %v", v.tag, high)
	}
	s.mu.Unlock()
	if st := fs.Stats(); st.Retags != 4 || st.Orders != 1 {
		t.Errorf("%d retags, %d orders, want 4 and 1", st.Retags, st.Orders)
	}
	check(t, f, want, 1<<20)
}

// No space on one target: the write fails, once for each handle, and nothing of it stays.
func TestNoSpace(t *testing.T) {
	c := small(t)
	fs := c.client(Config{})
	f := create(t, fs, "a")
	g, err := fs.Open(t.Context(), f.Inode(), OpenRead|OpenWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(context.Background())
	_, s := c.targetOf(f.Inode(), 0, 4)
	written := make(chan struct{}) // else the write itself might hear of it
	s.mu.Lock()
	s.answer = func(op wire.Op, c wire.Common, hdr []byte) (wire.Status, []byte, bool) {
		if op != wire.OpPrepare {
			return 0, nil, false
		}
		<-written
		return wire.StatusNoSpace, nil, true
	}
	s.mu.Unlock()
	write(t, f, randomBytes(7, 256<<10), 0)
	close(written)
	for range 2 {
		err := f.Sync(t.Context())
		if !errors.Is(err, rfs.ErrNoSpace) {
			t.Fatalf("sync: %v", err)
		}
		if err := f.Sync(t.Context()); err != nil {
			t.Fatalf("reported again: %v", err)
		}
		f, g = g, f
	}
	if _, err := f.WriteAt(t.Context(), []byte("x"), 0); !errors.Is(err, rfs.ErrNoSpace) {
		t.Fatalf("the write after it: %v", err)
	}
	s.mu.Lock()
	s.answer = nil
	s.mu.Unlock()
	write(t, f, []byte("x"), 0)
	syncFile(t, f)
	_, d := c.targetOf(f.Inode(), 0, 0)
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.shards[rfs.ShardKey{Inode: f.Inode()}]); n != 1 {
		t.Errorf("%d versions of shard 0, want only the one that was written", n)
	}
}

// Two clients share a file: what one wrote the other reads when the write has returned.
func TestTwoClientsShare(t *testing.T) {
	c := small(t)
	a, b := c.client(Config{}), c.client(Config{})
	f := create(t, a, "a")
	write(t, f, []byte("cached"), 100)
	g, err := b.Open(t.Context(), f.Inode(), OpenRead|OpenWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close(context.Background())
	want := append(make([]byte, 100), "cached"...)
	check(t, g, want, 4096)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		p := randomBytes(uint64(i), 1+r.IntN(30_000))
		off := r.IntN(200_000)
		w, rd := f, g
		if i%2 == 0 {
			w, rd = g, f
		}
		write(t, w, p, int64(off))
		if off+len(p) > len(want) {
			want = append(want, make([]byte, off+len(p)-len(want))...)
		}
		copy(want[off:], p)
		check(t, rd, want, 65_536)
	}
	if err := f.Truncate(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
	check(t, g, want[:1000], 4096)
	var wg sync.WaitGroup
	for i, h := range []*File{f, g} {
		wg.Go(func() {
			for range 20 {
				if _, _, err := h.Append(t.Context(), bytes.Repeat([]byte{byte('a' + i)}, 777)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got := make([]byte, 40*777)
	if n, err := f.ReadAt(t.Context(), got, 1000); n != len(got) || err != nil {
		t.Fatal(n, err)
	}
	for i := 0; i < len(got); i += 777 {
		if !bytes.Equal(got[i:i+777], bytes.Repeat(got[i:i+1], 777)) {
			t.Fatalf("append %d is torn", i/777)
		}
	}
}

// The session ends: what is dirty is void, and every later call says so.
func TestSessionLost(t *testing.T) {
	c := small(t)
	a, err := arenaOf(t)
	if err != nil {
		t.Fatal(err)
	}
	meta := &modelMeta{c: c}
	fs, err := New(t.Context(), Config{Meta: meta, Transport: modelTransport{c}, Arena: a})
	if err != nil {
		t.Fatal(err)
	}
	f := create(t, fs, "a")
	write(t, f, []byte("gone"), 0)
	meta.ev.Lost(errors.New("lease ended"))
	if _, err := f.ReadAt(t.Context(), make([]byte, 4), 0); !errors.Is(err, rfs.ErrSessionLost) {
		t.Errorf("read: %v", err)
	}
	if _, err := f.WriteAt(t.Context(), []byte("x"), 0); !errors.Is(err, rfs.ErrSessionLost) {
		t.Errorf("write: %v", err)
	}
	if err := f.Sync(t.Context()); !errors.Is(err, rfs.ErrSessionLost) {
		t.Errorf("sync: %v", err)
	}
	if err := fs.Close(context.Background()); err != nil && !errors.Is(err, rfs.ErrSessionLost) {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}

func TestSeek(t *testing.T) {
	c := small(t)
	fs := c.client(Config{})
	f := create(t, fs, "a")
	write(t, f, []byte("head"), 0)
	write(t, f, []byte("tail"), 1<<20)
	for _, s := range []struct {
		off  int64
		data bool
		want int64
	}{{0, true, 0}, {0, false, 4}, {4, true, 1 << 20}, {1 << 20, false, 1<<20 + 4}} {
		var got int64
		var err error
		if s.data {
			got, err = f.SeekData(t.Context(), s.off)
		} else {
			got, err = f.SeekHole(t.Context(), s.off)
		}
		if got != s.want || err != nil {
			t.Errorf("seek %+v: %d, %v", s, got, err)
		}
	}
	if _, err := f.SeekData(t.Context(), 1<<20+4); err != io.EOF {
		t.Errorf("seek past the end: %v", err)
	}
}
