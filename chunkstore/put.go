package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"rfs"
)

// scratch is what one call needs and the next can use again.
type scratch struct {
	buf   []byte   // what old and recs are parts of
	all   []record // of one shard
	old   []record // of all, those that the base supersedes: each is condemned
	recs  []record // of all, the base, if there is one, and what is above it, in order
	ends  []int
	frees []extent
	key   []byte
	rec   []byte
	head  []byte
	frag  []fragment
	add   []fragment
	one   [1]record
	crcs  []uint32
	edge  []byte // a block, aligned
}

var scratches = sync.Pool{New: func() any { return &scratch{edge: alignedBytes(blockSize)} }}

// load reads the records of a shard into w.
func (s *Store) load(w *scratch, key rfs.ShardKey) error {
	w.buf, w.ends, w.all = w.buf[:0], w.ends[:0], w.all[:0]
	w.key = appendShardPrefix(w.key[:0], key)
	it, err := s.db.NewIter(nil)
	if err != nil {
		return badIndex(s.o.Dir, err)
	}
	for ok := it.SeekPrefixGE(w.key); ok; ok = it.Next() {
		_, r, err := parseEntry(it.Key(), it.Value())
		if err != nil {
			it.Close()
			return badIndex(s.o.Dir, err)
		}
		w.buf = append(w.buf, r...)
		w.ends = append(w.ends, len(w.buf))
	}
	if err := it.Close(); err != nil {
		return badIndex(s.o.Dir, err)
	}
	start := 0
	for _, end := range w.ends {
		w.all = append(w.all, record(w.buf[start:end:end]))
		start = end
	}
	n := superseded(w.all)
	w.old, w.recs = w.all[:n], w.all[n:]
	return nil
}

// superseded moves the records of a shard that its base supersedes to the front
// and returns how many they are. The base is the highest complete Full version;
// a Partial of the base's own tag is folded into it.
func superseded(recs []record) int {
	for b := len(recs) - 1; b >= 0; b-- {
		if base := recs[b]; base.kind() == Full && base.complete() {
			n := b + 1
			for n < len(recs) && recs[n].tag() == base.tag() {
				n++
			}
			copy(recs[b:], recs[b+1:n])
			recs[n-1] = base
			return n - 1
		}
	}
	return 0
}

// base returns the first of recs, as load left them, if it is a base, or nil.
func base(recs []record) record {
	if len(recs) > 0 && recs[0].kind() == Full && recs[0].complete() {
		return recs[0]
	}
	return nil
}

// find returns the record of (tag, kind), or nil.
func find(recs []record, tag rfs.Tag, kind Kind) record {
	for _, r := range recs {
		if r.tag() == tag && r.kind() == kind {
			return r
		}
	}
	return nil
}

func (s *Store) lockKey(key rfs.ShardKey) *sync.Mutex {
	h := uint64(key.Inode)*0x9e3779b97f4a7c15 ^ (uint64(key.Stripe)<<8|uint64(key.Shard))*0xff51afd7ed558ccd
	mu := &s.keys[h>>54] // 10 bits
	mu.Lock()
	return mu
}

// Put stores a version of a shard, Prepared unless v.State says Complete. The
// payload is what v.PayloadLen says, crcs as Version.CRCs has them; the caller
// has checked one against the other. Memory that is aligned to 4 KiB goes to
// the disk past the page cache. What Put has stored is durable after the next Sync.
//
// A version that is there already is left as it is, unless v.Repair. Below a
// complete Full version, or below the floor of a Trim, Put returns rfs.ErrStaleTag.
func (s *Store) Put(key rfs.ShardKey, v Version, payload []byte, crcs []uint32) error {
	if err := v.check(key, len(payload), len(crcs)); err != nil {
		return err
	}
	err := s.put(key, v, payload, crcs)
	if errors.Is(err, errPending) {
		// What is in the way is gone for all but a crash: let it go for good.
		if err := s.Sync(context.Background()); err != nil {
			return err
		}
		if err = s.put(key, v, payload, crcs); errors.Is(err, errPending) {
			err = fmt.Errorf("chunkstore: put %v %v: %w", key, v.Tag, rfs.ErrNoSpace)
		}
	}
	return err
}

