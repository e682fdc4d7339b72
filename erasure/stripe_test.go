package erasure

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"rfs"
	"rfs/internal/crc"
)

// stripeOf returns n bytes of a stripe and room for its parity and checksums.
func stripeOf(l rfs.Layout, n int64) (stripe []byte, parity [][]byte, sums *Sums) {
	stripe = make([]byte, n)
	sums = &Sums{Inode: 0x1_0000_0000_0042, Stripe: 7, CRCs: make([][]uint32, l.Width())}
	for i := range uint8(l.Width()) {
		sums.CRCs[i] = make([]uint32, Blocks(l.ShardLen(i, n)))
		if i >= l.K {
			parity = append(parity, make([]byte, l.ShardLen(i, n)))
		}
	}
	return stripe, parity, sums
}

// gather returns the data shards of a stripe, each in one piece.
func gather(l rfs.Layout, stripe []byte) [][]byte {
	data := make([][]byte, l.K)
	for in := int64(0); in < int64(len(stripe)); {
		shard, off, n := l.Locate(in)
		if int(off) != len(data[shard]) {
			panic("not in order")
		}
		end := min(in+int64(n), int64(len(stripe)))
		data[shard] = append(data[shard], stripe[in:end]...)
		in = end
	}
	return data
}

func TestEncodeStripeIsEncodeOfItsShards(t *testing.T) {
	rng := rand.New(rand.NewPCG(13, 14))
	for _, l := range []rfs.Layout{
		{K: 4, M: 2, Unit: rfs.DefaultUnit, Cell: rfs.DefaultCell},
		{K: 8, M: 2, Unit: 64 << 10, Cell: 16 << 10},
		{K: 3, M: 2, Unit: 12 << 10, Cell: 4 << 10},
		{K: 2, M: 1, Unit: 100 << 10, Cell: 100 << 10}, // a cell that is no multiple of a piece
		{K: 1, M: 2, Unit: 256 << 10, Cell: 128 << 10},
		{K: 20, M: 5, Unit: 8 << 10, Cell: 4 << 10},
	} {
		c, full := code(t, int(l.K), int(l.M)), l.StripeSize()
		lengths := []int64{0, 1, 4095, 4096, 4097, int64(l.Cell) - 1, int64(l.Cell), int64(l.Cell) + 1, full - 1, full}
		for range 10 {
			lengths = append(lengths, rng.Int64N(full+1))
		}
		for _, n := range lengths {
			n = min(n, full)
			stripe, parity, sums := stripeOf(l, n)
			fillRandom(rng, stripe)
			if err := c.EncodeStripe(l, stripe, parity, sums); err != nil {
				t.Fatalf("%+v, %d bytes: %v", l, n, err)
			}
			data, want := gather(l, stripe), shardsOf(int(l.M), int(l.ShardLen(l.K, n)))
			if err := c.Encode(data, want); err != nil {
				t.Fatal(err)
			}
			for i, s := range slices.Concat(data, want) {
				if got := uint32(len(s)); got != l.ShardLen(uint8(i), n) {
					t.Fatalf("%+v, %d bytes: shard %d is %d bytes, by the layout %d", l, n, i, got, l.ShardLen(uint8(i), n))
				}
				if j := i - int(l.K); j >= 0 && !bytes.Equal(parity[j], s) {
					t.Fatalf("%+v, %d bytes: parity %d differs", l, n, j)
				}
				for b := 0; len(s) > 0; b++ {
					block := s[:min(len(s), rfs.BlockSize)]
					if got, want := sums.CRCs[i][b], crc.Block(sums.Inode, sums.Stripe, uint8(i), uint32(b), block); got != want {
						t.Fatalf("%+v, %d bytes: checksum of shard %d block %d is %#08x, want %#08x", l, n, i, b, got, want)
					}
					s = s[len(block):]
				}
			}
		}
	}
}

func TestEncodeStripeRefuses(t *testing.T) {
	l := rfs.Layout{K: 4, M: 2, Unit: 16 << 10, Cell: 4 << 10}
	c := code(t, 4, 2)
	stripe, parity, sums := stripeOf(l, l.StripeSize())
	short, wide, few := *sums, l, *sums
	short.CRCs = slices.Clone(sums.CRCs)
	short.CRCs[5] = short.CRCs[5][:3]
	few.CRCs = sums.CRCs[:5]
	wide.K = 5
	for what, err := range map[string]error{
		"another layout":     c.EncodeStripe(wide, stripe, parity, sums),
		"no layout":          c.EncodeStripe(rfs.Layout{}, stripe, parity, sums),
		"a long stripe":      c.EncodeStripe(l, append(stripe, 0), parity, sums),
		"short parity":       c.EncodeStripe(l, stripe, [][]byte{parity[0], parity[1][1:]}, sums),
		"one parity":         c.EncodeStripe(l, stripe, parity[:1], sums),
		"room for few sums":  c.EncodeStripe(l, stripe, parity, &short),
		"sums of few shards": c.EncodeStripe(l, stripe, parity, &few),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestSIMDHasAName(t *testing.T) {
	if SIMD() == "" {
		t.Error("no name")
	}
	t.Log(SIMD())
}

func BenchmarkEncodeStripe(b *testing.B) {
	for _, k := range []uint8{4, 8} {
		for _, sum := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d+2/crc=%v", k, sum), func(b *testing.B) {
				l := rfs.Layout{K: k, M: 2, Unit: rfs.DefaultUnit, Cell: rfs.DefaultCell}
				stripe, parity, sums := stripeOf(l, l.StripeSize())
				if !sum {
					sums = nil
				}
				c := code(b, int(k), 2)
				b.SetBytes(l.StripeSize())
				b.ReportAllocs()
				for b.Loop() {
					if err := c.EncodeStripe(l, stripe, parity, sums); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
