package chunkstore

import "sync/atomic"

// counters are what a store has done since it was opened.
type counters struct {
	puts, putBytes, commits, drops, folds atomic.Int64
	reads, readBytes                      atomic.Int64
	crcFailures, readErrors, writeErrors  atomic.Int64
	syncs, flushes                        atomic.Int64
}

// Stats are counters since the store was opened; for metrics.
type Stats struct {
	Puts, PutBytes int64
	Commits        int64
	Drops          int64 // versions aborted, trimmed, deleted
	Folds          int64
	Reads          int64
	ReadBytes      int64
	CRCFailures    int64 // blocks that did not check
	ReadErrors     int64
	WriteErrors    int64
	Syncs          int64 // callers of Sync
	Flushes        int64 // what they shared
}

// Stats returns the store's counters.
func (s *Store) Stats() Stats {
	c := &s.stats
	return Stats{
		Puts: c.puts.Load(), PutBytes: c.putBytes.Load(), Commits: c.commits.Load(), Drops: c.drops.Load(), Folds: c.folds.Load(),
		Reads: c.reads.Load(), ReadBytes: c.readBytes.Load(),
		CRCFailures: c.crcFailures.Load(), ReadErrors: c.readErrors.Load(), WriteErrors: c.writeErrors.Load(),
		Syncs: c.syncs.Load(), Flushes: c.flushes.Load(),
	}
}

// Usage is the space of a target, in bytes.
type Usage struct {
	Capacity int64 `json:"capacity"`
	Used     int64 `json:"used"` // in extents, what waits to be freed included
	// Free is what Put may still take: Capacity less Used and Reserve, or what
	// the disk has, if that is less.
	Free     int64 `json:"free"`
	Reserve  int64 `json:"reserve"`
	Pending  int64 `json:"pending"` // of Used, to be freed by the next Sync
	Segments int   `json:"segments"`
}

// Stat returns the space of the target.
func (s *Store) Stat() (Usage, error) {
	if err := s.usable(); err != nil {
		return Usage{}, err
	}
	disk, err := s.o.FS.Usage(s.o.Dir)
	if err != nil {
		return Usage{}, diskError("stat target "+s.o.Dir, err)
	}
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	u := Usage{Capacity: s.capacity, Used: s.alloc.used, Reserve: s.reserve, Segments: len(s.alloc.segs)}
	u.Free = u.Capacity - u.Used - u.Reserve
	if s.o.MinAvail >= 0 {
		room := disk.Avail - s.o.MinAvail
		if !s.sparse { // what segments have allocated is room already
			room += int64(u.Segments)*s.id.SegmentSize - u.Used
		}
		u.Free = min(u.Free, room)
	}
	u.Free = max(u.Free, 0)
	s.dropMu.Lock()
	u.Pending = s.pending
	s.dropMu.Unlock()
	return u, nil
}
