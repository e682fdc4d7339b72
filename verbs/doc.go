// Package verbs owns the objects of RDMA as Go sees them: who made what, in which
// order they may go, which state a queue pair is in, how a completion is waited
// for, and what its status means.
//
//	Provider.Open -> Context -+- PD -+- MR     memory that a device may touch
//	                          |      +- QP     RESET -> INIT -> RTR -> RTS -> ERR
//	                          +- CQ            poll, arm, poll, wait in Go's netpoller
//	                          +- NextEvent     ports, queue pairs, the device itself
//
// An object cannot be closed before what was made from it (ErrBusy), and may be
// closed any number of times.
//
// A Provider is where verbs come from: Library opens libibverbs at run time;
// package verbs/sim is a network in this process. Package verbs/verbstest is the
// suite that each of them passes.
package verbs

import "rfs/cgo/ibverbs"

// The plain structs of the data path are those of the binding.
type (
	// SGE is a piece of registered memory.
	SGE = ibverbs.SGE
	// SendWR is a request of the send queue. Its NumSGE elements follow those of the request before it.
	SendWR = ibverbs.SendWR
	// RecvWR is a request of the receive queue.
	RecvWR = ibverbs.RecvWR
	// WC is a completion; see WCError for one whose Status is not 0.
	WC = ibverbs.WC
	// GID is an address of a port: 16 bytes, an IPv6 address on RoCE v2.
	GID        = ibverbs.GID
	GIDEntry   = ibverbs.GIDEntry
	DeviceAttr = ibverbs.DeviceAttr
	PortAttr   = ibverbs.PortAttr
	QPCap      = ibverbs.QPCap
	QPAttr     = ibverbs.QPAttr
)

// Opcodes and flags of send requests.
const (
	OpWrite    = ibverbs.WRWrite
	OpWriteImm = ibverbs.WRWriteImm
	OpSend     = ibverbs.WRSend
	OpSendImm  = ibverbs.WRSendImm
	OpRead     = ibverbs.WRRead

	Signaled = ibverbs.SendSignaled
	Fence    = ibverbs.SendFence
	Inline   = ibverbs.SendInline
)

// Opcodes of completions. OpcodeNone stands in every completion with an error,
// where the device's own is not defined.
const (
	WCSend         = ibverbs.WCSend
	WCWrite        = ibverbs.WCWrite
	WCRead         = ibverbs.WCRead
	WCRecv         = ibverbs.WCRecv
	WCRecvWriteImm = ibverbs.WCRecvWriteImm
	OpcodeNone     = ^uint32(0)
)

// Access says what a region or a queue pair lets others do.
type Access uint32

const (
	LocalWrite  Access = ibverbs.AccessLocalWrite
	RemoteWrite Access = ibverbs.AccessRemoteWrite
	RemoteRead  Access = ibverbs.AccessRemoteRead
)
