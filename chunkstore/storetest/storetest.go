package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"rfs"
	"rfs/chunkstore"
	"rfs/internal/crc"
	"rfs/internal/vfs"
)

// Options are those of a small store for tests, in an empty directory of fsys.
func Options(fsys vfs.FS, dir string) chunkstore.Options {
	return chunkstore.Options{
		Dir: dir, FS: fsys, Capacity: 64 << 20, FlushInterval: -1, MinAvail: -1,
		ClusterID: rfs.UUID{1}, TargetID: rfs.TargetID{2}, Log: slog.New(slog.DiscardHandler),
	}
}

// Open formats and opens a store, and closes it when the test ends.
func Open(t testing.TB, o chunkstore.Options) *chunkstore.Store {
	t.Helper()
	if err := chunkstore.Format(o); err != nil {
		t.Fatal(err)
	}
	return Reopen(t, o)
}

// Reopen opens a store that was formatted before.
func Reopen(t testing.TB, o chunkstore.Options) *chunkstore.Store {
	t.Helper()
	s, err := chunkstore.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// Tag returns the n-th tag.
func Tag(n int) rfs.Tag { return rfs.Tag{HLC: uint64(n), Session: 9, Seq: uint32(n)} }

// Run runs the suite on stores for which options returns each time a fresh directory.
func Run(t *testing.T, options func(t *testing.T) chunkstore.Options) {
	for _, c := range []struct {
		name string
		test func(*testing.T, chunkstore.Options)
	}{
		{"Full", testFull},
		{"ReadMerged", testReadMerged},
		{"Unresolved", testUnresolved},
		{"Stale", testStale},
		{"Abort", testAbort},
		{"Retag", testRetag},
		{"Overlays", testOverlays},
		{"Fold", testFold},
		{"TrimAndDelete", testTrimAndDelete},
		{"Extent", testExtent},
		{"Scan", testScan},
		{"NoSpace", testNoSpace},
		{"CorruptAndRepair", testCorrupt},
		{"BadArguments", testBadArguments},
		{"Reopen", testReopen},
		{"RandomHistory", testRandomHistory},
		{"Concurrent", testConcurrent},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, options(t)) })
	}
}

// put puts a version, in the store and, unless nil, in the model.
func put(t testing.TB, s *chunkstore.Store, m *Model, key rfs.ShardKey, v chunkstore.Version, payload []byte) {
	t.Helper()
	if err := s.Put(key, v, payload, CRCs(key, v, payload)); err != nil {
		t.Fatal(err)
	}
	if m != nil {
		m.Put(key, v, payload)
	}
}

func commit(t testing.TB, s *chunkstore.Store, m *Model, key rfs.ShardKey, tag rfs.Tag, kind chunkstore.Kind) {
	t.Helper()
	if err := s.Commit(key, tag, kind); err != nil {
		t.Fatal(err)
	}
	if m != nil {
		m.Commit(key, tag, kind)
	}
}

func full(n int, tag rfs.Tag) chunkstore.Version {
	return chunkstore.Version{Tag: tag, Kind: chunkstore.Full, Length: uint32(n)}
}

func partial(tag rfs.Tag, segs ...chunkstore.Segment) chunkstore.Version {
	return chunkstore.Version{Tag: tag, Kind: chunkstore.Partial, Segments: segs}
}

func mustCompare(t testing.TB, s *chunkstore.Store, m *Model, keys ...rfs.ShardKey) {
	t.Helper()
	if err := Compare(s, m.Now(), keys); err != nil {
		t.Fatal(err)
	}
}

