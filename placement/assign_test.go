package placement

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"rfs"
)

// id returns a UUID that is the same in every run.
func id(kind, n int) (u rfs.UUID) {
	binary.BigEndian.PutUint64(u[:], uint64(kind))
	binary.BigEndian.PutUint64(u[8:], uint64(n))
	return u
}

// cluster returns a map with the given racks, hosts a rack and targets a host,
// all Up, of capacity(i) bytes.
func cluster(racks, hosts, targets int, capacity func(i int) int64) *Map {
	m := &Map{ClusterID: id(0, 1), Epoch: 1}
	for r := range racks {
		for h := range hosts {
			addHost(m, r, h, targets, capacity)
		}
	}
	m.Index()
	return m
}

func addHost(m *Map, rack, host, targets int, capacity func(i int) int64) {
	n := Node{ID: id(1, len(m.Nodes)), Name: fmt.Sprintf("r%dh%d", rack, host), Domain: fmt.Sprintf("r%d/h%d", rack, host)}
	m.Nodes = append(m.Nodes, n)
	for range targets {
		i := len(m.Targets)
		m.Targets = append(m.Targets, Target{ID: id(2, i), Node: n.ID, Name: fmt.Sprintf("%s-%d", n.Name, i), Capacity: capacity(i), State: Up})
	}
	m.Index()
}

const tib = 1 << 40

func equal(int) int64 { return 4 * tib }

// unequal is disks of 4, 8, 12, 16 and 20 TiB.
func unequal(i int) int64 { return int64(4+4*(mix(uint64(i))%5)) * tib }

// checkSlots fails unless every slot has distinct members within the limits
// that the numbers of hosts and racks of m allow.
func checkSlots(t *testing.T, m *Map, p *Pool, perHost, perRack int) {
	t.Helper()
	for i := range p.Slots {
		s := &p.Slots[i]
		hosts, racks, seen := map[string]int{}, map[string]int{}, map[rfs.TargetID]bool{}
		for j, member := range s.Members {
			if in := s.IncomingAt(j); !in.IsZero() {
				member = in
			}
			if seen[member] || m.Target(member) == nil {
				t.Fatalf("slot %d: member %d is %v, a second time or unknown", i, j, member)
			}
			seen[member] = true
			rack, host := m.domain(m.Target(member))
			hosts[host]++
			racks[rack]++
		}
		for h, n := range hosts {
			if n > perHost {
				t.Fatalf("slot %d: %d members on host %q, at most %d may be", i, n, h, perHost)
			}
		}
		for r, n := range racks {
			if n > perRack {
				t.Fatalf("slot %d: %d members in rack %q, at most %d may be", i, n, r, perRack)
			}
		}
	}
}

// loads returns how many positions each target has, or will have.
func loads(p *Pool) map[rfs.TargetID]int {
	n := map[rfs.TargetID]int{}
	for i := range p.Slots {
		for j, member := range p.Slots[i].Members {
			if in := p.Slots[i].IncomingAt(j); !in.IsZero() {
				member = in
			}
			n[member]++
		}
	}
	return n
}

// overShare returns the largest load over the share that weight and failure domains allow.
func overShare(m *Map, p *Pool) (most float64) {
	for _, c := range newPlacer(m, p).targets {
		if c.open {
			most = max(most, float64(c.load)/c.share)
		}
	}
	return most
}

// peak returns the largest load by weight over the mean load by weight.
func peak(m *Map, p *Pool) float64 {
	var weight, load, most float64
	n := loads(p)
	for i := range m.Targets {
		t := &m.Targets[i]
		if t.State == Up && !t.Draining {
			weight += t.weight()
			load += float64(n[t.ID])
			most = max(most, float64(n[t.ID])/t.weight())
		}
	}
	return most / (load / weight)
}

