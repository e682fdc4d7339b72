package verbs

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"rfs/cgo/ibverbs"
)

// QPConfig is how a queue pair is made.
type QPConfig struct {
	// Send and Recv are the completion queues; they may be one. Each must hold all
	// requests of all its queue pairs, the unsignalled too: a flush completes them all.
	Send, Recv *CQ
	// SendWR and RecvWR are how many requests may be under way; SendSGE and RecvSGE
	// (default 1) the elements of each; Inline the bytes that a request may carry itself.
	SendWR, RecvWR, SendSGE, RecvSGE, Inline int
}

// QP is an RC queue pair. Its posts may be called from any goroutine.
type QP struct {
	pd         *PD
	send, recv *CQ
	cap        QPCap
	num        uint32
	maxMsg     atomic.Uint64 // of the port, once connected

	mu     sync.RWMutex // held for writing by state changes and Close
	qp     QPProvider
	state  QPState // as far as this side knows: the device may be in ERR already
	failed atomic.Bool
	closed bool
}

// CreateQP makes a queue pair in state RESET.
func (p *PD) CreateQP(cfg QPConfig) (*QP, error) {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := p.checkQP(&cfg); err != nil {
		return nil, err
	}
	got := QPCap{MaxSendWR: uint32(cfg.SendWR), MaxRecvWR: uint32(cfg.RecvWR), MaxSendSGE: uint32(max(cfg.SendSGE, 1)),
		MaxRecvSGE: uint32(max(cfg.RecvSGE, 1)), MaxInline: uint32(cfg.Inline)}
	asked := got
	qp, err := p.pd.CreateQP(cfg.Send.cq, cfg.Recv.cq, &got)
	if err != nil {
		return nil, fmt.Errorf("verbs: create a queue pair on %s (%+v): %w", c.name, asked, err)
	}
	// The device may give more than was asked; only what was asked is promised to the completion queues.
	got.MaxSendWR, got.MaxRecvWR = asked.MaxSendWR, asked.MaxRecvWR
	q := &QP{pd: p, send: cfg.Send, recv: cfg.Recv, cap: got, num: qp.Num(), qp: qp}
	q.reserve(1)
	c.qps[q.num] = q
	return q, nil
}

func (p *PD) checkQP(cfg *QPConfig) error {
	a := &p.c.attr
	switch {
	case p.closed:
		return ErrClosed
	case cfg.Send == nil || cfg.Recv == nil || cfg.Send.c != p.c || cfg.Recv.c != p.c:
		return errors.New("verbs: a queue pair needs completion queues of its own device")
	case cfg.Send.closed || cfg.Recv.closed:
		return fmt.Errorf("%w: completion queue", ErrClosed)
	case cfg.SendWR < 1 || cfg.SendWR > a.MaxQPWR || cfg.RecvWR < 1 || cfg.RecvWR > a.MaxQPWR:
		return fmt.Errorf("verbs: a queue pair of %d send and %d receive requests: %s has 1 to %d", cfg.SendWR, cfg.RecvWR, p.c.name, a.MaxQPWR)
	case cfg.SendSGE > a.MaxSGE || cfg.RecvSGE > a.MaxSGE:
		return fmt.Errorf("verbs: %d and %d elements a request: %s has %d", cfg.SendSGE, cfg.RecvSGE, p.c.name, a.MaxSGE)
	}
	need := map[*CQ]int{}
	need[cfg.Send] += cfg.SendWR
	need[cfg.Recv] += cfg.RecvWR
	for cq, n := range need {
		if cq.reserved+n > cq.Depth() {
			return fmt.Errorf("verbs: a completion queue of %d entries, %d of them taken, cannot hold %d more: "+
				"it must be as deep as all work requests of its queue pairs, signalled or not", cq.Depth(), cq.reserved, n)
		}
	}
	return nil
}

// reserve counts the queue pair where it is used; sign is 1 or -1. c.mu is held.
func (q *QP) reserve(sign int) {
	q.pd.qps += sign
	q.send.qps += sign
	q.recv.qps += sign
	q.send.reserved += sign * int(q.cap.MaxSendWR)
	q.recv.reserved += sign * int(q.cap.MaxRecvWR)
}

// Num returns the queue pair's number, Cap what it can hold.
func (q *QP) Num() uint32 { return q.num }
func (q *QP) Cap() QPCap  { return q.cap }

// State returns the state as the device has it.
func (q *QP) State() (QPState, error) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.closed {
		return 0, ErrClosed
	}
	return q.qp.State()
}