func mustSync(t testing.TB, s *chunkstore.Store) {
	t.Helper()
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

var testKey = rfs.ShardKey{Inode: 0x17, Stripe: 5, Shard: 1}

// A shard of each size class, written from aligned memory, comes back whole,
// in parts, and checksummed.
func testFull(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	rng := rand.New(rand.NewPCG(1, 1))
	for i, n := range []int{0, 1, 4095, 4096, 4097, 64 << 10, 128<<10 + 3, 640 << 10, 1 << 20, chunkstore.MaxPayload} {
		key := rfs.ShardKey{Inode: 9, Stripe: uint32(i)}
		p := aligned(n)
		copy(p, Bytes(rng, n))
		put(t, s, nil, key, full(n, Tag(1)), p)
		commit(t, s, nil, key, Tag(1), chunkstore.Full)
		for range 10 {
			off := rng.IntN(n + 1)
			mustRead(t, s, key, p, off, rng.IntN(n-off+5000))
		}
		mustRead(t, s, key, p, 0, n)
		mustRead(t, s, key, p, 0, n+10)
	}
}

// mustRead reads n bytes at off, of which there are those of want.
func mustRead(t testing.TB, s *chunkstore.Store, key rfs.ShardKey, want []byte, off, n int) {
	t.Helper()
	dst := aligned(n)
	res, err := s.Read(key, chunkstore.ReadAt{Off: uint32(off), N: uint32(n)}, dst)
	if err != nil {
		t.Fatal(err)
	}
	want = want[min(off, len(want)):min(off+n, len(want))]
	if res.N != len(want) || !bytes.Equal(dst[:res.N], want) {
		t.Fatalf("read %v %d+%d: %d bytes, want %d, or other bytes", key, off, n, res.N, len(want))
	}
	if crcs := RangeCRCs(key, key.Shard, uint32(off), want); !slices.Equal(res.CRCs, crcs) {
		t.Fatalf("read %v %d+%d: CRCs %x, want %x", key, off, n, res.CRCs, crcs)
	}
}

// aligned returns n bytes of a page-aligned buffer, as the arena's are.
func aligned(n int) []byte {
	b := make([]byte, n+vfs.DirectAlign)
	for skip := range vfs.DirectAlign {
		if vfs.Aligned(b[skip:][:0], 0) {
			return b[skip:][:n:n]
		}
	}
	panic("unreachable")
}

// Overlays of random ranges, written over each other, over a base and beyond
// it, with holes punched, read as what a byte array would hold.
func testReadMerged(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		key := rfs.ShardKey{Inode: rfs.InodeID(100 + seed), Shard: 2}
		m := NewModel()
		for i := range 12 {
			v, p := RandomVersion(rng, key, Tag(i+1), 40000, 4)
			put(t, s, m, key, v, p)
			commit(t, s, m, key, v.Tag, v.Kind)
			data, _ := Merged(m.Now()[key], key.Shard, key.Shard)
			for range 4 {
				off := rng.IntN(40000)
				mustRead(t, s, key, data, off, rng.IntN(20000))
			}
			mustRead(t, s, key, data, 0, 50000)
		}
		mustCompare(t, s, m, key)
	}
}

// A version not known complete shows where it bears on the range, and only there.
func testUnresolved(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	put(t, s, nil, testKey, full(20000, Tag(1)), make([]byte, 20000))
	unresolved := func(off, n uint32, want rfs.Tag) {
		t.Helper()
		res, err := s.Read(testKey, chunkstore.ReadAt{Off: off, N: n}, make([]byte, n))
		if err != nil || res.Unresolved != want {
			t.Errorf("read %d+%d: unresolved %v, want %v, %v", off, n, res.Unresolved, want, err)
		}
	}
	unresolved(0, 10, Tag(1))
	commit(t, s, nil, testKey, Tag(1), chunkstore.Full)
	put(t, s, nil, testKey, partial(Tag(2), chunkstore.Segment{Shard: 1, Off: 100, Len: 50}), make([]byte, 50))
	put(t, s, nil, testKey, partial(Tag(3), chunkstore.Segment{Shard: 1, Off: 120, Len: 9000, Zero: true}), nil)
	unresolved(0, 100, rfs.Tag{})
	unresolved(0, 101, Tag(2))
	unresolved(119, 1, Tag(2))
	unresolved(0, 200, Tag(3))
	unresolved(9120, 100, rfs.Tag{})
	commit(t, s, nil, testKey, Tag(2), chunkstore.Partial)
	unresolved(0, 101, rfs.Tag{})
	commit(t, s, nil, testKey, Tag(3), chunkstore.Partial)
	unresolved(0, 200, rfs.Tag{})

	fold := full(20000, Tag(3))
	if err := s.FoldLocal(testKey, fold); err != nil {
		t.Fatal(err)
	}
	unresolved(0, 200, rfs.Tag{}) // what a fold holds is not new
	if res, err := s.Read(testKey, chunkstore.ReadAt{Exact: Tag(3), N: 10}, make([]byte, 10)); err != nil || res.Base != Tag(3) {
		t.Error("exact read of a prepared fold:", res, err)
	}
	if _, err := s.Read(testKey, chunkstore.ReadAt{Exact: Tag(7), N: 10}, make([]byte, 10)); !errors.Is(err, chunkstore.ErrGone) {
		t.Error("exact read of what is not there:", err)
	}
}

