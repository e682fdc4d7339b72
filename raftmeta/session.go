package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// session is a client's lease. One goroutine polls for events, which renews
// the lease; each event runs on a goroutine of its own.
type session struct {
	id     rfs.SessionID
	events Events
	stop   context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	lease time.Duration
	until time.Time // monotonic: what the lease is known to cover
	lost  error
}

// OpenSession begins a session, named for people, and starts to tell ev of its
// events. A client has one at a time; the next may be opened after Events.Lost
// or CloseSession.
func (c *Client) OpenSession(ctx context.Context, name string, ev Events) (rfs.SessionID, error) {
	if c.Session() != 0 {
		return 0, fmt.Errorf("metadata: session %d is open: %w", c.Session(), rfs.ErrExist)
	}
	sent := time.Now()
	rep, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_OpenSession{OpenSession: &metapb.OpenSession{Name: name}}})
	if err != nil {
		return 0, fmt.Errorf("open a session: %w", err)
	}
	s := &session{id: rfs.SessionID(rep.GetSession()), events: ev, done: make(chan struct{})}
	s.renew(sent, time.Duration(rep.GetLease()))
	ctx, s.stop = context.WithCancel(c.ctx)
	c.mu.Lock()
	c.sess = s
	c.mu.Unlock()
	c.wg.Go(func() { defer close(s.done); c.poll(ctx, s) })
	c.wg.Go(func() { c.flushCloses(ctx, s.id) })
	return s.id, nil
}

func (c *Client) session() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sess
}

// Session returns the id of the open session, or 0.
func (c *Client) Session() rfs.SessionID {
	s := c.session()
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != nil {
		return 0
	}
	return s.id
}

// LeaseUntil returns until when the session is known to be alive; zero without
// one. After it, nothing cached may be used until it has moved on: the session
// may have ended, though it need not.
func (c *Client) LeaseUntil() time.Time {
	s := c.session()
	if s == nil {
		return time.Time{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != nil {
		return time.Time{}
	}
	return s.until
}

// CloseSession ends the session: its opens and locks go. It does nothing without one.
func (c *Client) CloseSession(ctx context.Context) error {
	id := c.Session()
	s := c.session()
	if s == nil {
		return nil
	}
	c.closes.drain(ctx)
	s.stop()
	select {
	case <-s.done:
	case <-ctx.Done(): // an event is still being handled; Close ends it
	}
	c.mu.Lock()
	c.sess = nil
	c.mu.Unlock()
	if id == 0 {
		return nil
	}
	cmd := &metapb.EndSession{Sessions: []uint32{uint32(id)}}
	if _, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: cmd}}); err != nil {
		return fmt.Errorf("close session %d: %w", id, err)
	}
	return nil
}

// renew extends the lease, which runs from when the renewal was asked for.
func (s *session) renew(sent time.Time, lease time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease, s.until = lease, sent.Add(lease)
}

func (s *session) end(err error) {
	s.mu.Lock()
	s.lost = err
	s.mu.Unlock()
}

// poll asks for events until the session ends. The leader answers within a
// sixth of the lease, with or without any, and counts each poll as a heartbeat.
func (c *Client) poll(ctx context.Context, s *session) {
	var running sync.WaitGroup
	defer running.Wait()
	seen, told := uint64(0), uint32(0)
	for ctx.Err() == nil {
		sent := time.Now()
		s.mu.Lock()
		req := &metapb.EventsRequest{Cluster: c.clusterBytes(), Session: uint32(s.id), Seen: seen, MapEpoch: told, Wait: int64(s.lease / 6)}
		s.mu.Unlock()
		rep := new(metapb.Response)
		err := c.do(ctx, wire.OpEvents, req, rep, 0)
		switch {
		case errors.Is(err, rfs.ErrSessionLost):
			s.end(err)
			if s.events.Lost != nil {
				s.events.Lost(err)
			}
			return
		case err != nil:
			sleep(ctx, lastPause)
			continue
		}
		s.renew(sent, time.Duration(rep.GetLease()))
		if rep.GetMapEpoch() > told {
			told = rep.GetMapEpoch()
			running.Go(func() { c.mapChanged(ctx, s, rfs.Epoch(rep.GetMapEpoch())) })
		}
		for _, e := range rep.GetEvents() {
			seen = max(seen, e.GetNumber())
			running.Go(func() { c.event(ctx, s, e) })
		}
	}
}

