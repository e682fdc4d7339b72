package verbs

// Slots names what is under way by work request ids that are never a pointer:
//
//	wr_id = generation 32 | slot 32
//
// A completion of a request that was given up, of a queue pair that is gone or of
// another with the same number finds another generation, and nothing. It has one
// owner, as a completion queue has.
type Slots[T any] struct {
	slot []slot[T]
	free []uint32
}

type slot[T any] struct {
	gen  uint32
	used bool
	v    T
}

// NewSlots returns n free slots.
func NewSlots[T any](n int) *Slots[T] {
	s := &Slots[T]{slot: make([]slot[T], n), free: make([]uint32, n)}
	for i := range s.free {
		s.free[i] = uint32(n - 1 - i)
	}
	return s
}

// Take returns a free slot's id and value, or false if all are taken.
func (s *Slots[T]) Take() (id uint64, v *T, ok bool) {
	if len(s.free) == 0 {
		return 0, nil, false
	}
	i := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	x := &s.slot[i]
	x.gen++
	if x.gen == 0 {
		x.gen = 1 // 0 names nothing
	}
	x.used = true
	return uint64(x.gen)<<32 | uint64(i), &x.v, true
}

// Get returns the value of id, or false if it is not taken any more.
func (s *Slots[T]) Get(id uint64) (*T, bool) {
	i, gen := uint32(id), uint32(id>>32)
	if int(i) >= len(s.slot) || !s.slot[i].used || s.slot[i].gen != gen {
		return nil, false
	}
	return &s.slot[i].v, true
}

// Release frees id's slot; it reports whether id was taken.
func (s *Slots[T]) Release(id uint64) bool {
	if _, ok := s.Get(id); !ok {
		return false
	}
	x := &s.slot[uint32(id)]
	var zero T
	x.v, x.used = zero, false
	s.free = append(s.free, uint32(id))
	return true
}

// Used returns how many slots are taken.
func (s *Slots[T]) Used() int { return len(s.slot) - len(s.free) }
