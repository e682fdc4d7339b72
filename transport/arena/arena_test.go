package arena

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	"rfs/internal/invariants"
	"rfs/transport"
)

func newArena(t testing.TB, bytes int64) *Arena {
	t.Helper()
	a, err := New(Config{Bytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func get(t testing.TB, a *Arena, n int) transport.Buf {
	t.Helper()
	b, err := a.Get(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSizes(t *testing.T) {
	a := newArena(t, 64<<20)
	for _, c := range []struct {
		n    int
		used int64
	}{{0, 4096}, {1, 4096}, {4096, 4096}, {4097, 8192}, {1 << 20, 1 << 20}, {1<<20 + 1, 2 << 20}, {4 << 20, 4 << 20}} {
		b := get(t, a, c.n)
		if len(b.Bytes()) != c.n || cap(b.Bytes()) != c.n {
			t.Errorf("get %d: length %d, capacity %d", c.n, len(b.Bytes()), cap(b.Bytes()))
		}
		if s := a.Stats(); s.Used != c.used || s.Buffers != 1 {
			t.Errorf("get %d: %+v, want %d used", c.n, s, c.used)
		}
		b.Release()
	}
	for _, n := range []int{-1, 4<<20 + 1} {
		if _, err := a.Get(t.Context(), n); !errors.Is(err, ErrTooBig) {
			t.Errorf("get %d: %v", n, err)
		}
	}
}

// Random gets and releases: no two buffers overlap, and all memory comes back.
func TestBuffersNeverOverlap(t *testing.T) {
	a := newArena(t, 32<<20)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	type held struct {
		b    transport.Buf
		mark byte
	}
	var live []held
	for i := range 4000 {
		if len(live) > 0 && rng.IntN(2) == 0 {
			k := rng.IntN(len(live))
			h := live[k]
			m := h.b.Bytes()
			if m[0] != h.mark || m[len(m)-1] != h.mark {
				t.Fatalf("step %d: a buffer of %d bytes was overwritten by another", i, len(m))
			}
			h.b.Release()
			live[k] = live[len(live)-1]
			live = live[:len(live)-1]
			continue
		}
		b, ok := a.TryGet(1 + rng.IntN(1<<(10+rng.IntN(13))))
		if !ok {
			continue
		}
		mark := byte(i)
		b.Bytes()[0], b.Bytes()[len(b.Bytes())-1] = mark, mark
		live = append(live, held{b, mark})
	}
	for _, h := range live {
		h.b.Release()
	}
	if s := a.Stats(); s.Used != 0 || s.Buffers != 0 || s.Mapped > s.Limit {
		t.Fatalf("after all releases: %+v", s)
	}
	for range 8 { // every block can serve the largest class again
		defer get(t, a, MaxClass).Release()
	}
}

func TestGetWaitsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(Config{Bytes: 4 << 20})
		if err != nil {
			t.Fatal(err)
		}
		first := get(t, a, 4<<20)
		got := make(chan int, 2)
		var bufs [2]transport.Buf
		for i, n := range []int{4 << 20, 4096} {
			go func() {
				bufs[i], _ = a.Get(context.Background(), n)
				got <- i
			}()
			synctest.Wait()
		}
		if _, ok := a.TryGet(1); ok {
			t.Fatal("TryGet went past who waits")
		}
		first.Release()
		if i := <-got; i != 0 {
			t.Fatalf("waiter %d came first", i)
		}
		bufs[0].Release()
		<-got
		bufs[1].Release()
		if s := a.Stats(); s.Waits != 2 || s.Buffers != 0 {
			t.Fatalf("%+v", s)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// A waiter that gives up lets the smaller request behind it through.
func TestGetGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(Config{Bytes: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		hold := get(t, a, 4<<20)
		small := get(t, a, 4096) // the other block, for small ones
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error)
		go func() { _, err := a.Get(ctx, 4<<20); gaveUp <- err }()
		synctest.Wait()
		behind := make(chan transport.Buf)
		go func() { b, _ := a.Get(context.Background(), 4096); behind <- b }()
		synctest.Wait()
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		(<-behind).Release()
		small.Release()
		hold.Release()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestBudgetsDoNotStarveEachOther(t *testing.T) {
	a := newArena(t, 16<<20)
	left, right := a.Budget(8<<20), a.Budget(8<<20)
	var held []transport.Buf
	for {
		b, ok := left.TryGet(1 << 20)
		if !ok {
			break
		}
		held = append(held, b)
	}
	if len(held) != 8 || left.Used() != left.Limit() {
		t.Fatalf("%d buffers of 1 MiB, %d bytes used of 8 MiB", len(held), left.Used())
	}
	for range 2 {
		b, ok := right.TryGet(4 << 20)
		if !ok {
			t.Fatal("the other budget's memory was taken")
		}
		held = append(held, b)
	}
	for _, b := range held {
		b.Release()
	}
}

func TestRetainRelease(t *testing.T) {
	a := newArena(t, 4<<20)
	b := get(t, a, 100)
	b.Retain()
	b.Release()
	if a.Stats().Buffers != 1 {
		t.Fatal("gone with an owner left")
	}
	b.Release()
	if a.Stats().Buffers != 0 {
		t.Fatal("not returned by its last owner")
	}
	mustPanic(t, b.Release)
	mustPanic(t, func() { b.(*buf).refs.Store(0); b.Retain() })
	b.(*buf).refs.Store(0)
}

func TestWriteAfterReleaseIsSeen(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("needs the tag invariants or -race")
	}
	a := newArena(t, 4<<20)
	b := get(t, a, 4096)
	mem := b.Bytes()
	b.Release()
	mem[17] = 1
	mustPanic(t, func() { _, _ = a.TryGet(4096) })
	fill(mem, poison)
	x := b.(*buf) // the panicking TryGet took it
	x.refs.Store(1)
	x.Release()
}

func mustPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f()
}

func TestCloseInUse(t *testing.T) {
	a := newArena(t, 4<<20)
	b := get(t, a, 1)
	if a.Close() == nil {
		t.Fatal("closed with a buffer in use")
	}
	b.Release()
}

func TestConcurrent(t *testing.T) {
	a := newArena(t, 8<<20)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			for range 200 {
				b, err := a.Get(t.Context(), 1+rng.IntN(2<<20))
				if err != nil {
					t.Error(err)
					return
				}
				b.Bytes()[0] = byte(i)
				if b.Bytes()[0] != byte(i) {
					t.Error("overwritten")
				}
				b.Release()
			}
		})
	}
	wg.Wait()
}

func TestGetAllocatesNothing(t *testing.T) {
	a := newArena(t, 16<<20)
	if n := testing.AllocsPerRun(100, func() { get(t, a, 64<<10).Release() }); n != 0 {
		t.Fatalf("%v allocations a Get", n)
	}
}

func BenchmarkGet1MiB(b *testing.B) {
	a := newArena(b, 64<<20)
	b.ReportAllocs()
	for b.Loop() {
		get(b, a, 1<<20).Release()
	}
}
