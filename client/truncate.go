package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/transport/wire"
)

// truncate sets the size, and the other attributes of set.
//
// To make the file shorter: all writes are waited for; the metadata service
// takes the new size and a tag above theirs; what the targets hold below the
// tag past the size is dropped. Whoever makes the file longer later finds
// zeros. If this client dies between the steps the service's cleaner, or the
// next who opens the file for writing, does the rest.
func (ino *inode) truncate(ctx context.Context, set raftmeta.SetAttr) (a raftmeta.Attr, err error) {
	size := *set.Size
	if size < 0 {
		return a, fmt.Errorf("truncate %v to %d: %w", ino.id, size, rfs.ErrInvalid)
	}
	if err := ino.fits(size, 0); err != nil {
		return a, err
	}
	ctx, done := ino.fs.patience(ctx)
	defer done()
	ino.io.Lock()
	defer ino.io.Unlock()
	if err := ino.flush(ctx); err != nil {
		return a, err
	}
	if a, err = ino.resize(ctx, set); err != nil {
		return a, err
	}
	if err := ino.finishTrims(ctx, a.Trims); err != nil {
		return a, err
	}
	a.Trims = nil
	return a, nil
}

// resize tells the metadata service the new size.
func (ino *inode) resize(ctx context.Context, set raftmeta.SetAttr) (raftmeta.Attr, error) {
	ino.telling.Lock()
	defer ino.telling.Unlock()
	if err := ino.tell(ctx); err != nil {
		return raftmeta.Attr{}, err
	}
	set.Tag = ino.fs.tag()
	a, err := ino.fs.meta.Setattr(ctx, ino.id, set)
	if err != nil {
		return a, err
	}
	ino.mu.Lock()
	defer ino.mu.Unlock()
	ino.size = *set.Size
	ino.readGens++
	return a, nil
}

// extend makes the file at least size bytes long.
func (ino *inode) extend(ctx context.Context, size int64) error {
	ino.mu.Lock()
	if size <= ino.size && ino.cache == raftmeta.CacheReadWrite {
		ino.mu.Unlock()
		return nil
	}
	ino.mu.Unlock()
	if err := ino.fits(size, 0); err != nil {
		return err
	}
	ino.mu.Lock()
	ino.grow(size)
	ino.mu.Unlock()
	return ino.commitAttr(ctx)
}

// finishTrims carries out truncations that are recorded with the inode.
func (ino *inode) finishTrims(ctx context.Context, trims []raftmeta.Trim) error {
	ctx, done := ino.fs.patience(ctx)
	defer done()
	for _, t := range trims {
		if err := ino.trim(ctx, t); err != nil {
			return fmt.Errorf("truncate %v to %d: %w", ino.id, t.Size, err)
		}
	}
	return nil
}

// trim drops what the targets hold past t.Size with lower tags, and says so to the metadata service.
func (ino *inode) trim(ctx context.Context, t raftmeta.Trim) error {
	stripe, in := ino.layout.Stripe(t.Size)
	if in > 0 {
		if err := ino.zero(ctx, stripe, in, ino.layout.StripeSize()-in); err != nil {
			return err
		}
		stripe++
	}
	if !t.Swept {
		if err := ino.sweep(ctx, stripe, t.Tag); err != nil {
			return err
		}
	}
	if err := ino.fs.meta.TrimDone(ctx, ino.id, t.Tag); err != nil {
		return err
	}
	ino.mu.Lock()
	ino.base = min(ino.base, t.Size)
	ino.mu.Unlock()
	return nil
}

// sweep sends TRIM from the given stripe on to each target of the pool. One that
// is down compares with its peers before it serves again.
func (ino *inode) sweep(ctx context.Context, from uint32, tag rfs.Tag) error {
	fs := ino.fs
	return fs.eachTarget(ctx, ino.layout.Pool, func(ctx context.Context, t rfs.TargetID, pool *placement.Pool) (wire.Status, error) {
		hdr := wire.AppendTagRequest(nil, &wire.TagRequest{Tag: tag, Common: wire.Common{
			Target: t, Key: rfs.ShardKey{Inode: ino.id, Stripe: from}, Pool: pool.ID, Session: fs.Session(),
		}})
		rep, err := fs.targets.call(ctx, t, wire.OpTrim, hdr, nil, nil)
		return rep.Status, err
	})
}

// eachTarget calls f for all targets of a pool that are up, at once, and again
// for those that fail, until each has succeeded or is down.
//
// No epoch of a slot guards these calls, so a map that is out of date would leave
// out a target that has just come back, and may have compared itself with its
// peers before they were called. So it ends only with a map that was asked for
// after the last call: who comes back later than that finds what the peers did.
func (fs *FS) eachTarget(ctx context.Context, pool rfs.PoolID, f func(ctx context.Context, t rfs.TargetID, pool *placement.Pool) (wire.Status, error)) error {
	done := map[rfs.TargetID]bool{}
	var back backoff
	for sure := false; ; {
		news := fs.newMap()
		m := fs.Map()
		p := m.Pool(pool)
		if p == nil {
			return fmt.Errorf("pool %d: not in the cluster map: %w", pool, rfs.ErrStale)
		}
		called, missing, err := fs.roundOf(ctx, m, p, done, f)
		if err != nil || called == 0 && sure {
			return err
		}
		if missing > 0 {
			if err := fs.pause(ctx, back.next(), news); err != nil {
				return err
			}
		}
		if sure, err = fs.refreshed(ctx); err != nil {
			return err
		}
	}
}

