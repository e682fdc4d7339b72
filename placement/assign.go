package placement

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"rfs"
)

// How slots are given to targets:
//
//  1. shares: each target's fair number of slots, proportional to its weight,
//     but no more than the failure domains allow (water filling);
//  2. fill:   each vacant position takes the target of least cost (rendezvous)
//     among those that the slot's domains admit and whose share is not used up;
//  3. level:  what that left over and under the shares is exchanged, one
//     position at a time, in the order in which rendezvous would have done it.
//
// Assign is these three on empty slots. Rebalance is the same on slots that
// have members, where only members that must go are vacant and only what
// deviates from its share is levelled: so a change moves what it must, and the
// result is balanced, which rendezvous alone is not (it deviates by the square
// root of a share, and favours small targets when a slot takes several).

// DefaultSlots returns how many slots a new pool gets unless told: 16 for each
// target, at least 64, rounded up to a power of two. With k+m of 6 a target then
// holds about 96 slots' shards: fine enough to balance within a percent, coarse
// enough that the map stays small (100 bytes a slot). As the number is for ever,
// give a cluster that will grow the number for its final size.
func DefaultSlots(targets int) int {
	n := 64
	for n < 16*targets {
		n *= 2
	}
	return n
}

// MaxSlots is the largest number of slots of a pool.
const MaxSlots = 1 << 20

// A Move is one position of a slot that goes from one target to another.
type Move struct {
	Pool  rfs.PoolID   `json:"pool"`
	Slot  rfs.SlotID   `json:"slot"`
	Index int          `json:"index"` // position in the slot
	From  rfs.TargetID `json:"from"`
	To    rfs.TargetID `json:"to"`
}

// Assign returns nslots slots with the scheme's k+m members each, from the
// targets of m that are Up and not draining. A slot has never two members on
// one target; nor on one host while there are k+m hosts; nor in one rack while
// there are k+m racks. With fewer hosts a slot has as few on one host as can
// be; with fewer racks it has at most m in one rack, if that can be, so that
// the loss of a rack loses no data.
func Assign(m *Map, pool rfs.PoolID, s Scheme, nslots int) ([]Slot, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if nslots < 1 || nslots > MaxSlots {
		return nil, fmt.Errorf("a pool of %d slots: want 1 to %d", nslots, MaxSlots)
	}
	slots := make([]Slot, nslots)
	members := make([]rfs.TargetID, nslots*s.Width())
	for i := range slots {
		at := i * s.Width()
		slots[i] = Slot{ID: rfs.SlotID(i), Epoch: 1, Members: members[at : at+s.Width() : at+s.Width()]}
	}
	pl := newPlacer(m, &Pool{ID: pool, Scheme: s, Slots: slots})
	if n := pl.open(); n < s.Width() {
		return nil, fmt.Errorf("scheme %v needs %d targets that are up and not draining, there are %d: add targets or choose a narrower scheme",
			s, s.Width(), n)
	}
	pl.fill()
	pl.level(0)
	for i := range slots {
		for j, t := range pl.holders[i] {
			slots[i].Members[j] = pl.targets[t].id
		}
	}
	return slots, nil
}

// Rebalance returns the moves that bring the pool to balance: all from targets
// that are draining or gone, or that are too many in one failure domain; and as
// few as give each Up target its share within 2%. Targets that are Down but not
// draining keep what they have. Positions that are moving already are left
// alone, unless the target they move to went Down or drains.
func Rebalance(m *Map, pool rfs.PoolID) []Move { return plan(m, pool, true) }

// evacuate returns only those moves of Rebalance that must be.
func evacuate(m *Map, pool rfs.PoolID) []Move { return plan(m, pool, false) }

func plan(m *Map, pool rfs.PoolID, level bool) []Move {
	p := m.Pool(pool)
	if p == nil {
		return nil
	}
	pl := newPlacer(m, p)
	if pl.open() == 0 {
		return nil
	}
	pl.fill()
	if level {
		pl.level(0.02)
	}
	return pl.moves()
}

