package verbs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Context is an open device.
type Context struct {
	name string
	dev  DeviceProvider
	attr DeviceAttr

	// mu guards below, in this and in all objects made from it. Order: events, then mu, then a CQ's or a QP's own.
	mu     sync.Mutex
	closed bool
	pds    int
	cqs    map[CQProvider]*CQ
	qps    map[uint32]*QP
	locked uint64 // bytes registered

	events sync.Mutex // one goroutine at a time waits for events
}

// Open opens the device of the name.
func Open(p Provider, name string) (*Context, error) {
	names, err := p.Devices()
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, ErrNoDevice
	}
	if !slices.Contains(names, name) {
		return nil, fmt.Errorf("%w %q: there are %q", ErrNoDevice, name, names)
	}
	d, err := p.Open(name)
	if err != nil {
		return nil, fmt.Errorf("verbs: open %s: %w", name, err)
	}
	attr, err := d.QueryDevice()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("verbs: query %s: %w", name, err), d.Close())
	}
	return &Context{name: name, dev: d, attr: attr, cqs: map[CQProvider]*CQ{}, qps: map[uint32]*QP{}}, nil
}

// Name returns the device's name, Attr what it can do.
func (c *Context) Name() string     { return c.name }
func (c *Context) Attr() DeviceAttr { return c.attr }

// Port reads the state of a port; the first is 1.
func (c *Context) Port(port int) (PortAttr, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return PortAttr{}, ErrClosed
	}
	a, err := c.dev.QueryPort(port)
	if err != nil {
		return a, fmt.Errorf("verbs: query port %d of %s: %w", port, c.name, err)
	}
	return a, nil
}

// GIDs returns the GIDs of all ports.
func (c *Context) GIDs() ([]GIDEntry, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	g, err := c.dev.QueryGIDs()
	if err != nil {
		return nil, fmt.Errorf("verbs: read the GIDs of %s: %w", c.name, err)
	}
	return g, nil
}

// Event is an asynchronous event. QP and CQ are nil when they were closed meanwhile.
type Event struct {
	Type EventType
	Port int
	QP   *QP
	CQ   *CQ
}

func (e Event) String() string {
	switch {
	case e.QP != nil:
		return fmt.Sprintf("%v (queue pair %d)", e.Type, e.QP.Num())
	case e.Port != 0:
		return fmt.Sprintf("%v (port %d)", e.Type, e.Port)
	}
	return e.Type.String()
}

// NextEvent waits for an asynchronous event of the device.
func (c *Context) NextEvent(ctx context.Context) (Event, error) {
	c.events.Lock()
	defer c.events.Unlock()
	e, err := c.dev.NextEvent(ctx)
	if err != nil {
		return Event{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := Event{Type: e.Type, Port: e.Port, QP: c.qps[e.QPN]}
	if e.CQ != nil {
		out.CQ = c.cqs[e.CQ]
	}
	if out.QP != nil && (e.Type == EventQPFatal || e.Type == EventQPReqError || e.Type == EventQPAccess) {
		out.QP.noteError()
	}
	return out, nil
}

// Close closes the device. It fails with ErrBusy while it has objects.
func (c *Context) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	if err := busy(c.name, len(c.qps), "queue pairs", len(c.cqs), "completion queues", c.pds, "protection domains"); err != nil {
		return err
	}
	c.closed = true
	return c.dev.Close()
}

// PD is a protection domain: regions and queue pairs that may use each other.
type PD struct {
	c  *Context
	pd PDProvider

	// guarded by c.mu
	closed   bool
	mrs, qps int
}

// AllocPD allocates a protection domain.
func (c *Context) AllocPD() (*PD, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	pd, err := c.dev.AllocPD()
	if err != nil {
		return nil, fmt.Errorf("verbs: allocate a protection domain of %s: %w", c.name, err)
	}
	c.pds++
	return &PD{c: c, pd: pd}, nil
}

// Close frees the domain. It fails with ErrBusy while it has regions or queue pairs.
func (p *PD) Close() error {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	if p.closed {
		return nil
	}
	if err := busy("protection domain of "+p.c.name, p.qps, "queue pairs", p.mrs, "memory regions"); err != nil {
		return err
	}
	if err := p.pd.Dealloc(); err != nil {
		return fmt.Errorf("verbs: free a protection domain of %s: %w", p.c.name, err)
	}
	p.closed = true
	p.c.pds--
	return nil
}

// MR is a memory region.
type MR struct {
	pd     *PD
	mr     MRProvider
	mem    []byte
	closed bool // guarded by pd.c.mu
}

// RegMR registers mem, which must not be on the Go heap and must stay mapped
// until the region is closed. A *MemlockError says that the process may not lock so much.
func (p *PD) RegMR(mem []byte, access Access) (*MR, error) {
	p.c.mu.Lock()
	defer p.c.mu.Unlock()
	switch {
	case p.closed:
		return nil, ErrClosed
	case len(mem) == 0:
		return nil, errors.New("verbs: register no bytes")
	case access&RemoteWrite != 0 && access&LocalWrite == 0:
		return nil, errors.New("verbs: a region with remote write needs local write too")
	}
	mr, err := p.pd.RegMR(mem, access)
	if err != nil {
		return nil, p.c.explainRegister(len(mem), err)
	}
	p.mrs++
	p.c.locked += uint64(len(mem))
	return &MR{pd: p, mr: mr, mem: mem}, nil
}

func (c *Context) explainRegister(n int, err error) error {
	var lim unix.Rlimit
	if errors.Is(err, syscall.ENOMEM) && unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim) == nil && lim.Cur < c.locked+uint64(n) {
		return &MemlockError{Need: c.locked + uint64(n), Limit: lim.Cur, Err: err}
	}
	return fmt.Errorf("verbs: register %d bytes with %s: %w", n, c.name, err)
}

// LKey and RKey are the keys for this side's work requests and for the peer's.
func (m *MR) LKey() uint32 { return m.mr.LKey() }
func (m *MR) RKey() uint32 { return m.mr.RKey() }

// Addr returns the address of the region's byte off.
func (m *MR) Addr(off int) uint64 {
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(m.mem)))) + uint64(off)
}

// SGE returns n bytes from off as an element of a scatter list.
func (m *MR) SGE(off, n int) SGE {
	_ = m.mem[off : off+n]
	return SGE{Addr: m.Addr(off), Length: uint32(n), LKey: m.LKey()}
}

// Bytes returns the registered memory.
func (m *MR) Bytes() []byte { return m.mem }

// Close ends the registration. It fails with ErrBusy while the domain has queue
// pairs, whose requests could still name the region.
func (m *MR) Close() error {
	c := m.pd.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.closed {
		return nil
	}
	if err := busy("protection domain of a memory region", m.pd.qps, "queue pairs"); err != nil {
		return err
	}
	if err := m.mr.Dereg(); err != nil {
		return fmt.Errorf("verbs: deregister %d bytes of %s: %w", len(m.mem), c.name, err)
	}
	m.closed = true
	m.pd.mrs--
	c.locked -= uint64(len(m.mem))
	return nil
}
