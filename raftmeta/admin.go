package raftmeta

import (
	"context"
	"errors"
	"fmt"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// ---- storage daemons ----

// RegisterNode adds a node to the map, or changes its name, domain or address.
func (c *Client) RegisterNode(ctx context.Context, n placement.Node) error {
	_, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_RegisterNode{RegisterNode: nodeToPB(n)}})
	if err != nil {
		return fmt.Errorf("register node %s: %w", n.Name, err)
	}
	return nil
}

// RegisterTarget adds a target to the map, or brings one back that was down.
// Clean says that it still holds all that it ever acknowledged (same boot,
// clean index): without it, its members of slots must sync first.
func (c *Client) RegisterTarget(ctx context.Context, t placement.Target, clean bool) error {
	_, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_RegisterTarget{RegisterTarget: &metapb.RegisterTarget{
		Id: t.ID[:], Node: t.Node[:], Name: t.Name, Capacity: t.Capacity, Used: t.Used, Weight: t.Weight, Clean: clean,
	}}})
	if err != nil {
		return fmt.Errorf("register target %v (%s): %w", t.ID, t.Name, err)
	}
	return nil
}

// Heartbeat renews the lease of a node's targets and reports on them. cursor is
// that of the last reply, 0 at first.
func (c *Client) Heartbeat(ctx context.Context, node rfs.NodeID, targets []TargetReport, cursor uint32) (HeartbeatReply, error) {
	h := &metapb.Heartbeat{Node: node[:], EndedSince: cursor}
	for _, t := range targets {
		h.Targets = append(h.Targets, &metapb.TargetReport{
			Target: t.Target[:], Capacity: t.Capacity, Used: t.Used, Failed: t.Failed, Detail: t.Detail,
		})
	}
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Heartbeat{Heartbeat: h}}, 0)
	if err != nil {
		return HeartbeatReply{}, fmt.Errorf("heartbeat of node %v: %w", node, err)
	}
	r := rep.GetHeartbeat()
	out := HeartbeatReply{MapEpoch: rfs.Epoch(r.GetMapEpoch()), Cursor: r.GetEndedCursor(), Lease: time.Duration(r.GetLease())}
	for _, s := range r.GetEnded() {
		out.Ended = append(out.Ended, rfs.SessionID(s))
	}
	for _, t := range r.GetDown() {
		out.Down = append(out.Down, uuidFrom(t))
	}
	return out, nil
}

// ReportTarget hints that a target does not answer. It is only declared down
// when its heartbeats are late too; the map is returned when that was decided,
// or is as it was.
func (c *Client) ReportTarget(ctx context.Context, t rfs.TargetID, detail string) error {
	_, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_ReportTarget{ReportTarget: &metapb.ReportTarget{Target: t[:], Detail: detail}}}, 0)
	if err != nil {
		return fmt.Errorf("report target %v: %w", t, err)
	}
	return nil
}

// SlotSynced says that the target, member or incoming of the slot, holds all
// that its peers have, as of the slot's epoch. It fails with rfs.ErrStaleEpoch
// if the slot changed since in a way that matters: compare again.
func (c *Client) SlotSynced(ctx context.Context, t rfs.TargetID, pool rfs.PoolID, slot rfs.SlotID, epoch rfs.Epoch) error {
	_, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_SlotSynced{SlotSynced: &metapb.SlotSynced{
		Target: t[:], Pool: uint32(pool), Slots: []*metapb.SlotEpoch{{Slot: uint32(slot), Epoch: uint32(epoch)}},
	}}})
	if err != nil {
		return fmt.Errorf("slot %d of pool %d synced on target %v: %w", slot, pool, t, err)
	}
	return nil
}

// ---- administration ----
//
// Whoever has the cluster key may do all of this: there is one trust domain.

// CreatePool makes a pool over the targets that are up.
func (c *Client) CreatePool(ctx context.Context, s PoolSpec) (rfs.PoolID, error) {
	rep, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_CreatePool{CreatePool: &metapb.CreatePool{
		Name: s.Name, Scheme: s.Scheme.String(), Slots: uint32(s.Slots), Unit: s.Unit, Cell: s.Cell,
	}}})
	if err != nil {
		return 0, fmt.Errorf("create pool %q: %w", s.Name, err)
	}
	return rfs.PoolID(rep.GetPool()), nil
}

// Drain begins to empty a target (or stops it, with undo): each of its slots
// gets another in its place. It is done when no slot names the target.
func (c *Client) Drain(ctx context.Context, t rfs.TargetID, undo bool) error {
	_, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_DrainTarget{DrainTarget: &metapb.DrainTarget{Target: t[:], Undo: undo}}})
	if err != nil {
		return fmt.Errorf("drain target %v: %w", t, err)
	}
	return nil
}

// RemoveTarget takes a target off the map that no slot names any more.
func (c *Client) RemoveTarget(ctx context.Context, t rfs.TargetID) error {
	_, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_RemoveTarget{RemoveTarget: &metapb.RemoveTarget{Target: t[:]}}})
	if err != nil {
		return fmt.Errorf("remove target %v: %w", t, err)
	}
	return nil
}

// RemoveNode takes a node off the map that has no targets any more.
func (c *Client) RemoveNode(ctx context.Context, n rfs.NodeID) error {
	_, err := c.command(ctx, &metapb.Command{Op: &metapb.Command_RemoveNode{RemoveNode: &metapb.RemoveNode{Node: n[:]}}})
	if err != nil {
		return fmt.Errorf("remove node %v: %w", n, err)
	}
	return nil
}