func pool(t *testing.T, m *Map, s Scheme, nslots int) *Map {
	t.Helper()
	m, err := AddPool(m, "p", s, 0, 0, nslots)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAssignBalancesUnequalTargets(t *testing.T) {
	for _, c := range []struct {
		name                  string
		racks, hosts, targets int
		s                     Scheme
		nslots                int
		perHost, perRack      int
	}{
		{"a disk a host, one rack", 1, 60, 1, Scheme{4, 2}, manySlots, 1, 6},
		{"racks enough", 10, 4, 2, Scheme{4, 2}, manySlots, 1, 1},
		{"three racks", 3, 10, 2, Scheme{4, 2}, manySlots, 1, 2},
		{"wide", 1, 40, 2, Scheme{8, 2}, manySlots, 1, 10},
		{"replicas", 3, 8, 1, Scheme{1, 2}, manySlots, 1, 1},
		{"by default", 1, 40, 4, Scheme{8, 2}, 0, 1, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := pool(t, cluster(c.racks, c.hosts, c.targets, unequal), c.s, c.nslots)
			p := m.PoolByName("p")
			checkSlots(t, m, p, c.perHost, c.perRack)
			// Where the racks' limits decide, no assignment follows the weights alone.
			got := overShare(m, p)
			if c.perRack >= c.s.Width() || c.racks > c.s.Width() {
				got = peak(m, p)
			}
			if got > 1.05 {
				t.Errorf("peak/mean is %.4f, want at most 1.05", got)
			} else {
				t.Logf("peak/mean %.4f over %d slots", got, len(p.Slots))
			}
		})
	}
}

// Members that are first parity fold and resolve: no target may have that much oftener than others.
func TestPositionsAreSpreadOverTargets(t *testing.T) {
	m := pool(t, cluster(1, 12, 1, unequal), Scheme{4, 2}, manySlots)
	p := m.PoolByName("p")
	n, at := loads(p), map[rfs.TargetID]int{}
	for i := range p.Slots {
		at[p.Slots[i].Members[4]]++
	}
	for target, n := range n {
		if part := float64(at[target]) * 6 / float64(n); part < 0.9 || part > 1.1 {
			t.Errorf("target %v is first parity %.2f times as often as the mean", target, part)
		}
	}
}

func TestAssignWithFewHosts(t *testing.T) {
	for _, c := range []struct {
		hosts, targets, perHost int
	}{
		{1, 7, 6}, // rfs dev: all on one host
		{3, 4, 2}, // a host may fail
		{2, 4, 3},
		{5, 2, 2},
		{6, 1, 1}, // as many as members: each is in every slot
		{7, 1, 1},
	} {
		m := pool(t, cluster(1, c.hosts, c.targets, unequal), Scheme{4, 2}, 0)
		checkSlots(t, m, m.PoolByName("p"), c.perHost, 6)
	}
}

// Hosts that are too large for the domains' limits are used fully, the others evenly.
func TestAssignWithOneHugeHost(t *testing.T) {
	huge := func(i int) int64 { return int64(tib + i/9*99*tib) }
	m := pool(t, cluster(1, 10, 1, huge), Scheme{4, 2}, 4096)
	p := m.PoolByName("p")
	checkSlots(t, m, p, 1, 6)
	n := loads(p)
	if got := n[id(2, 9)]; got != 4096 {
		t.Errorf("the huge target is in %d of 4096 slots", got)
	}
	for i := range 9 {
		if got, want := n[id(2, i)], 4096*5/9; got < want || got > want+1 {
			t.Errorf("target %d has %d slots, want %d or %d", i, got, want, want+1)
		}
	}
}

// Replicas of one cluster that run different releases, or on different
// processors, must place alike: these numbers may not change.
func TestAssignGolden(t *testing.T) {
	m := pool(t, cluster(3, 4, 2, unequal), Scheme{4, 2}, 0)
	h := crc32.NewIEEE()
	for _, s := range m.Pools[0].Slots {
		for _, t := range s.Members {
			h.Write(t[:])
		}
	}
	if got, want := h.Sum32(), uint32(0x98831fa9); got != want {
		t.Errorf("the slots of the pool have CRC-32 %#08x, want %#08x", got, want)
	}
	for h, want := range map[uint64]uint64{1: 64 << 40, 1 << 63: 1 << 40, 1<<64 - 1: 1, 0xc000000000000000: 456338556421, 0x123456789abcdef0: 4193296810690} {
		if got := negLog2(h); got != want {
			t.Errorf("negLog2(%#x) = %d, want %d", h, got, want)
		}
	}
}

func TestNegLog2(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 100_000 {
		h := rng.Uint64() >> rng.IntN(64)
		want := 64 - math.Log2(float64(h|1))
		if got := float64(negLog2(h)) / (1 << 40); math.Abs(got-want) > 2e-7 {
			t.Fatalf("-log2(%#x/2^64) = %v, want %v", h, got, want)
		}
	}
}

