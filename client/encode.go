package client

import (
	"context"
	"fmt"

	"rfs"
	"rfs/erasure"
	"rfs/internal/crc"
	"rfs/transport/wire"
)

// encode makes w the Full version of all that b has: zeros in the gaps, parity
// and checksums in one pass over the bytes, erasure.Piece at a time.
func (w *version) encode(ctx context.Context, b *stripeBuf, all bool) error {
	l := w.ino.layout
	code, err := erasure.New(int(l.K), int(l.M))
	if err != nil {
		return err
	}
	k, longest := int(l.K), uint32(0)
	for i := range b.shards {
		longest = max(longest, b.shards[i].dirty.end())
	}
	w.shards = w.shards[:0]
	for i := range b.shards {
		s := &b.shards[i]
		n := s.dirty.end()
		w.parts[i].length = n
		w.shards = append(w.shards, nil)
		if n > 0 {
			s.dirty.gaps(n, func(off, end uint32) { clear(s.bytes(off, end)) })
			w.parts[i].view = view{s.buf, 0, int(n)}
			w.shards[i] = s.bytes(0, n)
		}
		if n > 0 || all {
			w.w.Add(uint8(i))
		}
	}
	for i := k; i < l.Width(); i++ {
		buf, err := w.ino.fs.flightMem.Get(ctx, int(longest))
		if err != nil {
			return fmt.Errorf("memory for parity: %w", err)
		}
		w.bufs = append(w.bufs, buf)
		w.shards = append(w.shards, buf.Bytes())
		w.parts[i].length = longest
		w.parts[i].view = view{buf, 0, int(longest)}
		w.w.Add(uint8(i))
	}
	w.makeCRCs()
	return w.encodePieces(code, int(longest))
}

// makeCRCs gives each part room for the checksums of its blocks.
func (w *version) makeCRCs() {
	total := 0
	for i := range w.parts {
		total += erasure.Blocks(w.parts[i].length)
	}
	if cap(w.crcs) < total {
		w.crcs = make([]uint32, total)
	}
	w.crcs = w.crcs[:total]
	rest := w.crcs
	for i := range w.parts {
		n := erasure.Blocks(w.parts[i].length)
		w.parts[i].crcs, rest = rest[:n:n], rest[n:]
	}
}

func (w *version) encodePieces(code *erasure.Code, longest int) error {
	k := code.K()
	for at := 0; at < longest; at += erasure.Piece {
		w.pieces = w.pieces[:0]
		for _, s := range w.shards {
			w.pieces = append(w.pieces, s[min(at, len(s)):min(at+erasure.Piece, len(s))])
		}
		if err := code.Encode(w.pieces[:k], w.pieces[k:]); err != nil {
			return err
		}
		first := uint32(at / rfs.BlockSize)
		for i, p := range w.pieces {
			if len(p) > 0 {
				crc.Of(w.ino.id, w.stripe, uint8(i)).Blocks(w.parts[i].crcs[first:], first, p)
			}
		}
	}
	return nil
}

// What one Partial version carries at most, in bytes and segments: its header
// must fit a message, and its payload is gathered in one buffer.
const (
	partialMax  = 1 << 20
	segmentsMax = 200
)

// cursor is how far the dirty bytes of a stripe are gathered.
type cursor struct {
	shard int
	off   uint32
}

// gather makes w the next Partial version of what b has beyond at, and says
// whether there was anything. A single segment is lent as it lies; several are copied together.
func (w *version) gather(ctx context.Context, b *stripeBuf, at *cursor) (more bool, err error) {
	w.reset()
	total := uint32(0)
	for ; at.shard < len(b.shards); *at = (cursor{shard: at.shard + 1}) {
		for _, x := range b.shards[at.shard].dirty {
			x.off = max(x.off, at.off)
			if x.off >= x.end {
				continue
			}
			if len(w.segs) == segmentsMax || total == partialMax {
				return true, w.carry(ctx, b, total)
			}
			x.end = min(x.end, x.off+partialMax-total)
			w.segs = append(w.segs, wire.Segment{Shard: uint8(at.shard), Off: x.off, Len: x.len()})
			total += x.len()
			at.off = x.end
			if total == partialMax {
				return true, w.carry(ctx, b, total)
			}
		}
	}
	if total == 0 {
		return false, nil
	}
	return true, w.carry(ctx, b, total)
}

// carry fills in the parts of a Partial version from w.segs, whose bytes are b's: each
// data target gets its own segments, each parity target all.
func (w *version) carry(ctx context.Context, b *stripeBuf, total uint32) error {
	whole := view{off: 0, n: int(total)}
	if len(w.segs) == 1 {
		g := w.segs[0]
		s := &b.shards[g.Shard]
		whole.Buf, whole.off = s.buf, int(g.Off-s.base)
	} else {
		buf, err := w.ino.fs.flightMem.Get(ctx, int(total))
		if err != nil {
			return fmt.Errorf("memory for %d segments: %w", len(w.segs), err)
		}
		w.bufs = append(w.bufs, buf)
		whole.Buf = buf
		n := 0
		for _, g := range w.segs {
			n += copy(buf.Bytes()[n:], b.shards[g.Shard].bytes(g.Off, g.Off+g.Len))
		}
	}
	w.overlay(whole)
	return nil
}

// overlay fills in the parts of a Partial version from w.segs, in order of their
// shards, and the payload of those that are not Zero.
func (w *version) overlay(whole view) {
	k := int(w.ino.layout.K)
	at := 0
	for i := 0; i < len(w.segs); {
		shard, from, firstCRC, start := w.segs[i].Shard, i, len(w.crcs), at
		name := crc.Of(w.ino.id, w.stripe, shard)
		for ; i < len(w.segs) && w.segs[i].Shard == shard; i++ {
			g := w.segs[i]
			if g.Zero {
				continue
			}
			w.crcs = appendCRCs(w.crcs, name, g.Off, whole.Bytes()[at:at+int(g.Len)])
			at += int(g.Len)
		}
		w.w.Add(shard)
		w.parts[shard] = part{
			length: uint32(at - start),
			segs:   w.segs[from:i],
			view:   view{whole.Buf, whole.off + start, at - start},
		}
		w.ranges = append(w.ranges, [3]int{int(shard), firstCRC, len(w.crcs)})
	}
	for _, r := range w.ranges { // w.crcs does not move any more
		w.parts[r[0]].crcs = w.crcs[r[1]:r[2]]
	}
	w.ranges = w.ranges[:0]
	for i := k; i < w.ino.layout.Width(); i++ {
		w.w.Add(uint8(i))
		w.parts[i] = part{length: uint32(at), segs: w.segs, crcs: w.crcs, view: whole}
	}
}

// appendCRCs appends the checksum of each block that p, which lies at off of the shard, touches.
func appendCRCs(dst []uint32, name crc.Shard, off uint32, p []byte) []uint32 {
	for len(p) > 0 {
		n := min(len(p), int(rfs.BlockSize-off%rfs.BlockSize))
		dst = append(dst, name.Block(off/rfs.BlockSize, p[:n]))
		off += uint32(n)
		p = p[n:]
	}
	return dst
}
