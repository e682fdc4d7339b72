package placement

import (
	"encoding/binary"
	"math/bits"

	"rfs"
)

// All replicas of the metadata compute placements for themselves and must
// agree to the last bit, whatever machine they run on. So everything here is
// integers and single, correctly rounded floating-point operations: no
// math.Log, which differs between architectures, and no x*y+z, which a
// compiler may fuse.

// mix is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014): a bijection
// of 64-bit numbers that passes for random.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func hashUUID(u rfs.UUID) uint64 {
	return mix(binary.LittleEndian.Uint64(u[:]) ^ mix(binary.LittleEndian.Uint64(u[8:])))
}

func hashSlot(pool rfs.PoolID, slot rfs.SlotID) uint64 {
	return mix(uint64(pool)<<32 | uint64(slot))
}

// cost is how reluctant a target of weight w is to take a slot: -log2(u)/w,
// with u uniform in (0,1] from the hash of both. The target with the least cost
// is the one that weighted rendezvous hashing chooses (Schindelhauer and
// Schomaker, "Weighted distributed hash tables", 2005), each with a
// probability proportional to its weight; a target that comes or goes changes
// no one else's cost.
func cost(slot, target uint64, w float64) float64 {
	return float64(negLog2(mix(slot^target))) / w
}

// negLog2 returns -log2(h/2^64) in units of 2^-40, at least 1.
func negLog2(h uint64) uint64 {
	h |= 1
	lz := bits.LeadingZeros64(h)
	f := h << lz << 1 // h is 2^(63-lz) * (1 + f/2^64)
	i, rest := f>>54, f<<10>>32
	log := logTab[i] + (logTab[i+1]-logTab[i])*rest>>32
	return max(uint64(lz+1)<<40-log, 1)
}

// logTab[i] is log2(1+i/1024) in units of 2^-40.
var logTab = func() (t [1025]uint64) {
	for i := range t[:1024] {
		x := (1024 + uint64(i)) << 53 // 1.63 fixed point
		for range 40 {
			// Squaring doubles the logarithm; its integer part is the next bit.
			hi, lo := bits.Mul64(x, x) // 2.126
			t[i] <<= 1
			if hi>>63 == 1 {
				t[i] |= 1
				x = hi
			} else {
				x = hi<<1 | lo>>63
			}
		}
	}
	t[1024] = 1 << 40
	return t
}()
