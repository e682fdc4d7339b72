package chunkstore

import (
	"fmt"

	"rfs"
)

// Kind says what a version holds. The numbers are on disk.
type Kind uint8

const (
	// Full is the whole shard: Length bytes from 0, zeros beyond.
	Full Kind = 1
	// Partial is an overlay: Segments, over what lies below.
	Partial Kind = 2
)

func (k Kind) String() string {
	switch k {
	case Full:
		return "full"
	case Partial:
		return "partial"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// State says whether a version is known to be on all of its write set. The numbers are on disk.
type State uint8

const (
	// Prepared is stored, and may yet be rolled forward or back.
	Prepared State = 1
	// Complete is for ever, until a complete Full version above it takes its place.
	Complete State = 2
)

func (s State) String() string {
	switch s {
	case Prepared:
		return "prepared"
	case Complete:
		return "complete"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// A Segment is a range of a data shard that a Partial version writes, or, if
// Zero, punches. On a data target all are of its own shard; a parity target
// has those of all data shards that the write touched.
type Segment struct {
	Shard uint8
	Zero  bool
	Off   uint32
	Len   uint32
}

// end is the first byte after g.
func (g Segment) end() uint32 { return g.Off + g.Len }

// blocks is how many CRCs g has: one for each block that it touches.
func (g Segment) blocks() int {
	if g.Zero || g.Len == 0 {
		return 0
	}
	return int((g.end()-1)/rfs.BlockSize - g.Off/rfs.BlockSize + 1)
}

// A Version is one version of a shard, named by (Tag, Kind).
type Version struct {
	Tag   rfs.Tag
	Kind  Kind
	State State
	// W is the write set: the shards of the stripe that this version has.
	W rfs.ShardSet
	// Length is the bytes of a Full version; 0 is a shard of zeros. A Partial has none.
	Length uint32
	// Segments of a Partial apply in this order.
	Segments []Segment
	Slot     rfs.SlotID
	Pool     rfs.PoolID
	// Fold is set on a Full version that a leader made out of what lies below
	// it: its content is not new. A Fold may use the reserve.
	Fold bool
	// Repair, of a Put, lets it use the reserve, and take the place of an equal
	// version whose bytes were found to be bad. It is not stored.
	Repair bool

	ext     extent
	payload uint32
	seq     uint64
	crcs    []uint32
}

// CRCs are the stored checksums: of the blocks of a Full version in order, or
// of the blocks of a Partial's segments, one segment after the other, those
// that are Zero left out.
func (v *Version) CRCs() []uint32 { return v.crcs }

// PayloadLen is the length in bytes of what Put stores for v: a Full's Length,
// or the sum of a Partial's segments that are not Zero.
func (v *Version) PayloadLen() int {
	if v.Kind == Full {
		return int(v.Length)
	}
	n := 0
	for _, g := range v.Segments {
		if !g.Zero {
			n += int(g.Len)
		}
	}
	return n
}

// CRCLen is how many CRCs v has.
func (v *Version) CRCLen() int {
	if v.Kind == Full {
		return Segment{Len: v.Length}.blocks()
	}
	n := 0
	for _, g := range v.Segments {
		n += g.blocks()
	}
	return n
}

// check reports what is wrong with v as an argument of Put.
func (v *Version) check(key rfs.ShardKey, payload, crcs int) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("chunkstore: put %v %v: %s: %w", key, v.Tag, fmt.Sprintf(format, args...), rfs.ErrInvalid)
	}
	switch {
	case v.Kind != Full && v.Kind != Partial:
		return bad("%v", v.Kind)
	case v.State != Prepared && v.State != Complete && v.State != 0:
		return bad("%v", v.State)
	case v.Tag.IsZero():
		return bad("the zero tag is the version of what was never written")
	case v.Kind == Full && len(v.Segments) != 0:
		return bad("a full version has no segments")
	case v.Kind == Partial && len(v.Segments) == 0:
		return bad("a partial version has segments")
	case len(v.Segments) > maxSegments:
		return bad("%d segments: at most %d", len(v.Segments), maxSegments)
	case v.Length > MaxPayload:
		return bad("%d bytes: at most %d", v.Length, MaxPayload)
	}
	for _, g := range v.Segments {
		if g.Len == 0 || g.Len > maxShard || g.Off > maxShard-g.Len {
			return bad("segment of %d bytes at %d", g.Len, g.Off)
		}
	}
	if n := v.PayloadLen(); n != payload || n > MaxPayload {
		return bad("payload of %d bytes: want %d, at most %d", payload, n, MaxPayload)
	}
	if n := v.CRCLen(); n != crcs {
		return bad("%d CRCs: want %d", crcs, n)
	}
	return nil
}
