package verbstest

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"rfs/verbs"
)

func testStates(t *testing.T, e Env) {
	var o options
	o.fill()
	a, b := open(t, e, 0, o), open(t, e, 1, o)
	send := func() error {
		_, err := a.qp.PostSend([]verbs.SendWR{{Opcode: verbs.OpSend, NumSGE: 1}}, []verbs.SGE{a.mr.SGE(0, 1)})
		return err
	}
	recv := func() error {
		_, err := a.qp.PostRecv([]verbs.RecvWR{{NumSGE: 1}}, []verbs.SGE{a.mr.SGE(0, 1)})
		return err
	}
	wrong := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, verbs.ErrState) {
			t.Errorf("%s: %v", what, err)
		}
	}
	state := func(want verbs.QPState) {
		t.Helper()
		if s, err := a.qp.State(); s != want || err != nil {
			t.Errorf("state %v, %v; want %v", s, err, want)
		}
	}
	c := connection(t, a, b, o)
	state(verbs.QPReset)
	wrong("send in RESET", send())
	wrong("receive in RESET", recv())
	wrong("RESET to RTR", a.qp.ReadyToReceive(c))
	wrong("RESET to RTS", a.qp.ReadyToSend(c))
	must(t, a.qp.Init(1, fullAccs))
	state(verbs.QPInit)
	wrong("INIT to INIT", a.qp.Init(1, fullAccs))
	wrong("INIT to RTS", a.qp.ReadyToSend(c))
	wrong("send in INIT", send())
	must(t, recv())
	must(t, a.qp.ReadyToReceive(c))
	state(verbs.QPRTR)
	wrong("send in RTR", send())
	must(t, a.qp.ReadyToSend(c))
	state(verbs.QPRTS)
	must(t, a.qp.Fail())
	state(verbs.QPError)
	a.failed(0, verbs.StatusFlush)
	must(t, send())
	a.failed(0, verbs.StatusFlush)
	wrong("ERR to RTS", a.qp.ReadyToSend(c))
	must(t, a.qp.Reset())
	state(verbs.QPReset)
	must(t, a.qp.Init(1, fullAccs))
}

func testZeroTimers(t *testing.T, e Env) {
	var o options
	o.fill()
	a, b := open(t, e, 0, o), open(t, e, 1, o)
	must(t, a.qp.Init(1, fullAccs))
	for _, x := range []struct {
		spoil func(*verbs.Timers)
		want  string
	}{
		{func(t *verbs.Timers) { t.Timeout = 0 }, "timeout 0"},
		{func(t *verbs.Timers) { t.RetryCount = 0 }, "retry_cnt 0"},
		{func(t *verbs.Timers) { t.MinRNRTimer = 0 }, "min_rnr_timer 0"},
		{func(t *verbs.Timers) { t.RNRRetry = 7 }, "rnr_retry 7"},
	} {
		c := connection(t, a, b, o)
		x.spoil(&c.Timers)
		for _, err := range []error{a.qp.ReadyToReceive(c), a.qp.ReadyToSend(c)} {
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%s: %v", x.want, err)
			}
		}
	}
	if err := (verbs.Timers{}).Validate(); err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("all timers zero: %v", err)
	}
	if err := verbs.DefaultTimers.Validate(); err != nil {
		t.Error(err)
	}
}

func testRemoteAccess(t *testing.T, e Env) {
	for _, x := range []struct {
		name string
		op   uint32
		addr func(b *end) (uint64, uint32)
		o    options
	}{
		{"write wrong key", verbs.OpWrite, func(b *end) (uint64, uint32) { return b.mr.Addr(0), b.mr.RKey() ^ 0x5555 }, options{}},
		{"read wrong key", verbs.OpRead, func(b *end) (uint64, uint32) { return b.mr.Addr(0), b.mr.RKey() ^ 0x5555 }, options{}},
		{"write beyond the end", verbs.OpWrite, func(b *end) (uint64, uint32) { return b.mr.Addr(region - 50), b.mr.RKey() }, options{}},
		{"read before the start", verbs.OpRead, func(b *end) (uint64, uint32) { return b.mr.Addr(0) - 1, b.mr.RKey() }, options{}},
		{"read of a region without remote read", verbs.OpRead, func(b *end) (uint64, uint32) { return b.mr.Addr(0), b.mr.RKey() }, options{access: verbs.LocalWrite | verbs.RemoteWrite}},
		{"write through a queue pair without remote write", verbs.OpWrite, func(b *end) (uint64, uint32) { return b.mr.Addr(0), b.mr.RKey() }, options{qpAcc: verbs.LocalWrite | verbs.RemoteRead}},
	} {
		t.Run(x.name, func(t *testing.T) { refuse(t, e, x.op, x.addr, x.o) })
	}
}

