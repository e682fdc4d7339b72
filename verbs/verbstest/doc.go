// Package verbstest is the suite that every provider of verbs passes: the network
// in this process (verbs/sim), the C fake below libibverbs (cgo/ibverbs/fake) and
// real devices, soft-RoCE among them.
//
//	endpoint a                      endpoint b
//	Context PD MR 16 MiB CQ QP <--> QP CQ MR PD Context
package verbstest

import (
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rfs/verbs"
)

// Env is a provider under test.
type Env struct {
	Provider verbs.Provider
	// Devices are those of the two ends; they may be one.
	Devices [2]string
	// GIDs are the GIDs by which they reach each other; nil: the first RoCE v2 one with an IPv4 address, or the first.
	GIDs *[2]verbs.GID
	// Rounds is how often the event-driven ping-pong goes; default 2000.
	Rounds int
	// Memlock makes f run where only limit bytes may be registered with the first device; nil: LimitMemlock.
	Memlock func(limit uint64, f func() error) error
	// Allocates: the provider may allocate on the data path.
	Allocates bool
}

// Run runs the suite.
func Run(t *testing.T, e Env) {
	if e.Rounds == 0 {
		e.Rounds = 2000
	}
	for _, x := range []struct {
		name string
		f    func(*testing.T, Env)
	}{
		{"Devices", testDevices},
		{"Transfers", testTransfers},
		{"Inline", testInline},
		{"Immediate", testImmediate},
		{"ScatterGather", testScatterGather},
		{"OrderOfWritesAndSend", testOrder},
		{"ManyReads", testManyReads},
		{"States", testStates},
		{"ZeroTimersRejected", testZeroTimers},
		{"RemoteAccessChecked", testRemoteAccess},
		{"ServerMemoryNotRemotelyWritable", testNotWritable},
		{"LocalKeyChecked", testLocalKey},
		{"ReceiverNotReady", testReceiverNotReady},
		{"ReceiverStopsPosting", testReceiverStops},
		{"ReceiveTooShort", testReceiveTooShort},
		{"PeerGone", testPeerGone},
		{"FlushOfAFullSendQueue", testFlush},
		{"CompletionQueueTooShallow", testShallowCQ},
		{"OpcodeNotTrustedOnError", testErrorFields},
		{"PartialPost", testPartialPost},
		{"LongLists", testLongLists},
		{"MessageAboveMaxMsgSz", testTooLong},
		{"StaleCompletionAfterDestroy", testStale},
		{"OrderOfDestruction", testDestruction},
		{"RegionFreedBeforeItsQueuePair", testRegionBusy},
		{"DescriptorClosedTwice", testClosedTwice},
		{"ArmedBetween", testPingPong},
		{"WaitEnds", testWaitEnds},
		{"EventsEnd", testEventsEnd},
		{"MemlockTooSmall", testMemlock},
		{"NothingLeaks", testLeaks},
		{"NoAllocation", testAllocations},
	} {
		t.Run(x.name, func(t *testing.T) { x.f(t, e) })
	}
}

const (
	region   = 4 << 20
	sendWRs  = 64
	recvWRs  = 64
	bound    = 60 * time.Second // for what must happen; never slept
	fullAccs = verbs.LocalWrite | verbs.RemoteRead | verbs.RemoteWrite
)

// end is one end of a connection.
type end struct {
	t    *testing.T
	dev  *verbs.Context
	gid  verbs.GIDEntry
	pd   *verbs.PD
	mr   *verbs.MR
	cq   *verbs.CQ
	qp   *verbs.QP
	mem  []byte
	wc   [64]verbs.WC
	have []verbs.WC // taken from the queue, not yet asked for
}

// options of a pair of ends. Zero values are the usual.
type options struct {
	depth  int          // of the completion queues
	access verbs.Access // of the regions
	qpAcc  verbs.Access // of the queue pairs
	timers verbs.Timers
	recvs  int
	sge    int
}

// pair returns two ends, connected, and closed with the test.
func pair(t *testing.T, e Env, o options) (a, b *end) {
	t.Helper()
	o.fill()
	a, b = open(t, e, 0, o), open(t, e, 1, o)
	connect(t, a, b, o)
	return a, b
}

func (o *options) fill() {
	if o.depth == 0 {
		o.depth = sendWRs + recvWRs
	}
	if o.access == 0 {
		o.access = fullAccs
	}
	if o.qpAcc == 0 {
		o.qpAcc = fullAccs
	}
	if o.timers == (verbs.Timers{}) {
		o.timers = verbs.Timers{Timeout: 19, RetryCount: 7, MinRNRTimer: 12, RNRRetry: 6}
	}
	if o.recvs == 0 {
		o.recvs = recvWRs
	}
	if o.sge == 0 {
		o.sge = 4
	}
}

func open(t *testing.T, e Env, i int, o options) *end {
	t.Helper()
	x := &end{t: t, mem: alloc(t, region)}
	var err error
	x.dev, err = verbs.Open(e.Provider, e.Devices[i])
	must(t, err)
	t.Cleanup(func() { must(t, x.dev.Close()) })
	x.gid = pickGID(t, e, i, x.dev)
	x.pd, err = x.dev.AllocPD()
	must(t, err)
	t.Cleanup(func() { must(t, x.pd.Close()) })
	x.mr, err = x.pd.RegMR(x.mem, o.access)
	must(t, err)
	t.Cleanup(func() { must(t, x.mr.Close()) })
	x.cq, err = x.dev.CreateCQ(o.depth)
	must(t, err)
	t.Cleanup(func() { must(t, x.cq.Close()) })
	x.newQP(o)
	return x
}

