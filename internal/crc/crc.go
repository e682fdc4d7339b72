// Package crc owns the checksum of a block of a shard: CRC32C (Castagnoli, RFC
// 3720 appendix B.4) over the block's name and then its bytes,
//
//	inode 8 | stripe 4 | shard 4 | block 4 | the block's bytes, up to 4096     (little-endian)
//
// so that a block that is intact but in the wrong place does not check either.
// The client computes it, the target checks and stores it, the reader checks it
// again; it is on the wire and on disk, so its meaning never changes.
//
// A block is 4 KiB of shard space: block b of a shard holds its bytes from
// b*4096. A block of which a write covers only a part has the checksum of just
// the covered bytes, under the same name.
package crc

import (
	"hash/crc32"

	"rfs"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Block returns the checksum of b, which are bytes of the given block of a shard.
func Block(inode rfs.InodeID, stripe uint32, shard uint8, block uint32, b []byte) uint32 {
	return Of(inode, stripe, shard).Block(block, b)
}

// A Shard is the checksum of the first 16 bytes of the names of one shard's
// blocks, kept by who goes through many of them. It is no more than a number.
type Shard uint32

// Of returns the Shard of (inode, stripe, shard).
func Of(inode rfs.InodeID, stripe uint32, shard uint8) Shard {
	c := name(^uint32(0), uint64(inode))
	return Shard(^name(c, uint64(stripe)|uint64(shard)<<32))
}

// Block returns the checksum of b, which are bytes of the given block of the shard.
func (s Shard) Block(block uint32, b []byte) uint32 {
	c := ^uint32(s) ^ block
	c = tab[3][byte(c)] ^ tab[2][byte(c>>8)] ^ tab[1][byte(c>>16)] ^ tab[0][byte(c>>24)]
	return crc32.Update(^c, castagnoli, b)
}

// Blocks sets sums[i] to the checksum of block first+i of the shard, whose bytes
// b starts with; the last may be short.
func (s Shard) Blocks(sums []uint32, first uint32, b []byte) {
	for i := 0; len(b) > 0; i++ {
		n := min(len(b), rfs.BlockSize)
		sums[i] = s.Block(first+uint32(i), b[:n])
		b = b[n:]
	}
}

// Of the names, CRC32C is computed here, by table: hash/crc32 calls its machine
// code through a variable, so that a name on the stack would escape to the heap.
// tab[i][b] is the CRC of byte b followed by i zero bytes ("slicing by 8",
// Kounavis and Berry, 2005).
var tab = func() (t [8][256]uint32) {
	t[0] = *castagnoli
	for i := 1; i < len(t); i++ {
		for b := range t[i] {
			c := t[i-1][b]
			t[i][b] = t[0][byte(c)] ^ c>>8
		}
	}
	return t
}()

// name continues the (inverted) CRC c over the 8 bytes of v, little-endian.
func name(c uint32, v uint64) uint32 {
	v ^= uint64(c)
	return tab[7][byte(v)] ^ tab[6][byte(v>>8)] ^ tab[5][byte(v>>16)] ^ tab[4][byte(v>>24)] ^
		tab[3][byte(v>>32)] ^ tab[2][byte(v>>40)] ^ tab[1][byte(v>>48)] ^ tab[0][byte(v>>56)]
}