// Replace returns the target that rendezvous chooses to take position index of
// the slot over: none that the slot names already, and one that its failure
// domains admit, unless there is none.
func Replace(m *Map, pool rfs.PoolID, slot rfs.SlotID, index int) (rfs.TargetID, error) {
	p := m.Pool(pool)
	if p == nil || int(slot) >= len(p.Slots) || index < 0 || index >= len(p.Slots[slot].Members) {
		return rfs.TargetID{}, fmt.Errorf("pool %d slot %d position %d: %w", pool, slot, index, rfs.ErrNotFound)
	}
	pl := newPlacer(m, p)
	pl.vacate(int(slot), index)
	pl.setCosts(int(slot))
	for _, id := range []rfs.TargetID{p.Slots[slot].Members[index], p.Slots[slot].IncomingAt(index)} {
		if t, ok := pl.number[id]; ok {
			pl.targets[t].open = false
		}
	}
	t := pl.choose(int(slot), index, MaxSlots)
	if t < 0 || !pl.targets[t].open {
		return rfs.TargetID{}, fmt.Errorf("pool %s slot %d: no target is left to take position %d over: add a target", p.Name, slot, index)
	}
	return pl.targets[t].id, nil
}

// ChooseStart returns the slot of a new file's first stripe: of two random ones
// the one whose fullest member has more space (Mitzenmacher, "The power of two
// choices", 2001). A slot that cannot be written now loses.
func ChooseStart(m *Map, p *Pool, rand func() uint64) rfs.SlotID {
	n := uint64(len(p.Slots))
	a, b := rfs.SlotID(rand()%n), rfs.SlotID(rand()%n)
	if m.room(p, b) > m.room(p, a) {
		return b
	}
	return a
}

// room returns the free share of the slot's fullest member, -1 if it cannot be written.
func (m *Map) room(p *Pool, id rfs.SlotID) float64 {
	s, room := &p.Slots[id], 1.0
	if !m.CanWrite(p, s) {
		return -1
	}
	for _, id := range s.Members {
		if t := m.Target(id); t != nil {
			room = min(room, t.Free())
		}
	}
	return room
}

// A placer works on one pool. Targets, hosts and racks are small numbers in it.
type placer struct {
	pool    *Pool
	width   int
	targets []candidate
	hosts   []domain
	racks   []domain
	// holders[slot][position] is the target that has the position, or will
	// have it when what moves has moved; -1 is vacant.
	holders [][]int
	number  map[rfs.TargetID]int
}

type candidate struct {
	id         rfs.TargetID
	hash       uint64
	weight     float64
	host, rack int
	open       bool // may take more: Up and not draining
	leaves     bool // draining: must give up all
	load       int  // positions held
	share      float64
	cost       float64 // of the slot that setCosts was called for
}

// quota is the most that fill gives the target.
func (c *candidate) quota() int { return int(math.Ceil(c.share)) }

// A domain is a host or a rack.
type domain struct {
	rack  int     // of a host
	limit int     // the most members of one slot
	open  int     // open targets in it
	share float64 // the sum of its open targets' shares
	load  int     // and of their loads
	fixed int     // positions held by targets in it that are not open
}

func newPlacer(m *Map, p *Pool) *placer {
	pl := &placer{pool: p, width: p.Scheme.Width(), number: make(map[rfs.TargetID]int, len(m.Targets))}
	pl.addTargets(m)
	pl.setLimits()
	pl.addHolders()
	pl.setShares()
	return pl
}

func (pl *placer) addTargets(m *Map) {
	hosts, racks := map[string]int{}, map[string]int{}
	for i := range m.Targets {
		t := &m.Targets[i]
		rack, host := m.domain(t)
		if _, ok := racks[rack]; !ok {
			racks[rack] = len(pl.racks)
			pl.racks = append(pl.racks, domain{})
		}
		if _, ok := hosts[host]; !ok {
			hosts[host] = len(pl.hosts)
			pl.hosts = append(pl.hosts, domain{rack: racks[rack]})
		}
		pl.number[t.ID] = len(pl.targets)
		c := candidate{id: t.ID, hash: hashUUID(t.ID), weight: t.weight(), host: hosts[host], rack: racks[rack],
			open: t.State == Up && !t.Draining, leaves: t.Draining}
		pl.targets = append(pl.targets, c)
		if c.open {
			pl.hosts[c.host].open++
			pl.racks[c.rack].open++
		}
	}
}