// Equal versions are taken once, lower ones than the base never.
func testStale(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	m := NewModel()
	put(t, s, m, testKey, full(5000, Tag(5)), Bytes(rand.New(rand.NewPCG(1, 1)), 5000))
	put(t, s, nil, testKey, full(5000, Tag(5)), make([]byte, 5000)) // a retry changes nothing
	mustCompare(t, s, m, testKey)
	commit(t, s, m, testKey, Tag(5), chunkstore.Full)
	commit(t, s, m, testKey, Tag(5), chunkstore.Full)
	for _, kind := range []chunkstore.Version{full(0, Tag(4)), partial(Tag(4), chunkstore.Segment{Shard: 1, Len: 5, Zero: true})} {
		if err := s.Put(testKey, kind, nil, nil); !errors.Is(err, rfs.ErrStaleTag) {
			t.Error("put below the base:", err)
		}
	}
	if err := s.Commit(testKey, Tag(3), chunkstore.Full); err != nil {
		t.Error("commit of what is superseded:", err)
	}
	if err := s.Commit(testKey, Tag(6), chunkstore.Full); !errors.Is(err, rfs.ErrNotFound) {
		t.Error("commit of what is not there:", err)
	}
	put(t, s, nil, testKey, full(5000, Tag(8)), make([]byte, 5000))
	put(t, s, nil, testKey, full(5000, Tag(7)), make([]byte, 5000))
	commit(t, s, nil, testKey, Tag(8), chunkstore.Full)
	vs, err := s.Versions(testKey)
	if err != nil || len(vs) != 1 || vs[0].Tag != Tag(8) || vs[0].State != chunkstore.Complete {
		t.Error("after commit:", vs, err)
	}
	mustSync(t, s)
	if u, err := s.Stat(); err != nil || u.Used != 8192 || u.Pending != 0 {
		t.Error("superseded versions still take space:", u, err)
	}
}

func testAbort(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	put(t, s, nil, testKey, full(10, Tag(1)), make([]byte, 10))
	for range 2 {
		if err := s.Abort(testKey, Tag(1), chunkstore.Full); err != nil {
			t.Fatal(err)
		}
	}
	if vs, err := s.Versions(testKey); err != nil || len(vs) != 0 {
		t.Error(vs, err)
	}
	for range s.Scan(0, 0, rfs.ShardKey{}) {
		t.Error("slot still has the shard")
	}
	put(t, s, nil, testKey, full(10, Tag(2)), make([]byte, 10))
	commit(t, s, nil, testKey, Tag(2), chunkstore.Full)
	if err := s.Abort(testKey, Tag(2), chunkstore.Full); !errors.Is(err, rfs.ErrInvalid) {
		t.Error("abort of a complete version:", err)
	}
	mustSync(t, s)
	if u, err := s.Stat(); err != nil || u.Used != 4096 {
		t.Error(u, err)
	}
}

func testRetag(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	m := NewModel()
	p := Bytes(rand.New(rand.NewPCG(3, 3)), 300)
	put(t, s, m, testKey, partial(Tag(1), chunkstore.Segment{Shard: 1, Off: 4000, Len: 300}), p)
	for range 2 {
		if err := s.Retag(testKey, Tag(1), Tag(9)); err != nil {
			t.Fatal(err)
		}
	}
	m.Retag(testKey, Tag(1), Tag(9))
	mustCompare(t, s, m, testKey)
	if err := s.Retag(testKey, Tag(4), Tag(10)); !errors.Is(err, rfs.ErrNotFound) {
		t.Error("retag of what is not there:", err)
	}
	put(t, s, m, testKey, full(10, Tag(12)), make([]byte, 10))
	commit(t, s, m, testKey, Tag(12), chunkstore.Full)
	if err := s.Retag(testKey, Tag(9), Tag(11)); !errors.Is(err, rfs.ErrStaleTag) {
		t.Error("retag to below the base:", err)
	}
	if err := s.Retag(testKey, Tag(9), Tag(13)); !errors.Is(err, rfs.ErrNotFound) {
		t.Error("retag of what is superseded:", err)
	}
	mustCompare(t, s, m, testKey)
}