// testNotWritable: a server grants nothing, so that no client can write its memory.
func testNotWritable(t *testing.T, e Env) {
	refuse(t, e, verbs.OpWrite, func(b *end) (uint64, uint32) { return b.mr.Addr(0), b.mr.RKey() }, options{access: verbs.LocalWrite, qpAcc: verbs.LocalWrite})
}

// refuse checks that a request of 100 bytes is refused by its target, which stays as it was.
func refuse(t *testing.T, e Env, op uint32, target func(b *end) (uint64, uint32), o options) {
	a, b := pair(t, e, o)
	pattern(a.mem[:100], 1)
	for _, m := range [][]byte{b.mem[:200], b.mem[region-200:]} {
		pattern(m, 2)
	}
	head, tail := string(b.mem[:200]), string(b.mem[region-200:])
	mine := string(a.mem[:100])
	addr, key := target(b)
	a.post(verbs.SendWR{ID: 5, Opcode: op, Flags: verbs.Signaled, RemoteAddr: addr, RKey: key}, a.mr.SGE(0, 100))
	err := a.failed(5, verbs.StatusRemAccess, verbs.StatusRemInvReq, verbs.StatusRemOp)
	if !err.Fatal() || err.Retryable() || err.Flushed() {
		t.Errorf("%v is not fatal", err)
	}
	if string(b.mem[:200]) != head || string(b.mem[region-200:]) != tail {
		t.Error("the target was written")
	}
	if op == verbs.OpRead && string(a.mem[:100]) != mine {
		t.Error("something was read")
	}
	// the queue pair is in ERR: what follows is flushed
	a.post(verbs.SendWR{ID: 6, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, 1))
	if err := a.failed(6, verbs.StatusFlush); !err.Flushed() || err.Fatal() || err.Retryable() {
		t.Errorf("%v is not a flush", err)
	}
	if s, err := a.qp.State(); s != verbs.QPError || err != nil {
		t.Errorf("the queue pair is in %v, %v", s, err)
	}
}

func testLocalKey(t *testing.T, e Env) {
	a, _ := pair(t, e, options{})
	s := a.mr.SGE(0, 1000)
	s.LKey ^= 0x5555
	a.post(verbs.SendWR{ID: 5, Opcode: verbs.OpSend, Flags: verbs.Signaled}, s)
	if err := a.failed(5, verbs.StatusLocProt, verbs.StatusLocQPOp); !err.Fatal() {
		t.Errorf("%v is not fatal", err)
	}
}

// testReceiverNotReady: a send that comes before its receive is tried again.
func testReceiverNotReady(t *testing.T, e Env) {
	a, b := pair(t, e, options{timers: verbs.Timers{Timeout: 19, RetryCount: 7, MinRNRTimer: 31, RNRRetry: 6}}) // 6 x 0.49 s
	pattern(a.mem[:5000], 4)
	a.post(verbs.SendWR{ID: 1, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, 5000))
	b.receive(2, 0, 5000)
	b.ok(2, verbs.WCRecv)
	a.ok(1, verbs.WCSend)
	same(t, b.mem[:5000], a.mem[:5000])
}

func testReceiverStops(t *testing.T, e Env) {
	a, _ := pair(t, e, options{timers: verbs.Timers{Timeout: 19, RetryCount: 7, MinRNRTimer: 1, RNRRetry: 2}})
	a.post(verbs.SendWR{ID: 1, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, 100))
	if err := a.failed(1, verbs.StatusRNRRetryExc); !err.Retryable() {
		t.Errorf("%v is not retryable", err)
	}
}

