package client

import "slices"

// extents is a set of bytes of a shard: ranges in order, disjoint, not adjacent.
type extents []extent

// extent is the bytes from off up to, not including, end.
type extent struct{ off, end uint32 }

func (e extent) len() uint32 { return e.end - e.off }

// find returns the index of the first extent that ends at off or beyond.
func (e extents) find(off uint32) int {
	i, _ := slices.BinarySearchFunc(e, off, func(x extent, off uint32) int {
		if x.end < off {
			return -1
		}
		return 1
	})
	return i
}

// add puts [off, end) into the set.
func (e *extents) add(off, end uint32) {
	if off >= end {
		return
	}
	s := *e
	i := s.find(off)
	j := i
	for j < len(s) && s[j].off <= end {
		off, end = min(off, s[j].off), max(end, s[j].end)
		j++
	}
	if i == j {
		*e = slices.Insert(s, i, extent{off, end})
		return
	}
	s[i] = extent{off, end}
	*e = slices.Delete(s, i+1, j)
}

// cut takes [off, end) out of the set.
func (e *extents) cut(off, end uint32) {
	if off >= end {
		return
	}
	s := *e
	for i := s.find(off); i < len(s) && s[i].off < end; {
		x := s[i]
		switch {
		case x.end <= off: // only touches
			i++
		case x.off < off && x.end > end:
			s[i].end = off
			*e = slices.Insert(s, i+1, extent{end, x.end})
			return
		case x.off < off:
			s[i].end = off
			i++
		case x.end > end:
			s[i].off = end
			i++
		default:
			s = slices.Delete(s, i, i+1)
		}
	}
	*e = s
}

// covers says whether all of [off, end) is in the set.
func (e extents) covers(off, end uint32) bool {
	if off >= end {
		return true
	}
	i := e.find(off)
	if i < len(e) && e[i].end == off { // ends where the range begins
		i++
	}
	return i < len(e) && e[i].off <= off && end <= e[i].end
}

// size returns the number of bytes in the set.
func (e extents) size() (n uint32) {
	for _, x := range e {
		n += x.len()
	}
	return n
}

// end returns the first offset above all bytes of the set, 0 when it is empty.
func (e extents) end() uint32 {
	if len(e) == 0 {
		return 0
	}
	return e[len(e)-1].end
}

// gaps calls f for each range of [0, end) that is not in the set.
func (e extents) gaps(end uint32, f func(off, end uint32)) {
	at := uint32(0)
	for _, x := range e {
		if x.off >= end {
			break
		}
		if x.off > at {
			f(at, x.off)
		}
		at = x.end
	}
	if at < end {
		f(at, end)
	}
}