// roundOf calls each target that is up and not done yet, and returns how many those were, and how many of them are still not.
func (fs *FS) roundOf(ctx context.Context, m *placement.Map, p *placement.Pool, done map[rfs.TargetID]bool, f func(context.Context, rfs.TargetID, *placement.Pool) (wire.Status, error)) (called, missing int, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	mu.Lock() // the first answers wait until all are asked
	for t := range members(p) {
		if done[t] || !m.IsUp(t) {
			continue
		}
		called++
		missing++
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, fs.cfg.CallTimeout)
			defer cancel()
			st, err := f(ctx, t, p)
			if err != nil {
				fs.targets.report(t, err)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && st == wire.StatusOK:
				done[t] = true
				missing--
			case err == nil && st == wire.StatusSessionLost:
				errs = append(errs, rfs.ErrSessionLost)
			case err == nil && (st == wire.StatusBadRequest || st == wire.StatusUnknownOp || st == wire.StatusInvalid):
				errs = append(errs, fmt.Errorf("target %v: %v: %w", t, st, rfs.ErrInvalid))
			}
		})
	}
	mu.Unlock()
	wg.Wait()
	return called, missing, errors.Join(errs...)
}

// members returns the targets of a pool, once each.
func members(p *placement.Pool) map[rfs.TargetID]bool {
	all := map[rfs.TargetID]bool{}
	for i := range p.Slots {
		for _, t := range p.Slots[i].Members {
			all[t] = true
		}
		for _, t := range p.Slots[i].Incoming {
			all[t] = true
		}
	}
	delete(all, rfs.TargetID{})
	return all
}

// punch makes n bytes from off read as zeros.
func (ino *inode) punch(ctx context.Context, off, n int64) error {
	ctx, done := ino.fs.patience(ctx)
	defer done()
	ino.io.Lock()
	defer ino.io.Unlock()
	if err := ino.flush(ctx); err != nil {
		return err
	}
	ino.mu.Lock()
	size, shared := ino.size, ino.cache != raftmeta.CacheReadWrite
	ino.mu.Unlock()
	if shared {
		a, err := ino.fs.Getattr(ctx, ino.id)
		if err != nil {
			return err
		}
		size = a.Size
	}
	for end := min(off+n, size); off < end; {
		stripe, in := ino.layout.Stripe(off)
		m := min(end-off, ino.layout.StripeSize()-in)
		if err := ino.zero(ctx, stripe, in, m); err != nil {
			return fmt.Errorf("punch %v: %w", ino.id, err)
		}
		off += m
	}
	ino.mu.Lock()
	ino.mtime = time.Now().UnixNano()
	ino.edits++
	ino.readGens++
	ino.mu.Unlock()
	return ino.commitAttr(ctx)
}

// zero writes zeros over n bytes from offset in of a stripe: a Full version
// without bytes for a whole stripe, else a Partial one whose segments are Zero.
func (ino *inode) zero(ctx context.Context, stripe uint32, in, n int64) error {
	if n == ino.layout.StripeSize() {
		w := newVersion(ino, stripe, wire.Full)
		defer w.free()
		for i := range ino.layout.Width() {
			w.w.Add(uint8(i))
		}
		return w.commit(ctx)
	}
	w := newVersion(ino, stripe, wire.Partial)
	defer w.free()
	for i := range ino.layout.K {
		if off, end := shardRange(ino.layout, in, int(n), i); off < end {
			w.segs = append(w.segs, wire.Segment{Shard: i, Zero: true, Off: off, Len: end - off})
		}
	}
	w.overlay(view{})
	return w.commit(ctx)
}

// seek returns the first offset from off on with data, or without.
//
// A hole is what no stripe has bytes for: it is found stripe by stripe, by how
// far each shard reaches. Zeros inside that are called data, as POSIX allows.
func (ino *inode) seek(ctx context.Context, off int64, data bool) (int64, error) {
	ctx, done := ino.fs.patience(ctx)
	defer done()
	size, err := ino.sizeNow(ctx)
	if err != nil {
		return 0, err
	}
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	if err := ino.flush(ctx); err != nil {
		return 0, err
	}
	for at := off; at < size; {
		stripe, in := ino.layout.Stripe(at)
		start := at - in
		end, err := ino.reach(ctx, stripe)
		if err != nil {
			return 0, err
		}
		switch {
		case data && in < end:
			return at, nil
		case !data && in >= end:
			return at, nil
		case !data && end < ino.layout.StripeSize():
			return min(start+end, size), nil
		}
		at = start + ino.layout.StripeSize()
	}
	if data {
		return 0, io.EOF
	}
	return size, nil
}

// reach returns the offset in a stripe after its last byte that was ever written, as its shards know it.
func (ino *inode) reach(ctx context.Context, stripe uint32) (end int64, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var errs []error
	for i := range ino.layout.K {
		wg.Go(func() {
			n, e := ino.shardLength(ctx, stripe, i)
			mu.Lock()
			defer mu.Unlock()
			if e != nil {
				errs = append(errs, e)
			}
			if n > 0 {
				end = max(end, ino.layout.StripeOffset(i, n-1)+1)
			}
		})
	}
	wg.Wait()
	return end, errors.Join(errs...)
}