func (c *Client) admin(ctx context.Context, req *metapb.AdminRequest) (*metapb.Response, error) {
	req.Cluster = c.clusterBytes()
	rep := new(metapb.Response)
	return rep, c.do(ctx, wire.OpAdmin, req, rep, 0)
}

// Members returns the replicas of the metadata service as the leader has them.
func (c *Client) Members(ctx context.Context) ([]Member, error) {
	s, err := c.LeaderStatus(ctx)
	return s.Members, err
}

// LeaderStatus returns the leader's status.
func (c *Client) LeaderStatus(ctx context.Context) (ReplicaStatus, error) {
	rep, err := c.admin(ctx, &metapb.AdminRequest{Kind: &metapb.AdminRequest_Status{Status: &metapb.Status{Leader: true}}})
	if err != nil {
		return ReplicaStatus{}, fmt.Errorf("status of the metadata service: %w", err)
	}
	return replicaFromPB(rep.GetReplica()), nil
}

// AddMember adds a replica that was started to join, first as a learner, and
// returns its id when it has caught up and votes. It may be asked again.
func (c *Client) AddMember(ctx context.Context, addr transport.Addr) (uint64, error) {
	rep, err := c.admin(ctx, &metapb.AdminRequest{Kind: &metapb.AdminRequest_AddMember{AddMember: &metapb.AddMember{Addr: addrToPB(addr)}}})
	if err != nil {
		return 0, fmt.Errorf("add metadata replica %v: %w", addr, err)
	}
	return rep.GetMember(), nil
}

// RemoveMember takes a replica out. Its directory is of no use afterwards.
func (c *Client) RemoveMember(ctx context.Context, id uint64) error {
	_, err := c.admin(ctx, &metapb.AdminRequest{Kind: &metapb.AdminRequest_RemoveMember{RemoveMember: &metapb.RemoveMember{Id: id}}})
	if err != nil {
		return fmt.Errorf("remove metadata replica %d: %w", id, err)
	}
	return nil
}

// ClusterStatus asks every replica that the client knows of, or the leader
// names, for its status. One that does not answer within 2 s has Err set.
func (c *Client) ClusterStatus(ctx context.Context) []ReplicaStatus {
	c.mu.Lock()
	peers := append([]*peer(nil), c.peers...)
	c.mu.Unlock()
	out := make([]ReplicaStatus, len(peers))
	for i, p := range peers {
		s, err := c.replicaStatus(ctx, p)
		s.Addr, s.Err = p.addr, err
		if err != nil {
			s.Error = err.Error()
		}
		out[i] = s
	}
	return out
}

func (c *Client) replicaStatus(ctx context.Context, p *peer) (ReplicaStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, firstAttempt)
	defer cancel()
	rep := new(metapb.Response)
	st, err := c.ask(ctx, p, wire.OpAdmin, &metapb.AdminRequest{Kind: &metapb.AdminRequest_Status{Status: &metapb.Status{}}}, rep, 0)
	if err == nil {
		err = status(wire.OpAdmin, st, rep)
	}
	return replicaFromPB(rep.GetReplica()), err
}

// ClusterInit makes a cluster of the replicas at c's addresses, which must all
// be running and belong to none, and returns its id: Config.Cluster, or else a
// new one. If it fails half-way it may
// be run again with the same addresses: replicas that were done keep their part.
func (c *Client) ClusterInit(ctx context.Context) (rfs.UUID, error) {
	id, members, now, err := c.initialMembers(ctx)
	if err != nil {
		return rfs.UUID{}, fmt.Errorf("cluster init: %w", err)
	}
	for i, p := range c.peers {
		req := &metapb.AdminRequest{Kind: &metapb.AdminRequest_Init{Init: &metapb.Init{
			Cluster: id[:], Id: members[i].ID, Members: membersToPB(members), Time: now,
		}}}
		rep := new(metapb.Response)
		st, err := c.ask(ctx, p, wire.OpAdmin, req, rep, 0)
		if err == nil {
			err = status(wire.OpAdmin, st, rep)
		}
		if err != nil {
			return rfs.UUID{}, fmt.Errorf("cluster init: replica %v: %w (mend it and run the same init again)", p.addr, err)
		}
	}
	return id, nil
}

// initialMembers chooses the cluster's id and numbers the replicas, unless an
// earlier init that failed half-way has.
func (c *Client) initialMembers(ctx context.Context) (id rfs.UUID, members []Member, now int64, err error) {
	var errs []error
	for i, p := range c.peers {
		members = append(members, Member{ID: uint64(i + 1), Addr: p.addr})
		s, err := c.replicaStatus(ctx, p)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("replica %v does not answer: %w", p.addr, err))
		case s.Role == "uninitialized":
		case s.Applied > initIndex || s.Cluster.IsZero():
			errs = append(errs, fmt.Errorf("replica %v belongs to cluster %v already: choose an empty directory for it: %w", p.addr, s.Cluster, rfs.ErrExist))
		case !id.IsZero() && id != s.Cluster:
			errs = append(errs, fmt.Errorf("replica %v belongs to cluster %v, another to %v: %w", p.addr, s.Cluster, id, rfs.ErrExist))
		default:
			id, now = s.Cluster, s.Made
		}
	}
	switch want := c.cfg.Cluster; {
	case id.IsZero():
		id, now = want, time.Now().UnixNano()
		if want.IsZero() {
			id = rfs.NewUUID()
		}
	case !want.IsZero() && want != id:
		errs = append(errs, fmt.Errorf("the replicas belong to cluster %v, not %v: %w", id, want, rfs.ErrExist))
	}
	return id, members, now, errors.Join(errs...)
}