// errPending means that a change needs what a Sync is yet to free.
var errPending = errors.New("waits for a sync")

func (s *Store) put(key rfs.ShardKey, v Version, payload []byte, crcs []uint32) error {
	if err := s.usable(); err != nil {
		return err
	}
	defer s.lockKey(key).Unlock()
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	if err := s.load(w, key); err != nil {
		return err
	}
	if b := base(w.recs); b != nil {
		switch c := v.Tag.Compare(b.tag()); {
		case c < 0:
			return fmt.Errorf("chunkstore: put %v %v: below %v: %w", key, v.Tag, b.tag(), rfs.ErrStaleTag)
		case c == 0 && v.Kind == Partial:
			return nil // folded already
		}
	}
	old := find(w.recs, v.Tag, v.Kind)
	if old != nil && !v.Repair {
		return nil
	}
	if s.isCondemned(key, v.Tag, v.Kind) {
		return errPending
	}
	return s.store(w, key, v, payload, crcs, old)
}

// store does what is left of a Put under the key's lock:
//
//	allocate; write the payload; a copy that takes another's place is flushed
//	barrier shared: take a seq; write the header; change the index
//
// so that a Sync, which takes the barrier, finds of each change either nothing
// or all of it.
func (s *Store) store(w *scratch, key rfs.ShardKey, v Version, payload []byte, crcs []uint32, old record) error {
	if v.State == 0 {
		v.State = Prepared
	}
	if old != nil && old.complete() {
		v.State = Complete
	}
	v.payload = uint32(len(payload))
	ext, err := s.allocate(extentOrder(len(payload), recordLen(len(v.Segments), len(crcs))), v.Fold || v.Repair)
	if err != nil {
		return fmt.Errorf("chunkstore: put %v %v: %w", key, v.Tag, err)
	}
	v.ext = ext
	g := s.segment(ext.seg)
	if len(payload) > 0 {
		if err := g.write(ext.offset(), payload); err != nil {
			err = s.writeFailed("put "+key.String(), err)
			if errors.Is(err, rfs.ErrNoSpace) || errors.Is(err, rfs.ErrReadOnly) {
				s.unallocate(ext)
			} // else the place is bad: it stays taken until the store is opened again
			return err
		}
	}
	if old != nil {
		// The new copy must not be lost where the old one, which may have been
		// synced and of which most blocks may be good, is forgotten.
		if err := g.data.Sync(); err != nil {
			s.fail(diskError("flush", err))
			return s.usable()
		}
	}
	return s.enter(w, key, v, crcs, old)
}

// enter puts a version whose payload is in its extent into the index.
func (s *Store) enter(w *scratch, key rfs.ShardKey, v Version, crcs []uint32, old record) error {
	s.barrier.RLock()
	defer s.barrier.RUnlock()
	if err := s.aboveFloor(key, v.Tag); err != nil {
		s.unallocate(v.ext)
		return err
	}
	v.seq = s.seq.Add(1)
	w.rec = appendRecord(w.rec[:0], &v, crcs)
	if err := s.writeHeader(w, key, w.rec); err != nil {
		s.unallocate(v.ext)
		return err
	}
	b := s.db.NewBatch()
	defer b.Close()
	w.key = appendVersionKey(w.key[:0], key, v.Tag, v.Kind)
	_ = b.Set(w.key, w.rec, nil)
	w.key = appendSlotKey(w.key[:0], v.Pool, v.Slot, key)
	_ = b.Set(w.key, nil, nil)
	if err := s.apply(b); err != nil {
		return err
	}
	s.segment(v.ext.seg).dataDirty.Store(true)
	if old != nil {
		s.retire(drop{ext: old.extent()})
	}
	if v.Kind == Full && v.State == Complete {
		s.supersede(key, w.recs, v.Tag)
	}
	s.stats.puts.Add(1)
	s.stats.putBytes.Add(int64(v.payload))
	return nil
}

// apply changes the index, not yet durably. The barrier is held shared.
func (s *Store) apply(b *pebble.Batch) error {
	if err := s.db.Apply(b, pebble.NoSync); err != nil {
		err = diskError("write index", err)
		s.fail(err)
		return err
	}
	s.changes.Add(1)
	return s.usable() // Pebble does not return what it holds to be fatal
}

