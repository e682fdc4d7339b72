package verbstest

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"rfs/verbs"
)

// testStale: a queue pair goes while its requests are in the completion queue,
// and another, perhaps of the same number, uses that queue. Whose completion is
// whose the generation in its id tells.
func testStale(t *testing.T, e Env) {
	var o options
	o.fill()
	o.depth = 2 * (sendWRs + recvWRs)
	a, b := open(t, e, 0, o), open(t, e, 1, o)
	connect(t, a, b, o)
	slots := verbs.NewSlots[string](8)
	stale := map[uint64]bool{}
	for range 4 {
		id, v, ok := slots.Take()
		if !ok {
			t.Fatal("no slot")
		}
		*v = "old"
		stale[id] = true
		a.post(verbs.SendWR{ID: id, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, 8)) // b has no receive
	}
	must(t, a.qp.Fail())
	must(t, a.qp.Close())
	must(t, b.qp.Close())
	for id := range stale { // given up
		slots.Release(id)
	}
	a.newQP(o)
	b.newQP(o)
	connect(t, a, b, o)
	id, v, _ := slots.Take()
	*v = "new"
	if stale[id] {
		t.Fatal("an id came back")
	}
	b.receive(1, 0, 64)
	a.post(verbs.SendWR{ID: id, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, 8))
	for {
		w := a.next()
		if v, ok := slots.Get(w.ID); ok {
			if *v != "new" || w.Status != 0 {
				t.Fatalf("completion %+v of %q", w, *v)
			}
			break
		}
		if !stale[w.ID] || w.Status == 0 {
			t.Fatalf("completion %+v is nobody's", w)
		}
		delete(stale, w.ID)
	}
	if !slots.Release(id) || slots.Release(id) || slots.Used() != 0 {
		t.Error("a slot is released once")
	}
}

func testDestruction(t *testing.T, e Env) {
	a, _ := pair(t, e, options{})
	for what, close := range map[string]func() error{"device": a.dev.Close, "domain": a.pd.Close, "completion queue": a.cq.Close, "region": a.mr.Close} {
		if err := close(); !errors.Is(err, verbs.ErrBusy) || !strings.Contains(err.Error(), "queue pairs") {
			t.Errorf("%s closed before its queue pair: %v", what, err)
		}
	}
	must(t, a.qp.Close())
	if err := a.pd.Close(); !errors.Is(err, verbs.ErrBusy) {
		t.Errorf("domain closed before its region: %v", err)
	}
	for range 2 { // everything twice
		must(t, a.qp.Close())
		must(t, a.cq.Close())
		must(t, a.mr.Close())
		must(t, a.pd.Close())
		must(t, a.dev.Close())
	}
	for what, err := range map[string]error{
		"post":     second(a.qp.PostSend([]verbs.SendWR{{}}, nil)),
		"receive":  second(a.qp.PostRecv([]verbs.RecvWR{{}}, nil)),
		"state":    second(a.qp.State()),
		"fail":     a.qp.Fail(),
		"poll":     second(a.cq.Poll(a.wc[:])),
		"next":     second(a.cq.Next(context.Background(), a.wc[:])),
		"register": second(a.pd.RegMR(a.mem, verbs.LocalWrite)),
		"domain":   second(a.dev.AllocPD()),
		"queue":    second(a.dev.CreateCQ(1)),
		"port":     second(a.dev.Port(1)),
		"gids":     second(a.dev.GIDs()),
	} {
		if !errors.Is(err, verbs.ErrClosed) {
			t.Errorf("%s after the close: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func testRegionBusy(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	if err := b.mr.Close(); !errors.Is(err, verbs.ErrBusy) {
		t.Fatalf("a region closed under its queue pair: %v", err)
	}
	pattern(a.mem[:4096], 1)
	a.post(verbs.SendWR{ID: 1, Opcode: verbs.OpWrite, Flags: verbs.Signaled, RemoteAddr: b.mr.Addr(0), RKey: b.mr.RKey()}, a.mr.SGE(0, 4096))
	a.ok(1, verbs.WCWrite)
	same(t, b.mem[:4096], a.mem[:4096])
	must(t, b.qp.Close())
	must(t, b.mr.Close())
}

// testClosedTwice: a second close does not close the descriptor of somebody
// else, who got the number meanwhile.
func testClosedTwice(t *testing.T, e Env) {
	var o options
	o.fill()
	a := open(t, e, 0, o)
	must(t, a.qp.Close())
	must(t, a.cq.Close())
	must(t, a.mr.Close())
	must(t, a.pd.Close())
	must(t, a.dev.Close())
	var files []*os.File
	for range 16 { // they take the numbers that became free
		f, err := os.Open("/dev/null")
		must(t, err)
		files = append(files, f)
	}
	must(t, a.cq.Close())
	must(t, a.dev.Close())
	runtime.GC() // finalizers close too
	runtime.GC()
	for _, f := range files {
		if err := f.Close(); err != nil {
			t.Errorf("somebody closed it: %v", err)
		}
	}
}

func testWaitEnds(t *testing.T, e Env) {
	var o options
	o.fill()
	a := open(t, e, 0, o)
	for range 3 {
		ctx, cancel := context.WithCancel(context.Background())
		got := make(chan error, 1)
		go func() { got <- second(a.cq.Next(ctx, a.wc[:])) }()
		cancel()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled wait: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := a.cq.Next(ctx, a.wc[:]); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait past its deadline: %v", err)
	}
	must(t, a.qp.Close())
	got := make(chan error, 1)
	go func() { got <- second(a.cq.Next(context.Background(), a.wc[:])) }()
	must(t, a.cq.Close())
	if err := <-got; !errors.Is(err, verbs.ErrClosed) {
		t.Fatalf("wait on a closed queue: %v", err)
	}
}

func testEventsEnd(t *testing.T, e Env) {
	c, err := verbs.Open(e.Provider, e.Devices[0])
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan error, 1)
	go func() {
		for {
			if _, err := c.NextEvent(ctx); err != nil {
				got <- err
				return
			}
		}
	}()
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled wait for events: %v", err)
	}
	must(t, c.Close())
}

