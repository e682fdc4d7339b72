package raftmeta

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// Who the replicas are: the birth of a cluster, and changes of its membership.
//
// A change is a ConfChangeV2 entry whose context is a confContext: the address
// comes with the id in one entry. A new replica is a learner until its log has
// caught up, then a voter; ids are never used again, so that who has a low one
// and is no member was removed.

// confContext is the context of a change of membership.
type confContext struct {
	Token  uint64 `json:"token"`
	Member Member `json:"member"`
}

// init makes this replica, which must be empty, one of a new cluster's.
func (r *Replica) init(m *metapb.Init) error {
	cluster, id, members := uuidFrom(m.GetCluster()), m.GetId(), membersFromPB(m.GetMembers())
	if s := r.self.Load(); s != nil {
		if s.cluster == cluster && s.id == id {
			return nil // an earlier init that was not answered
		}
		return fmt.Errorf("it is replica %d of cluster %v: choose an empty directory: %w", s.id, s.cluster, rfs.ErrExist)
	}
	if r.opts.Join {
		return fmt.Errorf("it was started to join a cluster: start it without that: %w", rfs.ErrInvalid)
	}
	if cluster.IsZero() || id == 0 || len(members) == 0 {
		return fmt.Errorf("init without a cluster, an id or members: %w", rfs.ErrInvalid)
	}
	b := r.db.NewBatch()
	defer b.Close()
	hard, err := sealed(&raftpb.HardState{Term: new(uint64(initTerm)), Commit: new(uint64(initIndex))})
	err = errors.Join(err,
		initialState(b, halfA, cluster, members, m.GetTime()),
		b.Set(key{lHard}, hard, nil),
		putBase(b, initIndex, initTerm),
		putIdentity(b, identity{cluster, id}, halfA),
	)
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err != nil {
		return err
	}
	r.st.half = halfA
	return r.start(identity{cluster, id})
}

// adopt makes this replica, which waits to join, the one that the leader calls it.
func (r *Replica) adopt(self identity) error {
	if r.self.Load() != nil {
		return nil
	}
	b := r.db.NewBatch()
	defer b.Close()
	t := &tx{reader: reader{b, halfA}, b: b}
	t.putMembers(&membership{Cluster: self.cluster})
	t.set(keyOf(halfA, kCounter), (&counters{}).encode())
	t.set(keyOf(halfA, kMap), []byte("{}"))
	t.putApplied(0, 0)
	err := errors.Join(t.err, putBase(b, 0, 0), putIdentity(b, self, halfA))
	if err == nil {
		err = b.Commit(pebble.Sync)
	}
	if err != nil {
		return err
	}
	r.log.Info("metadata replica joins", "replica", self.id, "cluster", self.cluster)
	r.st.half = halfA
	return r.start(self)
}

func putIdentity(b *pebble.Batch, self identity, half byte) error {
	v := binary.BigEndian.AppendUint64(append([]byte(nil), self.cluster[:]...), self.id)
	return errors.Join(b.Set(key{lIdentity}, v, nil), b.Set(key{lHalf}, []byte{half}, nil))
}

// applyConf applies a change of membership, in the loop, with the state's mu held.
func (r *Replica) applyConf(t *tx, e *raftpb.Entry) {
	cc := new(raftpb.ConfChangeV2)
	if err := proto.Unmarshal(e.GetData(), cc); err != nil {
		t.fail(r.rlog.corrupt("entry %d is not a change of membership: %v", e.GetIndex(), err))
		return
	}
	var c confContext
	if len(cc.GetContext()) > 0 {
		if err := json.Unmarshal(cc.GetContext(), &c); err != nil {
			t.fail(r.rlog.corrupt("entry %d has a malformed context: %v", e.GetIndex(), err))
			return
		}
	}
	for _, ch := range cc.GetChanges() {
		switch id := ch.GetNodeId(); ch.GetType() {
		case raftpb.ConfChangeType_ConfChangeAddLearnerNode:
			if r.st.members.member(id) == nil {
				r.st.addMember(id, c.Member.Addr)
			}
		case raftpb.ConfChangeType_ConfChangeRemoveNode:
			r.st.dropMember(id)
			if id == r.ID() {
				r.removed()
			}
		}
	}
	cs := r.raft.ApplyConfChange(cc)
	m := &r.st.members
	m.Voters, m.Learners, m.Outgoing, m.Next, m.AutoLeave = cs.GetVoters(), cs.GetLearners(), cs.GetVotersOutgoing(), cs.GetLearnersNext(), cs.GetAutoLeave()
	for i := range m.Members {
		m.Members[i].Learner = slices.Contains(m.Learners, m.Members[i].ID)
	}
	t.putMembers(m)
	r.links.update(m.Members)
	if ch := r.confs[c.Token]; ch != nil {
		ch <- nil
		delete(r.confs, c.Token)
	}
}

