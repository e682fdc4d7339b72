package sim

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"rfs/cgo/ibverbs"
	"rfs/verbs"
)

// Config is how a device is made. Zero fields take the values of soft-RoCE.
type Config struct {
	Name string
	// Addrs are the addresses of port 1, each a RoCE v2 GID.
	Addrs []netip.Addr
	// MaxMsg is the port's longest message, MTU its active MTU, MaxInline what a queue pair gives.
	MaxMsg    uint32
	MTU       verbs.MTU
	MaxInline uint32
	MaxSGE    int
	MaxCQE    int
	// Memlock bounds the bytes registered, as RLIMIT_MEMLOCK does. 0: no bound.
	Memlock uint64
}

// Verdict is what becomes of one attempt to send a message.
type Verdict struct {
	Drop    bool          // it never arrives
	DropAck bool          // it arrives, and its acknowledgement does not
	Repeat  bool          // it arrives twice
	Delay   time.Duration // it arrives later; the queue pair waits
	// Status, if not 0, is what the sender's completion says instead; its queue pair goes to ERR.
	Status verbs.Status
	// Flip is the bit of the payload to turn on the way, plus 1. It models
	// memory gone bad: on the wire the ICRC would catch it.
	Flip int
}

// Attempt is one attempt to send a message.
type Attempt struct {
	Device  string
	QPN     uint32
	PSN     uint32
	Opcode  uint32
	ID      uint64
	Length  int
	Attempt int // from 0
}

// Fabric is a network. It implements verbs.Provider for all its devices.
type Fabric struct {
	mu    sync.Mutex // guards all of all devices
	devs  []*device
	fault func(Attempt) Verdict
	work  sync.WaitGroup
}

// New returns a network of the devices.
func New(devices ...Config) *Fabric {
	f := &Fabric{}
	for i, c := range devices {
		if c.Name == "" {
			c.Name = fmt.Sprintf("sim%d", i)
		}
		if c.MaxMsg == 0 {
			c.MaxMsg = 8 << 20
		}
		if c.MTU == 0 {
			c.MTU = 5
		}
		if c.MaxInline == 0 {
			c.MaxInline = 512
		}
		if c.MaxSGE == 0 {
			c.MaxSGE = 32
		}
		if c.MaxCQE == 0 {
			c.MaxCQE = 32767
		}
		f.devs = append(f.devs, &device{
			f: f, cfg: c, up: true, nextKey: uint32(i+1)<<20 | 0x100, qps: map[uint32]*qpair{}, mrs: map[uint32]*region{},
			events: make(chan verbs.EventProvided, 64),
		})
	}
	return f
}