// open returns how many targets may take positions.
func (pl *placer) open() (n int) {
	for i := range pl.targets {
		if pl.targets[i].open {
			n++
		}
	}
	return n
}

// setLimits decides how many members of a slot a host and a rack may have.
// Targets that are Down count: they come back, and their slots stay.
func (pl *placer) setLimits() {
	inHost := make([]int, len(pl.hosts))
	for _, c := range pl.targets {
		if !c.leaves {
			inHost[c.host]++
		}
	}
	// The least limit with which all hosts together can take a slot.
	room := func(hostLimit, rackLimit int) (n int) {
		inRack := make([]int, len(pl.racks))
		for h, t := range inHost {
			inRack[pl.hosts[h].rack] += min(t, hostLimit)
		}
		for _, r := range inRack {
			n += min(r, rackLimit)
		}
		return n
	}
	host := 1
	for host < pl.width && room(host, pl.width) < pl.width {
		host++
	}
	rack := pl.width
	if m := max(1, int(pl.pool.Scheme.M)); room(host, 1) >= pl.width {
		rack = 1
	} else if room(host, m) >= pl.width {
		rack = m
	}
	for i := range pl.hosts {
		pl.hosts[i].limit = host
	}
	for i := range pl.racks {
		pl.racks[i].limit = rack
	}
}

// addHolders takes over what is, and vacates what must go.
func (pl *placer) addHolders() {
	all := make([]int, len(pl.pool.Slots)*pl.width)
	pl.holders = make([][]int, len(pl.pool.Slots))
	for i := range pl.pool.Slots {
		s := &pl.pool.Slots[i]
		pl.holders[i], all = all[:pl.width:pl.width], all[pl.width:]
		for j := range s.Members {
			pl.holders[i][j] = -1
		}
		for j := range s.Members {
			if t := pl.keeper(s, j); t >= 0 && pl.admits(i, j, t) {
				pl.hold(i, j, t)
			}
		}
	}
}

// keeper returns the target that is to keep position j of s, or -1.
func (pl *placer) keeper(s *Slot, j int) int {
	if in := s.IncomingAt(j); !in.IsZero() {
		if t, ok := pl.number[in]; ok && pl.targets[t].open {
			return t
		}
	}
	if t, ok := pl.number[s.Members[j]]; ok && !pl.targets[t].leaves {
		return t
	}
	return -1
}

func (pl *placer) hold(slot, j, t int) {
	pl.holders[slot][j] = t
	pl.count(t, 1)
}

func (pl *placer) vacate(slot, j int) {
	if t := pl.holders[slot][j]; t >= 0 {
		pl.holders[slot][j] = -1
		pl.count(t, -1)
	}
}

func (pl *placer) count(t, n int) {
	c := &pl.targets[t]
	c.load += n
	if c.open {
		pl.hosts[c.host].load += n
		pl.racks[c.rack].load += n
	} else {
		pl.hosts[c.host].fixed += n
		pl.racks[c.rack].fixed += n
	}
}

// admits reports whether the failure domains of the slot's other holders let
// target t have position j.
func (pl *placer) admits(slot, j, t int) bool {
	c := &pl.targets[t]
	host, rack := 0, 0
	for i, o := range pl.holders[slot] {
		if o < 0 || i == j {
			continue
		}
		if o == t {
			return false
		}
		if pl.targets[o].host == c.host {
			host++
		}
		if pl.targets[o].rack == c.rack {
			rack++
		}
	}
	return host < pl.hosts[c.host].limit && rack < pl.racks[c.rack].limit
}

// fresh reports whether t can take position j of the slot without already
// being named in it, as a member that has not left yet or elsewhere.
func (pl *placer) fresh(slot, j, t int) bool {
	s, id := &pl.pool.Slots[slot], pl.targets[t].id
	if i := s.Index(id); i >= 0 {
		return i == j // back to where it is
	}
	i := s.IncomingIndex(id)
	return i < 0 || i == j
}

