package placement

import (
	"slices"
	"testing"

	"rfs"
)

// Two of seven targets go: the slots that had both are given the one that is
// left over, and all can be written.
func TestRelieve(t *testing.T) {
	m := pool(t, cluster(1, 7, 1, equal), Scheme{4, 2}, 0)
	lost := []rfs.TargetID{m.Targets[1].ID, m.Targets[4].ID}
	down, err := SetTargetState(m, Down, lost...)
	if err != nil {
		t.Fatal(err)
	}
	next := Relieve(down)
	relieved := 0
	for i := range next.Pools[0].Slots {
		was, s := &down.Pools[0].Slots[i], &next.Pools[0].Slots[i]
		if !next.CanWrite(&next.Pools[0], s) {
			t.Errorf("slot %d has %d live positions", i, next.Live(s))
		}
		if down.CanWrite(&down.Pools[0], was) {
			if s.Incoming != nil || s.Epoch != was.Epoch {
				t.Errorf("slot %d could be written, and was changed", i)
			}
			continue
		}
		relieved++
		if s.Epoch <= was.Epoch {
			t.Errorf("slot %d was changed at the same epoch", i)
		}
		for j, in := range s.Incoming {
			if in.IsZero() {
				continue
			}
			if !slices.Contains(lost, s.Members[j]) || !next.IsUp(in) || slices.Contains(s.Members, in) {
				t.Errorf("slot %d position %d: %v takes the place of %v", i, j, in, s.Members[j])
			}
		}
	}
	if relieved == 0 {
		t.Fatal("no slot had both of the lost targets: the test shows nothing")
	}
	if again := Relieve(next); again != next {
		t.Error("a second time changes something")
	}
	three, err := SetTargetState(down, Down, m.Targets[2].ID)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range Relieve(three).Pools[0].Slots {
		if three.Live(&three.Pools[0].Slots[i]) < 4 && s.Incoming != nil {
			t.Errorf("slot %d has too few live members to rebuild from, and is to be rebuilt", i)
		}
	}
}
