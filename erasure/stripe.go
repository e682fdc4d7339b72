package erasure

import (
	"fmt"

	"rfs"
	"rfs/internal/crc"
)

// Sums asks EncodeStripe for the checksums of a stripe's blocks.
type Sums struct {
	Inode  rfs.InodeID
	Stripe uint32
	// CRCs[i][b] becomes the checksum of block b of shard i (see internal/crc).
	// Each must have room for the blocks that its shard has: Blocks of
	// Layout.ShardLen. A nil one is left out.
	CRCs [][]uint32
}

// Blocks returns how many blocks n bytes of a shard have, the last of them short perhaps.
func Blocks(n uint32) int { return int((uint64(n) + rfs.BlockSize - 1) / rfs.BlockSize) }

// EncodeStripe computes the parity of the first len(stripe) bytes of a stripe,
// which lie in the file's order: rows of k cells. Each parity shard must be
// l.ShardLen(l.K, len(stripe)) bytes long at least; so many are written. If sums
// is not nil it takes the checksums of all blocks of all shards in the same pass.
func (c *Code) EncodeStripe(l rfs.Layout, stripe []byte, parity [][]byte, sums *Sums) error {
	if err := c.checkStripe(l, stripe, parity, sums); err != nil {
		return err
	}
	s := scratch.Get().(*buffers)
	defer s.put(c.k + c.m)
	cell, row := int(l.Cell), int(l.Cell)*c.k
	for r := 0; r*row < len(stripe); r++ {
		in := stripe[r*row : min(len(stripe), (r+1)*row)]
		for i := range c.k {
			s.ins[i] = in[min(len(in), i*cell):min(len(in), (i+1)*cell)]
		}
		n := len(s.ins[0]) // no cell of the row is longer
		for j, p := range parity {
			s.outs[j] = p[r*cell : r*cell+n]
		}
		for at := 0; at < n; at += Piece {
			end := min(n, at+Piece)
			if err := c.column(s, at, end); err != nil {
				return err
			}
			if sums != nil {
				sums.column(s, c, uint32(r*cell), at, end)
			}
		}
	}
	return nil
}

func (c *Code) checkStripe(l rfs.Layout, stripe []byte, parity [][]byte, sums *Sums) error {
	if err := l.Validate(); err != nil {
		return err
	}
	if int(l.K) != c.k || int(l.M) != c.m || len(parity) != c.m {
		return fmt.Errorf("erasure code %d+%d: got a layout of %d+%d and %d parity shards", c.k, c.m, l.K, l.M, len(parity))
	}
	if int64(len(stripe)) > l.StripeSize() {
		return fmt.Errorf("erasure code %d+%d: %d bytes of a stripe of %d", c.k, c.m, len(stripe), l.StripeSize())
	}
	n := int64(len(stripe))
	for j, p := range parity {
		if want := l.ShardLen(l.K, n); len(p) < int(want) {
			return fmt.Errorf("erasure code %d+%d: parity shard %d is %d bytes, %d are to be written", c.k, c.m, j, len(p), want)
		}
	}
	if sums == nil {
		return nil
	}
	if len(sums.CRCs) != c.k+c.m {
		return fmt.Errorf("erasure code %d+%d: got checksums of %d shards", c.k, c.m, len(sums.CRCs))
	}
	for i, crcs := range sums.CRCs {
		if want := Blocks(l.ShardLen(uint8(i), n)); crcs != nil && len(crcs) < want {
			return fmt.Errorf("erasure code %d+%d: room for %d checksums of shard %d, it has %d blocks", c.k, c.m, len(crcs), i, want)
		}
	}
	return nil
}

// column encodes bytes at..end of the cells s.ins into s.outs, cut where cells end.
func (c *Code) column(s *buffers, at, end int) error {
	for at < end {
		stop := end
		for i := range c.k {
			stop = cut(at, stop, len(s.ins[i]), stop)
		}
		for i := range c.k {
			s.pieces[i] = span(s.ins[i], at, stop)
		}
		for j := range c.m {
			s.pieces[c.k+j] = s.outs[j][at:stop]
		}
		if err := encode(c.enc, c.k, s.pieces[:c.k+c.m]); err != nil {
			return err
		}
		at = stop
	}
	return nil
}

// column takes the checksums of bytes at..end of the cells and parities in s,
// which begin at byte base of their shards.
func (sums *Sums) column(s *buffers, c *Code, base uint32, at, end int) {
	for i := range c.k + c.m {
		if sums.CRCs[i] == nil {
			continue
		}
		b := s.outs[max(i-c.k, 0)]
		if i < c.k {
			b = s.ins[i]
		}
		if b = b[min(at, len(b)):min(end, len(b))]; len(b) > 0 {
			first := (base + uint32(at)) / rfs.BlockSize
			crc.Of(sums.Inode, sums.Stripe, uint8(i)).Blocks(sums.CRCs[i][first:], first, b)
		}
	}
}
