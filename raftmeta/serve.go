package raftmeta

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/raft/v3/raftpb"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// pendingAfter is how long a request waits here for something before it is
// answered that it is pending; the client then asks again.
const pendingAfter = time.Second

// ServeRPC implements transport.Handler.
func (r *Replica) ServeRPC(ctx context.Context, req transport.Request) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	r.serving.RLock()
	defer r.serving.RUnlock()
	if r.closed {
		_ = req.Reply(wire.StatusUnavailable, nil, nil, 0) // who asked is gone, or asks another
		return
	}
	var rep *metapb.Response
	switch req.Op() {
	case wire.OpMeta:
		rep = r.serveMeta(ctx, req)
	case wire.OpEvents:
		rep = r.serveEvents(ctx, req)
	case wire.OpRaft:
		rep = r.serveRaft(ctx, req)
	case wire.OpSnapshot:
		rep = r.serveSnapshot(ctx, req)
	case wire.OpAdmin:
		rep = r.serveAdmin(ctx, req)
	default:
		rep = refuse(wire.StatusUnknownOp, "a metadata replica does not serve %v", req.Op())
	}
	if err := answer(ctx, req, r.opts.Arena, wire.Status(rep.GetStatus()), rep); err != nil {
		r.log.Debug("answer not sent", "op", req.Op(), "peer", req.Peer().Addr, "err", err)
	}
}

func malformed(err error) *metapb.Response {
	return refuse(wire.StatusBadRequest, "the request does not decode: %v", err)
}

// foreign refuses a message of another cluster.
func (r *Replica) foreign(cluster []byte) *metapb.Response {
	self := r.self.Load()
	if len(cluster) == 0 || self == nil || uuidFrom(cluster) == self.cluster {
		return nil
	}
	return refuse(wire.StatusPermission, "this replica is of cluster %v, the request for %v", self.cluster, uuidFrom(cluster))
}

func (r *Replica) serveMeta(ctx context.Context, req transport.Request) *metapb.Response {
	m := new(metapb.Request)
	if err := receive(ctx, req, r.opts.Arena, m); err != nil {
		return malformed(err)
	}
	if rep := r.foreign(m.GetCluster()); rep != nil {
		return rep
	}
	l := r.lead.Load()
	if l == nil {
		return r.notLeader()
	}
	switch k := m.GetKind().(type) {
	case *metapb.Request_Command:
		return r.serveCommand(ctx, l, k.Command)
	case *metapb.Request_Query:
		return r.serveQuery(ctx, l, k.Query)
	case *metapb.Request_Wait:
		return r.serveWait(ctx, l, k.Wait)
	}
	return refuse(wire.StatusBadRequest, "a request of no kind")
}

// serveCommand has a command applied and, if it opened a file, waits until its caches are in order.
func (r *Replica) serveCommand(ctx context.Context, l *lead, cmd *metapb.Command) *metapb.Response {
	if cmd.GetNonce() == 0 || cmd.GetOp() == nil {
		return refuse(wire.StatusBadRequest, "a command without nonce or operation")
	}
	cmd.Pick = rand.Uint64()
	rep := r.execute(ctx, cmd)
	if rep.GetStatus() != 0 {
		return rep
	}
	switch op := cmd.GetOp().(type) {
	case *metapb.Command_OpenSession:
		l.renew(rfs.SessionID(rep.GetSession()))
		rep = proto.CloneOf(rep)
		rep.Lease = int64(r.opts.SessionLease)
	case *metapb.Command_RegisterTarget:
		l.heard(uuidFrom(op.RegisterTarget.GetId()), op.RegisterTarget.GetCapacity(), op.RegisterTarget.GetUsed())
	case *metapb.Command_RecallDone:
		l.recallDone(rfs.SessionID(cmd.GetSession()), rfs.InodeID(op.RecallDone.GetInode()), op.RecallDone.GetAt())
	case *metapb.Command_Open, *metapb.Command_Create:
		return r.opened(ctx, l, rfs.SessionID(cmd.GetSession()), rep)
	}
	return rep
}

// opened answers an open: at once, if no session must cache less because of it,
// or else with what the file is like after they have.
func (r *Replica) opened(ctx context.Context, l *lead, id rfs.SessionID, rep *metapb.Response) *metapb.Response {
	ino := rfs.InodeID(rep.GetAttr().GetInode())
	waited, settled := r.awaitCaches(ctx, l, ino, id)
	switch {
	case !settled && l.ended():
		return r.notLeader()
	case !settled:
		return &metapb.Response{Pending: true}
	case !waited:
		return rep
	}
	v := r.st.view()
	defer v.close()
	n, err := v.node(ino)
	if n == nil || err != nil {
		return rep
	}
	rep = proto.CloneOf(rep)
	rep.Attr = attrToPB(&n.Attr)
	return rep
}

