package stripe

import (
	"testing"
	"time"

	"rfs"
	"rfs/transport/wire"
)

func TestAdmit(t *testing.T) {
	now := time.Unix(100, 0)
	base := full(5, set(0))
	base.State = wire.Complete
	held := []Version{base, partial(7, set(0))}
	other := Turn{Session: 9, Until: now.Add(time.Second)}
	for _, c := range []struct {
		name  string
		ask   Ask
		floor int
		turn  Turn
		want  Verdict
		high  int
	}{
		{"above all", Ask{ID: ID{tagOf(8), wire.Full}}, 0, Turn{}, Accept, 7},
		{"below what is held", Ask{ID: ID{tagOf(6), wire.Full}}, 0, Turn{}, Stale, 7},
		{"again", Ask{ID: ID{tagOf(7), wire.Partial}}, 9, other, Held, 9},
		{"the same tag as another kind", Ask{ID: ID{tagOf(7), wire.Full}}, 0, Turn{}, Stale, 7},
		{"below a floor", Ask{ID: ID{tagOf(8), wire.Full}}, 9, Turn{}, Stale, 9},
		{"at a floor", Ask{ID: ID{tagOf(9), wire.Full}}, 9, Turn{}, Stale, 9},
		{"repair below a floor", Ask{ID: ID{tagOf(6), wire.Full}, Repair: true}, 9, other, Accept, 9},
		{"repair of a fold", Ask{ID: ID{tagOf(7), wire.Full}, Repair: true}, 9, other, Accept, 9},
		{"repair of the superseded", Ask{ID: ID{tagOf(4), wire.Full}, Repair: true}, 0, Turn{}, Superseded, 7},
		{"another's turn", Ask{ID: ID{tagOf(8), wire.Full}, Session: 3}, 0, other, Busy, 7},
		{"its turn", Ask{ID: ID{tagOf(8), wire.Full}, Session: 9}, 0, other, Accept, 7},
		{"a turn that passed", Ask{ID: ID{tagOf(8), wire.Full}, Session: 3}, 0, Turn{9, now}, Accept, 7},
	} {
		got, high := Admit(c.ask, held, tagOf(c.floor), c.turn, now)
		if got != c.want || high != tagOf(c.high) {
			t.Errorf("%s: verdict %v, highest %v; want %v, %d", c.name, got, high, c.want, c.high)
		}
	}
}

func TestAdmitRetag(t *testing.T) {
	now := time.Unix(100, 0)
	done := full(5, set(0))
	done.State = wire.Complete
	held := []Version{done, partial(7, set(0)), partial(8, set(0))}
	for _, c := range []struct {
		name  string
		old   ID
		next  int
		floor int
		want  Verdict
	}{
		{"above all", ID{tagOf(7), wire.Partial}, 9, 0, Accept},
		{"above all but another", ID{tagOf(8), wire.Partial}, 9, 0, Accept},
		{"below another", ID{tagOf(7), wire.Partial}, 8, 0, Held}, // it is there already
		{"below a floor", ID{tagOf(7), wire.Partial}, 9, 9, Stale},
		{"not held", ID{tagOf(6), wire.Partial}, 9, 0, Gone},
		{"complete", ID{tagOf(5), wire.Full}, 9, 0, Gone},
	} {
		if got, _ := AdmitRetag(c.old, tagOf(c.next), 1, held, tagOf(c.floor), Turn{}, now); got != c.want {
			t.Errorf("%s: verdict %v, want %v", c.name, got, c.want)
		}
	}
}

// Floors forget stripes, never promises.
func TestFloors(t *testing.T) {
	f := NewFloors(3)
	for i := range 10 {
		f.Promise(Stripe{Inode: 1, Stripe: uint32(i)}, tagOf(100-i))
	}
	for i := range 10 {
		if got := f.Of(Stripe{Inode: 1, Stripe: uint32(i)}); got.Less(tagOf(100 - i)) {
			t.Errorf("stripe %d: floor %v, promised %d", i, got, 100-i)
		}
	}
	if len(f.of) > 3 || len(f.order) > 3 {
		t.Errorf("%d stripes remembered, %d in order", len(f.of), len(f.order))
	}
	if got := f.Of(Stripe{Inode: 2}); got != tagOf(100) {
		t.Errorf("floor of all is %v", got)
	}
}

func TestFoldPolicy(t *testing.T) {
	p := FoldPolicy{}.WithDefaults()
	one := partial(2, set(0, 2))
	one.Segments = []wire.Segment{{Shard: 0, Len: 10}}
	many := make([]Version, 17)
	for i := range many {
		many[i] = one
		many[i].Tag = rfs.Tag{HLC: uint64(10 + i)}
	}
	base := full(1, set(0))
	base.State = wire.Complete
	big := one
	big.Length = 2 << 20
	for _, c := range []struct {
		name  string
		vs    []Version
		since time.Duration
		want  bool
	}{
		{"nothing", nil, time.Hour, false},
		{"a base alone", []Version{base}, time.Hour, false},
		{"one overlay on nothing", []Version{one}, time.Hour, false},
		{"one overlay on a base", []Version{base, one}, time.Hour, true},
		{"one overlay on a base, new", []Version{base, one}, time.Second, false},
		{"many", many, 0, true},
		{"few", many[:16], 0, false},
		{"big", []Version{big}, 0, true},
	} {
		if got := p.Want(c.vs, c.since); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
