package sim_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rfs/verbs"
	"rfs/verbs/sim"
)

// rig is two connected ends on a network of one's own.
type rig struct {
	t    *testing.T
	f    *sim.Fabric
	dev  [2]*verbs.Context
	mr   [2]*verbs.MR
	cq   [2]*verbs.CQ
	qp   [2]*verbs.QP
	wc   [64]verbs.WC
	have [2][]verbs.WC
}

func newRig(t *testing.T, f *sim.Fabric) *rig {
	r := &rig{t: t, f: f}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	for i, name := range []string{"sim0", "sim1"} {
		r.dev[i], err = verbs.Open(f, name)
		check(err)
		pd, err := r.dev[i].AllocPD()
		check(err)
		mem, err := unix.Mmap(-1, 0, 1<<16, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		check(err)
		r.mr[i], err = pd.RegMR(mem, verbs.LocalWrite|verbs.RemoteRead|verbs.RemoteWrite)
		check(err)
		r.cq[i], err = r.dev[i].CreateCQ(64)
		check(err)
		r.qp[i], err = pd.CreateQP(verbs.QPConfig{Send: r.cq[i], Recv: r.cq[i], SendWR: 16, RecvWR: 16})
		check(err)
		t.Cleanup(func() {
			check(r.qp[i].Close())
			f.Wait()
			check(r.cq[i].Close())
			check(r.mr[i].Close())
			check(pd.Close())
			check(r.dev[i].Close())
			check(unix.Munmap(mem))
		})
	}
	var c [2]verbs.Connection
	for i := range c {
		peer := 1 - i
		c[i] = verbs.Connection{Port: 1, PathMTU: 3, LocalPSN: 0xfffffe, RemoteQPN: r.qp[peer].Num(), RemotePSN: 0xfffffe, Global: true,
			RemoteGID: verbs.GIDOf(netip.AddrFrom4([4]byte{10, 0, 0, byte(peer + 1)})), HopLimit: 64,
			Timers: verbs.Timers{Timeout: 2, RetryCount: 7, MinRNRTimer: 1, RNRRetry: 6}, MaxReads: 16, MaxReadsServed: 16}
		check(r.qp[i].Init(1, verbs.LocalWrite|verbs.RemoteRead|verbs.RemoteWrite))
		check(r.qp[i].ReadyToReceive(&c[i]))
	}
	for i := range c {
		check(r.qp[i].ReadyToSend(&c[i]))
	}
	return r
}

func (r *rig) write(id uint64, off, n int) {
	r.t.Helper()
	_, err := r.qp[0].PostSend([]verbs.SendWR{{ID: id, Opcode: verbs.OpWrite, Flags: verbs.Signaled, NumSGE: 1, RemoteAddr: r.mr[1].Addr(off), RKey: r.mr[1].RKey()}},
		[]verbs.SGE{r.mr[0].SGE(off, n)})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) next(i int) verbs.WC {
	r.t.Helper()
	if len(r.have[i]) == 0 {
		ctx, cancel := context.WithTimeout(r.t.Context(), time.Minute)
		defer cancel()
		n, err := r.cq[i].Next(ctx, r.wc[:])
		if err != nil {
			r.t.Fatal(err)
		}
		r.have[i] = append(r.have[i], r.wc[:n]...)
	}
	w := r.have[i][0]
	r.have[i] = r.have[i][1:]
	return w
}

// TestLossIsRepaired: whatever gets lost, doubled or late, each message arrives
// once and in order, over the end of the PSNs.
func TestLossIsRepaired(t *testing.T) {
	f := sim.Pair()
	r := newRig(t, f)
	n := 0
	f.Fault(func(a sim.Attempt) sim.Verdict {
		n++
		return sim.Verdict{Drop: a.Attempt == 0 && n%3 == 0, DropAck: a.Attempt == 0 && n%3 == 1, Repeat: n%5 == 0}
	})
	const sends = 16
	for i := range sends {
		if _, err := r.qp[1].PostRecv([]verbs.RecvWR{{ID: uint64(i), NumSGE: 1}}, []verbs.SGE{r.mr[1].SGE(i*2048, 2048)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range sends {
		r.mr[0].Bytes()[i*2048] = byte(i + 1)
		if _, err := r.qp[0].PostSend([]verbs.SendWR{{ID: uint64(i), Opcode: verbs.OpSend, Flags: verbs.Signaled, NumSGE: 1}},
			[]verbs.SGE{r.mr[0].SGE(i*2048, 1500)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range sends {
		if w := r.next(0); w.Status != 0 || w.ID != uint64(i) {
			t.Fatalf("send %d: %+v", i, w)
		}
		if w := r.next(1); w.Status != 0 || w.ID != uint64(i) || w.ByteLen != 1500 {
			t.Fatalf("receive %d: %+v", i, w)
		}
		if got := r.mr[1].Bytes()[i*2048]; got != byte(i+1) {
			t.Errorf("message %d holds %d", i, got)
		}
	}
}

func TestLossForGood(t *testing.T) {
	f := sim.Pair()
	r := newRig(t, f)
	f.SetPort("sim1", false)
	r.write(1, 0, 100)
	w := r.next(0)
	if e, _ := verbs.Err(&w).(*verbs.WCError); e == nil || e.Status != verbs.StatusRetryExc || !e.Retryable() {
		t.Fatalf("completion %+v", w)
	}
	e, err := r.dev[1].NextEvent(t.Context())
	if err != nil || e.Type != verbs.EventPortError || e.Port != 1 {
		t.Errorf("event %v, %v", e, err)
	}
	if p, err := r.dev[1].Port(1); err != nil || verbs.PortState(p.State) != verbs.PortDown {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestInjectedFaults(t *testing.T) {
	f := sim.Pair()
	r := newRig(t, f)
	f.Fault(func(a sim.Attempt) sim.Verdict {
		switch a.ID {
		case 1:
			return sim.Verdict{Flip: 8*10 + 3 + 1}
		case 2:
			if a.Attempt == 0 {
				return sim.Verdict{Delay: time.Millisecond}
			}
		case 3:
			return sim.Verdict{Status: verbs.StatusFatal}
		}
		return sim.Verdict{}
	})
	for id := uint64(1); id <= 4; id++ {
		r.write(id, 0, 100)
	}
	for id, want := range []verbs.Status{0, 0, verbs.StatusFatal, verbs.StatusFlush} {
		if w := r.next(0); w.ID != uint64(id+1) || verbs.Status(w.Status) != want {
			t.Errorf("completion %+v, want id %d, %v", w, id+1, want)
		}
	}
	r2 := newRig(t, sim.Pair())
	r2.f.Fault(func(a sim.Attempt) sim.Verdict { return sim.Verdict{Flip: 8*10 + 3 + 1} })
	r2.write(1, 0, 100)
	r2.next(0)
	if got := r2.mr[1].Bytes()[10]; got != 8 {
		t.Errorf("byte 10 is %d, want bit 3 turned", got)
	}
}

func TestEvents(t *testing.T) {
	f := sim.Pair()
	r := newRig(t, f)
	f.FailQP("sim0", r.qp[0].Num())
	e, err := r.dev[0].NextEvent(t.Context())
	if err != nil || e.Type != verbs.EventQPFatal || e.QP != r.qp[0] {
		t.Errorf("event %v, %v", e, err)
	}
	if err := r.qp[0].Init(1, 0); err == nil {
		t.Error("a failed queue pair goes to INIT")
	}
	f.Kill("sim1")
	if e, err := r.dev[1].NextEvent(t.Context()); err != nil || e.Type != verbs.EventDeviceFatal {
		t.Errorf("event %v, %v", e, err)
	}
}

// TestOverrun: a completion queue that is too small for its queue pairs breaks,
// which is why verbs.PD.CreateQP refuses to make one so.
func TestOverrun(t *testing.T) {
	f := sim.Pair()
	c, err := verbs.Open(f, "sim0")
	if err != nil {
		t.Fatal(err)
	}
	d, err := f.Open("sim0")
	if err != nil {
		t.Fatal(err)
	}
	q, err := d.CreateCQ(2)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		sim.Inject(q, verbs.WC{})
	}
	if _, err := q.Poll(make([]verbs.WC, 4)); err == nil {
		t.Error("an overrun queue polls")
	}
	if e, err := c.NextEvent(t.Context()); err != nil || e.Type != verbs.EventCQError {
		t.Errorf("event %v, %v", e, err)
	}
}
