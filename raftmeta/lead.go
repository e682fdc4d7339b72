package raftmeta

import (
	"context"
	"sync"
	"time"

	"rfs"
	"rfs/raftmeta/metapb"
)

// lead is what a replica knows while it leads and no longer: leases, events to
// be delivered, who waits for what. A new leader begins with nothing: every
// lease is good for its full length from then, and what must be recalled follows
// from the state. Leases are measured on the monotonic clock; a leader that was
// itself stopped for a while gives everyone that time.
type lead struct {
	r    *Replica
	term uint64
	done chan struct{} // closed when the leadership ends
	ctx  context.Context
	stop context.CancelFunc

	opens watch[rfs.InodeID] // an inode's openers or their caches changed
	waits watch[waitKey]     // a lock was granted, or its wait ended
	maps  watch[struct{}]    // the map changed
	queue watch[struct{}]    // there is something for the cleaner

	mu         sync.Mutex
	sessions   map[rfs.SessionID]*lease
	targets    map[rfs.TargetID]*pulse
	number     uint64 // of the last event: term << 32 and counting, so that it rises across leaders
	recovering map[rfs.InodeID]time.Time
}

// lease is a session's, with the events that it has not confirmed to have received.
type lease struct {
	until    time.Time
	events   []*metapb.Event
	recalled map[rfs.InodeID]*metapb.Recall // sent and not acknowledged
	wanted   map[uint64]chan struct{}       // SizeWanted by number; closed when done
	kick     chan struct{}                  // closed when there is an event, or the session ended
	last     uint64                         // number of the last event that was sent to it
	expired  bool                           // its end is under way: it is not renewed any more
	ended    bool
}

// pulse is when and how a target was last heard of.
type pulse struct {
	seen           time.Time
	capacity, used int64
}

// watch wakes those who wait for a change of K.
type watch[K comparable] struct {
	mu sync.Mutex
	m  map[K]chan struct{}
}

// on returns a channel that is closed at the next change of k. Take it before looking.
func (w *watch[K]) on(k K) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m == nil {
		w.m = map[K]chan struct{}{}
	}
	c := w.m[k]
	if c == nil {
		c = make(chan struct{})
		w.m[k] = c
	}
	return c
}

func (w *watch[K]) wake(k K) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.m[k]; c != nil {
		close(c)
		delete(w.m, k)
	}
}

// newLead begins to lead, in the loop: the state is as of the leader's own first entry.
func (r *Replica) newLead(term uint64) *lead {
	l := &lead{
		r: r, term: term, done: make(chan struct{}), number: term << 32,
		sessions: map[rfs.SessionID]*lease{}, targets: map[rfs.TargetID]*pulse{}, recovering: map[rfs.InodeID]time.Time{},
	}
	l.ctx, l.stop = context.WithCancel(r.ctx)
	now := time.Now()
	for id := range r.st.sessions {
		l.sessions[id] = newLease(now.Add(r.opts.SessionLease))
	}
	for i := range r.st.cmap.Targets {
		l.targets[r.st.cmap.Targets[i].ID] = &pulse{seen: now}
	}
	r.wg.Go(l.watchLeases)
	r.wg.Go(l.clean)
	return l
}

func newLease(until time.Time) *lease {
	return &lease{until: until, recalled: map[rfs.InodeID]*metapb.Recall{}, wanted: map[uint64]chan struct{}{}, kick: make(chan struct{})}
}

// end lets everyone go who waits for this leader.
func (l *lead) end() {
	l.stop()
	close(l.done)
}

// changed wakes those whom the effects of a batch concern.
func (l *lead) changed(e *effects) {
	for _, ino := range e.opens {
		l.opens.wake(ino)
	}
	for _, k := range e.waits {
		l.waits.wake(k)
	}
	if e.mapped {
		l.maps.wake(struct{}{})
		l.kickAll()
	}
	if e.queued {
		l.queue.wake(struct{}{})
	}
	for _, id := range e.ended {
		l.endSession(id)
	}
}

func (l *lead) endSession(id rfs.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.sessions[id]
	if x == nil {
		return
	}
	x.ended = true
	for _, c := range x.wanted {
		close(c)
	}
	x.wake()
	delete(l.sessions, id)
}

// wake, with mu held, has the session's poll look again.
func (x *lease) wake() {
	close(x.kick)
	x.kick = make(chan struct{})
}

func (l *lead) kickAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.sessions {
		x.wake()
	}
}

