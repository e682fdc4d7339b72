package placement

import (
	"fmt"
	"slices"

	"rfs"
)

// The transitions below are the commands of the metadata's state machine that
// change the cluster map. Each takes a Map, leaves it as it is, and returns the
// next one, with the epochs that changed raised by 1 and the tables of Index
// built; or the same Map, if there is nothing to change; or an error that names
// what is wrong, and nothing has changed.

// AddNode registers a node, or changes the name, domain and address of one.
func AddNode(m *Map, n Node) (*Map, error) {
	if n.ID.IsZero() {
		return nil, fmt.Errorf("node %q has no id: %w", n.Name, rfs.ErrInvalid)
	}
	i := slices.IndexFunc(m.Nodes, func(o Node) bool { return o.ID == n.ID })
	if i >= 0 && m.Nodes[i] == n {
		return m, nil
	}
	next := m.next()
	next.Nodes = slices.Clone(m.Nodes)
	if i >= 0 {
		next.Nodes[i] = n
	} else {
		next.Nodes = append(next.Nodes, n)
	}
	return next.indexed(), nil
}

// RemoveNode forgets a node that has no targets.
func RemoveNode(m *Map, id rfs.NodeID) (*Map, error) {
	n := m.Node(id)
	if n == nil {
		return nil, fmt.Errorf("node %v: %w", id, rfs.ErrNotFound)
	}
	if i := slices.IndexFunc(m.Targets, func(t Target) bool { return t.Node == id }); i >= 0 {
		return nil, fmt.Errorf("node %s has target %s: remove its targets first: %w", n.Name, m.Targets[i].Name, rfs.ErrNotEmpty)
	}
	next := m.next()
	next.Nodes = slices.DeleteFunc(slices.Clone(m.Nodes), func(n Node) bool { return n.ID == id })
	return next.indexed(), nil
}

// AddTarget registers a target, or says where one that is known is now: it
// takes over its node, name, capacity and use, and leaves its weight and
// whether it drains. A new target is in the state that t has; that of a known
// one is SetTargetState's.
func AddTarget(m *Map, t Target) (*Map, error) {
	switch {
	case t.ID.IsZero():
		return nil, fmt.Errorf("target %q has no id: %w", t.Name, rfs.ErrInvalid)
	case m.Node(t.Node) == nil:
		return nil, fmt.Errorf("target %s: node %v is not registered: %w", t.Name, t.Node, rfs.ErrNotFound)
	case t.Capacity < 0 || t.Used < 0 || t.Weight < 0:
		return nil, fmt.Errorf("target %s: capacity %d, used %d, weight %v: none may be negative: %w", t.Name, t.Capacity, t.Used, t.Weight, rfs.ErrInvalid)
	}
	old := m.Target(t.ID)
	if old == nil {
		next := m.next()
		next.Targets = append(slices.Clone(m.Targets), t)
		return next.indexed(), nil
	}
	t.State, t.Weight, t.Draining = old.State, old.Weight, old.Draining
	if *old == t {
		return m, nil
	}
	return m.withTarget(t), nil
}

// UpdateTargetSpace records how full a target is. It leaves the map's epoch.
func UpdateTargetSpace(m *Map, id rfs.TargetID, capacity, used int64) (*Map, error) {
	t := m.Target(id)
	if t == nil {
		return nil, fmt.Errorf("target %v: %w", id, rfs.ErrNotFound)
	}
	if t.Capacity == capacity && t.Used == used {
		return m, nil
	}
	u := *t
	u.Capacity, u.Used = capacity, used
	next := m.withTarget(u)
	next.Epoch = m.Epoch
	return next, nil
}

// SetTargetWeight changes the target's Weight; Rebalance will act on it.
func SetTargetWeight(m *Map, id rfs.TargetID, weight float64) (*Map, error) {
	t := m.Target(id)
	switch {
	case t == nil:
		return nil, fmt.Errorf("target %v: %w", id, rfs.ErrNotFound)
	case !(weight >= 0 && weight <= 1e6):
		return nil, fmt.Errorf("target %s: weight %v: want 0 (which means 1) to 1e6: %w", t.Name, weight, rfs.ErrInvalid)
	case t.Weight == weight:
		return m, nil
	}
	u := *t
	u.Weight = weight
	return m.withTarget(u), nil
}

