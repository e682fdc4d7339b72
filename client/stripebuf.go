package client

import (
	"time"

	"rfs"
	"rfs/transport"
)

// A stripeBuf holds the bytes of one stripe that are not on the targets yet.
// Its inode's mu guards it until its write begins; from then on nothing
// changes but pins, and the bytes may be read.
type stripeBuf struct {
	ino    *inode
	stripe uint32
	serial uint64     // the inode's buffers are numbered
	shards []shardBuf // k
	pins   int        // one until its write has landed, and one of each reader that lays it over what it reads
	listed bool       // has had dirty bytes

	// Guarded by the dirty list's mu.
	since        time.Time // of the first byte
	due          bool      // to be written as soon as the write of the stripe that flies has landed
	older, newer *stripeBuf
}

// A shardBuf is the part of a stripeBuf on one data shard. The buffer covers the
// window [base, base+len) of the shard's unit and grows as more of it is dirty.
type shardBuf struct {
	buf   transport.Buf // nil: nothing dirty
	base  uint32
	dirty extents
}

func (s *shardBuf) end() uint32 {
	if s.buf == nil {
		return s.base
	}
	return s.base + uint32(len(s.buf.Bytes()))
}

// bytes returns the bytes [off, end) of the shard, which lie in the window.
func (s *shardBuf) bytes(off, end uint32) []byte {
	return s.buf.Bytes()[off-s.base : end-s.base]
}

// smallWindow is the least a window covers, in bytes.
const smallWindow = rfs.BlockSize

// window returns the window that [off, end) asks for: the one that is, if that
// holds it; the whole unit for a stream; else a power of two of blocks, at least
// four times the old one, so that growth copies little.
func (s *shardBuf) window(off, end, unit uint32, stream bool) (base, size uint32) {
	if s.buf != nil && s.base <= off && end <= s.end() {
		return s.base, s.end() - s.base
	}
	if stream {
		return 0, unit
	}
	size = smallWindow
	if s.buf != nil {
		off, end = min(off, s.base), max(end, s.end())
		size = 4 * (s.end() - s.base)
	}
	base = off / rfs.BlockSize * rfs.BlockSize
	for base+size < end {
		size *= 2
	}
	if size >= unit {
		return 0, unit
	}
	return min(base, unit-size), size
}

// move puts the shard's bytes into buf, whose window begins at base, and drops the old buffer.
func (s *shardBuf) move(buf transport.Buf, base uint32) {
	if s.buf != nil {
		for _, x := range s.dirty {
			copy(buf.Bytes()[x.off-base:x.end-base], s.bytes(x.off, x.end))
		}
		s.buf.Release()
	}
	s.buf, s.base = buf, base
}

// eachPiece calls f for each contiguous part of file range [in, in+n) of a stripe:
// at is its place in the range, off its offset on the shard.
func eachPiece(l rfs.Layout, in int64, n int, f func(shard uint8, off uint32, at, n int)) {
	for at := 0; at < n; {
		shard, off, room := l.Locate(in + int64(at))
		m := min(n-at, int(room))
		f(shard, off, at, m)
		at += m
	}
}

// shardRange returns the bytes of the shard that file range [in, in+n) of a
// stripe touches: they are contiguous, as cells of one shard follow each other.
func shardRange(l rfs.Layout, in int64, n int, shard uint8) (off, end uint32) {
	return l.ShardLen(shard, in), l.ShardLen(shard, in+int64(n))
}

// full says whether every byte of the stripe is dirty.
func (b *stripeBuf) full() bool {
	unit := b.ino.layout.Unit
	for i := range b.shards {
		if !b.shards[i].dirty.covers(0, unit) {
			return false
		}
	}
	return true
}

// covers says whether all of file range [in, in+n) of the stripe is dirty.
func (b *stripeBuf) covers(in int64, n int) bool {
	for i := range b.shards {
		off, end := shardRange(b.ino.layout, in, n, uint8(i))
		if !b.shards[i].dirty.covers(off, end) {
			return false
		}
	}
	return true
}

// overlay copies the dirty bytes of file range [in, in+len(p)) over p.
func (b *stripeBuf) overlay(p []byte, in int64) {
	eachPiece(b.ino.layout, in, len(p), func(shard uint8, off uint32, at, n int) {
		s := &b.shards[shard]
		end := off + uint32(n)
		for i := s.dirty.find(off); i < len(s.dirty) && s.dirty[i].off < end; i++ {
			x := extent{max(off, s.dirty[i].off), min(end, s.dirty[i].end)}
			if x.off < x.end {
				copy(p[at+int(x.off-off):], s.bytes(x.off, x.end))
			}
		}
	})
}

// end returns the offset in the stripe after its last dirty byte.
func (b *stripeBuf) end() (end int64) {
	for i := range b.shards {
		if n := b.shards[i].dirty.end(); n > 0 {
			end = max(end, b.ino.layout.StripeOffset(uint8(i), n-1)+1)
		}
	}
	return end
}
