package crc

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"rfs"
)

// byTheBook is the definition in the package doc, by hash/crc32 alone.
func byTheBook(inode rfs.InodeID, stripe uint32, shard uint8, block uint32, b []byte) uint32 {
	var key []byte
	key = binary.LittleEndian.AppendUint64(key, uint64(inode))
	key = binary.LittleEndian.AppendUint32(key, stripe)
	key = binary.LittleEndian.AppendUint32(key, uint32(shard))
	key = binary.LittleEndian.AppendUint32(key, block)
	return crc32.Checksum(append(key, b...), castagnoli)
}

func TestBlockIsCRC32COfNameAndBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, rfs.BlockSize)
	for i := range 2000 {
		b := buf[:rng.IntN(len(buf)+1)]
		for j := range b {
			b[j] = byte(rng.Uint32())
		}
		inode, stripe, shard, block := rfs.InodeID(rng.Uint64()), rng.Uint32(), uint8(rng.Uint32()), rng.Uint32()
		if got, want := Block(inode, stripe, shard, block, b), byTheBook(inode, stripe, shard, block, b); got != want {
			t.Fatalf("case %d: Block = %#08x, want %#08x", i, got, want)
		}
	}
}

// The checksum is on disk and on the wire: these numbers may never change.
func TestBlockGolden(t *testing.T) {
	ramp := make([]byte, rfs.BlockSize)
	for i := range ramp {
		ramp[i] = byte(i)
	}
	for _, g := range []struct {
		inode  rfs.InodeID
		stripe uint32
		shard  uint8
		block  uint32
		b      []byte
		want   uint32
	}{
		{0, 0, 0, 0, nil, 0xbcc5563e},
		{1, 2, 3, 4, []byte("rfs"), 0x76249f3b},
		{0x0001_0000_dead_beef, 7, 5, 255, ramp, 0x2cbd02cf},
		{1<<64 - 1, 1<<32 - 1, 255, 1<<32 - 1, make([]byte, rfs.BlockSize), 0xab404dac},
	} {
		if got := Block(g.inode, g.stripe, g.shard, g.block, g.b); got != g.want {
			t.Errorf("Block(%v, %d, %d, %d, %d bytes) = %#08x, want %#08x", g.inode, g.stripe, g.shard, g.block, len(g.b), got, g.want)
		}
	}
}

func TestBlockDoesNotAllocate(t *testing.T) {
	b := make([]byte, rfs.BlockSize)
	if n := testing.AllocsPerRun(100, func() { Block(1, 2, 3, 4, b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkBlock(b *testing.B) {
	buf := make([]byte, rfs.BlockSize)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		Block(1, 2, 3, uint32(i), buf)
	}
}
