package chunkstore

import "github.com/cockroachdb/pebble/v2"

// FlushIndex makes the index durable ahead of the data, as Pebble does by
// itself when its log has gathered a block.
func (s *Store) FlushIndex() error { return s.db.LogData(nil, pebble.Sync) }
