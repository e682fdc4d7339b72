package verbs

import (
	"context"
	"time"
)

// A Provider is where verbs come from. It and all below keep no order and no
// state of their own: that is what the types of this package are for. Errors are
// those of the system (syscall.Errno) where it has one.
type Provider interface {
	// Devices lists the names of the devices. That there is none is no error.
	Devices() ([]string, error)
	Open(name string) (DeviceProvider, error)
}

// DeviceProvider is an open device.
type DeviceProvider interface {
	QueryDevice() (DeviceAttr, error)
	QueryPort(port int) (PortAttr, error)
	// QueryGIDs returns the GIDs of all ports, without the empty slots.
	QueryGIDs() ([]GIDEntry, error)
	AllocPD() (PDProvider, error)
	// CreateCQ makes a completion queue of at least depth entries, with a channel of its own.
	CreateCQ(depth int) (CQProvider, error)
	// NextEvent waits for an asynchronous event. It is called from one goroutine at a time.
	NextEvent(ctx context.Context) (EventProvided, error)
	Close() error
}

// EventProvided is an asynchronous event with the provider's objects.
type EventProvided struct {
	Type EventType
	Port int
	QPN  uint32
	CQ   CQProvider
}

// PDProvider is a protection domain.
type PDProvider interface {
	// RegMR registers mem, which is not on the Go heap.
	RegMR(mem []byte, access Access) (MRProvider, error)
	// CreateQP makes an RC queue pair and writes to c what it got.
	CreateQP(send, recv CQProvider, c *QPCap) (QPProvider, error)
	Dealloc() error
}

// MRProvider is a memory region.
type MRProvider interface {
	LKey() uint32
	RKey() uint32
	Dereg() error
}

// CQProvider is a completion queue and its channel.
type CQProvider interface {
	Depth() int
	Poll(wc []WC) (int, error)
	// Spin polls until there is a completion or d has passed.
	Spin(wc []WC, d time.Duration) (int, error)
	// Arm makes the next completion an event. One that is there already makes none.
	Arm(solicited bool) error
	// Wait waits for an event, in Go's netpoller if it has a descriptor. It is
	// called from one goroutine at a time, and fails with ErrClosed when another destroys the queue.
	Wait(ctx context.Context) error
	Destroy() error
}

// QPProvider is a queue pair. Its posts may be called from any goroutine.
type QPProvider interface {
	Num() uint32
	Modify(a *QPAttr, mask uint32) error
	State() (QPState, error)
	PostSend(wr []SendWR, sge []SGE) (int, error)
	PostRecv(wr []RecvWR, sge []SGE) (int, error)
	Destroy() error
}