// A parity target answers for each data shard with what its overlays changed.
func testOverlays(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	const k, size = 3, 30000
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 4))
		key := rfs.ShardKey{Inode: rfs.InodeID(seed + 1), Shard: k}
		m := NewModel()
		for i := range 10 {
			v, p := RandomVersion(rng, key, Tag(i+1), size, k)
			put(t, s, m, key, v, p)
			commit(t, s, m, key, v.Tag, v.Kind)
			shard := uint8(rng.IntN(k))
			off := rng.IntN(size)
			checkOverlays(t, s, m, key, shard, off, rng.IntN(size-off+1))
		}
	}
}

func checkOverlays(t *testing.T, s *chunkstore.Store, m *Model, key rfs.ShardKey, shard uint8, off, n int) {
	t.Helper()
	dst := make([]byte, n)
	res, err := s.Overlays(key, shard, uint32(off), uint32(n), dst)
	if err != nil {
		t.Fatal(err)
	}
	vs := Visible(m.Now()[key])
	if tag := vs[len(vs)-1].Tag; res.Tag != tag || !res.Unresolved.IsZero() {
		t.Fatalf("overlays at %v, want %v; unresolved %v", res.Tag, tag, res.Unresolved)
	}
	data, written := Merged(vs, key.Shard, shard)
	got, has := make([]byte, n), make([]bool, n)
	p := dst[:res.N]
	var crcs []uint32
	for _, g := range res.Segments {
		for i := g.Off; i < g.Off+g.Len; i++ {
			has[int(i)-off] = true
		}
		if !g.Zero {
			copy(got[int(g.Off)-off:], p[:g.Len])
			crcs = append(crcs, RangeCRCs(key, shard, g.Off, p[:g.Len])...)
			p = p[g.Len:]
		}
	}
	if !slices.Equal(crcs, res.CRCs) {
		t.Fatal("CRCs of overlays differ")
	}
	for i := range n {
		at := off + i
		if at >= len(data) {
			if has[i] {
				t.Fatalf("byte %d of shard %d, which nothing wrote, is there", at, shard)
			}
		} else if has[i] != written[at] || got[i] != data[at] {
			t.Fatalf("byte %d of shard %d: written %v %d, want %v %d", at, shard, has[i], got[i], written[at], data[at])
		}
	}
}

// A fold holds what readers saw before; once complete, what it was made of is gone.
func testFold(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	rng := rand.New(rand.NewPCG(5, 5))
	m := NewModel()
	for i := range 8 {
		v, p := RandomVersion(rng, testKey, Tag(i+1), 60000, 4)
		put(t, s, m, testKey, v, p)
		commit(t, s, m, testKey, v.Tag, v.Kind)
	}
	seg := chunkstore.Segment{Shard: testKey.Shard, Off: 17, Len: 5000}
	put(t, s, m, testKey, partial(Tag(9), seg), Bytes(rng, 5000))
	commit(t, s, m, testKey, Tag(9), chunkstore.Partial)
	data, _ := Merged(m.Now()[testKey], testKey.Shard, testKey.Shard)
	put(t, s, m, testKey, partial(Tag(10), seg), Bytes(rng, 5000)) // above the fold
	fold := full(len(data), Tag(9))
	if err := s.FoldLocal(testKey, fold); err != nil {
		t.Fatal(err)
	}
	commit(t, s, nil, testKey, Tag(9), chunkstore.Full)
	vs, err := s.Versions(testKey)
	if err != nil || len(vs) != 2 || !vs[0].Fold || vs[0].Kind != chunkstore.Full || vs[1].Tag != Tag(10) {
		t.Fatal(vs, err)
	}
	if !slices.Equal(vs[0].CRCs(), RangeCRCs(testKey, testKey.Shard, 0, data)) {
		t.Error("CRCs of the fold differ")
	}
	buf := make([]byte, len(data))
	if _, n, err := s.ReadVersion(testKey, Tag(9), chunkstore.Full, buf); err != nil || !bytes.Equal(buf[:n], data) {
		t.Error("bytes of the fold differ", err)
	}
	if err := s.FoldLocal(testKey, full(len(data), Tag(10))); !errors.Is(err, rfs.ErrUnavailable) {
		t.Error("fold over a version that is not complete:", err)
	}
}