// Connection is how a queue pair reaches its peer. Both sides have one.
type Connection struct {
	Port     int // of this side; the first is 1
	PathMTU  MTU // the smaller active MTU of the two ports
	LocalPSN uint32
	// The peer's.
	RemoteQPN, RemotePSN uint32
	// RoCE, and InfiniBand across subnets: by GID.
	Global       bool
	GIDIndex     int
	RemoteGID    GID
	HopLimit     uint8
	TrafficClass uint8
	FlowLabel    uint32
	// InfiniBand: by LID.
	RemoteLID    uint16
	ServiceLevel uint8

	Timers
	// MaxReads is how many READs this side may have under way, MaxReadsServed how
	// many it serves: at most what the device can, and what the peer was told.
	MaxReads, MaxReadsServed int
}

// Timers are the retry settings of a connection.
type Timers struct {
	Timeout     uint8 // 4.096 us x 2^Timeout until a packet is sent again; 0 means for ever
	RetryCount  uint8 // how often, 1 to 7
	MinRNRTimer uint8 // code of the pause that this side asks for when it has no receive posted; 0 means 655 ms
	RNRRetry    uint8 // how often a sender takes such a pause, 1 to 6; 7 means for ever
}

// DefaultTimers give up on a silent peer in about 1 s.
var DefaultTimers = Timers{Timeout: 15, RetryCount: 7, MinRNRTimer: 12, RNRRetry: 3}

// Validate reports all values that would make an error take for ever.
func (t Timers) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("verbs: "+format, args...)) }
	if t.Timeout < 1 || t.Timeout > 31 {
		bad("timeout %d: want 1 to 31 (15 is 134 ms); 0 means to wait for ever", t.Timeout)
	}
	if t.RetryCount < 1 || t.RetryCount > 7 {
		bad("retry_cnt %d: want 1 to 7", t.RetryCount)
	}
	if t.MinRNRTimer < 1 || t.MinRNRTimer > 31 {
		bad("min_rnr_timer %d: want 1 to 31 (12 is 0.64 ms); 0 means 655 ms", t.MinRNRTimer)
	}
	if t.RNRRetry < 1 || t.RNRRetry > 6 {
		bad("rnr_retry %d: want 1 to 6; 7 means to try for ever", t.RNRRetry)
	}
	return errors.Join(errs...)
}

// Validate reports everything that is wrong with the connection.
func (x *Connection) Validate() error {
	errs := []error{x.Timers.Validate()}
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("verbs: "+format, args...)) }
	if x.Port < 1 || x.Port > 255 {
		bad("port %d: want 1 or more", x.Port)
	}
	if x.PathMTU.Bytes() == 0 {
		bad("path MTU code %d: want 1 (256) to 5 (4096)", uint32(x.PathMTU))
	}
	if x.LocalPSN >= 1<<24 || x.RemotePSN >= 1<<24 || x.RemoteQPN >= 1<<24 {
		bad("PSN or queue pair number beyond 24 bits")
	}
	if x.Global && x.HopLimit == 0 {
		bad("hop limit 0: want 64; 0 does not leave the host")
	}
	if !x.Global && x.RemoteLID == 0 {
		bad("neither a GID nor a LID of the peer")
	}
	if x.MaxReads < 0 || x.MaxReads > 255 || x.MaxReadsServed < 0 || x.MaxReadsServed > 255 {
		bad("%d and %d READs at once: want 0 to 255", x.MaxReads, x.MaxReadsServed)
	}
	return errors.Join(errs...)
}

// Init takes the queue pair from RESET to INIT, where it accepts receives.
// access is what its peer may do, and a region's access must allow it too.
func (q *QP) Init(port int, access Access) error {
	a := QPAttr{State: uint32(QPInit), Port: uint8(port), Access: uint32(access)}
	return q.modify(QPReset, &a, ibverbs.QPState|ibverbs.QPPKeyIndex|ibverbs.QPPort|ibverbs.QPAccessFlags)
}

// ReadyToReceive takes it from INIT to RTR, where it answers its peer.
func (q *QP) ReadyToReceive(x *Connection) error {
	if err := x.Validate(); err != nil {
		return err
	}
	p, err := q.pd.c.Port(x.Port)
	if err != nil {
		return err
	}
	q.maxMsg.Store(uint64(p.MaxMsg))
	a := QPAttr{
		State: uint32(QPRTR), Port: uint8(x.Port), PathMTU: uint32(x.PathMTU), DestQPN: x.RemoteQPN, RQPSN: x.RemotePSN,
		MaxDestRd: uint8(x.MaxReadsServed), MinRNRTimer: x.MinRNRTimer, Global: x.Global, DGID: x.RemoteGID,
		SGIDIndex: uint8(x.GIDIndex), HopLimit: x.HopLimit, TrafficClass: x.TrafficClass, FlowLabel: x.FlowLabel,
		DLID: x.RemoteLID, SL: x.ServiceLevel,
	}
	return q.modify(QPInit, &a, ibverbs.QPState|ibverbs.QPAV|ibverbs.QPPathMTU|ibverbs.QPDestQPN|ibverbs.QPRQPSN|
		ibverbs.QPMaxDestRd|ibverbs.QPMinRNRTimer)
}

