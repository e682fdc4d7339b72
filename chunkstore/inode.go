package chunkstore

import (
	"fmt"
	"iter"

	"github.com/cockroachdb/pebble/v2"

	"rfs"
)

// A floor says that versions of an inode's stripes from one on, of tags below
// one, are dead.
type floor struct {
	stripe uint32
	tag    rfs.Tag
}

// Floor returns the tag below which Put refuses versions of a stripe, because
// of a Trim; zero is none.
func (s *Store) Floor(inode rfs.InodeID, stripe uint32) (tag rfs.Tag) {
	s.floorMu.RLock()
	defer s.floorMu.RUnlock()
	for _, f := range s.floors[inode] {
		if f.stripe <= stripe && tag.Less(f.tag) {
			tag = f.tag
		}
	}
	return tag
}

func (s *Store) aboveFloor(key rfs.ShardKey, tag rfs.Tag) error {
	if f := s.Floor(key.Inode, key.Stripe); tag.Less(f) {
		return fmt.Errorf("chunkstore: put %v %v: trimmed below %v: %w", key, tag, f, rfs.ErrStaleTag)
	}
	return nil
}

// Trim drops, of the inode's stripes from one on, what has a tag below the
// given one, and leaves a floor behind that refuses such versions from then on.
// It may be called again if it did not finish.
func (s *Store) Trim(inode rfs.InodeID, from uint32, tag rfs.Tag) error {
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.setFloor(inode, floor{from, tag}); err != nil {
		return err
	}
	return s.eachShard(inode, from, func(key rfs.ShardKey) error {
		return s.dropWhere(key, func(r record) bool { return r.tag().Less(tag) })
	})
}

// setFloor takes the barrier whole: a Put has either entered the index before,
// where Trim finds it, or meets the floor.
func (s *Store) setFloor(inode rfs.InodeID, f floor) error {
	s.barrier.Lock()
	defer s.barrier.Unlock()
	s.floorMu.Lock()
	defer s.floorMu.Unlock()
	b := s.db.NewBatch()
	defer b.Close()
	// A floor below one that reaches as far down, and is no lower, says nothing.
	var keep []floor
	for _, o := range s.floors[inode] {
		if o.stripe <= f.stripe && !o.tag.Less(f.tag) {
			return nil
		}
		if f.stripe <= o.stripe && !f.tag.Less(o.tag) {
			_ = b.Delete(appendFloorKey(nil, inode, o.stripe), nil)
			continue
		}
		keep = append(keep, o)
	}
	var v [rfs.TagSize]byte
	rfs.PutTag(v[:], f.tag)
	_ = b.Set(appendFloorKey(nil, inode, f.stripe), v[:], nil)
	if err := s.apply(b); err != nil {
		return err
	}
	s.floors[inode] = append(keep, f)
	return nil
}

// Delete drops all of an inode, shard after shard: a Delete that did not finish
// has only less to do the next time. The space returns with Syncs, the first of
// which may come while it runs. An inode that is not there is no error.
func (s *Store) Delete(inode rfs.InodeID) error {
	if err := s.usable(); err != nil {
		return err
	}
	err := s.eachShard(inode, 0, func(key rfs.ShardKey) error {
		return s.dropWhere(key, func(record) bool { return true })
	})
	if err != nil {
		return err
	}
	return s.clearFloors(inode)
}

func (s *Store) clearFloors(inode rfs.InodeID) error {
	s.barrier.RLock()
	defer s.barrier.RUnlock()
	s.floorMu.Lock()
	defer s.floorMu.Unlock()
	if len(s.floors[inode]) == 0 {
		return nil
	}
	b := s.db.NewBatch()
	defer b.Close()
	for _, f := range s.floors[inode] {
		_ = b.Delete(appendFloorKey(nil, inode, f.stripe), nil)
	}
	if err := s.apply(b); err != nil {
		return err
	}
	delete(s.floors, inode)
	return nil
}

// inodeBounds are those of the versions of an inode, from a stripe on. The upper
// one is a prefix, as NextPrefix needs it.
func inodeBounds(inode rfs.InodeID, from uint32) *pebble.IterOptions {
	o := &pebble.IterOptions{
		LowerBound: appendShardPrefix(nil, rfs.ShardKey{Inode: inode, Stripe: from}),
		UpperBound: []byte{keyVersion + 1},
	}
	if inode++; inode != 0 {
		o.UpperBound = be.AppendUint64([]byte{keyVersion}, uint64(inode))
	}
	return o
}