// writeFailed is the outcome of a write of payload or header that failed.
func (s *Store) writeFailed(op string, err error) error {
	s.stats.writeErrors.Add(1)
	err = diskError(op, err)
	if errors.Is(err, rfs.ErrNoSpace) {
		s.allocMu.Lock()
		s.diskFull = true
		s.allocMu.Unlock()
	}
	return err
}

// writeHeader writes the header of r's extent.
func (s *Store) writeHeader(w *scratch, key rfs.ShardKey, r record) error {
	e := r.extent()
	g := s.segment(e.seg)
	w.head = appendHeader(w.head[:0], s.id.Target, key, r)
	if _, err := g.head.WriteAt(w.head, int64(e.block)*slotSize); err != nil {
		return s.writeFailed("write extent header of "+key.String(), err)
	}
	g.headDirty.Store(true)
	return nil
}

var (
	completeMark = le.AppendUint32(nil, markComplete)
	noMagic      = make([]byte, 4)
)

// Commit makes a version Complete. A Full one supersedes all below it, whose
// space returns after the next Sync. It returns rfs.ErrNotFound if there is no
// such version, and nil if it was complete or superseded already.
func (s *Store) Commit(key rfs.ShardKey, tag rfs.Tag, kind Kind) error {
	if err := s.usable(); err != nil {
		return err
	}
	defer s.lockKey(key).Unlock()
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	if err := s.load(w, key); err != nil {
		return err
	}
	r := find(w.recs, tag, kind)
	if r == nil {
		if b := base(w.recs); b != nil && !b.tag().Less(tag) {
			return nil
		}
		return fmt.Errorf("chunkstore: commit %v %v %v: %w", key, tag, kind, rfs.ErrNotFound)
	}
	if r.complete() {
		return nil
	}
	r.setState(Complete)
	e := r.extent()
	g := s.segment(e.seg)
	s.barrier.RLock()
	defer s.barrier.RUnlock()
	if _, err := g.head.WriteAt(completeMark, int64(e.block)*slotSize+4); err != nil {
		return s.writeFailed("commit "+key.String(), err)
	}
	g.headDirty.Store(true)
	w.key = appendVersionKey(w.key[:0], key, tag, kind)
	b := s.db.NewBatch()
	defer b.Close()
	_ = b.Set(w.key, r, nil)
	if err := s.apply(b); err != nil {
		return err
	}
	if kind == Full {
		s.supersede(key, w.recs, tag)
	}
	s.stats.commits.Add(1)
	return nil
}

// supersede condemns those of recs, none of them superseded before, that a
// complete Full version of the given tag supersedes. The index forgets them only
// when the Full one is durable: until then a crash may take that away. Readers
// see none of them from now on.
func (s *Store) supersede(key rfs.ShardKey, recs []record, tag rfs.Tag) {
	for _, r := range recs {
		if r.tag().Less(tag) || r.tag() == tag && r.kind() == Partial {
			d := drop{ext: r.extent()}
			appendVersionKey(d.key[:0], key, r.tag(), r.kind())
			s.retire(d)
		}
	}
}

// Abort drops a Prepared version; one that is not there is no error. A
// Complete one is never aborted: rfs.ErrInvalid.
func (s *Store) Abort(key rfs.ShardKey, tag rfs.Tag, kind Kind) error {
	complete := false
	err := s.dropWhere(key, func(r record) bool {
		if r.tag() != tag || r.kind() != kind {
			return false
		}
		complete = r.complete()
		return !complete
	})
	if complete {
		return fmt.Errorf("chunkstore: abort %v %v %v: is complete: %w", key, tag, kind, rfs.ErrInvalid)
	}
	return err
}

// dropWhere drops the versions of a shard that gone picks. Unlike what is
// superseded they leave the index at once; their extents are free after the next Sync.
func (s *Store) dropWhere(key rfs.ShardKey, gone func(record) bool) error {
	return s.dropLoaded(key, func(_ *scratch, r record) bool { return gone(r) })
}

