package stripe

import (
	"time"

	"rfs/transport/wire"
)

// A FoldPolicy says when the overlays of a stripe are worth folding into a full version.
type FoldPolicy struct {
	Overlays int           // fold when more are above the base; default 16
	Bytes    uint64        // or when they have more bytes; default 1 MiB
	Idle     time.Duration // or when none came for so long and folding saves something; default 5 s
}

// WithDefaults fills what is zero.
func (p FoldPolicy) WithDefaults() FoldPolicy {
	if p.Overlays == 0 {
		p.Overlays = 16
	}
	if p.Bytes == 0 {
		p.Bytes = 1 << 20
	}
	if p.Idle == 0 {
		p.Idle = 5 * time.Second
	}
	return p
}

// Want reports whether a stripe of which the leader holds vs is to be folded,
// given the time since the last overlay came. A single overlay on what was
// never written is left: m+1 copies of it cost what its shard and the parity would.
func (p FoldPolicy) Want(vs []Version, since time.Duration) bool {
	base := Base(vs)
	n, bytes, shards := 0, uint64(0), map[uint8]bool{}
	for i := range vs {
		v := &vs[i]
		if v.Kind != wire.Partial || base != nil && v.Less(base.ID) {
			continue
		}
		n++
		bytes += uint64(v.Length)
		for _, g := range v.Segments {
			shards[g.Shard] = true
		}
	}
	switch {
	case n == 0:
		return false
	case n > p.Overlays || bytes > p.Bytes:
		return true
	}
	return since >= p.Idle && (n > 1 || base != nil || len(shards) > 1)
}
