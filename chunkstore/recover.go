package chunkstore

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"rfs"
)

// recover reads the whole index: it rebuilds the free lists, loads the floors,
// condemns what is superseded, and, after a crash that took the page cache with
// it, reads all that the last Sync did not cover, and drops what does not check.
func (s *Store) recover() error {
	synced, err := s.readSynced()
	if err != nil {
		return badIndex(s.o.Dir, err)
	}
	trusted := s.recovery.SameBoot || s.recovery.Clean
	rec := recovery{s: s, synced: synced, last: synced, trusted: trusted, batch: s.db.NewBatch()}
	defer func() { rec.batch.Close() }()
	if err := rec.versions(); err != nil {
		return badIndex(s.o.Dir, err)
	}
	if err := s.loadFloors(); err != nil {
		return badIndex(s.o.Dir, err)
	}
	// The upper half of a seq counts opens, so that one that was lost in the
	// crash, and may stand in a header, is not given again.
	s.seq.Store((rec.last>>32 + 1) << 32)
	_ = rec.batch.Set(syncedKey, be.AppendUint64(nil, s.seq.Load()), nil)
	if err := s.db.Apply(rec.batch, pebble.Sync); err != nil {
		return diskError("open target "+s.o.Dir, err)
	}
	return s.usable()
}

func (s *Store) readSynced() (uint64, error) {
	v, c, err := s.db.Get(syncedKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	defer c.Close()
	if len(v) != 8 {
		return 0, fmt.Errorf("index key %q has %d bytes", syncedKey, len(v))
	}
	return be.Uint64(v), nil
}

// recovery is one pass through the versions of the index.
type recovery struct {
	s       *Store
	synced  uint64 // versions up to this seq are durable
	last    uint64 // the highest seq seen
	trusted bool   // and all others too
	batch   *pebble.Batch
	w       scratch
}

func (rc *recovery) versions() error {
	it, err := rc.s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyVersion}, UpperBound: []byte{keyVersion + 1}})
	if err != nil {
		return err
	}
	defer it.Close()
	var at rfs.ShardKey
	w := &rc.w
	for ok := it.First(); ok; ok = it.Next() {
		key, r, err := parseEntry(it.Key(), it.Value())
		if err != nil {
			return err
		}
		if key != at {
			if err := rc.shard(at); err != nil {
				return err
			}
			at = key
			w.all, w.buf = w.all[:0], w.buf[:0]
		}
		w.all = append(w.all, append(record(nil), r...))
	}
	if err := it.Error(); err != nil {
		return err
	}
	return rc.shard(at)
}

// shard recovers one shard, all of whose records are in w.all.
func (rc *recovery) shard(key rfs.ShardKey) error {
	s, w := rc.s, &rc.w
	if len(w.all) == 0 {
		return nil
	}
	slot := appendSlotKey(nil, w.all[0].pool(), w.all[0].slot(), key)
	keep := w.all[:0]
	for _, r := range w.all {
		rc.last = max(rc.last, r.seq())
		ok, err := rc.survives(key, r)
		if err != nil {
			return err
		}
		if !ok {
			_ = rc.batch.Delete(appendVersionKey(nil, key, r.tag(), r.kind()), nil)
			s.recovery.Lost++
			s.log.Warn("version lost in the crash", "key", key, "tag", r.tag(), "kind", r.kind(), "state", r.state())
			continue
		}
		if err := s.alloc.mark(r.extent()); err != nil {
			return fmt.Errorf("extent of %v %v %v: %w", key, r.tag(), r.kind(), err)
		}
		keep = append(keep, r)
	}
	if len(keep) == 0 {
		_ = rc.batch.Delete(slot, nil)
		return nil
	}
	n := superseded(keep)
	if n < len(keep) {
		if b := base(keep[n:]); b != nil {
			s.supersede(key, keep[:n], b.tag())
		}
	}
	return nil
}

// survives reports whether the bytes of r are there.
func (rc *recovery) survives(key rfs.ShardKey, r record) (bool, error) {
	if rc.trusted || r.seq() <= rc.synced {
		return true, nil
	}
	s := rc.s
	s.recovery.Verified++
	if int(r.extent().seg) >= len(*s.segs.Load()) {
		return false, nil // the segment did not survive either
	}
	buf := payloads.Get().(*[]byte)
	defer payloads.Put(buf)
	err := s.readPayload(key, r, *buf)
	var bad *CorruptError
	if errors.As(err, &bad) {
		return false, nil
	}
	return err == nil, err
}

func (s *Store) loadFloors() error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyFloor}, UpperBound: []byte{keyFloor + 1}})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		k, v := it.Key(), it.Value()
		if len(k) != 13 || len(v) != rfs.TagSize {
			return fmt.Errorf("index key %x with %d bytes is no floor", k, len(v))
		}
		inode := rfs.InodeID(be.Uint64(k[1:]))
		s.floors[inode] = append(s.floors[inode], floor{stripe: be.Uint32(k[9:]), tag: rfs.GetTag(v)})
	}
	return it.Error()
}