// setShares divides the positions that targets which are not open do not hold
// among those that are: lambda * weight each, but a target at most one of each
// slot, and a host and a rack at most their limit of each slot.
func (pl *placer) setShares() {
	n := float64(len(pl.pool.Slots))
	total := n * float64(pl.width)
	for i := range pl.hosts {
		total -= float64(pl.hosts[i].fixed)
	}
	lo, hi := 0.0, 1.0
	for hi < 1e300 && pl.pour(hi, n) < total && pl.pour(hi*1e6, n) > pl.pour(hi, n) {
		hi *= 16
	}
	for range 200 {
		if mid := (lo + hi) / 2; pl.pour(mid, n) < total {
			lo = mid
		} else {
			hi = mid
		}
	}
	pl.pour(hi, n)
}

// pour sets shares for the given lambda and returns their sum.
func (pl *placer) pour(lambda, n float64) (total float64) {
	for i := range pl.hosts {
		pl.hosts[i].share = 0
	}
	for i := range pl.racks {
		pl.racks[i].share = 0
	}
	for i := range pl.targets {
		if c := &pl.targets[i]; c.open {
			c.share = min(float64(lambda*c.weight), n)
			pl.hosts[c.host].share += c.share
		}
	}
	hostScale := make([]float64, len(pl.hosts))
	for i := range pl.hosts {
		h := &pl.hosts[i]
		hostScale[i] = h.cut(n)
		pl.racks[h.rack].share += h.share
	}
	rackScale := make([]float64, len(pl.racks))
	for i := range pl.racks {
		rackScale[i] = pl.racks[i].cut(n)
		total += pl.racks[i].share
	}
	for i := range pl.hosts {
		h := &pl.hosts[i]
		h.share *= rackScale[h.rack]
	}
	for i := range pl.targets {
		c := &pl.targets[i]
		c.share *= hostScale[c.host]
		c.share *= rackScale[c.rack]
	}
	return total
}

// cut limits the domain's share to its part of n slots and returns the factor.
func (d *domain) cut(n float64) float64 {
	most := max(float64(float64(d.limit)*n)-float64(d.fixed), 0)
	if d.share <= most {
		return 1
	}
	f := most / d.share
	d.share = most
	return f
}

// fill gives every vacant position a target, if there is one.
func (pl *placer) fill() {
	var vacant []int // slots
	for i, h := range pl.holders {
		if slices.Contains(h, -1) {
			vacant = append(vacant, i)
		}
	}
	order := make([]int, pl.width)
	for n, slot := range vacant {
		pl.shuffle(order, slot)
		pl.setCosts(slot)
		for _, j := range order {
			if pl.holders[slot][j] >= 0 {
				continue
			}
			if t := pl.choose(slot, j, len(vacant)-n); t >= 0 {
				pl.hold(slot, j, t)
			}
		}
	}
}

// shuffle sets order to a permutation of the positions of a slot, so that the
// best targets of a slot are not always its data, nor the heavy ones.
func (pl *placer) shuffle(order []int, slot int) {
	h := pl.hash(slot)
	for i := range order {
		h = mix(h)
		j := int(h % uint64(i+1))
		order[i], order[j] = order[j], i
	}
}

func (pl *placer) hash(slot int) uint64 { return hashSlot(pl.pool.ID, pl.pool.Slots[slot].ID) }

func (pl *placer) cost(slot, t int) float64 {
	return cost(pl.hash(slot), pl.targets[t].hash, pl.targets[t].weight)
}

func (pl *placer) setCosts(slot int) {
	h := pl.hash(slot)
	for t := range pl.targets {
		if c := &pl.targets[t]; c.open {
			c.cost = cost(h, c.hash, c.weight)
		}
	}
}