func (l *lead) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// awaitCaches recalls what others may not cache any more of a file, and waits
// until they have answered or ended, and until its size is known.
func (r *Replica) awaitCaches(ctx context.Context, l *lead, ino rfs.InodeID, id rfs.SessionID) (waited, settled bool) {
	pending := time.NewTimer(pendingAfter)
	defer pending.Stop()
	for {
		change := l.opens.on(ino)
		r.st.mu.RLock()
		recalls, at := r.st.recalls(ino, id), r.st.index
		grants := make(map[rfs.SessionID]uint64, len(recalls))
		for s := range recalls {
			grants[s] = r.st.opens[ino][s].grant
		}
		_, recovering := r.st.recover[ino]
		r.st.mu.RUnlock()
		if len(recalls) == 0 && !(recovering && l.mayRecover(ino)) {
			return waited, true
		}
		waited = true
		for s, mode := range recalls {
			l.recall(s, ino, mode, grants[s], at)
		}
		select {
		case <-change:
		case <-pending.C:
			return true, false
		case <-ctx.Done():
			return true, false
		case <-l.done:
			return true, false
		}
	}
}

func (r *Replica) serveQuery(ctx context.Context, l *lead, q *metapb.Query) *metapb.Response {
	id := rfs.SessionID(q.GetSession())
	if op, ok := q.GetOp().(*metapb.Query_EventDone); ok {
		l.sizeDone(id, op.EventDone.GetNumber())
		return &metapb.Response{}
	}
	if op, ok := q.GetOp().(*metapb.Query_Getattr); ok && op.Getattr.GetFresh() {
		if st := r.confirmRead(ctx); st != wire.StatusOK {
			return r.unread(st)
		}
		if !r.freshen(ctx, l, rfs.InodeID(op.Getattr.GetInode()), id) {
			return &metapb.Response{Pending: true}
		}
	} else if st := r.confirmRead(ctx); st != wire.StatusOK {
		return r.unread(st)
	}
	switch op := q.GetOp().(type) {
	case *metapb.Query_GetMap:
		return r.serveMap(ctx, l, op.GetMap)
	case *metapb.Query_Heartbeat:
		return l.heartbeat(ctx, op.Heartbeat)
	case *metapb.Query_ReportTarget:
		return l.reported(ctx, op.ReportTarget)
	}
	v := r.st.view()
	defer v.close()
	rep, err := r.st.read(v, id, q)
	if err != nil {
		r.log.Error("metadata state not read", "replica", r.ID(), "dir", r.opts.Dir, "err", err)
		return refuse(wire.StatusIO, "%v", err)
	}
	return rep
}

// unread is the answer when a read could not be confirmed.
func (r *Replica) unread(st wire.Status) *metapb.Response {
	if st == wire.StatusNotLeader {
		return r.notLeader()
	}
	return no(st)
}

// freshen asks the other sessions that write the file for its size, and waits
// for them. It reports false if they have not all answered yet.
func (r *Replica) freshen(ctx context.Context, l *lead, ino rfs.InodeID, id rfs.SessionID) bool {
	r.st.mu.RLock()
	var writers []rfs.SessionID
	for s, o := range r.st.opens[ino] {
		if s != id && o.writers > 0 {
			writers = append(writers, s)
		}
	}
	_, recovering := r.st.recover[ino]
	r.st.mu.RUnlock()
	if len(writers) == 0 && !recovering {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, r.opts.SessionLease)
	defer cancel()
	for _, s := range writers {
		select {
		case <-l.wantSize(s, ino):
		case <-ctx.Done():
			return false
		case <-l.done:
			return false
		}
	}
	if recovering {
		_, settled := r.awaitCaches(ctx, l, ino, id)
		return settled
	}
	return true
}

func (r *Replica) serveMap(ctx context.Context, l *lead, op *metapb.GetMap) *metapb.Response {
	pending := time.NewTimer(pendingAfter)
	defer pending.Stop()
	for {
		change := l.maps.on(struct{}{})
		r.st.mu.RLock()
		epoch := r.st.cmap.Epoch
		r.st.mu.RUnlock()
		if uint32(epoch) >= op.GetMin() {
			return r.st.mapChunkOf(op)
		}
		select {
		case <-change:
		case <-pending.C:
			return &metapb.Response{Pending: true}
		case <-ctx.Done():
			return no(wire.StatusCancelled)
		case <-l.done:
			return r.notLeader()
		}
	}
}