// renew extends the lease of a session that is in the state. It returns nil if
// that comes too late.
func (l *lead) renew(id rfs.SessionID) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.sessions[id]
	if x == nil {
		x = newLease(time.Time{})
		l.sessions[id] = x
	}
	if x.expired {
		return nil
	}
	x.until = time.Now().Add(l.r.opts.SessionLease)
	return x
}

// recall tells a session to lower its cache of a file, unless it was told.
func (l *lead) recall(id rfs.SessionID, ino rfs.InodeID, mode CacheMode, grant, at uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.sessions[id]
	if x == nil {
		return
	}
	if old := x.recalled[ino]; old != nil && old.GetAt() >= grant && CacheMode(old.GetMode()) <= mode {
		return
	}
	e := &metapb.Recall{Inode: uint64(ino), Mode: uint32(mode), At: at}
	x.recalled[ino] = e
	l.post(x, &metapb.Event{Kind: &metapb.Event_Recall{Recall: e}})
}

// post, with mu held, queues an event.
func (l *lead) post(x *lease, e *metapb.Event) {
	l.number++
	e.Number = l.number
	x.events = append(x.events, e)
	x.wake()
}

func (l *lead) recallDone(id rfs.SessionID, ino rfs.InodeID, at uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x := l.sessions[id]; x != nil && x.recalled[ino].GetAt() <= at {
		delete(x.recalled, ino)
	}
}

// wantSize asks a session for the size of a file. The channel is closed when it
// has answered or ended. One that was asked and has not fetched the event yet
// is not asked again: what it will answer is new enough.
func (l *lead) wantSize(id rfs.SessionID, ino rfs.InodeID) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.sessions[id]
	if x == nil {
		c := make(chan struct{})
		close(c)
		return c
	}
	for _, e := range x.events {
		if w := e.GetSizeWanted(); w != nil && w.GetInode() == uint64(ino) && e.GetNumber() > x.last {
			return x.wanted[e.GetNumber()]
		}
	}
	e := &metapb.Event{Kind: &metapb.Event_SizeWanted{SizeWanted: &metapb.SizeWanted{Inode: uint64(ino)}}}
	l.post(x, e)
	c := make(chan struct{})
	x.wanted[e.Number] = c
	return c
}

func (l *lead) sizeDone(id rfs.SessionID, number uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x := l.sessions[id]
	if x == nil {
		return
	}
	if c := x.wanted[number]; c != nil {
		close(c)
		delete(x.wanted, number)
	}
}

// poll waits for events of a session that it has not seen, a newer map, or until ctx ends.
func (l *lead) poll(ctx context.Context, x *lease, seen uint64, have rfs.Epoch) (events []*metapb.Event, epoch rfs.Epoch, ended bool) {
	for {
		l.mu.Lock()
		n := 0
		for n < len(x.events) && x.events[n].GetNumber() <= seen {
			n++
		}
		x.events = x.events[n:]
		events, ended = x.events[:min(len(x.events), maxEvents)], x.ended
		if len(events) > 0 {
			x.last = max(x.last, events[len(events)-1].GetNumber())
		}
		kick := x.kick
		l.mu.Unlock()
		l.r.st.mu.RLock()
		epoch = l.r.st.cmap.Epoch
		l.r.st.mu.RUnlock()
		if len(events) > 0 || ended || epoch > have {
			return events, epoch, ended
		}
		select {
		case <-kick:
		case <-ctx.Done():
			return nil, epoch, false
		case <-l.done:
			return nil, epoch, false
		}
	}
}

// maxEvents bounds the events of one answer, which must fit a header.
const maxEvents = 128

// watchLeases ends sessions and declares targets down whose leases have ended.
func (l *lead) watchLeases() {
	every := max(min(l.r.opts.SessionLease, l.r.opts.TargetLease)/20, time.Millisecond)
	t := time.NewTicker(every)
	defer t.Stop()
	last, spaced := time.Now(), time.Now()
	for {
		select {
		case <-t.C:
		case <-l.ctx.Done():
			return
		}
		now := time.Now()
		if gap := now.Sub(last); gap > 4*every {
			l.forgive(gap)
		}
		l.endExpired(now)
		l.downLate(now)
		if now.Sub(spaced) >= l.r.opts.TargetLease {
			spaced = now
			l.recordSpace()
		}
		last = time.Now() // what the commands took is not a pause
	}
}

// forgive extends every lease by the time that this process did not run.
func (l *lead) forgive(gap time.Duration) {
	l.r.log.Warn("the metadata leader was stopped for a while: all leases are extended", "gap", gap)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.sessions {
		x.until = x.until.Add(gap)
	}
	for _, p := range l.targets {
		p.seen = p.seen.Add(gap)
	}
}

