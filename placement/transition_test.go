package placement

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"rfs"
)

func okay(t *testing.T) func(m *Map, err error) *Map {
	return func(m *Map, err error) *Map {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

func TestTargetGoesAndComesBack(t *testing.T) {
	ok := okay(t)
	m := pool(t, cluster(1, 8, 1, equal), Scheme{4, 2}, 64)
	lost := id(2, 3)
	down := ok(SetTargetState(m, Down, lost))
	up := ok(SetTargetState(down, Up, lost))
	for i := range m.Pools[0].Slots {
		a, b, c := &m.Pools[0].Slots[i], &down.Pools[0].Slots[i], &up.Pools[0].Slots[i]
		j := a.Index(lost)
		if j < 0 {
			if c.Epoch != a.Epoch {
				t.Errorf("slot %d does not have the target, and its epoch rose", i)
			}
			continue
		}
		if b.Epoch != a.Epoch+1 || c.Epoch != a.Epoch+2 {
			t.Errorf("slot %d: epochs %d, %d, %d", i, a.Epoch, b.Epoch, c.Epoch)
		}
		if down.Writable(b, j) || down.Readable(b, j) || !up.Writable(c, j) || up.Readable(c, j) {
			t.Errorf("slot %d: a member that is down takes part, or one that is back may be read", i)
		}
		if got := down.Leader(&down.Pools[0], b); j == 4 && got != 5 || j != 4 && got != 4 {
			t.Errorf("slot %d: without position %d position %d leads", i, j, got)
		}
		synced := ok(SetSlotSynced(up, 0, c.ID, lost, c.Epoch))
		if !synced.Readable(&synced.Pools[0].Slots[i], j) {
			t.Errorf("slot %d: synced, but not to be read", i)
		}
		if _, err := SetSlotSynced(up, 0, c.ID, lost, b.Epoch); !errors.Is(err, rfs.ErrStaleEpoch) {
			t.Errorf("slot %d: synced under an old epoch: %v", i, err)
		}
	}
	if again := ok(SetTargetState(down, Down, lost)); again != down {
		t.Error("a target that is down went down again")
	}
	if restarted := ok(SetTargetState(m, Up, lost)); restarted.Epoch != m.Epoch+1 {
		t.Error("a restart that nobody missed changes nothing")
	}
}

func TestTwoTargetsGoAtOnce(t *testing.T) {
	m := pool(t, cluster(1, 8, 1, equal), Scheme{4, 2}, 64)
	down := okay(t)(SetTargetState(m, Down, id(2, 0), id(2, 1)))
	if down.Epoch != m.Epoch+1 {
		t.Errorf("the map's epoch went from %d to %d", m.Epoch, down.Epoch)
	}
	p := &down.Pools[0]
	for i := range p.Slots {
		s := &p.Slots[i]
		want := m.Pools[0].Slots[i].Epoch
		both := s.Index(id(2, 0)) >= 0 && s.Index(id(2, 1)) >= 0
		if both || s.Index(id(2, 0)) >= 0 || s.Index(id(2, 1)) >= 0 {
			want++
		}
		if s.Epoch != want {
			t.Errorf("slot %d: epoch %d, want %d", i, s.Epoch, want)
		}
		if down.CanWrite(p, s) == both {
			t.Errorf("slot %d: %d of 4+2 live, can be written: %v", i, down.Live(s), !both)
		}
	}
}

func TestCanWrite(t *testing.T) {
	for _, c := range []struct {
		s    Scheme
		down int
		want bool
	}{
		{Scheme{4, 2}, 0, true}, {Scheme{4, 2}, 1, true}, {Scheme{4, 2}, 2, false},
		{Scheme{4, 1}, 1, true}, {Scheme{4, 1}, 2, false},
		{Scheme{1, 2}, 1, true}, {Scheme{1, 2}, 2, false},
		{Scheme{1, 1}, 1, true}, {Scheme{1, 1}, 2, false},
		{Scheme{8, 3}, 2, true}, {Scheme{8, 3}, 3, false},
	} {
		m := pool(t, cluster(1, 12, 1, equal), c.s, 8)
		s := &m.Pools[0].Slots[0]
		m = okay(t)(SetTargetState(m, Down, s.Members[:c.down]...))
		if got := m.CanWrite(&m.Pools[0], &m.Pools[0].Slots[0]); got != c.want {
			t.Errorf("%v with %d down: can be written: %v", c.s, c.down, got)
		}
	}
}

func TestDrainAndRemove(t *testing.T) {
	ok := okay(t)
	m := pool(t, cluster(1, 8, 1, equal), Scheme{4, 2}, 64)
	leaver := id(2, 5)
	if _, err := RemoveTarget(m, leaver); !errors.Is(err, rfs.ErrNotEmpty) || !strings.Contains(err.Error(), "drain") {
		t.Errorf("removing a target with shards: %v", err)
	}
	drained := ok(StartDrain(m, leaver))
	if drained.Epoch != m.Epoch+1 {
		t.Errorf("the map's epoch went from %d to %d", m.Epoch, drained.Epoch)
	}
	for i := range drained.Pools[0].Slots {
		s := &drained.Pools[0].Slots[i]
		at := s.Index(leaver)
		if at < 0 != (s.Incoming == nil) || at >= 0 && s.IncomingAt(at).IsZero() {
			t.Errorf("slot %d: the leaver has position %d, incoming are %v", i, at, s.Incoming)
		}
		if at >= 0 && s.Epoch != m.Pools[0].Slots[i].Epoch+1 {
			t.Errorf("slot %d: epoch %d", i, s.Epoch)
		}
	}
	if again := ok(StartDrain(drained, leaver)); again != drained {
		t.Error("draining again changes something")
	}
	if kept := ok(CancelDrain(drained, leaver)); kept.Positions(leaver) != m.Positions(leaver) || len(loads(&kept.Pools[0])) != 8 {
		t.Error("a drain called off leaves something moving")
	}
	// What is incoming dies: drain again chooses others.
	s := slices.IndexFunc(drained.Pools[0].Slots, func(s Slot) bool { return s.Incoming != nil })
	in := drained.Pools[0].Slots[s].Incoming[drained.Pools[0].Slots[s].Index(leaver)]
	other := ok(StartDrain(ok(SetTargetState(drained, Down, in)), leaver))
	if other.Pools[0].Slots[s].IncomingIndex(in) >= 0 {
		t.Errorf("slot %d still moves to a target that is down", s)
	}
	gone := ok(RemoveTarget(settle(t, drained), leaver))
	if gone.Target(leaver) != nil {
		t.Error("still there")
	}
	checkSlots(t, gone, &gone.Pools[0], 1, 6)
	node := m.Target(leaver).Node
	if ok(RemoveNode(gone, node)).Node(node) != nil {
		t.Error("the node is still there")
	}
	if _, err := RemoveNode(m, node); !errors.Is(err, rfs.ErrNotEmpty) {
		t.Errorf("removing a node with a target: %v", err)
	}
	// Six are left for six positions after two more.
	six := gone
	six = ok(RemoveTarget(settle(t, ok(StartDrain(six, id(2, 0)))), id(2, 0)))
	if _, err := StartDrain(six, id(2, 1)); !errors.Is(err, rfs.ErrNoSpace) || !strings.Contains(err.Error(), "add targets") {
		t.Errorf("draining one of six: %v", err)
	}
}

// A random history of all transitions. What must hold holds after each; and
// what a transition returned is never changed by a later one.
func TestRandomHistories(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { history(t, rand.New(rand.NewPCG(seed, 99)), 150) })
	}
}