// settle lets everything sync that does.
func settle(t *testing.T, m *Map) *Map {
	t.Helper()
	for i := range m.Pools {
		p := &m.Pools[i]
		for j := range p.Slots {
			for _, target := range slices.Concat(p.Slots[j].Members, p.Slots[j].Incoming) {
				s := &m.Pools[i].Slots[j]
				if !m.IsUp(target) || !s.Names(target) {
					continue
				}
				next, err := SetSlotSynced(m, p.ID, s.ID, target, s.Epoch)
				if err != nil {
					t.Fatal(err)
				}
				m = next
			}
		}
	}
	return m
}

func TestMovementWhenTargetsJoin(t *testing.T) {
	for _, c := range []struct {
		racks, hosts, targets, nslots int
	}{{1, 20, 2, 4096}, {8, 4, 2, 4096}, {1, 6, 1, 1024}, {3, 6, 2, 4096}} {
		m := pool(t, cluster(c.racks, c.hosts, c.targets, unequal), Scheme{4, 2}, c.nslots)
		for round := range 4 {
			before := len(m.Targets)
			grown := *m
			grown.Nodes, grown.Targets = slices.Clone(m.Nodes), slices.Clone(m.Targets)
			addHost(&grown, round%c.racks, c.hosts+round, c.targets, unequal)
			moves := Rebalance(&grown, 0)
			// What the new targets must have at least is what anyone must move.
			var ideal float64
			pl := newPlacer(&grown, &grown.Pools[0])
			for i := before; i < len(grown.Targets); i++ {
				ideal += pl.targets[i].share
			}
			if got := float64(len(moves)); got > 1.1*ideal || got < 0.9*ideal {
				t.Errorf("%v, host %d joins: %d moves, the ideal is %.0f", c, round, len(moves), ideal)
			}
			for _, mv := range moves {
				if pl.number[mv.To] < before {
					t.Errorf("%v, host %d joins: %v goes from old to old", c, round, mv)
					break
				}
			}
			m = settleFast(t, &grown, moves)
			checkSlots(t, m, &m.Pools[0], 1, 6)
			if got := overShare(m, &m.Pools[0]); got > 1.05 {
				t.Errorf("%v, host %d joined: peak/mean is %.3f", c, round, got)
			}
		}
	}
}

// settleFast starts the moves and completes them, without a transition for every slot.
func settleFast(t *testing.T, m *Map, moves []Move) *Map {
	t.Helper()
	next, err := StartMoves(m, moves)
	if err != nil {
		t.Fatal(err)
	}
	for i := range next.Pools[0].Slots {
		s := &next.Pools[0].Slots[i]
		s.Members = slices.Clone(s.Members)
		for j := range s.Members {
			if in := s.IncomingAt(j); !in.IsZero() {
				s.Members[j] = in
			}
		}
		s.Incoming = nil
	}
	return next
}

func TestMovementWhenTargetsLeave(t *testing.T) {
	for _, c := range []struct {
		racks, hosts, targets, nslots int
	}{{1, 20, 2, 4096}, {8, 4, 2, 4096}, {1, 16, 1, 1024}, {3, 6, 2, 4096}} {
		m := pool(t, cluster(c.racks, c.hosts, c.targets, unequal), Scheme{4, 2}, c.nslots)
		for round := range 3 {
			leaver := m.Targets[mix(uint64(round))%uint64(len(m.Targets))]
			ideal := loads(&m.Pools[0])[leaver.ID]
			drained, err := StartDrain(m, leaver.ID)
			if err != nil {
				t.Fatal(err)
			}
			extra := Rebalance(drained, 0)
			n := len(extra)
			for i := range drained.Pools[0].Slots {
				for j := range 6 {
					if !drained.Pools[0].Slots[i].IncomingAt(j).IsZero() {
						n++
					}
				}
			}
			if float64(n) > 1.1*float64(ideal) {
				t.Errorf("%v, %s leaves: %d moves (%d of them to level), the ideal is %d", c, leaver.Name, n, len(extra), ideal)
			}
			m = settleFast(t, drained, extra)
			checkSlots(t, m, &m.Pools[0], 1, 6)
			if m, err = RemoveTarget(m, leaver.ID); err != nil {
				t.Fatal(err)
			}
			if got := overShare(m, &m.Pools[0]); got > 1.05 {
				t.Errorf("%v, %s left: peak/mean is %.3f", c, leaver.Name, got)
			}
		}
	}
}

