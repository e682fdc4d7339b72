package erasure

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"rfs"
)

// mul is multiplication in GF(2^8) by the book: of polynomials modulo 0x11d.
func mul(a, b byte) (p byte) {
	for ; b > 0; b >>= 1 {
		if b&1 == 1 {
			p ^= a
		}
		carry := a >> 7
		a = a<<1 ^ carry*0x1d
	}
	return p
}

// matrix returns A of the package doc, by Gaussian elimination: A * U = L for
// the upper and lower rows U and L of the Vandermonde matrix.
func matrix(k, m int) [][]byte {
	v := make([][]byte, k+m)
	for r := range v {
		v[r] = make([]byte, k)
		x := byte(1)
		for c := range v[r] {
			v[r][c] = x
			x = mul(x, byte(r))
		}
	}
	inverse := func(a byte) byte {
		x := byte(1)
		for range 254 {
			x = mul(x, a)
		}
		return x
	}
	// Column operations that make the upper rows the identity make the lower ones A.
	for i := range k {
		for c := i; c < k; c++ { // a pivot that is not 0
			if v[i][c] != 0 {
				for r := range v {
					v[r][i], v[r][c] = v[r][c], v[r][i]
				}
				break
			}
		}
		f := inverse(v[i][i])
		for r := range v {
			v[r][i] = mul(v[r][i], f)
		}
		for c := range k {
			if f := v[i][c]; c != i && f != 0 {
				for r := range v {
					v[r][c] ^= mul(f, v[r][i])
				}
			}
		}
	}
	return v[k:]
}

// byTheBook returns parity of n bytes, by the definition in the package doc.
func byTheBook(k, m int, data [][]byte, n int) [][]byte {
	a, parity := matrix(k, m), make([][]byte, m)
	for j := range parity {
		parity[j] = make([]byte, n)
		for i, d := range data {
			for o, x := range d {
				parity[j][o] ^= mul(a[j][i], x)
			}
		}
	}
	return parity
}