// reported takes a hint that a target does not answer: it is declared down now
// if its heartbeats, too, have been missing for half a lease.
func (l *lead) reported(ctx context.Context, op *metapb.ReportTarget) *metapb.Response {
	id := uuidFrom(op.GetTarget())
	l.r.st.mu.RLock()
	up := l.r.st.cmap.IsUp(id)
	l.r.st.mu.RUnlock()
	l.mu.Lock()
	p := l.targets[id]
	late := p == nil || time.Since(p.seen) > l.r.opts.TargetLease/2
	l.mu.Unlock()
	if up && late {
		l.down(ctx, []rfs.TargetID{id}, "reported and silent: "+op.GetDetail())
	}
	l.r.st.mu.RLock()
	defer l.r.st.mu.RUnlock()
	return &metapb.Response{MapEpoch: uint32(l.r.st.cmap.Epoch)}
}

// serveWait answers when a lock that was queued for is granted, or will not be.
func (r *Replica) serveWait(ctx context.Context, l *lead, op *metapb.LockWait) *metapb.Response {
	if st := r.confirmRead(ctx); st != wire.StatusOK {
		return r.unread(st)
	}
	pending := time.NewTimer(pendingAfter)
	defer pending.Stop()
	k := waitKey{op.GetNonce(), op.GetWaitSeq()}
	for {
		change := l.waits.on(k)
		if rep := r.st.waited(k, rfs.SessionID(op.GetSession())); rep != nil {
			return rep
		}
		select {
		case <-change:
		case <-pending.C:
			return &metapb.Response{Pending: true}
		case <-ctx.Done():
			return no(wire.StatusCancelled)
		case <-l.done:
			return r.notLeader()
		}
	}
}

// waited returns how a wait ended, or nil if it goes on.
func (s *state) waited(k waitKey, id rfs.SessionID) *metapb.Response {
	s.mu.RLock()
	defer s.mu.RUnlock()
	ino, ok := s.waits[k]
	switch {
	case s.sessions[id] == nil:
		return refuse(wire.StatusSessionLost, "session %d ended", id)
	case !ok:
		return no(wire.StatusStale) // the file is gone
	case s.locks[ino].find(k).granted:
		return &metapb.Response{}
	}
	return nil
}

func (r *Replica) serveEvents(ctx context.Context, req transport.Request) *metapb.Response {
	m := new(metapb.EventsRequest)
	if err := receive(ctx, req, r.opts.Arena, m); err != nil {
		return malformed(err)
	}
	if rep := r.foreign(m.GetCluster()); rep != nil {
		return rep
	}
	l := r.lead.Load()
	if l == nil {
		return r.notLeader()
	}
	if st := r.confirmRead(ctx); st != wire.StatusOK {
		return r.unread(st)
	}
	id := rfs.SessionID(m.GetSession())
	r.st.mu.RLock()
	alive := r.st.sessions[id] != nil
	r.st.mu.RUnlock()
	if !alive {
		return refuse(wire.StatusSessionLost, "session %d ended: its lease was not renewed in time, or it was closed", id)
	}
	x := l.renew(id)
	if x == nil {
		return refuse(wire.StatusSessionLost, "session %d ended: its lease was not renewed in time", id)
	}
	wait, cancel := context.WithTimeout(ctx, min(max(time.Duration(m.GetWait()), 0), r.opts.SessionLease/3))
	defer cancel()
	events, epoch, ended := l.poll(wait, x, m.GetSeen(), rfs.Epoch(m.GetMapEpoch()))
	switch {
	case l.ended():
		return r.notLeader()
	case ended:
		return refuse(wire.StatusSessionLost, "session %d ended", id)
	}
	return &metapb.Response{Events: events, MapEpoch: uint32(epoch), Lease: int64(r.opts.SessionLease)}
}

func (r *Replica) serveRaft(ctx context.Context, req transport.Request) *metapb.Response {
	b := new(metapb.RaftBatch)
	if err := receive(ctx, req, r.opts.Arena, b); err != nil {
		return malformed(err)
	}
	if rep := r.admit(ctx, b.GetCluster(), b.GetFrom(), b.GetTo(), b.GetFromAddr()); rep != nil {
		return rep
	}
	for _, body := range b.GetMessages() {
		m := new(raftpb.Message)
		if err := proto.Unmarshal(body, m); err != nil {
			return malformed(err)
		}
		if m.GetFrom() != b.GetFrom() || m.GetTo() != b.GetTo() || m.GetType() == raftpb.MsgSnap {
			return refuse(wire.StatusBadRequest, "a %v from %d to %d in a request from %d to %d", m.GetType(), m.GetFrom(), m.GetTo(), b.GetFrom(), b.GetTo())
		}
		select {
		case r.inbox <- m:
		case <-ctx.Done():
			return no(wire.StatusCancelled)
		}
	}
	return &metapb.Response{}
}

