package verbs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"rfs/cgo/ibverbs"
)

// Library returns the provider of libibverbs. Where it is not installed, or this
// binary was built without it, the error says so; it wraps errors.ErrUnsupported.
// It is opened once.
var Library = sync.OnceValues(func() (Provider, error) {
	l, err := ibverbs.Load("")
	if err != nil {
		if !errors.Is(err, errors.ErrUnsupported) {
			err = fmt.Errorf("%w: %w: install rdma-core (Debian: ibverbs-providers, Fedora: libibverbs)", errors.ErrUnsupported, err)
		}
		return nil, err
	}
	return FromLib(l), nil
})

// FromLib returns the provider of a loaded library.
func FromLib(l *ibverbs.Lib) Provider { return &library{l} }

type library struct{ l *ibverbs.Lib }

// list calls f with each device until it returns true. A kernel without InfiniBand has no device.
func (p *library) list(f func(name string, d *ibverbs.Device) bool) error {
	l, err := p.l.GetDeviceList()
	switch {
	case errors.Is(err, syscall.ENOSYS):
		return nil
	case err != nil:
		return fmt.Errorf("verbs: list the devices: %w", err)
	}
	defer p.l.FreeDeviceList(l)
	for _, d := range l.Devices() {
		if f(p.l.GetDeviceName(d), d) {
			break
		}
	}
	return nil
}

func (p *library) Devices() ([]string, error) {
	var names []string
	err := p.list(func(name string, _ *ibverbs.Device) bool {
		names = append(names, name)
		return false
	})
	return names, err
}

func (p *library) Open(name string) (DeviceProvider, error) {
	var (
		c    *ibverbs.Context
		oerr = ErrNoDevice
	)
	err := p.list(func(n string, d *ibverbs.Device) bool {
		if n == name {
			c, oerr = p.l.OpenDevice(d)
		}
		return n == name
	})
	if err = errors.Join(err, oerr); c == nil {
		return nil, err
	}
	async, err := newEventFD(c.AsyncFD(), name+" events")
	if err != nil {
		return nil, errors.Join(err, p.l.CloseDevice(c))
	}
	return &device{l: p.l, c: c, async: async}, nil
}

type device struct {
	l     *ibverbs.Lib
	c     *ibverbs.Context
	async *eventFD

	mu  sync.Mutex
	cqs map[*cqueue]bool
}

func (d *device) QueryDevice() (DeviceAttr, error)     { return d.l.QueryDevice(d.c) }
func (d *device) QueryPort(port int) (PortAttr, error) { return d.l.QueryPort(d.c, port) }

func (d *device) QueryGIDs() ([]GIDEntry, error) {
	for size := 64; ; size *= 4 {
		table := make([]GIDEntry, size)
		n, err := d.l.QueryGIDTable(d.c, table)
		if errors.Is(err, syscall.EINVAL) && size < 1<<16 {
			continue // more GIDs than that
		}
		if errors.Is(err, syscall.ENOSYS) {
			return nil, fmt.Errorf("libibverbs cannot list GIDs: install rdma-core 33 or newer: %w", err)
		}
		return table[:n], err
	}
}

func (d *device) Close() error {
	d.async.close()
	return d.l.CloseDevice(d.c)
}

func (d *device) NextEvent(ctx context.Context) (EventProvided, error) {
	var e ibverbs.AsyncEvent
	if err := d.async.wait(ctx, func() error { return d.l.GetAsyncEvent(d.c, &e) }); err != nil {
		return EventProvided{}, err
	}
	defer d.l.AckAsyncEvent(&e) // the object stays until this
	out := EventProvided{Type: EventType(e.Type)}
	switch out.Type {
	case EventQPFatal, EventQPReqError, EventQPAccess, EventEstablished, EventLastWQE:
		out.QPN = e.QPNum()
	case EventCQError:
		d.mu.Lock()
		defer d.mu.Unlock()
		for q := range d.cqs {
			if e.Is(q.cq) {
				out.CQ = q
			}
		}
	case EventPortActive, EventPortError, EventLIDChange, EventPKeyChange, EventReregister, EventGIDChange:
		out.Port = e.Port()
	}
	return out, nil
}

