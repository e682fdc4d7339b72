package chunkstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"rfs"
)

// CheckOptions say how thorough a Check is.
type CheckOptions struct {
	// Data has every payload read and checked, not only what is said of it.
	Data bool
	// Repair writes headers anew that are not what the index says, and voids
	// those of extents that the index has no use for. Payload that does not check
	// is left: the cluster rebuilds it from the other shards when it is read.
	Repair bool
	// Progress, if not nil, is called now and then with the bytes done of the bytes to do.
	Progress func(done, total int64)
}

// maxProblems is how many problems a Report spells out.
const maxProblems = 1000

// A Report is what Check or Rebuild found.
type Report struct {
	Dir      string       `json:"dir"`
	Target   rfs.TargetID `json:"target"`
	Cluster  rfs.UUID     `json:"cluster"`
	Recovery Recovery     `json:"recovery"` // how the last user left the store
	Segments int          `json:"segments"`
	Shards   int          `json:"shards"`
	Versions int          `json:"versions"`
	Prepared int          `json:"prepared"` // of Versions, those not known complete
	// Superseded versions wait to be dropped by the next who opens the store.
	Superseded int   `json:"superseded"`
	Bytes      int64 `json:"bytes"`   // of payload
	Extents    int64 `json:"extents"` // bytes in extents

	// Unsynced versions were written after the last sync and are incomplete; a
	// crash of the machine does that, and who opens the store drops them.
	Unsynced int `json:"unsynced"`
	// Stale headers are of extents that are free in the index: a crash leaves
	// some. They matter only to a Rebuild.
	Stale int `json:"stale_headers"`

	BadIndex   int `json:"bad_index_entries"`
	BadHeaders int `json:"bad_headers"` // missing, not checking, or not what the index says
	BadBlocks  int `json:"bad_blocks"`  // of payload
	Overlaps   int `json:"overlaps"`    // extents that two versions have
	BadSlots   int `json:"bad_slot_entries"`

	Repaired int `json:"repaired"` // headers rewritten or voided
	Dropped  int `json:"dropped"`  // by Rebuild: versions whose payload does not check

	// Problems says where, one line each, up to a thousand.
	Problems []string `json:"problems,omitempty"`
}

// OK reports whether nothing is wrong that a crash does not explain.
func (r *Report) OK() bool {
	return r.BadIndex == 0 && r.BadHeaders == 0 && r.BadBlocks == 0 && r.Overlaps == 0 && r.BadSlots == 0
}