// choose returns the target for position j of the slot, of which setCosts has
// been called, or -1 if there is none. left is how many slots with vacancies are to come, this one included.
func (pl *placer) choose(slot, j, left int) int {
	best, bestClass, bestCost := -1, 0, 0.0
	for t := range pl.targets {
		c := &pl.targets[t]
		if !c.open {
			continue
		}
		class := pl.class(c, left)
		if best >= 0 && (class > bestClass || class == bestClass && c.cost >= bestCost) {
			continue
		}
		if pl.admits(slot, j, t) && pl.fresh(slot, j, t) {
			best, bestClass, bestCost = t, class, c.cost
		}
	}
	if best >= 0 {
		return best
	}
	return pl.chooseAnyhow(slot, j)
}

// The classes of targets that a slot may take, best first.
const (
	must = iota // it, its host or its rack needs all the slots to come to reach its share
	may
	full // has its share
)

func (pl *placer) class(c *candidate, left int) int {
	switch h, r := &pl.hosts[c.host], &pl.racks[c.rack]; {
	case c.load >= c.quota():
		return full
	case c.share-float64(c.load) > float64(left-1),
		h.share-float64(h.load) > float64(h.limit*(left-1)),
		r.share-float64(r.load) > float64(r.limit*(left-1)):
		return must
	}
	return may
}

// chooseAnyhow is for when no open target is left that the failure domains
// admit: a position stays where it is, or else breaks the domains' limits, or
// stays vacant: better too near than lost.
func (pl *placer) chooseAnyhow(slot, j int) int {
	if t := pl.keeper(&pl.pool.Slots[slot], j); t >= 0 && !slices.Contains(pl.holders[slot], t) {
		return t
	}
	best := -1
	for t := range pl.targets {
		if !pl.targets[t].open || slices.Contains(pl.holders[slot], t) || !pl.fresh(slot, j, t) {
			continue
		}
		if best < 0 || cmp.Or(cmp.Compare(pl.crowd(slot, t), pl.crowd(slot, best)), cmp.Compare(pl.cost(slot, t), pl.cost(slot, best))) < 0 {
			best = t
		}
	}
	return best
}

// crowd returns how many holders of the slot are on the host of t.
func (pl *placer) crowd(slot, t int) (n int) {
	for _, o := range pl.holders[slot] {
		if o >= 0 && pl.targets[o].host == pl.targets[t].host {
			n++
		}
	}
	return n
}

// level exchanges positions until no open target deviates from its share by
// more than slack and rounding, or nothing more can be done.
func (pl *placer) level(slack float64) {
	for _, b := range pl.by(func(c *candidate) bool { return float64(c.load) < math.Floor(float64(c.share*(1-slack))) }) {
		pl.raise(b)
	}
	for _, a := range pl.by(func(c *candidate) bool { return float64(c.load) > math.Ceil(float64(c.share*(1+slack))) }) {
		pl.lower(a)
	}
	// What is left needs a third target between the one with too much and the
	// one with too little. It is little: the bound is for odd domains.
	budget := 4*len(pl.targets) + 64
	for _, b := range pl.by(func(c *candidate) bool { return float64(c.load) < math.Floor(float64(c.share*(1-slack))) }) {
		for c := &pl.targets[b]; budget > 0 && float64(c.load) < math.Floor(c.share) && pl.augment(b); budget-- {
		}
	}
}

// by returns the open targets that pick chooses, those farthest from their share first.
func (pl *placer) by(pick func(*candidate) bool) (ts []int) {
	for t := range pl.targets {
		if c := &pl.targets[t]; c.open && pick(c) {
			ts = append(ts, t)
		}
	}
	slices.SortStableFunc(ts, func(a, b int) int {
		return cmp.Compare(math.Abs(pl.excess(b)), math.Abs(pl.excess(a)))
	})
	return ts
}

// excess returns how far the target is above its share, relative to that.
func (pl *placer) excess(t int) float64 {
	c := &pl.targets[t]
	return (float64(c.load) - c.share) / max(c.share, 1)
}

// movable reports whether level may take position j of the slot from its holder.
func (pl *placer) movable(slot, j int) bool {
	t := pl.holders[slot][j]
	return t >= 0 && pl.targets[t].open && pl.pool.Slots[slot].IncomingAt(j).IsZero()
}