func testMemlock(t *testing.T, e Env) {
	limited := e.Memlock
	if limited == nil {
		limited = LimitMemlock
	}
	mem := alloc(t, region)
	register := func() error {
		c, err := verbs.Open(e.Provider, e.Devices[0])
		if err != nil {
			return err
		}
		pd, err := c.AllocPD()
		if err != nil {
			return errors.Join(err, c.Close())
		}
		mr, err := pd.RegMR(mem, verbs.LocalWrite)
		if err == nil {
			err = mr.Close()
		}
		return errors.Join(err, pd.Close(), c.Close())
	}
	err := limited(64<<10, register)
	var m *verbs.MemlockError
	if !errors.As(err, &m) {
		t.Fatalf("registered %d bytes with a limit of 64 KiB: %v", len(mem), err)
	}
	for _, want := range []string{"4194304", "65536", "LimitMEMLOCK=infinity", "ulimit -l"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: does not say %s", err, want)
		}
	}
	must(t, register())
}

// testLeaks makes and closes connections and counts what stays.
func testLeaks(t *testing.T, e Env) {
	cycle := func(t *testing.T) {
		a, b := pair(t, e, options{})
		b.receive(1, 0, 64)
		a.post(verbs.SendWR{ID: 2, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, 64))
		b.ok(1, verbs.WCRecv)
		a.ok(2, verbs.WCSend)
	}
	t.Run("warm", cycle)
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	for range 20 {
		t.Run("cycle", cycle)
	}
	if n := descriptors(t); n > fds {
		t.Errorf("%d descriptors after 20 cycles, %d before", n, fds)
	}
	deadline := time.Now().Add(bound)
	for runtime.NumGoroutine() > goroutines && time.Now().Before(deadline) {
		runtime.Gosched()
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines after 20 cycles, %d before", n, goroutines)
	}
}

func testAllocations(t *testing.T, e Env) {
	if e.Allocates || raceEnabled {
		t.Skip("allocates")
	}
	a, b := pair(t, e, options{})
	wr := make([]verbs.SendWR, 32)
	sge := make([]verbs.SGE, 32)
	for i := range wr {
		wr[i] = verbs.SendWR{Opcode: verbs.OpWrite, NumSGE: 1, RemoteAddr: b.mr.Addr(i), RKey: b.mr.RKey()}
		sge[i] = a.mr.SGE(0, 1)
	}
	wr[31].Flags = verbs.Signaled
	ctx := context.Background()
	n := testing.AllocsPerRun(50, func() {
		if _, err := a.qp.PostSend(wr, sge); err != nil {
			t.Fatal(err)
		}
		if n, err := a.cq.Next(ctx, a.wc[:]); n != 1 || err != nil || a.wc[0].Status != 0 {
			t.Fatal(n, err, a.wc[0])
		}
	})
	if n >= 1 {
		t.Errorf("%v allocations for 32 requests and their completion", n)
	}
}