// Pair returns a network of two devices, sim0 at 10.0.0.1 and sim1 at 10.0.0.2.
func Pair() *Fabric {
	return New(Config{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}, Config{Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
}

// Fault sets what decides about each attempt; nil: all arrive. It is called with
// the network's lock held.
func (f *Fabric) Fault(decide func(Attempt) Verdict) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = decide
}

// SetMemlock bounds the bytes that the device registers.
func (f *Fabric) SetMemlock(name string, bytes uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.find(name).cfg.Memlock = bytes
}

// SetPort takes a port down or up, with its event. Messages to and from it are lost while it is down.
func (f *Fabric) SetPort(name string, up bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.find(name)
	if d.up == up {
		return
	}
	d.up = up
	t := verbs.EventPortError
	if up {
		t = verbs.EventPortActive
	}
	d.event(verbs.EventProvided{Type: t, Port: 1})
}

// Kill makes a device fail for good: its queue pairs go to ERR, with the event.
func (f *Fabric) Kill(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.find(name)
	d.up = false
	d.event(verbs.EventProvided{Type: verbs.EventDeviceFatal})
	for _, q := range d.qps {
		q.fail(0)
	}
}

// FailQP takes a queue pair to ERR by its number, as a device does that gives up on it.
func (f *Fabric) FailQP(name string, qpn uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if q := f.find(name).qps[qpn]; q != nil {
		q.fail(verbs.EventQPFatal)
	}
}

// Wait returns when nothing is being sent and no timer runs.
func (f *Fabric) Wait() { f.work.Wait() }

func (f *Fabric) find(name string) *device {
	for _, d := range f.devs {
		if d.cfg.Name == name {
			return d
		}
	}
	panic("sim: no device " + name)
}

// Devices implements verbs.Provider.
func (f *Fabric) Devices() ([]string, error) {
	var names []string
	for _, d := range f.devs {
		names = append(names, d.cfg.Name)
	}
	return names, nil
}

// Open implements verbs.Provider. A device may be open several times.
func (f *Fabric) Open(name string) (verbs.DeviceProvider, error) {
	for _, d := range f.devs {
		if d.cfg.Name == name {
			return d, nil
		}
	}
	return nil, syscall.ENODEV
}

type device struct {
	f       *Fabric
	cfg     Config
	up      bool
	nextKey uint32
	locked  uint64
	qps     map[uint32]*qpair
	mrs     map[uint32]*region
	events  chan verbs.EventProvided
}

func (d *device) event(e verbs.EventProvided) {
	select {
	case d.events <- e:
	default: // nobody listens
	}
}

func (d *device) QueryDevice() (verbs.DeviceAttr, error) {
	return verbs.DeviceAttr{Firmware: "sim", MaxMRSize: 1 << 40, MaxQP: 1 << 16, MaxQPWR: 16384, MaxSGE: d.cfg.MaxSGE, MaxCQ: 1 << 16,
		MaxCQE: d.cfg.MaxCQE, MaxMR: 1 << 16, MaxPD: 1 << 16, MaxRdAtom: 128, MaxRdInit: 128, Ports: 1}, nil
}

func (d *device) QueryPort(port int) (verbs.PortAttr, error) {
	if port != 1 {
		return verbs.PortAttr{}, syscall.EINVAL
	}
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	a := verbs.PortAttr{State: uint32(verbs.PortActive), MaxMTU: 5, ActiveMTU: uint32(d.cfg.MTU), GIDs: 16, MaxMsg: d.cfg.MaxMsg,
		LinkLayer: ibverbs.LinkEthernet, Flags: ibverbs.PortGRHRequired}
	if !d.up {
		a.State = uint32(verbs.PortDown)
	}
	return a, nil
}

func (d *device) QueryGIDs() ([]verbs.GIDEntry, error) {
	var out []verbs.GIDEntry
	for i, a := range d.cfg.Addrs {
		out = append(out, verbs.GIDEntry{GID: verbs.GIDOf(a), Index: uint32(i), Port: 1, Type: uint32(verbs.GIDRoCEv2)})
	}
	return out, nil
}

func (d *device) NextEvent(ctx context.Context) (verbs.EventProvided, error) {
	select {
	case e := <-d.events:
		return e, nil
	case <-ctx.Done():
		return verbs.EventProvided{}, ctx.Err()
	}
}

func (d *device) Close() error { return nil }

func (d *device) AllocPD() (verbs.PDProvider, error) { return &domain{d: d}, nil }

type domain struct {
	d    *device
	refs int
}

func (p *domain) Dealloc() error {
	p.d.f.mu.Lock()
	defer p.d.f.mu.Unlock()
	if p.refs != 0 {
		return syscall.EBUSY
	}
	return nil
}

type region struct {
	p      *domain
	mem    []byte
	base   uint64
	key    uint32
	access verbs.Access
}

func (p *domain) RegMR(mem []byte, access verbs.Access) (verbs.MRProvider, error) {
	d := p.d
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	if d.cfg.Memlock != 0 && d.locked+uint64(len(mem)) > d.cfg.Memlock {
		return nil, syscall.ENOMEM
	}
	d.locked += uint64(len(mem))
	d.nextKey += 0x101 // a key is not an index
	r := &region{p: p, mem: mem, base: addrOf(mem), key: d.nextKey, access: access}
	d.mrs[r.key] = r
	p.refs++
	return r, nil
}

func (r *region) LKey() uint32 { return r.key }
func (r *region) RKey() uint32 { return r.key }

func (r *region) Dereg() error {
	d := r.p.d
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	delete(d.mrs, r.key)
	d.locked -= uint64(len(r.mem))
	r.p.refs--
	return nil
}

// reach returns n bytes at addr through a region of the domain, if key and access allow it.
func (p *domain) reach(key uint32, addr uint64, n int, want verbs.Access) ([]byte, bool) {
	r := p.d.mrs[key]
	if r == nil || r.p != p || r.access&want != want || addr < r.base || addr-r.base > uint64(len(r.mem)) || uint64(n) > uint64(len(r.mem))-(addr-r.base) {
		return nil, false
	}
	off := addr - r.base
	return r.mem[off : off+uint64(n)], true
}

// scatter returns the pieces of a request's list.
func (p *domain) scatter(sge []verbs.SGE, want verbs.Access) ([][]byte, bool) {
	var out [][]byte
	for _, s := range sge {
		b, ok := p.reach(s.LKey, s.Addr, int(s.Length), want)
		if !ok {
			return nil, false
		}
		out = append(out, b)
	}
	return out, true
}

// inline returns a copy of memory that need not be registered.
func inline(sge []verbs.SGE) []byte {
	var out []byte
	for _, s := range sge {
		if s.Length > 0 {
			out = append(out, unsafe.Slice(*(**byte)(unsafe.Pointer(&s.Addr)), s.Length)...)
		}
	}
	return out
}

func addrOf(mem []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) }

