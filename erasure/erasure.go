package erasure

import (
	"crypto/subtle"
	"fmt"
	"math/bits"
	"sync"

	"github.com/klauspost/reedsolomon"

	"rfs"
)

// Piece is the most bytes of a shard that are worked on at a time.
const Piece = 64 << 10

// zeros stands in for what a shard does not have. Nobody writes to it.
var zeros [Piece]byte

// A Code is a Reed-Solomon code of k data and m parity shards. Its methods may
// be called from any goroutine.
type Code struct {
	k, m int
	enc  reedsolomon.Encoder

	mu       sync.Mutex
	decoders map[pattern]reedsolomon.Encoder // at most maxDecoders
}

var (
	codesMu sync.Mutex
	codes   = map[[2]int]*Code{}
)

// New returns the code of k data and m parity shards; the same one each time.
func New(k, m int) (*Code, error) {
	switch {
	case k < 1:
		return nil, fmt.Errorf("erasure code %d+%d: want at least 1 data shard", k, m)
	case m < 1:
		return nil, fmt.Errorf("erasure code %d+%d: want at least 1 parity shard", k, m)
	case k+m > rfs.MaxShards:
		return nil, fmt.Errorf("erasure code %d+%d: at most %d shards", k, m, rfs.MaxShards)
	}
	codesMu.Lock()
	defer codesMu.Unlock()
	if c := codes[[2]int{k, m}]; c != nil {
		return c, nil
	}
	// One goroutine: who encodes many stripes at a time does so on his own.
	enc, err := reedsolomon.New(k, m, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("erasure code %d+%d: %w", k, m, err)
	}
	c := &Code{k: k, m: m, enc: enc, decoders: map[pattern]reedsolomon.Encoder{}}
	codes[[2]int{k, m}] = c
	return c, nil
}

// K returns the number of data shards.
func (c *Code) K() int { return c.k }

// M returns the number of parity shards.
func (c *Code) M() int { return c.m }

// Encode computes the m parity shards of k data shards. Data shards may be
// shorter than the parity, even nil: what they lack counts as zeros. The parity
// shards are of one length, at least that of the longest data shard.
func (c *Code) Encode(data, parity [][]byte) error {
	if len(data) != c.k || len(parity) != c.m {
		return fmt.Errorf("erasure code %d+%d: got %d data and %d parity shards", c.k, c.m, len(data), len(parity))
	}
	n := len(parity[0])
	for i, p := range parity {
		if len(p) != n {
			return fmt.Errorf("erasure code %d+%d: parity shard %d is %d bytes, not %d as the first", c.k, c.m, i, len(p), n)
		}
	}
	for i, d := range data {
		if len(d) > n {
			return fmt.Errorf("erasure code %d+%d: data shard %d is %d bytes, the parity only %d", c.k, c.m, i, len(d), n)
		}
	}
	return multiply(c.enc, c.k, data, parity, n)
}

// Reconstruct rebuilds lost shards. have are the shards that are known, at
// least k: shards[i] are their bytes, and what is missing at their ends (all,
// if nil) counts as zeros. Which k of them are used is this function's choice.
// want are the shards to rebuild: each fills its buffer shards[i], whose length
// is up to the caller. A shard beyond both is ignored.
func (c *Code) Reconstruct(shards [][]byte, have, want rfs.ShardSet) error {
	if len(shards) != c.k+c.m {
		return fmt.Errorf("erasure code %d+%d: got %d shards", c.k, c.m, len(shards))
	}
	p, err := c.pattern(have, want)
	if err != nil {
		return err
	}
	if p.want.IsEmpty() {
		return nil
	}
	dec, err := c.decoder(p)
	if err != nil {
		return err
	}
	s := scratch.Get().(*buffers)
	defer s.put(c.k + c.m)
	ins, outs, n := s.ins[:0], s.outs[:0], 0
	for i, b := range shards {
		switch {
		case p.have.Has(uint8(i)):
			ins = append(ins, b)
		case p.want.Has(uint8(i)):
			outs = append(outs, b)
			n = max(n, len(b))
		}
	}
	return multiply(dec, c.k, ins, outs, n)
}

// Update changes parity for new bytes of one data shard: parity[j] += A[j][i] *
// (new - old). All are of the same range of the shard; old and new may be
// shorter than the parity, and count as zeros from there on.
func (c *Code) Update(parity [][]byte, shard int, oldData, newData []byte) error {
	if len(parity) != c.m || shard < 0 || shard >= c.k {
		return fmt.Errorf("erasure code %d+%d: got %d parity shards and data shard %d", c.k, c.m, len(parity), shard)
	}
	n := max(len(oldData), len(newData))
	for j, p := range parity {
		if len(p) < n {
			return fmt.Errorf("erasure code %d+%d: parity shard %d is %d bytes, the data %d", c.k, c.m, j, len(p), n)
		}
	}
	s := scratch.Get().(*buffers)
	defer s.put(c.k + c.m)
	pieces := s.pieces[:c.m]
	for at := 0; at < n; {
		end := cut(at, n, len(oldData), len(newData))
		delta := s.delta[:end-at]
		subtle.XORBytes(delta, span(oldData, at, end), span(newData, at, end))
		for j, p := range parity {
			pieces[j] = p[at:end]
		}
		if err := c.enc.EncodeIdx(delta, shard, pieces); err != nil {
			return fmt.Errorf("erasure code %d+%d: %w", c.k, c.m, err)
		}
		at = end
	}
	return nil
}

