package client

import (
	"math/rand/v2"
	"testing"
)

// TestExtentsAgainstBitmap adds and cuts random ranges and compares with a bitmap.
func TestExtentsAgainstBitmap(t *testing.T) {
	const n = 64
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		var e extents
		var m [n]bool
		for range 100 {
			a, b := uint32(r.IntN(n+1)), uint32(r.IntN(n+1))
			set := r.IntN(3) > 0
			if set {
				e.add(a, b)
			} else {
				e.cut(a, b)
			}
			for i := a; i < b; i++ {
				m[i] = set
			}
			checkExtents(t, seed, e, m[:], r)
		}
	}
}

func checkExtents(t *testing.T, seed uint64, e extents, m []bool, r *rand.Rand) {
	t.Helper()
	var got [64]bool
	last := -1
	for _, x := range e {
		if int(x.off) <= last || x.off >= x.end {
			t.Fatalf("seed %d: out of order, adjacent or empty: %v", seed, e)
		}
		last = int(x.end)
		for i := x.off; i < x.end; i++ {
			got[i] = true
		}
	}
	size := uint32(0)
	for i := range m {
		if m[i] {
			size++
		}
		if got[i] != m[i] {
			t.Fatalf("seed %d: byte %d is %v in %v", seed, i, got[i], e)
		}
	}
	if e.size() != size {
		t.Fatalf("seed %d: size %d, want %d", seed, e.size(), size)
	}
	a, b := uint32(r.IntN(65)), uint32(r.IntN(65))
	want := true
	for i := a; i < b; i++ {
		want = want && m[i]
	}
	if e.covers(a, b) != want {
		t.Fatalf("seed %d: covers(%d, %d) is %v in %v", seed, a, b, !want, e)
	}
	e.gaps(b, func(off, end uint32) {
		for i := off; i < end; i++ {
			if m[i] {
				t.Fatalf("seed %d: byte %d of %v is in a gap", seed, i, e)
			}
			got[i] = true
		}
	})
	for i := range b {
		if !got[i] {
			t.Fatalf("seed %d: byte %d is neither in %v nor in a gap", seed, i, e)
		}
	}
}