func TestRebalanceOfABalancedPoolMovesNothing(t *testing.T) {
	for seed := range 20 {
		m := pool(t, cluster(1+seed%4, 7, 1+seed%3, unequal), Scheme{4, 2}, 0)
		if moves := Rebalance(m, 0); len(moves) > 0 {
			t.Errorf("cluster %d: %d moves", seed, len(moves))
		}
	}
}

func TestReplace(t *testing.T) {
	m := pool(t, cluster(1, 8, 2, unequal), Scheme{4, 2}, 0)
	p := &m.Pools[0]
	for i := range p.Slots {
		s := &p.Slots[i]
		for j := range s.Members {
			got, err := Replace(m, p.ID, s.ID, j)
			if err != nil {
				t.Fatal(err)
			}
			if s.Names(got) {
				t.Fatalf("slot %d: position %d goes to %v, which the slot has", i, j, got)
			}
			for o, member := range s.Members {
				if o != j && m.Target(member).Node == m.Target(got).Node {
					t.Fatalf("slot %d: position %d goes to the host of %d", i, j, o)
				}
			}
		}
	}
	m = pool(t, cluster(1, 6, 1, equal), Scheme{4, 2}, 0)
	if _, err := Replace(m, 0, 0, 0); err == nil || !strings.Contains(err.Error(), "add a target") {
		t.Errorf("six targets for six positions: %v", err)
	}
}

func TestSlotOfVisitsEverySlot(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{1, 2, 3, 4, 12, 64, 97, 128, 1000} {
		p := &Pool{Slots: make([]Slot, n), Scheme: Scheme{4, 2}}
		for range 20 {
			start := rfs.SlotID(rng.IntN(n))
			first := rng.Uint32N(1<<32 - 1 - uint32(n))
			if first%3 == 0 {
				first = 0
			}
			seen := make([]bool, n)
			for i := range n {
				s := p.SlotOf(p.Layout(start), first+uint32(i))
				if seen[s] {
					t.Fatalf("%d slots, start %d: slot %d twice in stripes %d+%d", n, start, s, first, n)
				}
				seen[s] = true
			}
			if got := p.SlotOf(p.Layout(start), 0); got != start {
				t.Fatalf("stripe 0 is in slot %d, want %d", got, start)
			}
		}
	}
}

// Where files are depends on these numbers: they may never change.
func TestSlotOfGolden(t *testing.T) {
	for _, g := range []struct {
		nslots int
		start  rfs.SlotID
		want   []rfs.SlotID
	}{
		{128, 17, []rfs.SlotID{17, 62, 107, 89, 100}},
		{100, 99, []rfs.SlotID{99, 86, 73, 99, 64}},
		{7, 3, []rfs.SlotID{3, 1, 6, 5, 4}},
	} {
		p := &Pool{Slots: make([]Slot, g.nslots)}
		var got []rfs.SlotID
		for _, stripe := range []uint32{0, 1, 2, 1000, 1<<32 - 1} {
			got = append(got, p.SlotOf(p.Layout(g.start), stripe))
		}
		if !slices.Equal(got, g.want) {
			t.Errorf("%d slots from %d: %v, want %v", g.nslots, g.start, got, g.want)
		}
	}
}

func TestChooseStartPrefersSpace(t *testing.T) {
	m := pool(t, cluster(1, 12, 1, equal), Scheme{4, 2}, 256)
	m, err := UpdateTargetSpace(m, id(2, 0), 4*tib, 4*tib-1)
	if err != nil {
		t.Fatal(err)
	}
	p, rng, full := &m.Pools[0], rand.New(rand.NewPCG(5, 6)), 0
	const files = 20_000
	for range files {
		if p.Slots[ChooseStart(m, p, rng.Uint64)].Index(id(2, 0)) >= 0 {
			full++
		}
	}
	// Half the slots have the full target: with two choices a quarter of the files.
	if full > files*3/10 {
		t.Errorf("%d of %d files start on a full target", full, files)
	}
}