func history(t *testing.T, rng *rand.Rand, steps int) {
	m := pool(t, cluster(1+rng.IntN(3), 4+rng.IntN(4), 1+rng.IntN(2), unequal), Scheme{2, 2}, 32)
	m = okay(t)(AddPool(m, "replicas", Scheme{1, 2}, 64<<10, 16<<10, 16))
	joined := 1000
	for step := range steps {
		before := encode(t, m)
		next, err := transition(m, rng, &joined)
		if !slices.Equal(encode(t, m), before) {
			t.Fatalf("step %d changed the map that it was given", step)
		}
		if err != nil {
			if next != nil {
				t.Fatalf("step %d: a map and an error: %v", step, err)
			}
			continue
		}
		checkStep(t, step, m, next)
		m = next
	}
}

func encode(t *testing.T, m *Map) []byte {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// transition applies a random one to m.
func transition(m *Map, rng *rand.Rand, joined *int) (*Map, error) {
	target := &m.Targets[rng.IntN(len(m.Targets))]
	p := &m.Pools[rng.IntN(len(m.Pools))]
	slot := &p.Slots[rng.IntN(len(p.Slots))]
	switch rng.IntN(12) {
	case 0:
		return SetTargetState(m, Down, target.ID, m.Targets[rng.IntN(len(m.Targets))].ID)
	case 1, 2:
		return SetTargetState(m, Up, target.ID)
	case 3, 4, 5, 6:
		names := slices.Concat(slot.Members, slot.Incoming)
		return SetSlotSynced(m, p.ID, slot.ID, names[rng.IntN(len(names))], slot.Epoch-rfs.Epoch(rng.IntN(8)/7))
	case 7:
		return StartMoves(m, Rebalance(m, p.ID))
	case 8:
		if rng.IntN(2) == 0 {
			return CancelDrain(m, target.ID)
		}
		return StartDrain(m, target.ID)
	case 9:
		for i := range m.Targets {
			if m.Targets[i].Draining && m.Positions(m.Targets[i].ID) == 0 {
				return RemoveTarget(m, m.Targets[i].ID)
			}
		}
		return RemoveTarget(m, target.ID)
	case 10:
		*joined++
		n := Node{ID: id(1, *joined), Name: fmt.Sprint("new", *joined), Domain: fmt.Sprintf("r%d/n%d", rng.IntN(3), *joined)}
		next, err := AddNode(m, n)
		if err != nil || len(m.Targets) > 20 {
			return next, err
		}
		t := Target{ID: id(2, *joined), Node: n.ID, Name: n.Name, Capacity: unequal(*joined), State: Up}
		if next, err = AddTarget(next, t); err == nil {
			next.Epoch = m.Epoch + 1
		}
		return next, err
	default:
		return UpdateTargetSpace(m, target.ID, target.Capacity, rng.Int64N(target.Capacity))
	}
}

func checkStep(t *testing.T, step int, m, next *Map) {
	t.Helper()
	if next.Epoch != m.Epoch && next.Epoch != m.Epoch+1 {
		t.Fatalf("step %d: the map's epoch goes from %d to %d", step, m.Epoch, next.Epoch)
	}
	for i := range next.Targets {
		if next.Target(next.Targets[i].ID) != &next.Targets[i] {
			t.Fatalf("step %d: the tables are out of date", step)
		}
	}
	for i := range next.Pools {
		for j := range next.Pools[i].Slots {
			a, b := &m.Pools[i].Slots[j], &next.Pools[i].Slots[j]
			if reflect.DeepEqual(a, b) {
				for _, target := range slices.Concat(b.Members, b.Incoming) {
					if !target.IsZero() && m.IsUp(target) != next.IsUp(target) {
						t.Fatalf("step %d: the state of a target of slot %d changed, and its epoch did not", step, j)
					}
				}
				continue
			}
			if b.Epoch != a.Epoch+1 || next.Epoch != m.Epoch+1 {
				t.Fatalf("step %d: slot %d changed, with epochs %d to %d and the map's %d to %d", step, j, a.Epoch, b.Epoch, m.Epoch, next.Epoch)
			}
			checkSlot(t, step, next, b)
		}
	}
}

func checkSlot(t *testing.T, step int, m *Map, s *Slot) {
	t.Helper()
	seen := map[rfs.TargetID]bool{}
	for _, target := range slices.Concat(s.Members, s.Incoming) {
		if target.IsZero() {
			continue
		}
		if seen[target] || m.Target(target) == nil {
			t.Fatalf("step %d: slot %d names %v, twice or unknown", step, s.ID, target)
		}
		seen[target] = true
	}
	if s.Incoming != nil && len(s.Incoming) != len(s.Members) {
		t.Fatalf("step %d: slot %d has %d members and %d incoming", step, s.ID, len(s.Members), len(s.Incoming))
	}
}

func TestMapSurvivesJSON(t *testing.T) {
	m := pool(t, cluster(2, 4, 1, unequal), Scheme{4, 2}, 64)
	m = okay(t)(SetTargetState(m, Up, id(2, 1)))
	m = okay(t)(StartDrain(m, id(2, 2)))
	var got Map
	if err := json.Unmarshal(encode(t, m), &got); err != nil {
		t.Fatal(err)
	}
	got.Index()
	if !reflect.DeepEqual(&got, m) {
		t.Error("the map is another after JSON")
	}
}

func TestBadTransitions(t *testing.T) {
	m := pool(t, cluster(1, 7, 1, equal), Scheme{4, 2}, 64)
	none := rfs.NewUUID()
	err := func(_ *Map, err error) error { return err }
	s := &m.Pools[0].Slots[0]
	for what, err := range map[string]error{
		"pool: 7 targets":             err(AddPool(m, "wide", Scheme{6, 2}, 0, 0, 0)),
		"pool exists":                 err(AddPool(m, "p", Scheme{4, 2}, 0, 0, 0)),
		"cell of 1000":                err(AddPool(m, "q", Scheme{4, 2}, 0, 1000, 0)),
		"unit of a cell and a half":   err(AddPool(m, "q", Scheme{4, 2}, 6<<12, 1<<14, 0)),
		"too many slots":              err(AddPool(m, "q", Scheme{4, 2}, 0, 0, MaxSlots+1)),
		"no name":                     err(AddPool(m, "", Scheme{4, 2}, 0, 0, 0)),
		"scheme 0+2":                  err(AddPool(m, "q", Scheme{0, 2}, 0, 0, 0)),
		"target of no node":           err(AddTarget(m, Target{ID: none, Node: none})),
		"target without id":           err(AddTarget(m, Target{Node: m.Nodes[0].ID})),
		"node without id":             err(AddNode(m, Node{})),
		"state of no target":          err(SetTargetState(m, Up, none)),
		"space of no target":          err(UpdateTargetSpace(m, none, 1, 1)),
		"negative weight":             err(SetTargetWeight(m, id(2, 0), -1)),
		"drain of no target":          err(StartDrain(m, none)),
		"synced, but not of the slot": err(SetSlotSynced(m, 0, 0, none, 1)),
		"synced in no slot":           err(SetSlotSynced(m, 0, 64, id(2, 0), 1)),
		"move from another":           err(StartMoves(m, []Move{{Slot: 0, Index: 0, From: none, To: id(2, 0)}})),
		"move to a member":            err(StartMoves(m, []Move{{Slot: 0, Index: 0, From: s.Members[0], To: s.Members[1]}})),
		"move to no target":           err(StartMoves(m, []Move{{Slot: 0, Index: 0, From: s.Members[0], To: none}})),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestParseScheme(t *testing.T) {
	for in, want := range map[string]Scheme{"ec:4+2": {4, 2}, "ec:8+2": {8, 2}, "replica:3": {1, 2}, "replica:2": {1, 1}, "ec:250+5": {250, 5}} {
		s, err := ParseScheme(in)
		if err != nil || s != want || s.String() != in {
			t.Errorf("%s: %v, %v", in, s, err)
		}
	}
	for in, why := range map[string]string{
		"ec:0+2": "k is 0", "ec:4+0": "m is 0", "ec:-1+2": "k is -1", "ec:200+56": "k+m is 256", "replica:1": "m is 0", "replica:0": "m is -1",
		"replica:300": "k+m is 300", "ec:4": "ec:K+M", "ec:4+": "decimal", "ec:a+b": "decimal", "raid5": "want ec:K+M", "": "want ec:K+M", "ec:4+2+1": "decimal",
	} {
		if s, err := ParseScheme(in); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), fmt.Sprintf("%q", in)) {
			t.Errorf("%q: %v, %v; want an error with %q", in, s, err, why)
		}
	}
}