func (d *device) AllocPD() (PDProvider, error) {
	pd, err := d.l.AllocPD(d.c)
	if err != nil {
		return nil, err
	}
	return &domain{d.l, pd}, nil
}

type domain struct {
	l  *ibverbs.Lib
	pd *ibverbs.PD
}

func (p *domain) Dealloc() error { return p.l.DeallocPD(p.pd) }

func (p *domain) RegMR(mem []byte, access Access) (MRProvider, error) {
	mr, err := p.l.RegMR(p.pd, unsafe.Pointer(unsafe.SliceData(mem)), len(mem), uint32(access))
	if err != nil {
		return nil, err
	}
	return &region{p.l, mr, mr.LKey(), mr.RKey()}, nil
}

type region struct {
	l          *ibverbs.Lib
	mr         *ibverbs.MR
	lkey, rkey uint32
}

func (m *region) LKey() uint32 { return m.lkey }
func (m *region) RKey() uint32 { return m.rkey }
func (m *region) Dereg() error { return m.l.DeregMR(m.mr) }

func (d *device) CreateCQ(depth int) (CQProvider, error) {
	ch, err := d.l.CreateCompChannel(d.c)
	if err != nil {
		return nil, fmt.Errorf("completion channel: %w", err)
	}
	q := &cqueue{d: d, ch: ch}
	if q.events, err = newEventFD(ch.FD(), "completion channel"); err == nil {
		if q.cq, err = d.l.CreateCQ(d.c, depth, ch, 0); err != nil {
			q.events.close()
		}
	}
	if err != nil {
		return nil, errors.Join(err, d.l.DestroyCompChannel(ch))
	}
	// An acknowledgement takes a lock in C, and only the destruction needs it.
	q.take = func() error {
		err := d.l.GetCQEvent(ch)
		if err == nil {
			q.unacked.Add(1)
		}
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cqs == nil {
		d.cqs = map[*cqueue]bool{}
	}
	d.cqs[q] = true
	return q, nil
}

type cqueue struct {
	d       *device
	ch      *ibverbs.CompChannel
	cq      *ibverbs.CQ
	events  *eventFD
	take    func() error
	unacked atomic.Int64 // events taken
}

func (q *cqueue) Depth() int                { return q.cq.CQE() }
func (q *cqueue) Poll(wc []WC) (int, error) { return ibverbs.PollCQ(q.cq, wc) }
func (q *cqueue) Arm(solicited bool) error  { return ibverbs.ReqNotifyCQ(q.cq, solicited) }

func (q *cqueue) Spin(wc []WC, d time.Duration) (int, error) {
	return ibverbs.SpinCQ(q.cq, wc, int64(d))
}

func (q *cqueue) Wait(ctx context.Context) error { return q.events.wait(ctx, q.take) }

func (q *cqueue) Destroy() error {
	q.events.close() // and the waiter is out
	q.d.l.AckCQEvents(q.cq, int(q.unacked.Swap(0)))
	if err := q.d.l.DestroyCQ(q.cq); err != nil {
		return err
	}
	q.d.mu.Lock()
	delete(q.d.cqs, q)
	q.d.mu.Unlock()
	return q.d.l.DestroyCompChannel(q.ch)
}

func (p *domain) CreateQP(send, recv CQProvider, c *QPCap) (QPProvider, error) {
	qp, err := p.l.CreateQP(p.pd, send.(*cqueue).cq, recv.(*cqueue).cq, c)
	if err != nil {
		return nil, err
	}
	return &qpair{p.l, qp, qp.Num()}, nil
}

type qpair struct {
	l   *ibverbs.Lib
	qp  *ibverbs.QP
	num uint32
}

func (q *qpair) Num() uint32                         { return q.num }
func (q *qpair) Modify(a *QPAttr, mask uint32) error { return q.l.ModifyQP(q.qp, a, mask) }
func (q *qpair) Destroy() error                      { return q.l.DestroyQP(q.qp) }

func (q *qpair) State() (QPState, error) {
	s, err := q.l.QueryQP(q.qp)
	return QPState(s), err
}

func (q *qpair) PostSend(wr []SendWR, sge []SGE) (int, error) { return ibverbs.PostSend(q.qp, wr, sge) }
func (q *qpair) PostRecv(wr []RecvWR, sge []SGE) (int, error) { return ibverbs.PostRecv(q.qp, wr, sge) }