// admit checks who speaks, and that this replica is meant. One that waits to join becomes who it is called.
func (r *Replica) admit(ctx context.Context, cluster []byte, from, to uint64, addr *metapb.Addr) *metapb.Response {
	if len(cluster) != 16 || from == 0 || to == 0 {
		return refuse(wire.StatusBadRequest, "a replica's message without cluster, sender or receiver")
	}
	if r.self.Load() == nil {
		if !r.opts.Join {
			return refuse(wire.StatusUnavailable, "this replica belongs to no cluster, and was not started to join one")
		}
		var err error
		if !r.call(ctx, func() { err = r.adopt(identity{uuidFrom(cluster), to}) }) {
			return no(wire.StatusUnavailable)
		}
		if err != nil {
			return refuse(wire.StatusIO, "%v", err)
		}
	}
	self := r.self.Load()
	if rep := r.foreign(cluster); rep != nil {
		return rep
	}
	if to != self.id {
		return refuse(wire.StatusPermission, "this is replica %d, not %d", self.id, to)
	}
	r.st.mu.RLock()
	known := r.st.members.member(from) != nil
	was := from < r.st.counters.nextMember
	r.st.mu.RUnlock()
	if !known && was {
		return refuse(wire.StatusGone, "replica %d was removed from the cluster", from)
	}
	if !known {
		r.links.heard(from, addrFromPB(addr))
	}
	return nil
}

func (r *Replica) serveSnapshot(ctx context.Context, req transport.Request) *metapb.Response {
	c := new(metapb.SnapshotChunk)
	if err := proto.Unmarshal(req.Header(), c); err != nil {
		return malformed(err)
	}
	if rep := r.admit(ctx, c.GetCluster(), c.GetFrom(), c.GetTo(), c.GetFromAddr()); rep != nil {
		return rep
	}
	buf, err := r.opts.Arena.Get(ctx, max(req.PayloadLen(), 1))
	if err != nil {
		return refuse(wire.StatusUnavailable, "%v", err)
	}
	defer buf.Release()
	if err := req.Pull(ctx, buf, 0, req.PayloadLen()); err != nil {
		return refuse(wire.StatusBadRequest, "%v", err)
	}
	m, err := r.receive(c, buf.Bytes()[:req.PayloadLen()])
	switch {
	case errors.Is(err, errBusy):
		return refuse(wire.StatusUnavailable, "%v", err)
	case err != nil:
		return refuse(wire.StatusBadRequest, "%v", err)
	case m == nil:
		return &metapb.Response{}
	}
	if !r.call(context.WithoutCancel(ctx), func() { err = r.takeReceived(m) }) {
		r.incoming.abandon()
		return no(wire.StatusUnavailable)
	}
	if err != nil {
		return refuse(wire.StatusIO, "%v", err)
	}
	return &metapb.Response{}
}

func (r *Replica) serveAdmin(ctx context.Context, req transport.Request) *metapb.Response {
	m := new(metapb.AdminRequest)
	if err := receive(ctx, req, r.opts.Arena, m); err != nil {
		return malformed(err)
	}
	switch k := m.GetKind().(type) {
	case *metapb.AdminRequest_Status:
		if k.Status.GetLeader() && r.lead.Load() == nil {
			return r.notLeader()
		}
		return &metapb.Response{Replica: r.status(ctx)}
	case *metapb.AdminRequest_Init:
		var err error
		if !r.call(ctx, func() { err = r.init(k.Init) }) {
			return no(wire.StatusUnavailable)
		}
		if err != nil {
			return refuse(statusOf(err), "%v", err)
		}
		return &metapb.Response{}
	}
	if rep := r.foreign(m.GetCluster()); rep != nil {
		return rep
	}
	if r.lead.Load() == nil {
		return r.notLeader()
	}
	ctx, cancel := context.WithTimeout(ctx, pendingAfter)
	defer cancel()
	select {
	case r.adminOnce <- struct{}{}:
		defer func() { <-r.adminOnce }()
	case <-ctx.Done():
		return &metapb.Response{Pending: true}
	}
	switch k := m.GetKind().(type) {
	case *metapb.AdminRequest_AddMember:
		return r.addMember(ctx, addrFromPB(k.AddMember.GetAddr()))
	case *metapb.AdminRequest_RemoveMember:
		return r.removeMember(ctx, k.RemoveMember.GetId())
	}
	return refuse(wire.StatusUnknownOp, "an administration request that this version does not know")
}
