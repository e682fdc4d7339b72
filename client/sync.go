package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"rfs"
	"rfs/placement"
	"rfs/transport/wire"
)

// sync makes all that was written to the file durable: it writes what is dirty,
// has each target that took bytes since the last SYNC make them durable, and
// commits size and mtime.
//
// A target that is lost, or restarts, before its SYNC may have lost what it
// acknowledged: the others of the slot have it, and it compares with them before
// it serves again, so SYNC need succeed only on those that are live. Only if more
// than m members of a slot were away at one time may bytes be lost; then sync fails.
func (ino *inode) sync(ctx context.Context) error {
	ctx, done := ino.fs.patience(ctx)
	defer done()
	if err := ino.flush(ctx); err != nil {
		return err
	}
	select { // a second one must not return before the first, which took what is touched, is done
	case ino.syncing <- struct{}{}:
		defer func() { <-ino.syncing }()
	case <-ctx.Done():
		return ended(ctx)
	}
	ino.suspect(ino.fs.Map())
	ino.mu.Lock()
	touched := maps.Clone(ino.touched)
	clear(ino.touched)
	ino.mu.Unlock()
	ino.fs.commits.push(ctx)
	err := ino.syncSlots(ctx, touched)
	if err != nil {
		ino.mu.Lock()
		for id, t := range touched {
			if ino.touched[id] == nil {
				ino.touched[id] = t
			}
		}
		ino.mu.Unlock()
		return fmt.Errorf("sync %v: %w", ino.id, err)
	}
	return ino.commitAttr(ctx)
}

// syncSlots sends SYNC to all live members of the slots.
func (ino *inode) syncSlots(ctx context.Context, touched map[rfs.SlotID]*touch) error {
	if len(touched) == 0 {
		return nil
	}
	fs := ino.fs
	var back backoff
	synced := map[rfs.TargetID]bool{}
	for {
		news := fs.newMap()
		m := fs.Map()
		pool := m.Pool(ino.layout.Pool)
		if pool == nil {
			return fmt.Errorf("pool %d: not in the cluster map: %w", ino.layout.Pool, rfs.ErrStale)
		}
		want, err := ino.mustSync(m, pool, touched)
		if err != nil {
			return err
		}
		if fs.syncTargets(ctx, want, synced) {
			return nil
		}
		if fs.ctx.Err() != nil {
			return ended(fs.ctx)
		}
		if err := fs.pause(ctx, back.next(), news); err != nil {
			return err
		}
		if err := fs.refresh(ctx); err != nil {
			return err
		}
	}
}

// mustSync returns the live targets of the touched slots, or an error if too many of a slot's were away.
func (ino *inode) mustSync(m *placement.Map, pool *placement.Pool, touched map[rfs.SlotID]*touch) (map[rfs.TargetID]bool, error) {
	want := map[rfs.TargetID]bool{}
	for id, t := range touched {
		s := &pool.Slots[id]
		for i := range s.Members {
			if m.IsUp(s.Members[i]) {
				want[s.Members[i]] = true
			}
			if in := s.IncomingAt(i); m.IsUp(in) {
				want[in] = true
			}
		}
		if t.away > int(ino.layout.M) {
			return nil, fmt.Errorf("%d targets of slot %d were away at one time since the write, more than its %d parity shards cover: bytes may be lost: %w",
				t.away, id, ino.layout.M, rfs.ErrUnavailable)
		}
	}
	return want, nil
}

// syncTargets sends SYNC to the targets that have not answered one yet, and says whether all have now.
func (fs *FS) syncTargets(ctx context.Context, want, synced map[rfs.TargetID]bool) bool {
	var mu sync.Mutex
	var wg sync.WaitGroup
	all := true
	mu.Lock() // the first answers wait until all are asked
	for t := range want {
		if synced[t] {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, fs.cfg.CallTimeout)
			defer cancel()
			hdr := wire.AppendCommon(nil, &wire.Common{Target: t, Session: fs.Session()})
			rep, err := fs.targets.call(ctx, t, wire.OpSync, hdr, nil, nil)
			if err != nil && !errors.Is(err, context.Canceled) {
				fs.targets.report(t, err)
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil && rep.Status == wire.StatusOK {
				synced[t] = true
			} else {
				all = false
			}
		})
	}
	mu.Unlock()
	wg.Wait()
	return all
}