// SetTargetState raises the epoch of every slot that names one of the targets,
// once, and says that they are
//
//	Down: left out until they come back;
//	Up:   back, or restarted without having been missed, and Syncing in all
//	      their slots, for they may have lost or missed writes.
//
// A target that stopped cleanly and was never Down needs no transition at all.
func SetTargetState(m *Map, state TargetState, ids ...rfs.TargetID) (*Map, error) {
	next := m.next()
	next.Targets = slices.Clone(m.Targets)
	next.Index()
	changed := make(map[rfs.TargetID]bool, len(ids))
	for _, id := range ids {
		t := next.Target(id)
		if t == nil {
			return nil, fmt.Errorf("target %v: %w", id, rfs.ErrNotFound)
		}
		if t.State != state || state == Up {
			changed[id] = true
		}
		t.State = state
	}
	if len(changed) == 0 {
		return m, nil
	}
	next.Pools = slices.Clone(m.Pools)
	touched := false
	for i := range next.Pools {
		touched = setMemberStates(&next.Pools[i], state, changed) || touched
	}
	if !touched && slices.Equal(next.Targets, m.Targets) {
		return m, nil
	}
	return next, nil
}

func setMemberStates(p *Pool, state TargetState, changed map[rfs.TargetID]bool) (touched bool) {
	p.Slots = slices.Clone(p.Slots)
	for i := range p.Slots {
		s := &p.Slots[i]
		hit := false
		for j, t := range s.Members {
			if changed[t] {
				hit = true
				if state == Up {
					s.Syncing.Add(uint8(j))
				}
			}
		}
		if hit || slices.ContainsFunc(s.Incoming, func(t rfs.TargetID) bool { return changed[t] }) {
			s.Epoch++
			touched = true
		}
	}
	return touched
}

// SetSlotSynced says that the target has all that it should have of the slot:
// a Syncing member may be read again, an incoming one takes the position over.
// The target reports the slot's epoch under which it finished; if the slot has
// a later one, the error wraps rfs.ErrStaleEpoch, and the target looks at the
// new map: unless it was Down or restarted in between, it says it again.
func SetSlotSynced(m *Map, pool rfs.PoolID, slot rfs.SlotID, target rfs.TargetID, epoch rfs.Epoch) (*Map, error) {
	p, s, err := m.find(pool, slot)
	if err != nil {
		return nil, err
	}
	if s.Epoch != epoch {
		return nil, fmt.Errorf("pool %s slot %d: synced under epoch %d, the slot's is %d: %w", p.Name, slot, epoch, s.Epoch, rfs.ErrStaleEpoch)
	}
	if !m.IsUp(target) {
		return nil, fmt.Errorf("pool %s slot %d: target %v is not up: %w", p.Name, slot, target, rfs.ErrStaleEpoch)
	}
	i, in := s.Index(target), s.IncomingIndex(target)
	switch {
	case in >= 0:
		return m.withSlot(pool, slot, func(s *Slot) {
			s.Members = slices.Clone(s.Members)
			s.Members[in] = target
			s.Syncing.Remove(uint8(in))
			s.setIncoming(in, rfs.TargetID{})
		}), nil
	case i < 0:
		return nil, fmt.Errorf("pool %s slot %d: target %v has no position in it: %w", p.Name, slot, target, rfs.ErrNotFound)
	case !s.Syncing.Has(uint8(i)):
		return m, nil
	}
	return m.withSlot(pool, slot, func(s *Slot) { s.Syncing.Remove(uint8(i)) }), nil
}

// AddPool makes a pool on the targets that are Up and not draining. unit, cell
// and nslots may be 0 for the defaults.
func AddPool(m *Map, name string, s Scheme, unit, cell uint32, nslots int) (*Map, error) {
	if name == "" || len(name) > rfs.MaxName {
		return nil, fmt.Errorf("pool name %q: want 1 to %d bytes: %w", name, rfs.MaxName, rfs.ErrInvalid)
	}
	if m.PoolByName(name) != nil {
		return nil, fmt.Errorf("pool %s: %w", name, rfs.ErrExist)
	}
	if unit == 0 {
		unit = rfs.DefaultUnit
	}
	if cell == 0 {
		cell = min(rfs.DefaultCell, unit)
	}
	if nslots == 0 {
		nslots = DefaultSlots(len(m.Targets))
	}
	p := Pool{Name: name, Scheme: s, Unit: unit, Cell: cell}
	for i := range m.Pools {
		p.ID = max(p.ID, m.Pools[i].ID+1)
	}
	err := s.Validate()
	if err == nil {
		err = p.Layout(0).Validate()
	}
	if err == nil {
		p.Slots, err = Assign(m, p.ID, s, nslots)
	}
	if err != nil {
		return nil, fmt.Errorf("pool %s: %w", name, err)
	}
	next := m.next()
	next.Pools = append(slices.Clone(m.Pools), p)
	return next.indexed(), nil
}

