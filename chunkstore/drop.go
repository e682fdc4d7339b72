package chunkstore

import "rfs"

// Drop drops a version whatever its state: what a shard's peers, compared with
// it, say is not there any more. What a base superseded goes with it, and does
// not come back. A version that is not there is no error.
func (s *Store) Drop(key rfs.ShardKey, tag rfs.Tag, kind Kind) error {
	return s.dropLoaded(key, func(w *scratch, r record) bool {
		if r.tag() == tag && r.kind() == kind {
			return true
		}
		b := base(w.recs)
		below := b != nil && (r.tag().Less(b.tag()) || r.tag() == b.tag() && r.kind() == Partial)
		return below && kind == Full && b.tag() == tag
	})
}