// change has a change of membership applied.
func (r *Replica) change(ctx context.Context, typ raftpb.ConfChangeType, m Member) error {
	c := confContext{Token: rand.Uint64() | 1, Member: m}
	body, err := json.Marshal(c)
	if err != nil {
		return err
	}
	data, err := proto.Marshal(&raftpb.ConfChangeV2{
		Changes: []*raftpb.ConfChangeSingle{{Type: typ.Enum(), NodeId: new(m.ID)}}, Context: body,
	})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		applied := make(chan error, 1)
		refused := false
		if !r.call(ctx, func() {
			if !r.leading {
				applied <- errNotLeader
				return
			}
			msg := &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(r.ID()), Entries: []*raftpb.Entry{{Type: raftpb.EntryConfChangeV2.Enum(), Data: data}}}
			err := r.raft.Step(msg)
			// Raft puts an empty entry in place of a change that comes while another is not applied.
			if refused = err != nil || msg.GetEntries()[0].GetType() != raftpb.EntryConfChangeV2; !refused {
				r.confs[c.Token] = applied
			}
		}) {
			return errNotLeader
		}
		if refused {
			sleep(ctx, r.opts.Tick)
			continue
		}
		select {
		case err := <-applied:
			return err
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// addMember adds the replica at addr as a learner, and makes it a voter when it
// has caught up. Until then it answers that it is pending.
func (r *Replica) addMember(ctx context.Context, addr transport.Addr) *metapb.Response {
	if addr.Address == "" {
		return refuse(wire.StatusInvalid, "no address of the replica to add")
	}
	r.st.mu.RLock()
	m := Member{ID: r.st.counters.nextMember, Addr: addr}
	known := false
	for _, x := range r.st.members.Members {
		if sameAddr(x.Addr, addr) {
			m, known = x, true
		}
	}
	voter := slices.Contains(r.st.members.Voters, m.ID)
	r.st.mu.RUnlock()
	if voter {
		return &metapb.Response{Member: m.ID}
	}
	if !known {
		if err := r.change(ctx, raftpb.ConfChangeType_ConfChangeAddLearnerNode, m); err != nil {
			return r.changeFailed(ctx, err)
		}
	}
	if !r.caughtUp(ctx, m.ID) {
		return &metapb.Response{Pending: true}
	}
	if err := r.change(ctx, raftpb.ConfChangeType_ConfChangeAddNode, m); err != nil {
		return r.changeFailed(ctx, err)
	}
	return &metapb.Response{Member: m.ID}
}

func (r *Replica) changeFailed(ctx context.Context, err error) *metapb.Response {
	switch {
	case errors.Is(err, errNotLeader):
		return r.notLeader()
	case ctx.Err() != nil:
		return &metapb.Response{Pending: true}
	}
	return refuse(wire.StatusUnavailable, "%v", err)
}

// caughtUp waits until a learner has all that was committed when it looked, or ctx ends.
func (r *Replica) caughtUp(ctx context.Context, id uint64) bool {
	for ctx.Err() == nil {
		var up bool
		if !r.call(ctx, func() {
			if st := r.raft.Status(); r.leading {
				up = st.Progress[id].Match >= st.HardState.GetCommit()
			}
		}) {
			return false
		}
		if up {
			return true
		}
		sleep(ctx, r.opts.Tick)
	}
	return false
}

// removeMember takes a replica out.
func (r *Replica) removeMember(ctx context.Context, id uint64) *metapb.Response {
	r.st.mu.RLock()
	known := r.st.members.member(id) != nil
	only := len(r.st.members.Voters) == 1 && r.st.members.Voters[0] == id
	r.st.mu.RUnlock()
	switch {
	case !known:
		return refuse(wire.StatusNotFound, "there is no replica %d", id)
	case only:
		return refuse(wire.StatusInvalid, "replica %d is the only one that votes: add another first", id)
	}
	if err := r.change(ctx, raftpb.ConfChangeType_ConfChangeRemoveNode, Member{ID: id}); err != nil {
		return r.changeFailed(ctx, err)
	}
	return &metapb.Response{}
}

// status is what the replica says of itself.
func (r *Replica) status(ctx context.Context) *metapb.ReplicaStatus {
	out := &metapb.ReplicaStatus{Role: "uninitialized"}
	self := r.self.Load()
	if self == nil {
		return out
	}
	soft := r.soft.Load()
	out.Cluster, out.Id, out.Leader, out.Term, out.Commit = self.cluster[:], self.id, soft.leader, soft.term, soft.commit
	out.First, out.Last = r.rlog.span()
	r.st.mu.RLock()
	out.Applied, out.MapEpoch, out.Sessions = r.st.index, uint32(r.st.cmap.Epoch), uint64(len(r.st.sessions))
	out.Inodes, out.PurgeQueue, out.Made = r.st.counters.inodes, r.st.purges, r.st.counters.made
	out.Members = membersToPB(r.st.members.Members)
	learner := slices.Contains(r.st.members.Learners, self.id)
	r.st.mu.RUnlock()
	out.Role = roleName(soft.role, learner, r.gone.Load())
	if soft.role == raft.StateLeader {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		r.call(ctx, func() {
			for id, p := range r.raft.Status().Progress {
				out.Progress = append(out.Progress, &metapb.Progress{
					Id: id, Match: p.Match, State: p.State.String(), Active: p.RecentActive || id == self.id,
				})
			}
		})
	}
	return out
}

func roleName(s raft.StateType, learner, gone bool) string {
	switch {
	case gone:
		return "removed"
	case s == raft.StateLeader:
		return "leader"
	case s == raft.StateCandidate, s == raft.StatePreCandidate:
		return "candidate"
	case learner:
		return "learner"
	}
	return "follower"
}