func (r *Report) problem(count *int, format string, args ...any) {
	*count++
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// Check reads a target that nobody has open, and holds the index against the
// extents' headers, both ways. The error is of what kept it from doing so; what
// is wrong with the store is in the Report.
func Check(ctx context.Context, o Options, c CheckOptions) (_ *Report, err error) {
	s := newStore(o.withDefaults())
	defer func() { err = errors.Join(err, s.closeOffline()) }()
	if err := s.openDir(); err != nil {
		return nil, err
	}
	if err := s.openSegments(false); err != nil {
		return nil, err
	}
	s.db, err = openIndex(s.o.FS, s.path(indexDir), s.o.IndexCache, indexLog{s.log, s.fail}, false)
	if err != nil {
		return nil, badIndex(s.o.Dir, err)
	}
	k := &checker{s: s, o: c, rep: s.newReport(), ctx: ctx}
	if k.synced, err = s.readSynced(); err != nil {
		return nil, badIndex(s.o.Dir, err)
	}
	if err := k.run(); err != nil {
		return k.rep, err
	}
	return k.rep, nil
}

// closeOffline lets go of a store of Check or Rebuild, and leaves the marks alone.
func (s *Store) closeOffline() error {
	err := s.closeFiles()
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

func (s *Store) newReport() *Report {
	return &Report{
		Dir: s.o.Dir, Target: s.id.Target, Cluster: s.id.Cluster, Recovery: s.recovery, Segments: len(*s.segs.Load()),
	}
}

// A checker is a Check under way. It holds two bits for each block of the store.
type checker struct {
	s      *Store
	o      CheckOptions
	rep    *Report
	ctx    context.Context
	synced uint64

	used  []bitset // blocks of extents that the index knows, by segment
	heads []bitset // the first block of each
	done  int64
	total int64
	w     scratch
}

type bitset []uint64

func (b bitset) has(i uint32) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitset) set(i uint32)      { b[i/64] |= 1 << (i % 64) }

func (k *checker) run() error {
	blocks := k.s.alloc.blocks
	for range *k.s.segs.Load() {
		k.used = append(k.used, make(bitset, (blocks+63)/64))
		k.heads = append(k.heads, make(bitset, (blocks+63)/64))
	}
	k.total = int64(k.rep.Segments) * int64(blocks) * slotSize
	if k.o.Data {
		k.total += int64(k.rep.Segments) * k.s.id.SegmentSize // at most
	}
	if err := k.index(); err != nil {
		return err
	}
	if err := k.slots(); err != nil {
		return err
	}
	for _, g := range *k.s.segs.Load() {
		if err := k.segment(g); err != nil {
			return err
		}
	}
	if k.o.Repair && k.rep.Repaired > 0 {
		return diskError("check", syncFiles(k.s.takeDirty()))
	}
	return nil
}

func (k *checker) progress(n int64) error {
	k.done += n
	k.total = max(k.total, k.done)
	if k.o.Progress != nil {
		k.o.Progress(k.done, k.total)
	}
	return k.ctx.Err()
}

// index goes through the versions of the index, shard by shard.
func (k *checker) index() error {
	it, err := k.s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyVersion}, UpperBound: []byte{keyVersion + 1}})
	if err != nil {
		return badIndex(k.s.o.Dir, err)
	}
	defer it.Close()
	var at rfs.ShardKey
	for ok := it.First(); ok; ok = it.Next() {
		key, r, err := parseEntry(it.Key(), it.Value())
		if err != nil {
			k.rep.problem(&k.rep.BadIndex, "%v", err)
			continue
		}
		if key != at {
			if err := k.shard(at); err != nil {
				return err
			}
			at = key
			k.w.all = k.w.all[:0]
		}
		k.w.all = append(k.w.all, append(record(nil), r...))
	}
	if err := it.Error(); err != nil {
		return badIndex(k.s.o.Dir, err)
	}
	return k.shard(at)
}

// shard checks one shard, all of whose records are in w.all.
func (k *checker) shard(key rfs.ShardKey) error {
	recs := k.w.all
	if len(recs) == 0 {
		return nil
	}
	k.rep.Shards++
	slot := appendSlotKey(nil, recs[0].pool(), recs[0].slot(), key)
	if _, c, err := k.s.db.Get(slot); err == nil {
		c.Close()
	} else if errors.Is(err, pebble.ErrNotFound) {
		k.rep.problem(&k.rep.BadSlots, "shard %v is not among those of its slot %d of pool %d", key, recs[0].slot(), recs[0].pool())
	} else {
		return badIndex(k.s.o.Dir, err)
	}
	k.rep.Superseded += superseded(recs)
	for _, r := range recs {
		k.rep.Versions++
		k.rep.Bytes += int64(r.payload())
		k.rep.Extents += r.extent().size()
		if !r.complete() {
			k.rep.Prepared++
		}
		if err := k.version(key, r); err != nil {
			return err
		}
	}
	return nil
}

func (k *checker) version(key rfs.ShardKey, r record) error {
	e := r.extent()
	if int(e.seg) >= len(k.used) || e.block+e.blocks() > k.s.alloc.blocks {
		k.rep.problem(&k.rep.BadIndex, "version %v %v %v: extent at block %d of segment %d: there is no such place", key, r.tag(), r.kind(), e.block, e.seg)
		return nil
	}
	k.heads[e.seg].set(e.block)
	for b := e.block; b < e.block+e.blocks(); b++ {
		if k.used[e.seg].has(b) {
			k.rep.problem(&k.rep.Overlaps, "version %v %v %v: block %d of segment %d is another version's too", key, r.tag(), r.kind(), b, e.seg)
			break
		}
		k.used[e.seg].set(b)
	}
	durable := k.s.recovery.Clean || k.s.recovery.SameBoot || r.seq() <= k.synced
	if k.o.Data || !durable {
		if err := k.payload(key, r, durable); err != nil {
			return err
		}
	}
	return k.header(key, r, durable)
}

