package chunkstore

import (
	"fmt"
	"math/bits"
)

// A buddyMap says which extents of one segment are free (Knowlton, "A fast
// storage allocator", 1965): for each order a set of the aligned extents that
// are free as a whole, so that an extent of order n is free in at most one of
// the sets. Freeing joins an extent with its buddy for as long as that is free too.
type buddyMap struct {
	free  [maxOrder + 1][]uint64 // bit i: the extent of blocks [i<<order, (i+1)<<order) is free
	count [maxOrder + 1]uint32
	low   [maxOrder + 1]uint32 // no bit is set in words below
}

// newBuddyMap returns the map of a segment of n blocks, a multiple of
// 1<<maxOrder, with nothing free.
func newBuddyMap(n uint32) *buddyMap {
	b := new(buddyMap)
	for o := range b.free {
		b.free[o] = make([]uint64, (n>>o+63)/64)
	}
	return b
}

func (b *buddyMap) has(order uint8, i uint32) bool { return b.free[order][i/64]&(1<<(i%64)) != 0 }

func (b *buddyMap) set(order uint8, i uint32) {
	b.free[order][i/64] |= 1 << (i % 64)
	b.count[order]++
	b.low[order] = min(b.low[order], i/64)
}

func (b *buddyMap) clear(order uint8, i uint32) {
	b.free[order][i/64] &^= 1 << (i % 64)
	b.count[order]--
}

// take removes and returns the lowest free extent of exactly the given order,
// of which there must be one.
func (b *buddyMap) take(order uint8) uint32 {
	w := b.low[order]
	for b.free[order][w] == 0 {
		w++
	}
	b.low[order] = w
	i := w*64 + uint32(bits.TrailingZeros64(b.free[order][w]))
	b.clear(order, i)
	return i
}

// release makes the extent at block free, and returns the order and index of
// the extent that it became part of.
func (b *buddyMap) release(block uint32, order uint8) (uint8, error) {
	i := block >> order
	for o := order; o <= maxOrder; o++ {
		if b.has(o, i>>(o-order)) {
			return 0, fmt.Errorf("extent of order %d at block %d freed twice", order, block)
		}
	}
	for order < maxOrder && b.has(order, i^1) {
		b.clear(order, i^1)
		i >>= 1
		order++
	}
	b.set(order, i)
	return order, nil
}

// carve takes the extent at block, which must be free, out of the map.
func (b *buddyMap) carve(block uint32, order uint8) error {
	o := order
	for o <= maxOrder && !b.has(o, block>>o) {
		o++
	}
	if o > maxOrder {
		return fmt.Errorf("extent of order %d at block %d is in use", order, block)
	}
	b.clear(o, block>>o)
	for o > order {
		o--
		b.set(o, block>>o^1)
	}
	return nil
}

// An allocator hands out extents of all segments, from the lowest segment that
// has one, so that segments fill up one after the other. It is not safe for
// concurrent use.
type allocator struct {
	blocks uint32 // of a segment
	segs   []*buddyMap
	// have[o] has bit s set while segment s has a free extent of order o.
	have [maxOrder + 1][]uint64
	used int64 // bytes in extents handed out
}

// grow adds a segment, all of it free.
func (a *allocator) grow() {
	b := newBuddyMap(a.blocks)
	for i := range a.blocks >> maxOrder {
		b.set(maxOrder, i)
	}
	a.segs = append(a.segs, b)
	for o := range a.have {
		for len(a.have[o])*64 < len(a.segs) {
			a.have[o] = append(a.have[o], 0)
		}
	}
	a.note(uint32(len(a.segs) - 1))
}

// note brings have up to date with segment s.
func (a *allocator) note(s uint32) {
	for o, n := range a.segs[s].count {
		if n > 0 {
			a.have[o][s/64] |= 1 << (s % 64)
		} else {
			a.have[o][s/64] &^= 1 << (s % 64)
		}
	}
}

// alloc returns an extent of the given order, or false when there is none. The
// smallest free extent that is large enough is split.
func (a *allocator) alloc(order uint8) (extent, bool) {
	for o := order; o <= maxOrder; o++ {
		for w, word := range a.have[o] {
			if word == 0 {
				continue
			}
			s := uint32(w*64 + bits.TrailingZeros64(word))
			b := a.segs[s]
			block := b.take(o) << o
			for split := o; split > order; {
				split--
				b.set(split, block>>split^1)
			}
			a.note(s)
			e := extent{seg: s, block: block, order: order}
			a.used += e.size()
			return e, true
		}
	}
	return extent{}, false
}

// free gives an extent back.
func (a *allocator) free(e extent) error {
	if int(e.seg) >= len(a.segs) {
		return fmt.Errorf("segment %d of %d", e.seg, len(a.segs))
	}
	if _, err := a.segs[e.seg].release(e.block, e.order); err != nil {
		return fmt.Errorf("segment %d: %w", e.seg, err)
	}
	a.note(e.seg)
	a.used -= e.size()
	return nil
}

// mark takes a certain extent, as the index has it, when the store opens.
func (a *allocator) mark(e extent) error {
	if int(e.seg) >= len(a.segs) || e.block+e.blocks() > a.blocks {
		return fmt.Errorf("extent of order %d at block %d of segment %d: there are %d segments of %d blocks",
			e.order, e.block, e.seg, len(a.segs), a.blocks)
	}
	if err := a.segs[e.seg].carve(e.block, e.order); err != nil {
		return fmt.Errorf("segment %d: %w", e.seg, err)
	}
	a.note(e.seg)
	a.used += e.size()
	return nil
}