// ReadyToSend takes it from RTR to RTS, where it sends.
func (q *QP) ReadyToSend(x *Connection) error {
	if err := x.Validate(); err != nil {
		return err
	}
	a := QPAttr{State: uint32(QPRTS), SQPSN: x.LocalPSN, Timeout: x.Timeout, RetryCount: x.RetryCount, RNRRetry: x.RNRRetry,
		MaxRdAtomic: uint8(x.MaxReads)}
	return q.modify(QPRTR, &a, ibverbs.QPState|ibverbs.QPTimeout|ibverbs.QPRetryCnt|ibverbs.QPRNRRetry|ibverbs.QPSQPSN|
		ibverbs.QPMaxRdAtomic)
}

// Fail takes it to ERR, where every request completes, flushed, and the peer
// can reach this side's memory no longer.
func (q *QP) Fail() error {
	return q.modify(anyState, &QPAttr{State: uint32(QPError)}, ibverbs.QPState)
}

// Reset takes it to RESET. Requests that did not complete never will.
func (q *QP) Reset() error {
	return q.modify(anyState, &QPAttr{State: uint32(QPReset)}, ibverbs.QPState)
}

const anyState = QPState(^uint32(0))

func (q *QP) modify(from QPState, a *QPAttr, mask uint32) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	if from != anyState && (q.state != from || q.failed.Load()) {
		return fmt.Errorf("%w: queue pair %d is in %v and cannot go to %v", ErrState, q.num, q.state, QPState(a.State))
	}
	if err := q.qp.Modify(a, mask); err != nil {
		return fmt.Errorf("verbs: take queue pair %d of %s from %v to %v: %w", q.num, q.pd.c.name, q.state, QPState(a.State), err)
	}
	q.state = QPState(a.State)
	q.failed.Store(q.state == QPError)
	return nil
}

func (q *QP) noteError() { q.failed.Store(true) }

// PostSend posts requests in order; those of sge follow each other as NumSGE of
// each request says. It returns how many were posted. On an error the one after
// them was refused: it and all after it will never complete.
func (q *QP) PostSend(wr []SendWR, sge []SGE) (int, error) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	switch {
	case q.closed:
		return 0, ErrClosed
	case q.state != QPRTS && q.state != QPError:
		return 0, fmt.Errorf("%w: queue pair %d is in %v: it sends in RTS", ErrState, q.num, q.state)
	}
	fit, n := q.fit(wr, sge)
	posted, err := q.qp.PostSend(wr[:fit], sge)
	switch {
	case err != nil:
		return posted, fmt.Errorf("verbs: post to queue pair %d: %w", q.num, err)
	case fit < len(wr):
		return posted, fmt.Errorf("%w: %d bytes to queue pair %d, whose port carries %d", ErrTooLong, n, q.num, q.maxMsg.Load())
	}
	return posted, nil
}

// fit returns how many of wr are within the port's longest message, and the length of the one that is not.
func (q *QP) fit(wr []SendWR, sge []SGE) (int, uint64) {
	limit := q.maxMsg.Load()
	for i := range wr {
		var n uint64
		k := min(int(wr[i].NumSGE), len(sge))
		for _, s := range sge[:k] {
			n += uint64(s.Length)
		}
		if n > limit {
			return i, n
		}
		sge = sge[k:]
	}
	return len(wr), 0
}

// PostRecv posts receives in order, as PostSend.
func (q *QP) PostRecv(wr []RecvWR, sge []SGE) (int, error) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	switch {
	case q.closed:
		return 0, ErrClosed
	case q.state == QPReset:
		return 0, fmt.Errorf("%w: queue pair %d is in RESET: it takes receives from INIT on", ErrState, q.num)
	}
	posted, err := q.qp.PostRecv(wr, sge)
	if err != nil {
		return posted, fmt.Errorf("verbs: post receives to queue pair %d: %w", q.num, err)
	}
	return posted, nil
}

// Close destroys the queue pair. Completions of it may still come out of the
// completion queues, and its number may be given to the next (see Slots).
func (q *QP) Close() error {
	c := q.pd.c
	c.mu.Lock()
	defer c.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return nil
	}
	if err := q.qp.Destroy(); err != nil {
		return fmt.Errorf("verbs: destroy queue pair %d of %s: %w", q.num, c.name, err)
	}
	q.closed = true
	delete(c.qps, q.num)
	q.reserve(-1)
	return nil
}