func testReceiveTooShort(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	b.mem[100] = 0x77
	b.receive(2, 0, 100)
	pattern(a.mem[:101], 4)
	a.post(verbs.SendWR{ID: 1, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, 101))
	a.failed(1, verbs.StatusRemInvReq, verbs.StatusRemOp)
	b.failed(2, verbs.StatusLocLen, verbs.StatusLocQPOp)
	if b.mem[100] != 0x77 {
		t.Error("written beyond the receive")
	}
}

func testPeerGone(t *testing.T, e Env) {
	a, b := pair(t, e, options{timers: verbs.Timers{Timeout: 10, RetryCount: 2, MinRNRTimer: 12, RNRRetry: 3}})
	must(t, b.qp.Close())
	a.post(verbs.SendWR{ID: 1, Opcode: verbs.OpWrite, Flags: verbs.Signaled, RemoteAddr: b.mr.Addr(0), RKey: b.mr.RKey()}, a.mr.SGE(0, 100))
	if err := a.failed(1, verbs.StatusRetryExc); !err.Retryable() {
		t.Errorf("%v is not retryable", err)
	}
}

// testFlush fills the send queue with requests of which almost none is signalled
// and fails the queue pair: each completes, once, and the completion queue holds them.
func testFlush(t *testing.T, e Env) {
	a, b := pair(t, e, options{timers: verbs.Timers{Timeout: 19, RetryCount: 7, MinRNRTimer: 31, RNRRetry: 6}})
	for i := range recvWRs {
		a.receive(uint64(1000+i), 0, 64)
	}
	for i := range sendWRs { // b has no receive: none of them gets through
		wr := verbs.SendWR{ID: uint64(i), Opcode: verbs.OpSend}
		if i%16 == 15 {
			wr.Flags = verbs.Signaled
		}
		a.post(wr, a.mr.SGE(0, 64))
	}
	must(t, a.qp.Fail())
	seen := map[uint64]bool{}
	for range sendWRs + recvWRs {
		w := a.next()
		err, _ := verbs.Err(&w).(*verbs.WCError)
		if err == nil || !err.Flushed() || seen[w.ID] || w.QPNum != a.qp.Num() {
			t.Fatalf("completion %+v (%v), seen before: %v", w, err, seen[w.ID])
		}
		seen[w.ID] = true
	}
	a.quiet()
	b.quiet()
}

func testShallowCQ(t *testing.T, e Env) {
	var o options
	o.fill()
	a := open(t, e, 0, o) // its queue pair takes all entries that were asked for
	_, err := a.pd.CreateQP(verbs.QPConfig{Send: a.cq, Recv: a.cq, SendWR: a.cq.Depth(), RecvWR: 1})
	if err == nil || !strings.Contains(err.Error(), "signalled or not") {
		t.Errorf("a second queue pair on a full completion queue: %v", err)
	}
	must(t, a.qp.Close())
	a.newQP(o)
}

func testErrorFields(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	a.receive(9, 0, 64)
	a.post(verbs.SendWR{ID: 5, Opcode: verbs.OpWrite, Flags: verbs.Signaled, RemoteAddr: b.mr.Addr(0), RKey: b.mr.RKey() ^ 0x5555}, a.mr.SGE(0, 100))
	for range 2 { // the WRITE and the flushed receive
		w := a.next()
		if w.Status == 0 || w.Opcode != verbs.OpcodeNone || w.ByteLen != 0 || w.Flags != 0 || w.ImmBE != 0 || w.SrcQP != 0 {
			t.Errorf("completion %+v: opcode and length of an error are not defined", w)
		}
		if w.ID != 5 && w.ID != 9 || w.QPNum != a.qp.Num() {
			t.Errorf("completion %+v: id and queue pair are", w)
		}
	}
}

