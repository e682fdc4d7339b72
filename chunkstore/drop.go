package chunkstore

import "rfs"

// Drop drops a version whatever its state: what a shard's peers, compared with
// it, say is not there any more. One that is not there is no error.
func (s *Store) Drop(key rfs.ShardKey, tag rfs.Tag, kind Kind) error {
	return s.dropWhere(key, func(r record) bool { return r.tag() == tag && r.kind() == kind })
}
