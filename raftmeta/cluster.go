package raftmeta

import (
	"errors"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// Commands on the cluster map: placement's transitions, stored.

// statusOf returns the status that stands for err on the wire.
func statusOf(err error) wire.Status {
	for _, x := range [...]struct {
		err error
		st  wire.Status
	}{
		{nil, wire.StatusOK}, {rfs.ErrNotFound, wire.StatusNotFound}, {rfs.ErrExist, wire.StatusExist},
		{rfs.ErrNotEmpty, wire.StatusNotEmpty}, {rfs.ErrStaleEpoch, wire.StatusStaleEpoch}, {rfs.ErrNoSpace, wire.StatusNoSpace},
		{rfs.ErrUnsupported, wire.StatusUnsupported},
	} {
		if errors.Is(err, x.err) {
			return x.st
		}
	}
	return wire.StatusInvalid
}

func (s *state) stepMap(t *tx, cmd *metapb.Command) *metapb.Response {
	next, rep, err := s.nextMap(cmd)
	if err != nil {
		return refuse(statusOf(err), "%v", err)
	}
	if next == nil {
		return refuse(wire.StatusUnknownOp, "a command that this version does not know: upgrade this replica")
	}
	if next != s.cmap {
		s.putMap(t, next)
	}
	rep.MapEpoch = uint32(s.cmap.Epoch)
	return rep
}

// nextMap returns the map after the command; nil if the command is not of the map.
func (s *state) nextMap(cmd *metapb.Command) (next *placement.Map, rep *metapb.Response, err error) {
	rep, next = &metapb.Response{}, s.cmap
	switch op := cmd.GetOp().(type) {
	case *metapb.Command_RegisterNode:
		next, err = placement.AddNode(s.cmap, nodeFromPB(op.RegisterNode))
	case *metapb.Command_RegisterTarget:
		next, err = s.registerTarget(op.RegisterTarget)
	case *metapb.Command_TargetState:
		next, err = s.targetState(op.TargetState)
	case *metapb.Command_TargetSpace:
		for _, sp := range op.TargetSpace.GetSpaces() {
			if m, err := placement.UpdateTargetSpace(next, uuidFrom(sp.GetTarget()), sp.GetCapacity(), sp.GetUsed()); err == nil {
				next = m // one that is gone is of no interest
			}
		}
	case *metapb.Command_SlotSynced:
		for _, sl := range op.SlotSynced.GetSlots() {
			if err == nil {
				next, err = placement.SetSlotSynced(next, rfs.PoolID(op.SlotSynced.GetPool()), rfs.SlotID(sl.GetSlot()),
					uuidFrom(op.SlotSynced.GetTarget()), rfs.Epoch(sl.GetEpoch()))
			}
		}
	case *metapb.Command_CreatePool:
		next, rep.Pool, err = s.createPool(op.CreatePool)
	case *metapb.Command_DrainTarget:
		if op.DrainTarget.GetUndo() {
			next, err = placement.CancelDrain(s.cmap, uuidFrom(op.DrainTarget.GetTarget()))
		} else {
			next, err = placement.StartDrain(s.cmap, uuidFrom(op.DrainTarget.GetTarget()))
		}
	case *metapb.Command_RemoveTarget:
		next, err = placement.RemoveTarget(s.cmap, uuidFrom(op.RemoveTarget.GetTarget()))
	case *metapb.Command_RemoveNode:
		next, err = placement.RemoveNode(s.cmap, uuidFrom(op.RemoveNode.GetNode()))
	default:
		next = nil
	}
	return next, rep, err
}

// registerTarget adds a target, up, or brings a known one up: it then has to
// sync, unless it was never missed and lost nothing.
func (s *state) registerTarget(op *metapb.RegisterTarget) (*placement.Map, error) {
	t := placement.Target{
		ID: uuidFrom(op.GetId()), Node: uuidFrom(op.GetNode()), Name: op.GetName(),
		Capacity: op.GetCapacity(), Used: op.GetUsed(), Weight: op.GetWeight(), State: placement.Up,
	}
	old := s.cmap.Target(t.ID)
	next, err := placement.AddTarget(s.cmap, t)
	if err == nil && old == nil {
		return relieve(next), nil
	}
	if err != nil || old == nil || old.State == placement.Up && op.GetClean() {
		return next, err
	}
	return placement.SetTargetState(next, placement.Up, t.ID)
}

func (s *state) targetState(op *metapb.TargetState) (*placement.Map, error) {
	state := placement.Down
	if op.GetUp() {
		state = placement.Up
	}
	var ids []rfs.TargetID
	for _, b := range op.GetTargets() {
		if t := s.cmap.Target(uuidFrom(b)); t != nil && t.State != state {
			ids = append(ids, t.ID)
		}
	}
	if len(ids) == 0 {
		return s.cmap, nil
	}
	next, err := placement.SetTargetState(s.cmap, state, ids...)
	if err != nil || state == placement.Up {
		return next, err
	}
	return relieve(next), nil
}

// relieve is placement.Relieve as part of the command that made m.
func relieve(m *placement.Map) *placement.Map {
	next := placement.Relieve(m)
	if next != m {
		next.Epoch = m.Epoch // two changes, one command
	}
	return next
}

func (s *state) createPool(op *metapb.CreatePool) (*placement.Map, uint32, error) {
	scheme, err := placement.ParseScheme(op.GetScheme())
	if err != nil {
		return nil, 0, err
	}
	next, err := placement.AddPool(s.cmap, op.GetName(), scheme, op.GetUnit(), op.GetCell(), int(op.GetSlots()))
	if err != nil {
		return nil, 0, err
	}
	return next, uint32(next.PoolByName(op.GetName()).ID), nil
}

// putMap makes m the map. It is stored with the batch: a command that is one
// of many should not encode all of it.
func (s *state) putMap(t *tx, m *placement.Map) {
	t.effects.mapped = t.effects.mapped || m.Epoch != s.cmap.Epoch
	for i := range s.cmap.Targets {
		if id := s.cmap.Targets[i].ID; m.Target(id) == nil {
			delete(s.cursors, id)
			t.del(keyOf(t.half, kCursor).bytes(id[:]))
		}
	}
	s.cmap, t.remap = m, true
	s.dropPurged(t)
}

// addMember and dropMember change the list of replicas, along with the Raft configuration.
func (s *state) addMember(id uint64, addr transport.Addr) {
	s.members.Members = append(append([]Member(nil), s.members.Members...), Member{ID: id, Addr: addr})
	s.counters.nextMember = max(s.counters.nextMember, id+1)
}

func (s *state) dropMember(id uint64) {
	var ms []Member
	for _, m := range s.members.Members {
		if m.ID != id {
			ms = append(ms, m)
		}
	}
	s.members.Members = ms
}
