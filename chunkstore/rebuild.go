package chunkstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"rfs"
)

const (
	newIndexDir = "index.new"
	oldIndexDir = "index.old"
)

// Rebuild makes the index of a target that nobody has open anew, out of the
// extents' headers:
//
//	scan headers; of two that overlap, or are of one version, the higher seq is right
//	index.new <- records, all payloads read and checked unless the page cache cannot have been lost
//	index -> index.old; index.new -> index; remove index.old
//
// Versions that were dropped shortly before a crash may be back, and floors of
// Trims are gone: the store counts as unclean, and its daemon compares it with
// its peers before it serves.
func Rebuild(ctx context.Context, o Options, progress func(done, total int64)) (_ *Report, err error) {
	s := newStore(o.withDefaults())
	defer func() { err = errors.Join(err, s.closeOffline()) }()
	if err := s.openDir(); err != nil {
		return nil, err
	}
	if err := s.openSegments(true); err != nil {
		return nil, err
	}
	if err := s.unmarkClean(); err != nil {
		return nil, err
	}
	if err := s.removeIndex(newIndexDir); err != nil {
		return nil, diskError("rebuild", err)
	}
	if err := s.o.FS.Mkdir(s.path(newIndexDir)); err != nil {
		return nil, diskError("rebuild", err)
	}
	if s.db, err = openIndex(s.o.FS, s.path(newIndexDir), s.o.IndexCache, indexLog{s.log, s.fail}, true); err != nil {
		return nil, diskError("rebuild", err)
	}
	b := &rebuilder{checker: checker{s: s, o: CheckOptions{Progress: progress}, rep: s.newReport(), ctx: ctx}}
	if err := b.run(); err != nil {
		return b.rep, err
	}
	err = s.db.Close()
	s.db = nil
	if err == nil {
		err = s.swapIndex()
	}
	return b.rep, diskError("rebuild", err)
}

func (s *Store) unmarkClean() error {
	if !s.recovery.Clean {
		return nil
	}
	err := s.o.FS.Remove(s.path(cleanName))
	if err == nil {
		err = s.o.FS.SyncDir(s.o.Dir)
	}
	return diskError("rebuild", err)
}

func (s *Store) removeIndex(dir string) error {
	if _, err := s.o.FS.Stat(s.path(dir)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return s.o.FS.Pebble().RemoveAll(s.path(dir))
}

// swapIndex puts index.new in the place of index. A crash between the two
// renames leaves no index, which Open refuses and Rebuild does again.
func (s *Store) swapIndex() error {
	if err := s.removeIndex(oldIndexDir); err != nil {
		return err
	}
	if err := s.o.FS.Rename(s.path(indexDir), s.path(oldIndexDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.o.FS.Rename(s.path(newIndexDir), s.path(indexDir)); err != nil {
		return err
	}
	if err := s.o.FS.SyncDir(s.o.Dir); err != nil {
		return err
	}
	return s.removeIndex(oldIndexDir)
}

type rebuilder struct {
	checker
	last uint64 // the highest seq
}

// A foundHeader is a header that checks.
type foundHeader struct {
	key rfs.ShardKey
	rec record
}

func (b *rebuilder) run() error {
	b.total = int64(b.rep.Segments) * int64(b.s.alloc.blocks) * slotSize
	for _, g := range *b.s.segs.Load() {
		found, err := b.scan(g)
		if err != nil {
			return err
		}
		for i := range found {
			if err := b.add(found[i].key, found[i].rec); err != nil {
				return err
			}
		}
	}
	if err := b.count(); err != nil {
		return err
	}
	if err := b.s.db.Set(syncedKey, be.AppendUint64(nil, b.last), pebble.Sync); err != nil {
		return diskError("rebuild", err)
	}
	return b.s.usable()
}

// scan returns the headers of a segment that are live: where two claim a block,
// the later one was given it when the earlier was durably gone.
func (b *rebuilder) scan(g *segment) ([]foundHeader, error) {
	var all []foundHeader
	err := eachHeader(g, b.s.alloc.blocks, b.progress, func(block uint32, head []byte) error {
		target, key, r, err := parseHeader(slices.Clone(head))
		switch {
		case err != nil:
			b.rep.problem(&b.rep.BadHeaders, "extent header at block %d of segment %d: %v", block, g.id, err)
		case target != b.s.id.Target:
			b.rep.problem(&b.rep.BadHeaders, "extent header at block %d of segment %d: of target %v", block, g.id, target)
		case r.extent().seg != g.id || r.extent().block != block || block+r.extent().blocks() > b.s.alloc.blocks:
			b.rep.problem(&b.rep.BadHeaders, "extent header at block %d of segment %d: of block %d of segment %d", block, g.id, r.extent().block, r.extent().seg)
		default:
			all = append(all, foundHeader{key: key, rec: r})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(x, y foundHeader) int { return cmp.Compare(y.rec.seq(), x.rec.seq()) })
	used := make(bitset, (b.s.alloc.blocks+63)/64)
	live := all[:0]
	for _, h := range all {
		b.last = max(b.last, h.rec.seq())
		e := h.rec.extent()
		free := true
		for i := e.block; i < e.block+e.blocks(); i++ {
			free = free && !used.has(i)
		}
		if !free {
			b.rep.Stale++
			continue
		}
		for i := e.block; i < e.block+e.blocks(); i++ {
			used.set(i)
		}
		live = append(live, h)
	}
	return live, nil
}

// add puts a version into the new index, unless its payload is not there, or
// it is there already with a higher seq.
func (b *rebuilder) add(key rfs.ShardKey, r record) error {
	s := b.s
	if !s.recovery.Clean && !s.recovery.SameBoot {
		buf := payloads.Get().(*[]byte)
		err := s.readPayload(key, r, *buf)
		payloads.Put(buf)
		if err != nil {
			b.rep.problem(&b.rep.Dropped, "dropped: %v", err)
			return b.progress(int64(r.payload()))
		}
		if err := b.progress(int64(r.payload())); err != nil {
			return err
		}
	}
	k := appendVersionKey(nil, key, r.tag(), r.kind())
	if v, c, err := s.db.Get(k); err == nil {
		old, perr := parseRecord(v)
		older := perr == nil && old.seq() > r.seq()
		c.Close()
		b.rep.Stale++
		if older {
			return nil
		}
	} else if !errors.Is(err, pebble.ErrNotFound) {
		return diskError("rebuild", err)
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	_ = batch.Set(k, r, nil)
	_ = batch.Set(appendSlotKey(nil, r.pool(), r.slot(), key), nil, nil)
	return diskError("rebuild", s.db.Apply(batch, pebble.NoSync))
}

// count fills in the report from the new index.
func (b *rebuilder) count() error {
	it, err := b.s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyVersion}, UpperBound: []byte{keyVersion + 1}})
	if err != nil {
		return diskError("rebuild", err)
	}
	defer it.Close()
	var at rfs.ShardKey
	for ok := it.First(); ok; ok = it.Next() {
		key, r, err := parseEntry(it.Key(), it.Value())
		if err != nil {
			return fmt.Errorf("rebuild: %w", err)
		}
		if key != at || b.rep.Shards == 0 {
			at = key
			b.rep.Shards++
		}
		b.rep.Versions++
		b.rep.Bytes += int64(r.payload())
		b.rep.Extents += r.extent().size()
		if !r.complete() {
			b.rep.Prepared++
		}
	}
	return diskError("rebuild", it.Error())
}
