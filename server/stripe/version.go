package stripe

import (
	"cmp"
	"slices"

	"rfs"
	"rfs/transport/wire"
)

// An ID names a version of a shard. A fold has the tag of the last overlay in it.
type ID struct {
	Tag  rfs.Tag
	Kind wire.Kind
}

// Compare orders by tag, overlays before the fold that has them in.
func (a ID) Compare(b ID) int {
	return cmp.Or(a.Tag.Compare(b.Tag), cmp.Compare(b.Kind, a.Kind))
}

// Less reports whether a comes before b.
func (a ID) Less(b ID) bool { return a.Compare(b) < 0 }

// A Version is what a member holds.
type Version struct {
	ID
	State    wire.State
	W        rfs.ShardSet
	Length   uint32
	Fold     bool
	Segments []wire.Segment
}

func find(vs []Version, id ID) *Version {
	if i := slices.IndexFunc(vs, func(v Version) bool { return v.ID == id }); i >= 0 {
		return &vs[i]
	}
	return nil
}

// Base returns the highest complete Full version, or nil: the shard was never written.
func Base(vs []Version) (base *Version) {
	for i := range vs {
		v := &vs[i]
		if v.Kind == wire.Full && v.State == wire.Complete && (base == nil || base.Less(v.ID)) {
			base = v
		}
	}
	return base
}

// superseded reports whether one of vs, complete and Full, is above id.
func superseded(vs []Version, id ID) bool {
	b := Base(vs)
	return b != nil && id.Less(b.ID)
}

// Highest returns the highest tag of vs.
func Highest(vs []Version) (t rfs.Tag) {
	for i := range vs {
		if t.Less(vs[i].Tag) {
			t = vs[i].Tag
		}
	}
	return t
}

func maxTag(a, b rfs.Tag) rfs.Tag {
	if a.Less(b) {
		return b
	}
	return a
}