func (c *Client) clusterBytes() []byte {
	if c.cfg.Cluster.IsZero() {
		return nil
	}
	return c.cfg.Cluster[:]
}

// mapChanged fetches the map of the epoch or a newer one, and tells the owner.
func (c *Client) mapChanged(ctx context.Context, s *session, e rfs.Epoch) {
	for ctx.Err() == nil {
		m, err := c.Map(ctx, e)
		if err != nil {
			sleep(ctx, lastPause)
			continue
		}
		if s.events.MapChanged != nil {
			s.events.MapChanged(m)
		}
		return
	}
}

// event has the owner handle e, then tells the leader that it is done.
func (c *Client) event(ctx context.Context, s *session, e *metapb.Event) {
	var err error
	switch k := e.GetKind().(type) {
	case *metapb.Event_Recall:
		r := Recall{Inode: rfs.InodeID(k.Recall.GetInode()), Mode: CacheMode(k.Recall.GetMode()), At: k.Recall.GetAt()}
		if s.events.Recall != nil {
			s.events.Recall(r)
		}
		done := &metapb.RecallDone{Inode: uint64(r.Inode), Mode: uint32(r.Mode), At: r.At}
		_, err = c.command(ctx, &metapb.Command{Session: uint32(s.id), Op: &metapb.Command_RecallDone{RecallDone: done}})
	case *metapb.Event_SizeWanted:
		if s.events.SizeWanted != nil {
			s.events.SizeWanted(rfs.InodeID(k.SizeWanted.GetInode()))
		}
		_, err = c.query(ctx, &metapb.Query{Session: uint32(s.id), Op: &metapb.Query_EventDone{EventDone: &metapb.EventDone{Number: e.GetNumber()}}}, 0)
	}
	if err != nil && ctx.Err() == nil {
		c.log.Warn("event not acknowledged", "session", s.id, "event", e.GetNumber(), "err", err)
	}
}

// closeQueue gathers the closes that nobody waits for.
type closeQueue struct {
	mu      sync.Mutex
	files   []*metapb.CloseOne
	flying  bool
	kick    chan struct{} // capacity 1
	drained *sync.Cond
}

func (q *closeQueue) init() {
	q.kick = make(chan struct{}, 1)
	q.drained = sync.NewCond(&q.mu)
}

const (
	// maxCloses bounds what one command closes.
	maxCloses = 256
	// closeDelay is how long a close waits for others: one by one, each would
	// take a sync of the log's from the command that comes next.
	closeDelay = 5 * time.Millisecond
)

func (q *closeQueue) add(ino rfs.InodeID, mode OpenMode) {
	q.mu.Lock()
	q.files = append(q.files, &metapb.CloseOne{Inode: uint64(ino), Mode: uint32(mode)})
	q.mu.Unlock()
	select {
	case q.kick <- struct{}{}:
	default:
	}
}

func (q *closeQueue) take() []*metapb.CloseOne {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.files), maxCloses)
	out := q.files[:n:n]
	q.files = q.files[n:]
	q.flying = n > 0
	if n == 0 {
		q.files = nil
		q.drained.Broadcast()
	}
	return out
}

// drain waits until the queue is empty or ctx ends.
func (q *closeQueue) drain(ctx context.Context) {
	defer context.AfterFunc(ctx, func() { q.mu.Lock(); q.drained.Broadcast(); q.mu.Unlock() })()
	q.mu.Lock()
	defer q.mu.Unlock()
	for (q.flying || len(q.files) > 0) && ctx.Err() == nil {
		q.drained.Wait()
	}
}

// abandon drops what is queued: its session is over.
func (q *closeQueue) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.files, q.flying = nil, false
	q.drained.Broadcast()
}

// flushCloses sends queued closes, as many as there are, one command at a time.
func (c *Client) flushCloses(ctx context.Context, id rfs.SessionID) {
	defer c.closes.abandon()
	for {
		select {
		case <-c.closes.kick:
		case <-ctx.Done():
			return
		}
		sleep(ctx, closeDelay)
		for files := c.closes.take(); len(files) > 0; files = c.closes.take() {
			_, err := c.command(ctx, &metapb.Command{Session: uint32(id), Op: &metapb.Command_Close{Close: &metapb.Close{Files: files}}})
			if errors.Is(err, rfs.ErrSessionLost) || ctx.Err() != nil {
				return
			}
			if err != nil {
				c.log.Warn("files not closed; they are when the session ends", "files", len(files), "err", err)
			}
		}
	}
}
