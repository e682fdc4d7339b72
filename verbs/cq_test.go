package verbs_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"rfs/verbs"
	"rfs/verbs/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// late is a provider on which a completion comes just before each arming, when
// the last poll has found nothing: it makes no event.
type late struct {
	*sim.Fabric
	inject bool
}

type lateDevice struct {
	verbs.DeviceProvider
	l *late
}

type lateCQ struct {
	verbs.CQProvider
	l *late
	n uint64
}

func (l *late) Open(name string) (verbs.DeviceProvider, error) {
	d, err := l.Fabric.Open(name)
	return lateDevice{d, l}, err
}

func (d lateDevice) CreateCQ(depth int) (verbs.CQProvider, error) {
	q, err := d.DeviceProvider.CreateCQ(depth)
	return &lateCQ{CQProvider: q, l: d.l}, err
}

func (q *lateCQ) Arm(solicited bool) error {
	if q.l.inject {
		q.n++
		sim.Inject(q.CQProvider, verbs.WC{ID: q.n})
	}
	return q.CQProvider.Arm(solicited)
}

// TestArmWithoutRepoll injects a completion between the last poll and the
// arming, 10^6 times. Without the poll after the arming the first one hangs.
func TestArmWithoutRepoll(t *testing.T) {
	rounds := 1_000_000
	if testing.Short() {
		rounds = 10_000
	}
	c, err := verbs.Open(&late{sim.Pair(), true}, "sim0")
	if err != nil {
		t.Fatal(err)
	}
	q, err := c.CreateCQ(16)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var wc [8]verbs.WC
	for i := range rounds {
		n, err := q.Next(ctx, wc[:])
		if n != 1 || err != nil || wc[0].ID != uint64(i+1) {
			t.Fatalf("round %d: %d completions, %+v, %v", i, n, wc[0], err)
		}
	}
	if s := q.Stats(); s.Waits != 0 || s.Arms != uint64(rounds) {
		t.Errorf("%+v", s)
	}
	if err := errors.Join(q.Close(), c.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestSlots(t *testing.T) {
	s := verbs.NewSlots[int](2)
	a, va, _ := s.Take()
	*va = 1
	b, vb, _ := s.Take()
	*vb = 2
	if _, _, ok := s.Take(); ok || s.Used() != 2 {
		t.Error("a third slot of two")
	}
	if !s.Release(a) || s.Release(a) {
		t.Error("a slot is released once")
	}
	c, vc, ok := s.Take()
	if !ok || *vc != 0 || uint32(c) != uint32(a) || c == a {
		t.Errorf("slot %#x after %#x, value %d", c, a, *vc)
	}
	for _, id := range []uint64{0, a, 5, ^uint64(0)} {
		if _, ok := s.Get(id); ok {
			t.Errorf("%#x is taken", id)
		}
	}
	if v, ok := s.Get(b); !ok || *v != 2 {
		t.Error("the other slot is gone")
	}
}

func TestWCError(t *testing.T) {
	for st := verbs.Status(1); st < 24; st++ {
		e := verbs.Err(&verbs.WC{Status: uint32(st), VendorErr: 0x51, QPNum: 17, ID: 3}).(*verbs.WCError)
		n := 0
		for _, is := range []bool{e.Retryable(), e.Fatal(), e.Flushed()} {
			if is {
				n++
			}
		}
		if n != 1 || e.Vendor != 0x51 || e.QPN != 17 || e.ID != 3 || !strings.Contains(e.Error(), "queue pair 17") {
			t.Errorf("%v: is %d things at once", e, n)
		}
	}
	if verbs.Err(&verbs.WC{}) != nil {
		t.Error("a success is no error")
	}
}

func TestConnectionSaysAllThatIsWrong(t *testing.T) {
	err := (&verbs.Connection{Global: true, RemoteQPN: 1 << 24}).Validate()
	for _, want := range []string{"timeout 0", "retry_cnt 0", "min_rnr_timer 0", "rnr_retry 0", "port 0", "MTU code 0", "24 bits", "hop limit 0"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not say %q", err, want)
		}
	}
	if err := (&verbs.Connection{Port: 1, PathMTU: 5, Timers: verbs.DefaultTimers}).Validate(); err == nil || !strings.Contains(err.Error(), "LID") {
		t.Errorf("no address of the peer: %v", err)
	}
}
