package chunkstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rfs"
)

// A syncGroup lets callers who come while a sync is under way share the next one.
type syncGroup struct {
	mu      sync.Mutex
	next    *syncRound // not begun
	running bool
	idle    sync.WaitGroup
}

type syncRound struct {
	done chan struct{}
	err  error
}

// join returns the next round, and whether the caller must see to it that rounds are run.
func (g *syncGroup) join() (r *syncRound, lead bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.next = &syncRound{done: make(chan struct{})}
	}
	lead = !g.running
	if lead {
		g.running = true
		g.idle.Add(1)
	}
	return g.next, lead
}

// begin takes the round that callers have joined until now, or ends the running if there is none.
func (g *syncGroup) begin() *syncRound {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.next
	g.next = nil
	if r == nil {
		g.running = false
		g.idle.Done()
	}
	return r
}

func (g *syncGroup) wait() { g.idle.Wait() }

// Sync returns when everything that had been put, committed, dropped or retagged
// when it was called is durable. Concurrent callers share one flush. If ctx
// ends first, the flush goes on without the caller.
func (s *Store) Sync(ctx context.Context) error {
	s.stats.syncs.Add(1)
	r, lead := s.group.join()
	if lead {
		go func() {
			for r := s.group.begin(); r != nil; r = s.group.begin() {
				r.err = s.flush()
				close(r.done)
			}
		}()
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flush is one round:
//
//	barrier: take the drops, the dirty files and the last seq
//	fdatasync the files                                      data is durable
//	delete the condemned, note the seq, sync Pebble's log    the index is durable
//	void the headers of the drops, free their extents        they can be used again
//
// One runs at a time.
func (s *Store) flush() error {
	if err := s.usable(); err != nil {
		return err
	}
	s.barrier.Lock()
	changes, seq := s.changes.Load(), s.seq.Load()
	dirty := s.takeDirty()
	s.dropMu.Lock()
	drops := s.drops
	s.drops, s.pending = nil, 0
	s.dropMu.Unlock()
	s.barrier.Unlock()
	if changes == s.flushed && len(drops) == 0 && len(dirty) == 0 {
		return nil
	}
	if err := syncFiles(dirty); err != nil {
		// What the kernel could not write it may have forgotten: no later fdatasync would tell.
		s.fail(diskError("flush", err))
		return s.usable()
	}
	if err := s.syncIndex(seq, drops); err != nil {
		s.fail(diskError("flush index", err))
		return s.usable()
	}
	s.flushed = changes
	s.stats.flushes.Add(1)
	return s.release(drops)
}

// takeDirty returns the files written since the last round.
func (s *Store) takeDirty() (dirty []interface{ Sync() error }) {
	for _, g := range *s.segs.Load() {
		if g.dataDirty.Swap(false) {
			dirty = append(dirty, g.data)
		}
		if g.headDirty.Swap(false) {
			dirty = append(dirty, g.head)
		}
	}
	return dirty
}

// syncFiles flushes files, a few at a time.
func syncFiles(files []interface{ Sync() error }) error {
	if len(files) == 1 {
		return files[0].Sync()
	}
	var wg sync.WaitGroup
	errs := make([]error, len(files))
	room := make(chan struct{}, 8)
	for i, f := range files {
		room <- struct{}{}
		wg.Go(func() {
			errs[i] = f.Sync()
			<-room
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// syncIndex makes durable all changes of the index so far, and with them that
// all data of versions up to seq is.
func (s *Store) syncIndex(seq uint64, drops []drop) error {
	b := s.db.NewBatch()
	defer b.Close()
	for i := range drops {
		if drops[i].key[0] != 0 {
			_ = b.Delete(drops[i].key[:], nil)
		}
	}
	_ = b.Set(syncedKey, be.AppendUint64(nil, seq), nil)
	if err := s.db.Apply(b, pebble.Sync); err != nil {
		return err
	}
	return s.usable()
}

// release frees the extents of drops that are durably gone. A header is voided
// before its extent can be used again, so that it is not flushed later than
// the header of the next user.
func (s *Store) release(drops []drop) error {
	for _, d := range drops {
		g := s.segment(d.ext.seg)
		if _, err := g.head.WriteAt(noMagic, int64(d.ext.block)*slotSize); err != nil {
			return s.writeFailed("void extent header", err)
		}
		g.headDirty.Store(true)
	}
	s.dropMu.Lock()
	for _, d := range drops {
		if d.key[0] != 0 {
			delete(s.condemned, d.key)
		}
	}
	s.dropMu.Unlock()
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	for _, d := range drops {
		if err := s.alloc.free(d.ext); err != nil {
			s.fail(fmt.Errorf("%w: free list: %w", rfs.ErrCorrupt, err))
			return s.usable()
		}
	}
	return nil
}

// retire queues a drop for the next Sync. The barrier is held shared.
func (s *Store) retire(d drop) {
	s.dropMu.Lock()
	s.drops = append(s.drops, d)
	s.pending += d.ext.size()
	if d.key[0] != 0 {
		s.condemned[d.key] = struct{}{}
	}
	much := s.pending > s.id.SegmentSize/4 || len(s.drops) > 8192
	s.dropMu.Unlock()
	if much {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// isCondemned reports whether a Sync is going to delete the version's key.
func (s *Store) isCondemned(key rfs.ShardKey, tag rfs.Tag, kind Kind) bool {
	s.dropMu.Lock()
	defer s.dropMu.Unlock()
	if len(s.condemned) == 0 {
		return false
	}
	var k [versionKeyLen]byte
	appendVersionKey(k[:0], key, tag, kind)
	_, ok := s.condemned[k]
	return ok
}

// flusher syncs what nobody asks to, now and then.
func (s *Store) flusher() {
	t := time.NewTicker(s.o.FlushInterval)
	defer t.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		case <-s.kick:
		}
		if err := s.Sync(context.Background()); err != nil && s.failed.Load() == nil {
			s.log.Warn("background sync", "err", err)
		}
	}
}

// allocate returns an extent of the given order. Only a privileged caller gets
// what the reserve is for.
func (s *Store) allocate(order uint8, privileged bool) (extent, error) {
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	size := extent{order: order}.size()
	limit := s.capacity
	if !privileged {
		limit -= s.reserve
	}
	if s.alloc.used+size > limit {
		return extent{}, s.full()
	}
	if err := s.probeDisk(size, privileged); err != nil {
		return extent{}, err
	}
	e, ok := s.alloc.alloc(order)
	for !ok {
		if int64(len(s.alloc.segs)+1)*s.id.SegmentSize > s.capacity {
			return extent{}, s.full()
		}
		if err := s.addSegment(); err != nil {
			return extent{}, err
		}
		e, ok = s.alloc.alloc(order)
	}
	return e, nil
}

// full is the error when nothing is free: for good, or until a Sync.
func (s *Store) full() error {
	s.dropMu.Lock()
	defer s.dropMu.Unlock()
	if s.pending > 0 {
		return errPending
	}
	return fmt.Errorf("target %s: %d of %d bytes used, %d reserved: %w", s.o.Dir, s.alloc.used, s.capacity, s.reserve, rfs.ErrNoSpace)
}

// probeEvery is how much is handed out between two looks at the disk's free space, in bytes.
const probeEvery = 16 << 20

// probeDisk looks at the free space of the disk now and then: other files may
// be on it, sparse segments take it as they fill, and the index always does.
func (s *Store) probeDisk(size int64, privileged bool) error {
	if s.o.MinAvail < 0 {
		return nil
	}
	if s.unprobed += size; s.unprobed > probeEvery || s.diskFull {
		s.unprobed = 0
		u, err := s.o.FS.Usage(s.o.Dir)
		if err != nil {
			return diskError("allocate", err)
		}
		s.diskFull = u.Avail < s.o.MinAvail
		if privileged && u.Avail >= s.o.MinAvail/4 {
			return nil
		}
	}
	if s.diskFull {
		return fmt.Errorf("target %s: the disk has less than %d bytes available: %w: free some, or drain the target",
			s.o.Dir, s.o.MinAvail, rfs.ErrNoSpace)
	}
	return nil
}

// unallocate gives back an extent that no index entry ever had.
func (s *Store) unallocate(e extent) {
	s.allocMu.Lock()
	defer s.allocMu.Unlock()
	if err := s.alloc.free(e); err != nil {
		s.fail(err)
	}
}