// multiply computes outs = matrix of enc * ins for bytes 0..n of the shards, in
// pieces. Outs may be shorter than n, ins of any length.
func multiply(enc reedsolomon.Encoder, k int, ins, outs [][]byte, n int) error {
	s := scratch.Get().(*buffers)
	defer s.put(k + len(outs))
	for at := 0; at < n; {
		end := min(at+Piece, n)
		for _, b := range ins {
			end = cut(at, end, len(b), end)
		}
		for _, b := range outs {
			end = cut(at, end, len(b), end)
		}
		for i, b := range ins {
			s.pieces[i] = span(b, at, end)
		}
		for j, b := range outs {
			if at < len(b) {
				s.pieces[k+j] = b[at:end]
			} else {
				s.pieces[k+j] = s.delta[:end-at] // a shorter output than the others: thrown away
			}
		}
		if err := encode(enc, k, s.pieces[:k+len(outs)]); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// encode computes the pieces from k on from the first k.
func encode(enc reedsolomon.Encoder, k int, pieces [][]byte) error {
	some := false
	for _, in := range pieces[:k] {
		some = some || &in[0] != &zeros[0]
	}
	if !some {
		for _, out := range pieces[k:] {
			clear(out)
		}
		return nil
	}
	if err := enc.Encode(pieces); err != nil {
		return fmt.Errorf("erasure: encode %d pieces: %w", len(pieces), err)
	}
	return nil
}

// cut returns where the piece from at ends: at end, but at most Piece bytes on,
// and not beyond a or b if they lie within.
func cut(at, end, a, b int) int {
	end = min(end, at+Piece)
	if a > at {
		end = min(end, a)
	}
	if b > at {
		end = min(end, b)
	}
	return end
}

// span returns bytes at..end of b, which has all of them or none.
func span(b []byte, at, end int) []byte {
	if at >= len(b) {
		return zeros[:end-at]
	}
	return b[at:end]
}

// buffers is the scratch of one call. The slices are in it because what is
// passed to an interface's method would otherwise be allocated.
type buffers struct {
	pieces [rfs.MaxShards][]byte
	ins    [rfs.MaxShards][]byte
	outs   [rfs.MaxShards][]byte
	delta  [Piece]byte
}

var scratch = sync.Pool{New: func() any { return new(buffers) }}

// put returns the scratch of a call on n shards, and lets go of the caller's memory.
func (s *buffers) put(n int) {
	clear(s.pieces[:n])
	clear(s.ins[:n])
	clear(s.outs[:n])
	scratch.Put(s)
}

// A pattern is which k shards give which others.
type pattern struct{ have, want rfs.ShardSet }

// maxDecoders bounds the patterns that a Code remembers.
const maxDecoders = 256

// pattern reduces have to the first k (data first: then most of the matrix is
// zeros and ones) and takes from want what have has.
func (c *Code) pattern(have, want rfs.ShardSet) (p pattern, err error) {
	n := 0
	for i := range c.k + c.m {
		switch i := uint8(i); {
		case have.Has(i) && want.Has(i):
			return p, fmt.Errorf("erasure code %d+%d: shard %d is known and wanted", c.k, c.m, i)
		case have.Has(i) && n < c.k:
			p.have.Add(i)
			n++
		case want.Has(i):
			p.want.Add(i)
		}
	}
	if n < c.k {
		return p, fmt.Errorf("erasure code %d+%d: %d shards are known, it takes %d: %w", c.k, c.m, n, c.k, rfs.ErrUnavailable)
	}
	return p, nil
}

// decoder returns the encoder whose matrix makes the wanted shards from the k that are known.
func (c *Code) decoder(p pattern) (reedsolomon.Encoder, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if d := c.decoders[p]; d != nil {
		return d, nil
	}
	rows, err := c.rows(p)
	if err != nil {
		return nil, err
	}
	d, err := reedsolomon.New(c.k, len(rows), reedsolomon.WithMaxGoroutines(1), reedsolomon.WithCustomMatrix(rows))
	if err != nil {
		return nil, fmt.Errorf("erasure code %d+%d: %w", c.k, c.m, err)
	}
	if len(c.decoders) >= maxDecoders {
		for old := range c.decoders { // any one
			delete(c.decoders, old)
			break
		}
	}
	c.decoders[p] = d
	return d, nil
}

// rows returns the coefficients of the known shards in each wanted one. The
// code is linear: known shards that are the unit vectors are rebuilt to just these.
func (c *Code) rows(p pattern) ([][]byte, error) {
	shards, want, unit := make([][]byte, c.k+c.m), make([]bool, c.k+c.m), 0
	for i := range shards {
		if p.have.Has(uint8(i)) {
			shards[i] = make([]byte, c.k)
			shards[i][unit] = 1
			unit++
		}
		want[i] = p.want.Has(uint8(i))
	}
	if err := c.enc.ReconstructSome(shards, want); err != nil {
		return nil, fmt.Errorf("erasure code %d+%d: %w", c.k, c.m, err)
	}
	rows := make([][]byte, 0, count(p.want))
	for i, s := range shards {
		if want[i] {
			rows = append(rows, s)
		}
	}
	return rows, nil
}

func count(s rfs.ShardSet) (n int) {
	for _, w := range s {
		n += bits.OnesCount64(w)
	}
	return n
}
