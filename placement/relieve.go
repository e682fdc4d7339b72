package placement

import (
	"cmp"
	"slices"

	"rfs"
)

// Relieve gives slots that lost so many members that they cannot be written any
// more targets that are not in them, if there are: they take the places of
// members that are Down, as many as it needs (SetSlotSynced makes them members
// once they are rebuilt). Writes go on at once, as the newcomers take part in
// them. A member that comes back meanwhile keeps its place until then. Slots
// with fewer than k live positions are left alone: nothing could be rebuilt, and
// it is rather the power that is out than the targets that are lost.
func Relieve(m *Map) *Map {
	var moves []Move
	for i := range m.Pools {
		p := &m.Pools[i]
		for j := range p.Slots {
			if s := &p.Slots[j]; !m.CanWrite(p, s) && m.Live(s) >= int(p.Scheme.K) {
				moves = append(moves, m.relieve(p, s)...)
			}
		}
	}
	next, err := StartMoves(m, moves)
	if err != nil {
		panic("placement: relieve: " + err.Error()) // the moves are of this very map
	}
	return next
}

// relieve returns moves that make s writable, or as many as there are targets for.
func (m *Map) relieve(p *Pool, s *Slot) (moves []Move) {
	spares := m.spares(p, s)
	for i := range s.Members {
		if m.Live(s)+len(moves) >= p.needLive() || len(spares) == 0 {
			break
		}
		if !m.Writable(s, i) && !m.IsUp(s.IncomingAt(i)) {
			moves = append(moves, Move{Pool: p.ID, Slot: s.ID, Index: i, From: s.Members[i], To: spares[0]})
			spares = spares[1:]
		}
	}
	return moves
}

// spares returns the targets that could take a position of s over: those on
// hosts that have no live member first, each group in the order of the slot's
// rendezvous. Of one host only the first counts as on a host of its own.
func (m *Map) spares(p *Pool, s *Slot) []rfs.TargetID {
	type spare struct {
		id    rfs.TargetID
		host  string
		taken int // 1: the host has a member, or a spare before this
		cost  float64
	}
	hosts := map[string]bool{}
	var all []spare
	h := hashSlot(p.ID, s.ID)
	for i := range m.Targets {
		t := &m.Targets[i]
		_, host := m.domain(t)
		switch {
		case t.State != Up:
		case s.Names(t.ID):
			hosts[host] = true
		case !t.Draining:
			all = append(all, spare{id: t.ID, host: host, cost: cost(h, hashUUID(t.ID), t.weight())})
		}
	}
	byCost := func(a, b spare) int { return cmp.Or(cmp.Compare(a.cost, b.cost), a.id.Compare(b.id)) }
	slices.SortFunc(all, byCost)
	for i := range all {
		if hosts[all[i].host] {
			all[i].taken = 1
		}
		hosts[all[i].host] = true
	}
	slices.SortStableFunc(all, func(a, b spare) int { return cmp.Compare(a.taken, b.taken) })
	ids := make([]rfs.TargetID, len(all))
	for i := range all {
		ids[i] = all[i].id
	}
	return ids
}