type cqueue struct {
	d       *device
	depth   int
	entries []verbs.WC
	armed   bool
	over    bool
	event   chan struct{} // of room 1: events that nobody took count once
	closed  chan struct{}
	users   int
}

// CreateCQ makes a queue of exactly depth entries, so that one too many shows.
func (d *device) CreateCQ(depth int) (verbs.CQProvider, error) {
	return &cqueue{d: d, depth: depth, event: make(chan struct{}, 1), closed: make(chan struct{})}, nil
}

func (q *cqueue) Depth() int { return q.depth }

func (q *cqueue) Poll(wc []verbs.WC) (int, error) {
	q.d.f.mu.Lock()
	defer q.d.f.mu.Unlock()
	if q.over {
		return 0, syscall.EOVERFLOW
	}
	n := copy(wc, q.entries)
	q.entries = q.entries[:copy(q.entries, q.entries[n:])]
	return n, nil
}

func (q *cqueue) Spin(wc []verbs.WC, d time.Duration) (int, error) { return q.Poll(wc) }

func (q *cqueue) Arm(bool) error {
	q.d.f.mu.Lock()
	defer q.d.f.mu.Unlock()
	q.armed = true
	return nil
}

func (q *cqueue) Wait(ctx context.Context) error {
	select {
	case <-q.event:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-q.closed:
		return verbs.ErrClosed
	}
}

func (q *cqueue) Destroy() error {
	q.d.f.mu.Lock()
	defer q.d.f.mu.Unlock()
	if q.users != 0 {
		return syscall.EBUSY
	}
	close(q.closed)
	return nil
}

// Inject adds a completion to a queue of the network, as a device would.
func Inject(q verbs.CQProvider, wc verbs.WC) {
	c := q.(*cqueue)
	c.d.f.mu.Lock()
	defer c.d.f.mu.Unlock()
	c.add(wc)
}

func (q *cqueue) add(wc verbs.WC) {
	if len(q.entries) == q.depth {
		if !q.over {
			q.over = true
			q.d.event(verbs.EventProvided{Type: verbs.EventCQError, CQ: q})
		}
		return
	}
	q.entries = append(q.entries, wc)
	if q.armed {
		q.armed = false
		select {
		case q.event <- struct{}{}:
		default:
		}
	}
}

// complete adds a completion; with an error the fields that are not defined are garbage.
func (q *cqueue) complete(qpn uint32, id uint64, st verbs.Status, opcode uint32, n int, imm *uint32) {
	wc := verbs.WC{ID: id, Status: uint32(st), QPNum: qpn, Opcode: opcode, ByteLen: uint32(n)}
	if imm != nil {
		wc.ImmBE, wc.Flags = swap(*imm), ibverbs.WCWithImm
	}
	if st != verbs.StatusSuccess {
		wc.Opcode, wc.ByteLen, wc.ImmBE, wc.Flags, wc.VendorErr = verbs.WCRecv|2, 0xdeadbeef, 0xdeadbeef, ^uint32(0), 0x51
	}
	q.add(wc)
}

// swap turns host order into network order.
func swap(x uint32) uint32 {
	b := [4]byte{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)}
	return *(*uint32)(unsafe.Pointer(&b))
}

type sendReq struct {
	verbs.SendWR
	sge      []verbs.SGE
	inline   []byte
	isInline bool
}

type recvReq struct {
	id  uint64
	sge []verbs.SGE
}

func (p *domain) CreateQP(send, recv verbs.CQProvider, c *verbs.QPCap) (verbs.QPProvider, error) {
	d := p.d
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	if c.MaxInline > d.cfg.MaxInline {
		return nil, syscall.EINVAL
	}
	c.MaxInline = d.cfg.MaxInline
	q := &qpair{p: p, cap: *c, send: send.(*cqueue), recv: recv.(*cqueue)}
	// The lowest free number: a number comes back at once, as on a busy device.
	for q.num = 17; d.qps[q.num] != nil; q.num++ {
	}
	d.qps[q.num] = q
	p.refs++
	q.send.users++
	q.recv.users++
	return q, nil
}