// payload reads the payload of r, block by block from the first bad one on.
func (k *checker) payload(key rfs.ShardKey, r record, durable bool) error {
	buf := payloads.Get().(*[]byte)
	defer payloads.Put(buf)
	err := k.s.readPayload(key, r, *buf)
	var bad *CorruptError
	switch {
	case errors.As(err, &bad) && !durable:
		k.rep.Unsynced++
	case err != nil:
		k.rep.problem(&k.rep.BadBlocks, "%v", err)
	}
	return k.progress(int64(r.payload()))
}

// header holds the extent's header against the index.
func (k *checker) header(key rfs.ShardKey, r record, durable bool) error {
	want := appendHeader(k.w.head[:0], k.s.id.Target, key, r)
	k.w.head = want
	g := k.s.segment(r.extent().seg)
	got := make([]byte, len(want))
	off := int64(r.extent().block) * slotSize
	if err := readFull(g.head, got, off); err != nil {
		return diskError("check", err)
	}
	if bytes.Equal(got, want) {
		return nil
	}
	if !durable {
		return k.rewrite(g, want, off) // of a write that a crash cut short
	}
	_, _, was, err := parseHeader(got)
	if err == nil {
		err = fmt.Errorf("is of seq %d, %v, the index's of %d, %v", was.seq(), was.state(), r.seq(), r.state())
	}
	k.rep.problem(&k.rep.BadHeaders, "version %v %v %v: extent header at block %d of segment %d: %v",
		key, r.tag(), r.kind(), r.extent().block, g.id, err)
	return k.rewrite(g, want, off)
}

func (k *checker) rewrite(g *segment, head []byte, off int64) error {
	if !k.o.Repair {
		return nil
	}
	k.rep.Repaired++
	g.headDirty.Store(true)
	_, err := g.head.WriteAt(head, off)
	return diskError("repair extent header", err)
}

// slots looks for entries of the slot index that lead nowhere.
func (k *checker) slots() error {
	it, err := k.s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keySlot}, UpperBound: []byte{keySlot + 1}})
	if err != nil {
		return badIndex(k.s.o.Dir, err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		key, err := parseSlotKey(it.Key())
		if err == nil {
			err = k.s.load(&k.w, key)
		}
		if err == nil && len(k.w.all) == 0 {
			err = fmt.Errorf("slot entry of shard %v, which has no versions", key)
		}
		if err != nil {
			k.rep.problem(&k.rep.BadSlots, "%v", err)
		}
	}
	if err := it.Error(); err != nil {
		return badIndex(k.s.o.Dir, err)
	}
	return nil
}

// segment looks for headers where the index has no extent.
func (k *checker) segment(g *segment) error {
	return eachHeader(g, k.s.alloc.blocks, k.progress, func(block uint32, head []byte) error {
		if k.heads[g.id].has(block) {
			return nil // checked from the index's side
		}
		if _, _, _, err := parseHeader(head); err != nil && k.used[g.id].has(block) {
			return nil // inside a longer header
		}
		k.rep.Stale++
		return k.rewrite(g, noMagic, int64(block)*slotSize)
	})
}

// eachHeader calls f for what begins like a header in g's head file, whole and
// unchecked, in the order of blocks.
func eachHeader(g *segment, blocks uint32, progress func(int64) error, f func(block uint32, head []byte) error) error {
	const chunk = 1 << 20
	buf := make([]byte, chunk+maxHeader)
	size := int64(blocks) * slotSize
	for at := int64(0); at < size; at += chunk {
		part := buf[:min(chunk+maxHeader, size-at)]
		if err := readFull(g.head, part, at); err != nil {
			return diskError("read extent headers", err)
		}
		for off := 0; off < len(part) && off < chunk; off += slotSize {
			n, err := headerLen(part[off:])
			if errors.Is(err, errNoHeader) {
				continue
			}
			if err != nil || off+n > len(part) {
				n = headerPrefix // too long to be one
			}
			if err := f(uint32((at+int64(off))/slotSize), part[off:off+n]); err != nil {
				return err
			}
		}
		if err := progress(min(chunk, size-at)); err != nil {
			return err
		}
	}
	return nil
}