func fillRandom(rng *rand.Rand, b []byte) []byte {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func shardsOf(n, length int) [][]byte {
	s := make([][]byte, n)
	for i := range s {
		s[i] = make([]byte, length)
	}
	return s
}

func code(t testing.TB, k, m int) *Code {
	t.Helper()
	c, err := New(k, m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEncodeIsByTheBook(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct{ k, m, n int }{
		{1, 1, 100}, {1, 2, 3000}, {2, 1, 1}, {3, 2, 31}, {4, 2, 4096}, {4, 2, 70_001}, {8, 2, 65}, {8, 3, 1000}, {10, 4, 333}, {12, 5, 130}, {40, 20, 64}, {250, 5, 77}, {128, 127, 33},
	} {
		data := make([][]byte, c.k)
		for i := range data {
			data[i] = fillRandom(rng, make([]byte, rng.IntN(c.n+1))) // short ones too
		}
		data[rng.IntN(c.k)] = nil
		data[rng.IntN(c.k)] = fillRandom(rng, make([]byte, c.n))
		parity := shardsOf(c.m, c.n)
		for _, p := range parity {
			fillRandom(rng, p)
		}
		if err := code(t, c.k, c.m).Encode(data, parity); err != nil {
			t.Fatal(err)
		}
		for j, want := range byTheBook(c.k, c.m, data, c.n) {
			if !bytes.Equal(parity[j], want) {
				t.Errorf("%d+%d, %d bytes: parity %d differs from the definition", c.k, c.m, c.n, j)
			}
		}
		if c.k == 1 && !bytes.Equal(parity[0], data[0]) {
			t.Error("with k = 1 parity is not a copy")
		}
	}
}

// Parity is on disk: these vectors may never change.
func TestGoldenParity(t *testing.T) {
	for _, g := range []struct {
		k, m   int
		parity string
	}{
		{1, 2, "2122232425262728 2122232425262728"},
		{4, 2, "b8e382fd1cd756f1 b3f28dec27c661e0"},
		{8, 2, "078a7cda13597b66 f29b3dcb81485577"},
		{8, 3, "078a7cda13597b66 f29b3dcb81485577 3593fa77554881cb"},
	} {
		data := make([][]byte, g.k)
		for i := range data {
			for o := range 8 {
				data[i] = append(data[i], byte(33+i*17+o))
			}
		}
		parity := shardsOf(g.m, 8)
		if err := code(t, g.k, g.m).Encode(data, parity); err != nil {
			t.Fatal(err)
		}
		got := ""
		for j, p := range parity {
			if j > 0 {
				got += " "
			}
			got += hex.EncodeToString(p)
		}
		if got != g.parity {
			t.Errorf("%d+%d: parity %s, want %s", g.k, g.m, got, g.parity)
		}
	}
	// A long one, of a checksum: 4+2 over 200 KiB of a fixed pattern.
	data, parity := shardsOf(4, 200<<10), shardsOf(2, 200<<10)
	for i, d := range data {
		for o := range d {
			d[o] = byte(o*(2*i+3) ^ o>>8)
		}
	}
	if err := code(t, 4, 2).Encode(data, parity); err != nil {
		t.Fatal(err)
	}
	for j, want := range []uint32{0x1b07cb5b, 0xfa6f073e} {
		if got := crc32.ChecksumIEEE(parity[j]); got != want {
			t.Errorf("4+2 of the pattern: parity %d has CRC-32 %#08x, want %#08x", j, got, want)
		}
	}
}

// Every way to lose up to m shards of every narrow code.
func TestReconstructEveryPattern(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, c := range []struct{ k, m, n int }{{1, 1, 9}, {1, 2, 100}, {2, 1, 64}, {3, 2, 17}, {4, 2, 1000}, {5, 3, 129}, {8, 2, 257}, {6, 4, 96}} {
		full := encoded(t, rng, c.k, c.m, c.n, false)
		for lost := range 1 << (c.k + c.m) {
			rebuild(t, rng, c.k, c.m, full, func(i int) bool { return lost>>i&1 == 1 })
		}
	}
}

func TestReconstructRandomPatterns(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, c := range []struct{ k, m, n int }{{4, 2, 200_003}, {8, 2, Piece}, {8, 3, 2*Piece + 1}, {17, 3, 1000}, {60, 40, 65}, {250, 5, 130}, {5, 250, 70}, {200, 55, 100}} {
		for range 12 {
			full := encoded(t, rng, c.k, c.m, c.n, true)
			left := rng.IntN(c.m + 1)
			lost := map[int]bool{}
			for _, i := range rng.Perm(c.k + c.m)[:left] {
				lost[i] = true
			}
			rebuild(t, rng, c.k, c.m, full, func(i int) bool { return lost[i] })
		}
	}
}

// encoded returns random data shards, of random lengths if short, and their parity.
func encoded(t testing.TB, rng *rand.Rand, k, m, n int, short bool) [][]byte {
	t.Helper()
	full := shardsOf(k+m, n)
	for i := range k {
		if short && rng.IntN(2) == 0 {
			full[i] = full[i][:rng.IntN(n+1)]
		}
		fillRandom(rng, full[i])
	}
	if err := code(t, k, m).Encode(full[:k], full[k:]); err != nil {
		t.Fatal(err)
	}
	return full
}

// rebuild rebuilds the lost shards of full, and the others must be left alone.
func rebuild(t testing.TB, rng *rand.Rand, k, m int, full [][]byte, lost func(i int) bool) {
	t.Helper()
	var have, want rfs.ShardSet
	shards, n := make([][]byte, k+m), 0
	for i := range shards {
		if lost(i) {
			want.Add(uint8(i))
			shards[i] = fillRandom(rng, make([]byte, len(full[k])))
			n++
		} else {
			have.Add(uint8(i))
			shards[i] = bytes.Clone(full[i])
		}
	}
	err := code(t, k, m).Reconstruct(shards, have, want)
	if n > m {
		if err == nil {
			t.Fatalf("%d+%d: rebuilt %d lost shards", k, m, n)
		}
		return
	}
	if err != nil {
		t.Fatalf("%d+%d without %v: %v", k, m, want, err)
	}
	for i, s := range shards {
		f := full[i]
		if !bytes.Equal(s[:len(f)], f) || bytes.Count(s[len(f):], []byte{0}) != len(s)-len(f) {
			t.Fatalf("%d+%d: shard %d differs after %v were rebuilt", k, m, i, want)
		}
	}
}

// A wanted shard may be rebuilt in part, and one that nobody has or wants is left alone.
func TestReconstructSomeBytesOfSomeShards(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	full := encoded(t, rng, 4, 2, 300_000, false)
	shards := [][]byte{nil, full[1], make([]byte, 1234), full[3], full[4], full[5]}
	var have, want rfs.ShardSet
	for _, i := range []uint8{1, 3, 4, 5} {
		have.Add(i)
	}
	want.Add(2)
	if err := code(t, 4, 2).Reconstruct(shards, have, want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(shards[2], full[2][:1234]) || shards[0] != nil {
		t.Error("shard 2 is wrong, or shard 0 was touched")
	}
}

func TestUpdateIsEncode(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 10))
	for range 60 {
		k, m, n := 1+rng.IntN(10), 1+rng.IntN(4), 1+rng.IntN(3*Piece)
		full := encoded(t, rng, k, m, n, true)
		i := rng.IntN(k)
		now := fillRandom(rng, make([]byte, rng.IntN(n+1)))
		if err := code(t, k, m).Update(full[k:], i, full[i], now); err != nil {
			t.Fatal(err)
		}
		full[i] = now
		want := shardsOf(m, n)
		if err := code(t, k, m).Encode(full[:k], want); err != nil {
			t.Fatal(err)
		}
		for j := range want {
			if !bytes.Equal(full[k+j], want[j]) {
				t.Fatalf("%d+%d, %d bytes: parity %d differs after shard %d became %d bytes", k, m, n, j, i, len(now))
			}
		}
	}
}

func TestBadCalls(t *testing.T) {
	for _, c := range [][2]int{{0, 2}, {-1, 2}, {4, 0}, {250, 6}} {
		if _, err := New(c[0], c[1]); err == nil {
			t.Errorf("New(%d, %d) succeeded", c[0], c[1])
		}
	}
	c := code(t, 4, 2)
	if code(t, 4, 2) != c {
		t.Error("New made a second 4+2")
	}
	var have, want rfs.ShardSet
	for i := range uint8(5) {
		have.Add(i)
	}
	want.Add(4)
	for what, err := range map[string]error{
		"3 data shards":           c.Encode(shardsOf(3, 8), shardsOf(2, 8)),
		"1 parity shard":          c.Encode(shardsOf(4, 8), shardsOf(1, 8)),
		"long data":               c.Encode(shardsOf(4, 9), shardsOf(2, 8)),
		"uneven parity":           c.Encode(shardsOf(4, 8), [][]byte{make([]byte, 8), make([]byte, 9)}),
		"update of shard 4":       c.Update(shardsOf(2, 8), 4, nil, nil),
		"update beyond parity":    c.Update(shardsOf(2, 8), 0, make([]byte, 9), nil),
		"known and wanted":        c.Reconstruct(shardsOf(6, 8), have, want),
		"5 shards to reconstruct": c.Reconstruct(shardsOf(5, 8), have, rfs.ShardSet{}),
		"nothing known":           c.Reconstruct(shardsOf(6, 8), rfs.ShardSet{}, want),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// This package allocates nothing. The library allocates the coefficients (900
// bytes) in each call where it multiplies by GFNI, which is once a column.
func TestNothingAllocates(t *testing.T) {
	if raceEnabled {
		t.Skip("under the race detector sync.Pool allocates")
	}
	rng := rand.New(rand.NewPCG(11, 12))
	for _, s := range []struct{ k, m int }{{1, 2}, {4, 2}, {8, 2}} {
		c, n := code(t, s.k, s.m), 3*Piece+5
		full := encoded(t, rng, s.k, s.m, n, true)
		l := rfs.Layout{K: uint8(s.k), M: uint8(s.m), Unit: rfs.DefaultUnit, Cell: rfs.DefaultCell}
		stripe, parity, sums := stripeOf(l, l.StripeSize()-5000)
		pieces := shardsOf(s.k+s.m, Piece)
		library := testing.AllocsPerRun(20, func() { _ = c.enc.Encode(pieces) })
		var have, want rfs.ShardSet
		want.Add(0)
		for i := 1; i < s.k+s.m; i++ {
			have.Add(uint8(i))
		}
		for _, f := range []struct {
			name  string
			calls int // of the library: columns, and where shards end
			call  func() error
		}{
			{"Encode", 4 + s.k, func() error { return c.Encode(full[:s.k], full[s.k:]) }},
			{"EncodeStripe", 16 + 1, func() error { return c.EncodeStripe(l, stripe, parity, sums) }},
			{"Update", 0, func() error { return c.Update(full[s.k:], 0, full[0], full[s.k]) }},
			{"Reconstruct", 4 + s.k + s.m, func() error { return c.Reconstruct(full, have, want) }},
		} {
			got := testing.AllocsPerRun(20, func() {
				if err := f.call(); err != nil {
					t.Fatal(err)
				}
			})
			if most := library * float64(f.calls); got >= most+1 { // a collection may empty the pool
				t.Errorf("%d+%d: %s allocates %v times, the library at most %v", s.k, s.m, f.name, got, most)
			}
		}
	}
}

func FuzzReconstruct(f *testing.F) {
	f.Add(uint8(4), uint8(2), uint16(5000), uint64(0b100010), uint64(1))
	f.Add(uint8(1), uint8(2), uint16(1), uint64(0b11), uint64(2))
	f.Add(uint8(12), uint8(12), uint16(200), uint64(0xfff), uint64(3))
	f.Fuzz(func(t *testing.T, k, m uint8, n uint16, lost, seed uint64) {
		k, m = k%20+1, m%12+1
		rng := rand.New(rand.NewPCG(seed, 1))
		full := encoded(t, rng, int(k), int(m), int(n)+1, seed%2 == 0)
		rebuild(t, rng, int(k), int(m), full, func(i int) bool { return lost>>i&1 == 1 })
	})
}

func BenchmarkEncode(b *testing.B) {
	for _, s := range []struct{ k, m int }{{4, 2}, {8, 2}} {
		b.Run(fmt.Sprintf("%d+%d/shards of 1 MiB", s.k, s.m), func(b *testing.B) {
			c, full := code(b, s.k, s.m), shardsOf(s.k+s.m, 1<<20)
			b.SetBytes(int64(s.k) << 20)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.Encode(full[:s.k], full[s.k:]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkReconstruct(b *testing.B) {
	c, full := code(b, 4, 2), shardsOf(6, 1<<20)
	var have, want rfs.ShardSet
	want.Add(0)
	want.Add(1)
	for i := uint8(2); i < 6; i++ {
		have.Add(i)
	}
	b.SetBytes(4 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Reconstruct(full, have, want); err != nil {
			b.Fatal(err)
		}
	}
}