// takes reports whether t can take position j of the slot over from its holder.
func (pl *placer) takes(slot, j, t int) bool {
	return pl.movable(slot, j) && pl.admits(slot, j, t) && pl.fresh(slot, j, t)
}

func (pl *placer) give(slot, j, t int) {
	pl.vacate(slot, j)
	pl.hold(slot, j, t)
}

// raise brings target b up to its share with positions of targets above
// theirs, in the slots that rendezvous would give it first.
func (pl *placer) raise(b int) {
	c := &pl.targets[b]
	for _, slot := range pl.slotsBy(func(slot int) bool { return !slices.Contains(pl.holders[slot], b) },
		func(slot int) float64 { return pl.cost(slot, b) }) {
		if float64(c.load) >= math.Floor(c.share) {
			return
		}
		best := -1
		for j, a := range pl.holders[slot] {
			if a >= 0 && pl.excess(a) > 0 && pl.takes(slot, j, b) && (best < 0 || pl.excess(a) > pl.excess(pl.holders[slot][best])) {
				best = j
			}
		}
		if best >= 0 {
			pl.give(slot, best, b)
		}
	}
}

// lower brings target a down to its share, out of the slots that rendezvous
// would give it last.
func (pl *placer) lower(a int) {
	c := &pl.targets[a]
	for _, slot := range pl.slotsBy(func(slot int) bool { return slices.Contains(pl.holders[slot], a) },
		func(slot int) float64 { return -pl.cost(slot, a) }) {
		if c.load <= c.quota() {
			return
		}
		j, best := slices.Index(pl.holders[slot], a), -1
		for b := range pl.targets {
			if o := &pl.targets[b]; o.open && o.load < o.quota() && pl.takes(slot, j, b) &&
				(best < 0 || pl.cost(slot, b) < pl.cost(slot, best)) {
				best = b
			}
		}
		if best >= 0 {
			pl.give(slot, j, best)
		}
	}
}

// slotsBy returns the slots that pick chooses in the order of key.
func (pl *placer) slotsBy(pick func(slot int) bool, key func(slot int) float64) []int {
	type keyed struct {
		slot int
		key  float64
	}
	var ks []keyed
	for slot := range pl.holders {
		if pick(slot) {
			ks = append(ks, keyed{slot, key(slot)})
		}
	}
	slices.SortFunc(ks, func(a, b keyed) int { return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.slot, b.slot)) })
	slots := make([]int, len(ks))
	for i, k := range ks {
		slots[i] = k.slot
	}
	return slots
}

// augment finds the shortest chain of exchanges by which target b gains a
// position and a target above its share loses one (an augmenting path, by
// breadth-first search), and does it.
func (pl *placer) augment(b int) bool {
	type step struct{ slot, j, to int } // to takes the position
	via := make([]*step, len(pl.targets))
	via[b] = &step{}
	for queue := []int{b}; len(queue) > 0; queue = queue[1:] {
		to := queue[0]
		for slot, h := range pl.holders {
			if slices.Contains(h, to) {
				continue
			}
			for j, from := range h {
				if from < 0 || via[from] != nil || !pl.takes(slot, j, to) {
					continue
				}
				via[from] = &step{slot, j, to}
				queue = append(queue, from)
				if pl.excess(from) <= 0 {
					continue
				}
				for t := from; t != b; t = via[t].to {
					s := via[t]
					if pl.holders[s.slot][s.j] != t || !pl.takes(s.slot, s.j, s.to) {
						return false // two steps of the chain met in one slot
					}
					pl.give(s.slot, s.j, s.to)
				}
				return true
			}
		}
	}
	return false
}

// moves returns what differs from what is.
func (pl *placer) moves() (ms []Move) {
	for i, h := range pl.holders {
		s := &pl.pool.Slots[i]
		for j, t := range h {
			if t < 0 {
				continue
			}
			to, in := pl.targets[t].id, s.IncomingAt(j)
			if to == in || to == s.Members[j] && in.IsZero() {
				continue
			}
			ms = append(ms, Move{Pool: pl.pool.ID, Slot: s.ID, Index: j, From: s.Members[j], To: to})
		}
	}
	return ms
}