// eachShard calls f for the shards of an inode, from a stripe on, that have versions.
func (s *Store) eachShard(inode rfs.InodeID, from uint32, f func(rfs.ShardKey) error) error {
	it, err := s.db.NewIter(inodeBounds(inode, from))
	if err != nil {
		return badIndex(s.o.Dir, err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.NextPrefix() {
		key, _, _, err := parseVersionKey(it.Key())
		if err != nil {
			return badIndex(s.o.Dir, err)
		}
		if err := f(key); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return badIndex(s.o.Dir, err)
	}
	return nil
}

// Extent returns how far the bytes of an inode reach, in the file, as far as
// the versions on this target tell, complete or not. A parity shard tells it
// only by its overlays: the length of its Full version is that of the longest
// data shard, whichever that is.
func (s *Store) Extent(inode rfs.InodeID, layout rfs.Layout) (int64, error) {
	if err := s.usable(); err != nil {
		return 0, err
	}
	if err := layout.Validate(); err != nil {
		return 0, err
	}
	it, err := s.db.NewIter(inodeBounds(inode, 0))
	if err != nil {
		return 0, badIndex(s.o.Dir, err)
	}
	defer it.Close()
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	var reach int64
	for ok := it.Last(); ok; {
		key, _, _, err := parseVersionKey(it.Key())
		if err != nil {
			return 0, badIndex(s.o.Dir, err)
		}
		if reach > 0 && reach > int64(key.Stripe+1)*layout.StripeSize() {
			break // no lower stripe reaches as far
		}
		if err := s.load(w, key); err != nil {
			return 0, err
		}
		if in := reachOf(w.recs, key, layout); in > 0 {
			reach = max(reach, int64(key.Stripe)*layout.StripeSize()+in)
		}
		w.key = appendShardPrefix(w.key[:0], key)
		ok = it.SeekLT(w.key)
	}
	if err := it.Error(); err != nil {
		return 0, badIndex(s.o.Dir, err)
	}
	return reach, nil
}

// reachOf returns the end, in the stripe, of the last byte that recs have.
func reachOf(recs []record, key rfs.ShardKey, layout rfs.Layout) (end int64) {
	for _, r := range recs {
		if r.kind() == Full && key.Shard < layout.K && r.length() > 0 {
			end = max(end, layout.StripeOffset(key.Shard, r.length()-1)+1)
		}
		for i := range r.segments() {
			if g := r.segment(i); !g.Zero && g.Shard < layout.K {
				end = max(end, layout.StripeOffset(g.Shard, g.end()-1)+1)
			}
		}
	}
	return end
}

// A Shard is a shard with its versions, as Versions returns them.
type Shard struct {
	Key      rfs.ShardKey
	Versions []Version
}

// Scan goes through the shards of a slot, from a key on, in the order of keys.
// It sees each shard as it is when it comes to it. An error ends it.
func (s *Store) Scan(pool rfs.PoolID, slot rfs.SlotID, from rfs.ShardKey) iter.Seq2[Shard, error] {
	return func(yield func(Shard, error) bool) {
		if err := s.usable(); err != nil {
			yield(Shard{}, err)
			return
		}
		end := append(appendSlotKey(nil, pool, slot, rfs.ShardKey{Inode: ^rfs.InodeID(0), Stripe: ^uint32(0), Shard: 255}), 0)
		it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: appendSlotKey(nil, pool, slot, from), UpperBound: end})
		if err != nil {
			yield(Shard{}, badIndex(s.o.Dir, err))
			return
		}
		defer it.Close()
		for ok := it.First(); ok; ok = it.Next() {
			key, err := parseSlotKey(it.Key())
			if err != nil {
				yield(Shard{}, badIndex(s.o.Dir, err))
				return
			}
			vs, err := s.Versions(key)
			if err != nil {
				yield(Shard{}, err)
				return
			}
			if len(vs) > 0 && !yield(Shard{Key: key, Versions: vs}, nil) {
				return
			}
		}
		if err := it.Error(); err != nil {
			yield(Shard{}, badIndex(s.o.Dir, err))
		}
	}
}