// testPartialPost: of a list with a bad request in it, those before it are
// posted and complete once, the others never.
func testPartialPost(t *testing.T, e Env) {
	a, b := pair(t, e, options{sge: 1})
	for i := range 4 {
		b.receive(uint64(i), i*64, 64)
	}
	bad := int(a.qp.Cap().MaxSendSGE) + 1
	var sge []verbs.SGE
	for range 4 + bad {
		sge = append(sge, a.mr.SGE(0, 1))
	}
	wr := []verbs.SendWR{
		{ID: 1, Opcode: verbs.OpSend, Flags: verbs.Signaled, NumSGE: 1}, {ID: 2, Opcode: verbs.OpSend, Flags: verbs.Signaled, NumSGE: 1},
		{ID: 3, Opcode: verbs.OpSend, Flags: verbs.Signaled, NumSGE: uint32(bad)}, {ID: 4, Opcode: verbs.OpSend, Flags: verbs.Signaled, NumSGE: 1},
	}
	n, err := a.qp.PostSend(wr, sge)
	if n != 2 || err == nil {
		t.Fatalf("posted %d, %v; want 2 and why not the third", n, err)
	}
	a.ok(1, verbs.WCSend)
	a.ok(2, verbs.WCSend)
	// what is posted now completes next: 3 and 4 never did
	a.post(verbs.SendWR{ID: 5, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, 1))
	a.ok(5, verbs.WCSend)
	for i := range 3 {
		b.ok(uint64(i), verbs.WCRecv)
	}
	a.quiet()
	b.quiet()
	rbad := int(a.qp.Cap().MaxRecvSGE) + 1
	for len(sge) < rbad+1 {
		sge = append(sge, a.mr.SGE(0, 1))
	}
	if n, err := a.qp.PostRecv([]verbs.RecvWR{{ID: 6, NumSGE: 1}, {ID: 7, NumSGE: uint32(rbad)}}, sge); n != 1 || err == nil {
		t.Fatalf("posted %d receives, %v; want 1 and why not the second", n, err)
	}
}

// testLongLists posts in one call more than one list on the C stack holds, and more than the queue does.
func testLongLists(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	_ = b
	const asked = 20000 // more than any queue of 64 is rounded up to
	wr := make([]verbs.SendWR, asked)
	sge := make([]verbs.SGE, asked)
	for i := range wr {
		wr[i] = verbs.SendWR{ID: uint64(i), Opcode: verbs.OpWrite, NumSGE: 1, RemoteAddr: b.mr.Addr(i % 1000), RKey: b.mr.RKey()}
		sge[i] = a.mr.SGE(0, 1)
	}
	wr[sendWRs-1].Flags = verbs.Signaled
	n, err := a.qp.PostSend(wr, sge)
	// A queue that drains while it is filled takes more than its depth, perhaps all.
	if n < sendWRs || n < asked && !errors.Is(err, syscall.ENOMEM) || n == asked && err != nil {
		t.Fatalf("posted %d of %d: %v", n, asked, err)
	}
	a.ok(sendWRs-1, verbs.WCWrite)
}

func testTooLong(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	p, err := a.dev.Port(1)
	must(t, err)
	long := a.mr.SGE(0, 0)
	long.Length = p.MaxMsg
	wr := []verbs.SendWR{
		{ID: 1, Opcode: verbs.OpWrite, Flags: verbs.Signaled, NumSGE: 1, RemoteAddr: b.mr.Addr(0), RKey: b.mr.RKey()},
		{ID: 2, Opcode: verbs.OpWrite, Flags: verbs.Signaled, NumSGE: 2, RemoteAddr: b.mr.Addr(0), RKey: b.mr.RKey()},
	}
	n, err := a.qp.PostSend(wr, []verbs.SGE{a.mr.SGE(0, 10), long, a.mr.SGE(0, 1)})
	if n != 1 || !errors.Is(err, verbs.ErrTooLong) {
		t.Fatalf("posted %d, %v; want 1 and ErrTooLong", n, err)
	}
	a.ok(1, verbs.WCWrite)
	a.quiet()
	// and it works on
	a.post(verbs.SendWR{ID: 3, Opcode: verbs.OpWrite, Flags: verbs.Signaled, RemoteAddr: b.mr.Addr(0), RKey: b.mr.RKey()}, a.mr.SGE(0, 10))
	a.ok(3, verbs.WCWrite)
}