// dropLoaded is dropWhere for a gone that looks at the shard's other records too.
func (s *Store) dropLoaded(key rfs.ShardKey, gone func(*scratch, record) bool) error {
	if err := s.usable(); err != nil {
		return err
	}
	defer s.lockKey(key).Unlock()
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	if err := s.load(w, key); err != nil {
		return err
	}
	b := s.db.NewBatch()
	defer b.Close()
	s.barrier.RLock()
	defer s.barrier.RUnlock()
	n := 0
	w.frees = w.frees[:0]
	for i, r := range w.all {
		if !gone(w, r) {
			continue
		}
		w.key = appendVersionKey(w.key[:0], key, r.tag(), r.kind())
		_ = b.Delete(w.key, nil)
		n++
		if i >= len(w.old) { // those below are condemned already: their extents are accounted for
			w.frees = append(w.frees, r.extent())
		}
	}
	if n == 0 {
		return nil
	}
	if n == len(w.all) {
		w.key = appendSlotKey(w.key[:0], w.all[0].pool(), w.all[0].slot(), key)
		_ = b.Delete(w.key, nil)
	}
	if err := s.apply(b); err != nil {
		return err
	}
	for _, e := range w.frees {
		s.retire(drop{ext: e})
	}
	s.stats.drops.Add(int64(n))
	return nil
}

// Retag gives the Prepared versions of a shard that have the tag old another
// one. It is no error if they have it already. rfs.ErrNotFound means that there
// are none, perhaps because a complete Full version superseded them: Put again.
func (s *Store) Retag(key rfs.ShardKey, old, tag rfs.Tag) error {
	if tag.IsZero() {
		return fmt.Errorf("chunkstore: retag %v %v: to the zero tag: %w", key, old, rfs.ErrInvalid)
	}
	err := s.retag(key, old, tag)
	if errors.Is(err, errPending) {
		if err := s.Sync(context.Background()); err != nil {
			return err
		}
		err = s.retag(key, old, tag)
	}
	return err
}

func (s *Store) retag(key rfs.ShardKey, old, tag rfs.Tag) error {
	if err := s.usable(); err != nil {
		return err
	}
	defer s.lockKey(key).Unlock()
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	if err := s.load(w, key); err != nil {
		return err
	}
	if b := base(w.recs); b != nil && !b.tag().Less(tag) {
		return fmt.Errorf("chunkstore: retag %v %v to %v: below %v: %w", key, old, tag, b.tag(), rfs.ErrStaleTag)
	}
	b := s.db.NewBatch()
	defer b.Close()
	s.barrier.RLock()
	defer s.barrier.RUnlock()
	if err := s.aboveFloor(key, tag); err != nil {
		return err
	}
	found := false
	for _, r := range w.recs {
		found = found || r.tag() == tag
		if r.tag() != old || r.complete() || find(w.recs, tag, r.kind()) != nil {
			continue
		}
		found = true
		if s.isCondemned(key, tag, r.kind()) {
			return errPending
		}
		w.key = appendVersionKey(w.key[:0], key, old, r.kind())
		_ = b.Delete(w.key, nil)
		r.setTag(tag)
		r.setSeq(s.seq.Add(1))
		if err := s.writeHeader(w, key, r); err != nil {
			return err
		}
		w.key = appendVersionKey(w.key[:0], key, tag, r.kind())
		_ = b.Set(w.key, r, nil)
	}
	if !found {
		return fmt.Errorf("chunkstore: retag %v %v to %v: %w", key, old, tag, rfs.ErrNotFound)
	}
	if b.Count() == 0 {
		return nil
	}
	return s.apply(b)
}

// Versions returns what is stored of a shard and not superseded, in the order
// of (Tag, Kind): at most one complete Full version, which is the base, comes
// first, and then what lies above it.
func (s *Store) Versions(key rfs.ShardKey) ([]Version, error) {
	return s.AppendVersions(nil, key)
}

// AppendVersions is Versions into a slice of the caller's.
func (s *Store) AppendVersions(vs []Version, key rfs.ShardKey) ([]Version, error) {
	if err := s.usable(); err != nil {
		return vs, err
	}
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	if err := s.load(w, key); err != nil {
		return vs, err
	}
	for _, r := range w.recs {
		vs = append(vs, r.version())
	}
	return vs, nil
}