// StartMoves makes each move's To the incoming target of its position, in
// place of another that may be there. A move to the member that has the
// position calls an earlier move off. A move whose From is not the member any
// more is refused, with all others.
func StartMoves(m *Map, moves []Move) (*Map, error) {
	if len(moves) == 0 {
		return m, nil
	}
	next := m.next()
	next.Pools = slices.Clone(m.Pools)
	next.Index()
	copied := map[rfs.PoolID]bool{}
	raised := map[*Slot]bool{}
	for _, mv := range moves {
		p := next.Pool(mv.Pool)
		if p == nil {
			return nil, fmt.Errorf("pool %d: %w", mv.Pool, rfs.ErrNotFound)
		}
		if !copied[p.ID] {
			copied[p.ID] = true
			p.Slots = slices.Clone(p.Slots)
		}
		s, err := next.startMove(p, mv)
		if err != nil {
			return nil, err
		}
		if !raised[s] {
			raised[s] = true
			s.Epoch++
		}
	}
	return next, nil
}

func (m *Map) startMove(p *Pool, mv Move) (*Slot, error) {
	if int(mv.Slot) >= len(p.Slots) || mv.Index < 0 || mv.Index >= p.Scheme.Width() {
		return nil, fmt.Errorf("pool %s slot %d position %d: %w", p.Name, mv.Slot, mv.Index, rfs.ErrNotFound)
	}
	s := &p.Slots[mv.Slot]
	where := func() string { return fmt.Sprintf("pool %s slot %d position %d", p.Name, mv.Slot, mv.Index) }
	switch at := s.Position(mv.To); {
	case s.Members[mv.Index] != mv.From:
		return nil, fmt.Errorf("%s: its member is %v, not %v: %w", where(), s.Members[mv.Index], mv.From, rfs.ErrStaleEpoch)
	case at >= 0 && at != mv.Index:
		return nil, fmt.Errorf("%s: target %v has position %d of the slot: %w", where(), mv.To, at, rfs.ErrInvalid)
	case mv.To == mv.From:
		s.setIncoming(mv.Index, rfs.TargetID{})
	case !m.IsUp(mv.To):
		return nil, fmt.Errorf("%s: target %v is not up: %w", where(), mv.To, rfs.ErrUnavailable)
	default:
		s.setIncoming(mv.Index, mv.To)
	}
	return s, nil
}

// setIncoming changes Incoming[i] in a copy; Incoming is nil when none is left.
func (s *Slot) setIncoming(i int, t rfs.TargetID) {
	in := make([]rfs.TargetID, len(s.Members))
	copy(in, s.Incoming)
	in[i] = t
	if slices.IndexFunc(in, func(t rfs.TargetID) bool { return !t.IsZero() }) < 0 {
		in = nil
	}
	s.Incoming = in
}

// StartDrain marks the target as draining and gives each position that it has,
// or was to have, an incoming target. It is done when SetSlotSynced has been
// called for all of them; RemoveTarget then succeeds. On a draining target it
// starts what could not be started before, for want of other targets.
func StartDrain(m *Map, id rfs.TargetID) (*Map, error) {
	t := m.Target(id)
	if t == nil {
		return nil, fmt.Errorf("target %v: %w", id, rfs.ErrNotFound)
	}
	next := m
	if !t.Draining {
		u := *t
		u.Draining = true
		next = m.withTarget(u)
	}
	var moves []Move
	for i := range next.Pools {
		p := &next.Pools[i]
		mvs := evacuate(next, p.ID)
		if stuck := p.stuck(id, mvs); stuck > 0 {
			return nil, fmt.Errorf("target %s: %d slots of pool %s (%v) have no other target to go to: add targets first: %w",
				t.Name, stuck, p.Name, p.Scheme, rfs.ErrNoSpace)
		}
		moves = append(moves, mvs...)
	}
	if next, err := StartMoves(next, moves); err != nil || next.Epoch <= m.Epoch+1 {
		return next, err
	} else { // two changes, one transition
		next.Epoch = m.Epoch + 1
		return next, nil
	}
}