func (x *end) newQP(o options) {
	x.t.Helper()
	qp, err := x.pd.CreateQP(verbs.QPConfig{Send: x.cq, Recv: x.cq, SendWR: sendWRs, RecvWR: recvWRs, SendSGE: o.sge, RecvSGE: o.sge, Inline: 256})
	must(x.t, err)
	x.qp = qp
	x.t.Cleanup(func() { must(x.t, qp.Close()) })
}

func pickGID(t *testing.T, e Env, i int, c *verbs.Context) verbs.GIDEntry {
	t.Helper()
	gids, err := c.GIDs()
	must(t, err)
	best := -1
	for j, g := range gids {
		switch {
		case e.GIDs != nil:
			if g.GID == e.GIDs[i] {
				return g
			}
		case verbs.GIDType(g.Type) == verbs.GIDRoCEv2 && verbs.Addr(g.GID).Is4():
			return g
		case best < 0 || verbs.GIDType(gids[best].Type) == verbs.GIDRoCEv1:
			best = j
		}
	}
	if best < 0 {
		t.Fatalf("%s has no GID that was asked for: %v", c.Name(), gids)
	}
	return gids[best]
}

// connection returns how x reaches y.
func connection(t *testing.T, x, y *end, o options) *verbs.Connection {
	t.Helper()
	p, err := x.dev.Port(int(x.gid.Port))
	must(t, err)
	py, err := y.dev.Port(int(y.gid.Port))
	must(t, err)
	a, b := x.dev.Attr(), y.dev.Attr()
	c := &verbs.Connection{
		Port: int(x.gid.Port), PathMTU: verbs.MTU(min(p.ActiveMTU, py.ActiveMTU)), LocalPSN: x.psn(), RemoteQPN: y.qp.Num(), RemotePSN: y.psn(),
		Global: true, GIDIndex: int(x.gid.Index), RemoteGID: y.gid.GID, HopLimit: 64, RemoteLID: py.LID, Timers: o.timers,
		MaxReads: min(16, a.MaxRdInit, b.MaxRdAtom), MaxReadsServed: min(16, a.MaxRdAtom, b.MaxRdInit),
	}
	return c
}

func (x *end) psn() uint32 { return (x.qp.Num()*7919 + 0xfffff0) & 0xffffff }

func connect(t *testing.T, a, b *end, o options) {
	t.Helper()
	for _, x := range []*end{a, b} {
		must(t, x.qp.Init(int(x.gid.Port), o.qpAcc))
	}
	ca, cb := connection(t, a, b, o), connection(t, b, a, o)
	must(t, a.qp.ReadyToReceive(ca))
	must(t, b.qp.ReadyToReceive(cb))
	must(t, a.qp.ReadyToSend(ca))
	must(t, b.qp.ReadyToSend(cb))
}

// post posts one send request.
func (x *end) post(wr verbs.SendWR, sge ...verbs.SGE) {
	x.t.Helper()
	wr.NumSGE = uint32(len(sge))
	if n, err := x.qp.PostSend([]verbs.SendWR{wr}, sge); err != nil || n != 1 {
		x.t.Fatalf("post: %d, %v", n, err)
	}
}

// receive posts a receive of n bytes at off.
func (x *end) receive(id uint64, off, n int) {
	x.t.Helper()
	if k, err := x.qp.PostRecv([]verbs.RecvWR{{ID: id, NumSGE: 1}}, []verbs.SGE{x.mr.SGE(off, n)}); err != nil || k != 1 {
		x.t.Fatalf("post a receive: %d, %v", k, err)
	}
}

// next returns the next completion, waiting for an event if there is none.
func (x *end) next() verbs.WC {
	x.t.Helper()
	if len(x.have) == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		defer cancel()
		n, err := x.cq.Next(ctx, x.wc[:])
		if err != nil {
			x.t.Fatalf("no completion on %s: %v", x.dev.Name(), err)
		}
		x.have = x.wc[:n]
	}
	w := x.have[0]
	x.have = x.have[1:]
	return w
}

// ok returns the next completion, which must be a success with the id and opcode.
func (x *end) ok(id uint64, opcode uint32) verbs.WC {
	x.t.Helper()
	w := x.next()
	if err := verbs.Err(&w); err != nil || w.ID != id || w.Opcode != opcode || w.QPNum != x.qp.Num() {
		x.t.Fatalf("completion %+v (%v), want id %d opcode %d queue pair %d", w, err, id, opcode, x.qp.Num())
	}
	return w
}

// failed returns the next completion, which must have one of the statuses.
func (x *end) failed(id uint64, want ...verbs.Status) *verbs.WCError {
	x.t.Helper()
	w := x.next()
	err, _ := verbs.Err(&w).(*verbs.WCError)
	if err == nil || w.ID != id {
		x.t.Fatalf("completion %+v, want id %d with %v", w, id, want)
	}
	for _, s := range want {
		if err.Status == s {
			return err
		}
	}
	x.t.Fatalf("completion %v, want %v", err, want)
	return nil
}

// quiet checks that no further completion is there.
func (x *end) quiet() {
	x.t.Helper()
	if n, err := x.cq.Poll(x.wc[:]); n > 0 || err != nil || len(x.have) > 0 {
		x.t.Fatalf("%d completions too many (%+v), %v", n+len(x.have), x.wc[0], err)
	}
}

// alloc returns memory that is not on the Go heap.
func alloc(t *testing.T, n int) []byte {
	t.Helper()
	m, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	must(t, err)
	t.Cleanup(func() { must(t, unix.Munmap(m)) })
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pattern fills b with bytes that depend on their place and seed.
func pattern(b []byte, seed int) {
	for i := range b {
		b[i] = byte(i*31 + i>>8 + seed*17 + 1)
	}
}

// descriptors counts the open files of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(d)
}