func (l *lead) endExpired(now time.Time) {
	var ids []uint32
	l.mu.Lock()
	for id, x := range l.sessions {
		if now.After(x.until) {
			x.expired = true
			ids = append(ids, uint32(id))
		}
	}
	l.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	l.r.log.Warn("sessions expired", "sessions", ids)
	l.r.order(l.ctx, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: ids, Expired: true}}})
}

// downLate declares targets down that were silent for a lease.
func (l *lead) downLate(now time.Time) {
	l.r.st.mu.RLock()
	m := l.r.st.cmap
	l.r.st.mu.RUnlock()
	var late []rfs.TargetID
	l.mu.Lock()
	for i := range m.Targets {
		t := &m.Targets[i]
		p := l.targets[t.ID]
		if p == nil {
			p = &pulse{seen: now}
			l.targets[t.ID] = p
		}
		if m.IsUp(t.ID) && now.Sub(p.seen) > l.r.opts.TargetLease {
			late = append(late, t.ID)
		}
	}
	l.mu.Unlock()
	l.down(l.ctx, late, "silent for a lease")
}

func (l *lead) down(ctx context.Context, ids []rfs.TargetID, why string) {
	if len(ids) == 0 {
		return
	}
	l.r.log.Warn("targets down", "targets", ids, "why", why)
	op := &metapb.TargetState{}
	for _, id := range ids {
		op.Targets = append(op.Targets, id[:])
	}
	l.r.order(ctx, &metapb.Command{Op: &metapb.Command_TargetState{TargetState: op}})
}

// recordSpace puts the space of targets into the map, if it changed by a visible share.
func (l *lead) recordSpace() {
	l.r.st.mu.RLock()
	m := l.r.st.cmap
	l.r.st.mu.RUnlock()
	op := &metapb.TargetSpace{}
	l.mu.Lock()
	for i := range m.Targets {
		t, p := &m.Targets[i], l.targets[m.Targets[i].ID]
		if p == nil || p.capacity == 0 {
			continue
		}
		if d := p.used - t.Used; p.capacity != t.Capacity || max(d, -d) > p.capacity/200 {
			op.Spaces = append(op.Spaces, &metapb.Space{Target: t.ID[:], Capacity: p.capacity, Used: p.used})
		}
	}
	l.mu.Unlock()
	if len(op.Spaces) > 0 {
		l.r.order(l.ctx, &metapb.Command{Op: &metapb.Command_TargetSpace{TargetSpace: op}})
	}
}

// heartbeat takes a daemon's in.
func (l *lead) heartbeat(ctx context.Context, h *metapb.Heartbeat) *metapb.Response {
	r := l.r
	var failed []rfs.TargetID
	for _, t := range h.GetTargets() {
		if id := uuidFrom(t.GetTarget()); t.GetFailed() {
			failed = append(failed, id)
		} else {
			l.heard(id, t.GetCapacity(), t.GetUsed())
		}
	}
	r.st.mu.RLock()
	m := r.st.cmap
	r.st.mu.RUnlock()
	var fell []rfs.TargetID
	for _, id := range failed {
		if m.IsUp(id) {
			fell = append(fell, id)
		}
	}
	l.down(ctx, fell, "its daemon says that it failed")
	return &metapb.Response{Heartbeat: r.st.heartbeatReply(h, r.opts.TargetLease)}
}

// heard notes that a target is alive.
func (l *lead) heard(id rfs.TargetID, capacity, used int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.targets[id] = &pulse{seen: time.Now(), capacity: capacity, used: used}
}

func (s *state) heartbeatReply(h *metapb.Heartbeat, lease time.Duration) *metapb.HeartbeatReply {
	s.mu.RLock()
	defer s.mu.RUnlock()
	rep := &metapb.HeartbeatReply{MapEpoch: uint32(s.cmap.Epoch), EndedCursor: s.counters.nextEnded, Lease: int64(lease)}
	first := uint32(1)
	if s.counters.nextEnded > maxEnded {
		first = s.counters.nextEnded - maxEnded
	}
	for n := max(h.GetEndedSince(), first); n < s.counters.nextEnded; n++ {
		rep.Ended = append(rep.Ended, uint32(s.ended[n]))
	}
	for _, t := range h.GetTargets() {
		if id := uuidFrom(t.GetTarget()); !t.GetFailed() && !s.cmap.IsUp(id) {
			rep.Down = append(rep.Down, id[:])
		}
	}
	return rep
}