// stuck returns how many positions of the target will not leave it by the moves.
func (p *Pool) stuck(id rfs.TargetID, moves []Move) (n int) {
	leaves := map[rfs.SlotID]bool{}
	for _, mv := range moves {
		leaves[mv.Slot] = leaves[mv.Slot] || mv.From == id
	}
	for i := range p.Slots {
		s := &p.Slots[i]
		if at := s.Index(id); at >= 0 && s.IncomingAt(at).IsZero() && !leaves[s.ID] {
			n++
		}
	}
	return n
}

// CancelDrain keeps the target: its positions that have not moved stay.
func CancelDrain(m *Map, id rfs.TargetID) (*Map, error) {
	t := m.Target(id)
	if t == nil {
		return nil, fmt.Errorf("target %v: %w", id, rfs.ErrNotFound)
	}
	if !t.Draining {
		return m, nil
	}
	u := *t
	u.Draining = false
	next := m.withTarget(u)
	var stay []Move
	for i := range m.Pools {
		p := &m.Pools[i]
		for j := range p.Slots {
			if at := p.Slots[j].Index(id); at >= 0 && !p.Slots[j].IncomingAt(at).IsZero() {
				stay = append(stay, Move{Pool: p.ID, Slot: p.Slots[j].ID, Index: at, From: id, To: id})
			}
		}
	}
	next, err := StartMoves(next, stay)
	if err == nil {
		next.Epoch = m.Epoch + 1
	}
	return next, err
}

// RemoveTarget forgets a target that no slot names.
func RemoveTarget(m *Map, id rfs.TargetID) (*Map, error) {
	t := m.Target(id)
	if t == nil {
		return nil, fmt.Errorf("target %v: %w", id, rfs.ErrNotFound)
	}
	if n := m.Positions(id); n > 0 {
		return nil, fmt.Errorf("target %s holds shards of %d slots: drain it first and wait until it is empty: %w", t.Name, n, rfs.ErrNotEmpty)
	}
	next := m.next()
	next.Targets = slices.DeleteFunc(slices.Clone(m.Targets), func(t Target) bool { return t.ID == id })
	return next.indexed(), nil
}

// Positions returns how many slots of all pools name the target.
func (m *Map) Positions(id rfs.TargetID) (n int) {
	for i := range m.Pools {
		for j := range m.Pools[i].Slots {
			if m.Pools[i].Slots[j].Names(id) {
				n++
			}
		}
	}
	return n
}

// next returns a copy of m with the next epoch.
func (m *Map) next() *Map {
	n := *m
	n.Epoch++
	return &n
}

func (m *Map) indexed() *Map {
	m.Index()
	return m
}

// withTarget returns the next map, in which t replaces the target of its id.
func (m *Map) withTarget(t Target) *Map {
	next := m.next()
	next.Targets = slices.Clone(m.Targets)
	next.Index()
	*next.Target(t.ID) = t
	return next
}

// withSlot returns the next map, in which change has been applied to a copy of
// the slot, and its epoch raised. change copies the slices that it changes.
func (m *Map) withSlot(pool rfs.PoolID, slot rfs.SlotID, change func(*Slot)) *Map {
	next := m.next()
	next.Pools = slices.Clone(m.Pools)
	next.Index()
	p := next.Pool(pool)
	p.Slots = slices.Clone(p.Slots)
	change(&p.Slots[slot])
	p.Slots[slot].Epoch++
	return next
}

func (m *Map) find(pool rfs.PoolID, slot rfs.SlotID) (*Pool, *Slot, error) {
	p := m.Pool(pool)
	if p == nil || int(slot) >= len(p.Slots) {
		return nil, nil, fmt.Errorf("pool %d slot %d: %w", pool, slot, rfs.ErrNotFound)
	}
	return p, &p.Slots[slot], nil
}