func testTrimAndDelete(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	m := NewModel()
	var keys []rfs.ShardKey
	for i := range 40 {
		key := rfs.ShardKey{Inode: rfs.InodeID(1 + i%2), Stripe: uint32(i / 2)}
		keys = append(keys, key)
		for tag := range 3 {
			v := partial(Tag(10*(tag+1)), chunkstore.Segment{Off: 0, Len: 100})
			put(t, s, m, key, v, make([]byte, 100))
			commit(t, s, m, key, v.Tag, v.Kind)
		}
	}
	if err := s.Trim(1, 7, Tag(20)); err != nil {
		t.Fatal(err)
	}
	for _, k := range m.Keys(1, 7) {
		m.DropWhere(k, func(v Stored) bool { return v.Tag.Less(Tag(20)) })
	}
	mustCompare(t, s, m, keys...)
	check := func() {
		t.Helper()
		if f := s.Floor(1, 6); !f.IsZero() {
			t.Error("floor below the trim:", f)
		}
		if f := s.Floor(1, 100); f != Tag(20) {
			t.Error("floor above the trim:", f)
		}
		if err := s.Put(rfs.ShardKey{Inode: 1, Stripe: 100}, full(0, Tag(19)), nil, nil); !errors.Is(err, rfs.ErrStaleTag) {
			t.Error("put below the floor:", err)
		}
	}
	check()
	if err := s.Trim(1, 9, Tag(15)); err != nil { // says nothing new
		t.Fatal(err)
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = Reopen(t, o)
	check()
	mustCompare(t, s, m, keys...)
	if err := s.Trim(1, 3, Tag(25)); err != nil {
		t.Fatal(err)
	}
	if a, b := s.Floor(1, 3), s.Floor(1, 9); a != Tag(25) || b != Tag(25) {
		t.Error("floors after a deeper trim:", a, b)
	}
	for _, inode := range []rfs.InodeID{1, 2, 3} {
		if err := s.Delete(inode); err != nil {
			t.Fatal(err)
		}
	}
	mustCompare(t, s, NewModel(), keys...)
	mustSync(t, s)
	if u, err := s.Stat(); err != nil || u.Used != 0 {
		t.Error("after delete:", u, err)
	}
	if f := s.Floor(1, 9); !f.IsZero() {
		t.Error("floor after delete:", f)
	}
}

func testExtent(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	l := rfs.Layout{Pool: 1, K: 4, M: 2, Unit: 1 << 20, Cell: 128 << 10}
	extent := func(want int64) {
		t.Helper()
		if n, err := s.Extent(7, l); err != nil || n != want {
			t.Errorf("extent %d, want %d, %v", n, want, err)
		}
	}
	extent(0)
	put(t, s, nil, rfs.ShardKey{Inode: 7, Stripe: 2, Shard: 1}, full(5000, Tag(1)), make([]byte, 5000))
	extent(2*l.StripeSize() + 128<<10 + 5000)
	put(t, s, nil, rfs.ShardKey{Inode: 7, Stripe: 3, Shard: 2}, full(0, Tag(1)), nil)
	extent(2*l.StripeSize() + 128<<10 + 5000)
	put(t, s, nil, rfs.ShardKey{Inode: 7, Stripe: 2, Shard: 5}, partial(Tag(2), chunkstore.Segment{Shard: 3, Off: 128 << 10, Len: 1}), []byte{1})
	extent(2*l.StripeSize() + 7*128<<10 + 1)
	put(t, s, nil, rfs.ShardKey{Inode: 8, Stripe: 9, Shard: 0}, full(1, Tag(1)), []byte{1})
	extent(2*l.StripeSize() + 7*128<<10 + 1)
}

func testScan(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	want := map[rfs.SlotID][]rfs.ShardKey{}
	for i := range 60 {
		key := rfs.ShardKey{Inode: rfs.InodeID(i/10 + 1), Stripe: uint32(i % 10), Shard: uint8(i % 4)}
		v := full(10, Tag(1))
		v.Pool, v.Slot = 2, rfs.SlotID(i%3)
		put(t, s, nil, key, v, make([]byte, 10))
		want[v.Slot] = append(want[v.Slot], key)
	}
	for slot, keys := range want {
		for from := range keys {
			var got []rfs.ShardKey
			for sh, err := range s.Scan(2, slot, keys[from]) {
				if err != nil || len(sh.Versions) != 1 {
					t.Fatal(sh, err)
				}
				got = append(got, sh.Key)
			}
			if !slices.Equal(got, keys[from:]) {
				t.Fatalf("slot %d from %v: %v, want %v", slot, keys[from], got, keys[from:])
			}
		}
	}
	for range s.Scan(3, 0, rfs.ShardKey{}) {
		t.Error("a shard in an empty pool")
	}
}

// A full target refuses, keeps a reserve for repair, and takes more after a delete.
func testNoSpace(t *testing.T, o chunkstore.Options) {
	o.Capacity, o.Reserve = 32<<20, 8<<20
	s := Open(t, o)
	p := make([]byte, 1<<20)
	n := 0
	var err error
	write := func(v chunkstore.Version) error {
		key := rfs.ShardKey{Inode: 1, Stripe: uint32(n)}
		if err := s.Put(key, v, p, CRCs(key, v, p)); err != nil {
			return err
		}
		n++
		return nil
	}
	for v := full(len(p), Tag(1)); err == nil; {
		err = write(v)
	}
	if !errors.Is(err, rfs.ErrNoSpace) || n != 24 {
		t.Fatal(n, "shards, then", err)
	}
	if u, err := s.Stat(); err != nil || u.Free != 0 || u.Used != 24<<20 {
		t.Error(u, err)
	}
	repair := full(len(p), Tag(1))
	repair.Repair = true
	for err = nil; err == nil; {
		err = write(repair)
	}
	if !errors.Is(err, rfs.ErrNoSpace) || n != 32 {
		t.Fatal(n, "shards with the reserve, then", err)
	}
	for i := range 10 {
		if err := s.Abort(rfs.ShardKey{Inode: 1, Stripe: uint32(i)}, Tag(1), chunkstore.Full); err != nil {
			t.Fatal(err)
		}
	}
	// The space has not returned yet; Put sees to it that it does.
	if err := write(full(len(p), Tag(1))); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(1); err != nil {
		t.Fatal(err)
	}
	mustSync(t, s)
	big := full(chunkstore.MaxPayload, Tag(1))
	p = make([]byte, chunkstore.MaxPayload)
	for range 6 { // all buddies have joined again
		if err := write(big); err != nil {
			t.Fatal(err)
		}
	}
}

// A block that rotted is named, not returned; the others are; a repair mends it.
func testCorrupt(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	m := NewModel()
	p := Bytes(rand.New(rand.NewPCG(6, 6)), 5*4096)
	put(t, s, m, testKey, full(len(p), Tag(1)), p)
	commit(t, s, m, testKey, Tag(1), chunkstore.Full)
	mustSync(t, s)
	rot(t, o, p[2*4096:3*4096])

	_, err := s.Read(testKey, chunkstore.ReadAt{N: uint32(len(p))}, make([]byte, len(p)))
	var bad *chunkstore.CorruptError
	if !errors.As(err, &bad) || !errors.Is(err, rfs.ErrCorrupt) || bad.Block != 2 || bad.Key != testKey {
		t.Fatal("read of a rotten block:", err)
	}
	if s.Stats().CRCFailures != 1 {
		t.Error("not counted:", s.Stats())
	}
	mustRead(t, s, testKey, p, 0, 2*4096)
	mustRead(t, s, testKey, p[:], 3*4096, 2*4096)
	if _, err := s.Read(testKey, chunkstore.ReadAt{Off: 2*4096 + 5, N: 1}, make([]byte, 1)); !errors.Is(err, rfs.ErrCorrupt) {
		t.Error("read of one byte of it:", err)
	}

	v := full(len(p), Tag(1))
	v.Repair = true
	put(t, s, m, testKey, v, p)
	mustCompare(t, s, m, testKey)
	mustSync(t, s)
	if u, err := s.Stat(); err != nil || u.Used != 32<<10 {
		t.Error("the bad copy still takes space:", u, err)
	}
}

// rot changes a bit of p where the first segment has it.
func rot(t testing.TB, o chunkstore.Options, p []byte) {
	t.Helper()
	name := o.Dir + "/segments/00000000.data"
	all, err := vfs.ReadFile(o.FS, name)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(all, p)
	if at < 0 {
		t.Fatal("bytes are not in the segment")
	}
	f, err := o.FS.Open(name, vfs.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{p[100] ^ 4}, int64(at)+100); err != nil {
		t.Fatal(err)
	}
}

func testBadArguments(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	one := []uint32{crc.Block(1, 0, 0, 0, []byte{1})}
	for what, c := range map[string]struct {
		v    chunkstore.Version
		p    []byte
		crcs []uint32
	}{
		"zero tag":            {full(1, rfs.Tag{}), []byte{1}, one},
		"no kind":             {chunkstore.Version{Tag: Tag(1)}, nil, nil},
		"payload too short":   {full(2, Tag(1)), []byte{1}, one},
		"no CRCs":             {full(1, Tag(1)), []byte{1}, nil},
		"partial of nothing":  {partial(Tag(1)), nil, nil},
		"empty segment":       {partial(Tag(1), chunkstore.Segment{Off: 3}), nil, nil},
		"segment wraps":       {partial(Tag(1), chunkstore.Segment{Off: 1<<32 - 1, Len: 2, Zero: true}), nil, nil},
		"too large":           {full(chunkstore.MaxPayload+1, Tag(1)), make([]byte, chunkstore.MaxPayload+1), make([]uint32, 1025)},
		"full with a segment": {chunkstore.Version{Tag: Tag(1), Kind: chunkstore.Full, Segments: make([]chunkstore.Segment, 1)}, nil, nil},
	} {
		if err := s.Put(testKey, c.v, c.p, c.crcs); !errors.Is(err, rfs.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.Read(testKey, chunkstore.ReadAt{N: 10}, make([]byte, 9)); !errors.Is(err, rfs.ErrInvalid) {
		t.Error("read into too little:", err)
	}
}

// A store that was closed opens clean and whole; one that was not does not open clean.
func testReopen(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	m := NewModel()
	p := Bytes(rand.New(rand.NewPCG(7, 7)), 9000)
	put(t, s, m, testKey, full(len(p), Tag(1)), p)
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = Reopen(t, o)
		if !s.Clean() {
			t.Error("not clean:", s.Recovery())
		}
		mustCompare(t, s, m, testKey)
	}
	if _, err := chunkstore.Open(o); !errors.Is(err, chunkstore.ErrLocked) {
		t.Error("second open:", err)
	}
	if _, err := chunkstore.Check(t.Context(), o, chunkstore.CheckOptions{}); !errors.Is(err, chunkstore.ErrLocked) {
		t.Error("check of an open store:", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Sync(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Error("sync with a context that ended:", err)
	}
}

// RandomStep takes the model a step further and returns what does the same to
// a store; tags are given in order. A step of many shards is many states.
func RandomStep(rng *rand.Rand, m *Model, keys []rfs.ShardKey, tag *int, size int) func(*chunkstore.Store) error {
	key := keys[rng.IntN(len(keys))]
	vs := Visible(m.Now()[key])
	*tag++
	next := Tag(*tag)
	n := rng.IntN(20)
	switch {
	case n < 9:
		v, p := RandomVersion(rng, key, next, size, 4)
		m.Put(key, v, p)
		return func(s *chunkstore.Store) error { return s.Put(key, v, p, CRCs(key, v, p)) }
	case n == 18:
		below := Tag(max(*tag-rng.IntN(8), 1))
		for _, k := range m.Keys(key.Inode, key.Stripe) {
			m.DropWhere(k, func(v Stored) bool { return v.Tag.Less(below) })
		}
		return func(s *chunkstore.Store) error { return s.Trim(key.Inode, key.Stripe, below) }
	case n == 19 && rng.IntN(3) == 0:
		for _, k := range m.Keys(key.Inode, 0) {
			m.DropWhere(k, func(Stored) bool { return true })
		}
		return func(s *chunkstore.Store) error { return s.Delete(key.Inode) }
	case n == 19 || len(vs) == 0:
		return func(*chunkstore.Store) error { return nil }
	}
	v := vs[rng.IntN(len(vs))]
	switch prepared := v.State == chunkstore.Prepared; {
	case n == 15 && prepared:
		m.DropWhere(key, func(w Stored) bool { return w.Tag == v.Tag && w.Kind == v.Kind })
		return func(s *chunkstore.Store) error { return s.Abort(key, v.Tag, v.Kind) }
	case n == 16 && prepared:
		m.Retag(key, v.Tag, next)
		return func(s *chunkstore.Store) error { return s.Retag(key, v.Tag, next) }
	case n == 17:
		v.Version.Repair = true
		m.Put(key, v.Version, v.Payload)
		return func(s *chunkstore.Store) error {
			return s.Put(key, v.Version, v.Payload, CRCs(key, v.Version, v.Payload))
		}
	}
	m.Commit(key, v.Tag, v.Kind)
	return func(s *chunkstore.Store) error { return s.Commit(key, v.Tag, v.Kind) }
}

// Keys returns shards for a random history: of a few inodes, stripes and members.
func Keys() (keys []rfs.ShardKey) {
	for i := range 12 {
		keys = append(keys, rfs.ShardKey{Inode: rfs.InodeID(i%2 + 1), Stripe: uint32(i / 4), Shard: uint8(i / 2 % 2 * 4)})
	}
	return keys
}

// After any history the store is what the model is: while open, after it was
// opened again, and after its index was rebuilt; and it checks.
func testRandomHistory(t *testing.T, o chunkstore.Options) {
	for seed := range uint64(4) {
		o := o
		o.Dir = fmt.Sprintf("%s/%d", o.Dir, seed)
		s := Open(t, o)
		rng := rand.New(rand.NewPCG(seed, 8))
		m, keys, tag := NewModel(), Keys(), 0
		for i := range 250 {
			if err := RandomStep(rng, m, keys, &tag, 30000)(s); err != nil {
				t.Fatalf("seed %d step %d: %v", seed, i, err)
			}
			if rng.IntN(10) == 0 {
				mustSync(t, s)
			}
		}
		mustCompare(t, s, m, keys...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		mustCheck(t, o)
		s = Reopen(t, o)
		mustCompare(t, s, m, keys...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := chunkstore.Rebuild(t.Context(), o, nil); err != nil {
			t.Fatal(err)
		}
		mustCheck(t, o)
		s = Reopen(t, o)
		if s.Clean() {
			t.Error("clean after a rebuild")
		}
		mustCompare(t, s, m, keys...)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func mustCheck(t testing.TB, o chunkstore.Options) {
	t.Helper()
	rep, err := chunkstore.Check(t.Context(), o, chunkstore.CheckOptions{Data: true})
	if err != nil {
		t.Fatal(err)
	}
	if !rep.OK() {
		t.Fatalf("check: %+v", rep)
	}
}

// Writers of the same shards, readers, syncs and deletes at once: readers see
// one write or another whole, and at the end all space is accounted for.
func testConcurrent(t *testing.T, o chunkstore.Options) {
	s := Open(t, o)
	const shards, writers, rounds = 3, 4, 30
	var wg sync.WaitGroup
	errs := make(chan error, 64)
	for w := range writers {
		wg.Go(func() {
			for i := range rounds {
				if err := overwrite(s, rfs.ShardKey{Inode: 1, Stripe: uint32(i % shards)}, i*writers+w+1); err != nil {
					errs <- fmt.Errorf("writer %d: %w", w, err)
					return
				}
			}
		})
		wg.Go(func() {
			buf := make([]byte, 70000)
			for i := range rounds * 3 {
				key := rfs.ShardKey{Inode: 1, Stripe: uint32(i % shards)}
				res, err := s.Read(key, chunkstore.ReadAt{N: 70000}, buf)
				if err == nil && res.N > 0 && bytes.Count(buf[:res.N], buf[:1]) != res.N {
					err = errors.New("bytes of two writes")
				}
				if err != nil {
					errs <- fmt.Errorf("reader: %w", err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for range rounds {
			if err := s.Sync(context.Background()); err != nil {
				errs <- err
			}
			if err := s.Delete(2); err != nil {
				errs <- err
			}
		}
	})
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	for _, inode := range []rfs.InodeID{1, 2} {
		if err := s.Delete(inode); err != nil {
			t.Error(err)
		}
	}
	mustSync(t, s)
	if u, err := s.Stat(); err != nil || u.Used != 0 {
		t.Error("space is lost:", u, err)
	}
}

// overwrite puts and commits a full version of a shard, and a shard of another inode.
func overwrite(s *chunkstore.Store, key rfs.ShardKey, n int) error {
	p := bytes.Repeat([]byte{byte(n)}, 66000)
	v := full(len(p), Tag(n))
	err := s.Put(key, v, p, CRCs(key, v, p))
	if err == nil {
		err = s.Commit(key, v.Tag, v.Kind)
	}
	if err != nil && !errors.Is(err, rfs.ErrStaleTag) {
		return err
	}
	other := rfs.ShardKey{Inode: 2, Stripe: uint32(n)}
	v.Length = 100
	return s.Put(other, v, p[:100], CRCs(other, v, p[:100]))
}