func (q *qpair) Destroy() error {
	d := q.p.d
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	q.reset()
	q.dead = true
	delete(d.qps, q.num)
	q.p.refs--
	q.send.users--
	q.recv.users--
	return nil
}

func (q *qpair) Num() uint32 { return q.num }

func (q *qpair) State() (verbs.QPState, error) {
	q.p.d.f.mu.Lock()
	defer q.p.d.f.mu.Unlock()
	return q.state, nil
}

// transitions are the allowed ones, with the attributes that each must have.
var transitions = map[[2]verbs.QPState]uint32{
	{verbs.QPReset, verbs.QPInit}: ibverbs.QPPKeyIndex | ibverbs.QPPort | ibverbs.QPAccessFlags,
	{verbs.QPInit, verbs.QPRTR}: ibverbs.QPAV | ibverbs.QPPathMTU | ibverbs.QPDestQPN | ibverbs.QPRQPSN |
		ibverbs.QPMaxDestRd | ibverbs.QPMinRNRTimer,
	{verbs.QPRTR, verbs.QPRTS}: ibverbs.QPTimeout | ibverbs.QPRetryCnt | ibverbs.QPRNRRetry | ibverbs.QPSQPSN | ibverbs.QPMaxRdAtomic,
}

func (q *qpair) Modify(a *verbs.QPAttr, mask uint32) error {
	q.p.d.f.mu.Lock()
	defer q.p.d.f.mu.Unlock()
	to := verbs.QPState(a.State)
	switch to {
	case verbs.QPReset:
		q.reset()
		return nil
	case verbs.QPError:
		q.fail(0)
		return nil
	}
	need, ok := transitions[[2]verbs.QPState{q.state, to}]
	if !ok || mask&need != need {
		return syscall.EINVAL
	}
	switch to {
	case verbs.QPInit:
		q.access = verbs.Access(a.Access)
	case verbs.QPRTR:
		if int(a.SGIDIndex) >= len(q.p.d.cfg.Addrs) || !a.Global {
			return syscall.EINVAL
		}
		q.dgid, q.sgid = a.DGID, verbs.GIDOf(q.p.d.cfg.Addrs[a.SGIDIndex])
		q.mtu, q.dest, q.rqPSN, q.serve, q.rnrTimer = verbs.MTU(a.PathMTU).Bytes(), a.DestQPN, a.RQPSN, a.MaxDestRd, a.MinRNRTimer
	case verbs.QPRTS:
		q.timeout, q.retries, q.rnrRetries, q.sqPSN, q.reads = a.Timeout, int(a.RetryCount), int(a.RNRRetry), a.SQPSN, a.MaxRdAtomic
	}
	q.state = to
	return nil
}

func (q *qpair) PostSend(wr []verbs.SendWR, sge []verbs.SGE) (int, error) {
	q.p.d.f.mu.Lock()
	defer q.p.d.f.mu.Unlock()
	defer q.kick() // what was posted goes out, whatever is wrong with the rest
	for i := range wr {
		r := sendReq{SendWR: wr[i]}
		n := int(r.NumSGE)
		switch {
		case q.state != verbs.QPRTS && q.state != verbs.QPError, n > len(sge), n > int(q.cap.MaxSendSGE), r.Opcode > ibverbs.WRRead:
			return i, syscall.EINVAL
		case len(q.sq) >= int(q.cap.MaxSendWR):
			return i, syscall.ENOMEM
		}
		r.sge = slices.Clone(sge[:n])
		sge = sge[n:]
		if r.Flags&verbs.Inline != 0 {
			if r.inline, r.isInline = inline(r.sge), true; len(r.inline) > int(q.cap.MaxInline) || r.Opcode == verbs.OpRead {
				return i, syscall.EINVAL
			}
		}
		q.sq = append(q.sq, r)
	}
	return len(wr), nil
}

func (q *qpair) PostRecv(wr []verbs.RecvWR, sge []verbs.SGE) (int, error) {
	q.p.d.f.mu.Lock()
	defer q.p.d.f.mu.Unlock()
	for i := range wr {
		n := int(wr[i].NumSGE)
		switch {
		case q.state == verbs.QPReset, n > len(sge), n > int(q.cap.MaxRecvSGE):
			return i, syscall.EINVAL
		case len(q.rq) >= int(q.cap.MaxRecvWR):
			return i, syscall.ENOMEM
		}
		q.rq = append(q.rq, recvReq{wr[i].ID, slices.Clone(sge[:n])})
		sge = sge[n:]
	}
	if q.state == verbs.QPError {
		q.flush()
	}
	return len(wr), nil
}
