package server

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta"
)

// firstRetry and lastRetry bound the pause after a failed call to the metadata service.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = time.Second
)

// The agent keeps the node's targets in the cluster:
//
//	register -> heartbeat each lease/6 -> { acknowledged: serve for half a lease more
//	                                        a newer map:   take it
//	                                        ended sessions: refuse them
//	                                        declared down:  fence, register again, be synced }
type agent struct {
	beat   chan struct{} // a target failed: say so now
	cursor uint32        // of the last reply
	lease  atomic.Int64
}

func (a *agent) init() { a.beat = make(chan struct{}, 1) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Start registers the node and its targets, and returns once they serve. Serve
// the node's listener before: peers call it as soon as it is registered. When
// the metadata service does not answer it tries until ctx ends.
func (s *Server) Start(ctx context.Context) error {
	err := s.insist(ctx, "register node", func(ctx context.Context) error {
		return s.opts.Meta.RegisterNode(ctx, s.opts.Node)
	})
	for _, t := range s.targets {
		if err == nil {
			err = s.insist(ctx, "register target", func(ctx context.Context) error { return s.register(ctx, t, t.store.Clean()) })
		}
	}
	lease := time.Duration(0)
	if err == nil {
		err = s.insist(ctx, "heartbeat", func(ctx context.Context) (err error) {
			lease, err = s.heartbeat(ctx)
			return err
		})
	}
	if err == nil && s.cmap.Load().Epoch == 0 {
		err = s.insist(ctx, "fetch the map", func(ctx context.Context) error {
			m, err := s.opts.Meta.Map(ctx, 1)
			if err == nil {
				s.setMap(m)
			}
			return err
		})
	}
	if err != nil {
		return err
	}
	s.wg.Go(func() { s.heartbeats(lease) })
	for _, t := range s.targets {
		s.wg.Go(func() { s.janitor(t) })
		s.wg.Go(func() { s.syncer(t) })
	}
	return nil
}

// insist tries f until it succeeds, ctx ends, or the service says no for good.
func (s *Server) insist(ctx context.Context, what string, f func(context.Context) error) error {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := f(ctx)
		if err == nil || ctx.Err() != nil || errors.Is(err, rfs.ErrInvalid) || errors.Is(err, rfs.ErrExist) || errors.Is(err, rfs.ErrPermission) {
			return err
		}
		s.log.Warn("will try again", "what", what, "err", err)
		if !wait(ctx, pause, nil) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// wait returns after d, or at once when wake has something; false when ctx ended.
func wait(ctx context.Context, d time.Duration, wake <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-wake:
	case <-ctx.Done():
		return false
	}
	return true
}

// register adds a target to the map, or brings it back as one to be synced.
func (s *Server) register(ctx context.Context, t *target, clean bool) error {
	u, err := t.store.Stat()
	if err != nil {
		return err
	}
	err = s.opts.Meta.RegisterTarget(ctx, placement.Target{
		ID: t.id, Node: s.opts.Node.ID, Name: t.name, Capacity: u.Capacity, Used: u.Used, Weight: t.weight, State: placement.Up,
	}, clean)
	if err == nil {
		t.life.Add(1)
	}
	return err
}

// heartbeats keeps the lease until the server is closed.
func (s *Server) heartbeats(lease time.Duration) {
	for wait(s.ctx, lease/6, s.agent.beat) {
		ctx, cancel := context.WithTimeout(s.ctx, lease/2)
		l, err := s.heartbeat(ctx)
		cancel()
		if err != nil {
			s.log.Warn("heartbeat not acknowledged", "err", err)
			continue
		}
		lease = l
	}
}

// heartbeat reports on all targets, and does what the answer asks for.
func (s *Server) heartbeat(ctx context.Context) (lease time.Duration, err error) {
	var reports []raftmeta.TargetReport
	for _, t := range s.targets {
		reports = append(reports, t.report())
	}
	sent := time.Now()
	rep, err := s.opts.Meta.Heartbeat(ctx, s.opts.Node.ID, reports, s.agent.cursor)
	if err != nil {
		return 0, err
	}
	s.agent.cursor = rep.Cursor
	s.ended.add(rep.Ended)
	for _, id := range rep.Down {
		if t := s.targets[id]; t != nil {
			s.revive(ctx, t)
		}
	}
	if rep.MapEpoch > s.cmap.Load().Epoch {
		s.refreshMap(ctx, rep.MapEpoch)
	}
	s.agent.lease.Store(int64(rep.Lease))
	// Who serves knows the map as it was half a lease ago at most: takeOver counts on it.
	if s.cmap.Load().Epoch < rep.MapEpoch {
		return rep.Lease, nil
	}
	for _, t := range s.targets {
		if !t.down.Load() {
			t.serveUntil.Store(int64(sent.Add(rep.Lease / 2).Sub(started)))
		}
	}
	return rep.Lease, nil
}

// report says how a target is.
func (t *target) report() raftmeta.TargetReport {
	r := raftmeta.TargetReport{Target: t.id}
	if why := t.failed.Load(); why != nil {
		r.Failed, r.Detail = true, *why
	}
	u, err := t.store.Stat()
	if err != nil {
		r.Failed, r.Detail = true, err.Error()
	}
	r.Capacity, r.Used = u.Capacity, u.Used
	return r
}

// revive brings a target back that was declared down: it may have missed writes.
func (s *Server) revive(ctx context.Context, t *target) {
	t.serveUntil.Store(0)
	t.down.Store(true)
	if t.failed.Load() != nil {
		return
	}
	if err := s.register(ctx, t, false); err != nil {
		s.log.Warn("target is down and could not be registered again", "target", t.name, "err", err)
		return
	}
	s.log.Info("target was declared down; it comes back to be synced", "target", t.name)
	t.down.Store(false)
	s.refreshMap(ctx, s.cmap.Load().Epoch+1)
}
