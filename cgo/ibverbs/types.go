// Package ibverbs binds libibverbs one to one: each function is one verb, ends
// with the C prototype that it implements, and holds no policy. Package verbs is
// the Go-shaped layer above it.
//
//	verbs.Context, CQ, QP     owners, order of destruction, waiting, errors
//	     |
//	ibverbs.PostSend          slices of the plain structs of this file
//	     |  one cgo call      the linked list is built on the C stack
//	qp->context->ops          the provider: mlx5, rxe, or package fake
//
// The library is opened with dlopen at run time (Load), so that one binary runs
// on nodes with and without it; the headers are needed only to build, with the
// tag rdma. Without the tag every function returns an error that wraps
// errors.ErrUnsupported.
//
// No memory that C sees holds a Go pointer: work requests carry addresses of
// registered memory as integers, and that memory is never on the Go heap.
package ibverbs

// SGE is a piece of registered memory: struct ibv_sge.
type SGE struct {
	Addr   uint64
	Length uint32
	LKey   uint32
}

// SendWR is a work request of the send queue without its scatter list: the
// requests of one PostSend take NumSGE elements each, one after the other, from
// one slice. Imm is in host order.
type SendWR struct {
	ID         uint64
	RemoteAddr uint64
	RKey       uint32
	Imm        uint32
	Opcode     uint32
	Flags      uint32
	NumSGE     uint32
	_          uint32
}

// RecvWR is a work request of the receive queue; see SendWR for NumSGE.
type RecvWR struct {
	ID     uint64
	NumSGE uint32
	_      uint32
}

// WC is struct ibv_wc, byte for byte. When Status is not WCSuccess only ID,
// Status, QPNum and VendorErr are valid. ImmBE is in network order.
type WC struct {
	ID        uint64
	Status    uint32
	Opcode    uint32
	VendorErr uint32
	ByteLen   uint32
	ImmBE     uint32
	QPNum     uint32
	SrcQP     uint32
	Flags     uint32
	PKeyIndex uint16
	SLID      uint16
	SL        uint8
	PathBits  uint8
	_         uint16
}

// AsyncEvent is struct ibv_async_event, byte for byte. Element is the address
// of the CQ or QP, or the number of the port.
type AsyncEvent struct {
	Element uint64
	Type    uint32
	_       uint32
}

// Port returns the port of a port event.
func (e *AsyncEvent) Port() int { return int(int32(uint32(e.Element))) }

// GID is union ibv_gid.
type GID [16]byte

// GIDEntry is struct ibv_gid_entry, byte for byte.
type GIDEntry struct {
	GID     GID
	Index   uint32
	Port    uint32
	Type    uint32
	Ifindex uint32
}

// DeviceAttr is what rfs needs of struct ibv_device_attr.
type DeviceAttr struct {
	Firmware   string
	NodeGUID   [8]byte
	VendorID   uint32
	PartID     uint32
	MaxMRSize  uint64
	MaxQP      int
	MaxQPWR    int
	MaxSGE     int
	MaxCQ      int
	MaxCQE     int
	MaxMR      int
	MaxPD      int
	MaxRdAtom  int // max_qp_rd_atom: READs that a queue pair serves at once
	MaxRdInit  int // max_qp_init_rd_atom: READs that it may have under way
	Ports      int
	AckDelay   int
	PageSizes  uint64
	Capability uint32
}

// PortAttr is what rfs needs of struct ibv_port_attr.
type PortAttr struct {
	State     uint32
	MaxMTU    uint32 // enum ibv_mtu
	ActiveMTU uint32 // enum ibv_mtu
	GIDs      int
	MaxMsg    uint32
	LID       uint16
	SMLID     uint16
	LMC       uint8
	Width     uint8
	Speed     uint8
	Physical  uint8
	LinkLayer uint8
	Flags     uint8
}

// QPCap is struct ibv_qp_cap.
type QPCap struct {
	MaxSendWR, MaxRecvWR, MaxSendSGE, MaxRecvSGE, MaxInline uint32
}

// QPAttr is what rfs sets of struct ibv_qp_attr, with the address vector.
type QPAttr struct {
	State        uint32
	PathMTU      uint32
	RQPSN        uint32
	SQPSN        uint32
	DestQPN      uint32
	Access       uint32
	PKeyIndex    uint16
	MaxRdAtomic  uint8
	MaxDestRd    uint8
	MinRNRTimer  uint8
	Port         uint8
	Timeout      uint8
	RetryCount   uint8
	RNRRetry     uint8
	Global       bool
	DGID         GID
	FlowLabel    uint32
	SGIDIndex    uint8
	HopLimit     uint8
	TrafficClass uint8
	DLID         uint16
	SL           uint8
	SrcPathBits  uint8
	StaticRate   uint8
}

// Access flags of memory regions and queue pairs: enum ibv_access_flags.
const (
	AccessLocalWrite  = 1 << 0
	AccessRemoteWrite = 1 << 1
	AccessRemoteRead  = 1 << 2
)

// Opcodes of work requests: enum ibv_wr_opcode.
const (
	WRWrite    = 0
	WRWriteImm = 1
	WRSend     = 2
	WRSendImm  = 3
	WRRead     = 4
)

// Flags of work requests: enum ibv_send_flags.
const (
	SendFence     = 1 << 0
	SendSignaled  = 1 << 1
	SendSolicited = 1 << 2
	SendInline    = 1 << 3
)

// Opcodes of completions: enum ibv_wc_opcode.
const (
	WCSend         = 0
	WCWrite        = 1
	WCRead         = 2
	WCRecv         = 1 << 7
	WCRecvWriteImm = WCRecv + 1
)

// WCWithImm: the completion carries immediate data (enum ibv_wc_flags).
const WCWithImm = 1 << 1

// Statuses of completions: enum ibv_wc_status.
const (
	WCSuccess        = 0
	WCLocLenErr      = 1
	WCLocQPOpErr     = 2
	WCLocProtErr     = 4
	WCFlushErr       = 5
	WCBadRespErr     = 7
	WCLocAccessErr   = 8
	WCRemInvReqErr   = 9
	WCRemAccessErr   = 10
	WCRemOpErr       = 11
	WCRetryExcErr    = 12
	WCRNRRetryExcErr = 13
	WCRemAbortErr    = 16
	WCFatalErr       = 19
	WCRespTimeoutErr = 20
	WCGeneralErr     = 21
)

// States of queue pairs: enum ibv_qp_state.
const (
	QPSReset = 0
	QPSInit  = 1
	QPSRTR   = 2
	QPSRTS   = 3
	QPSSQD   = 4
	QPSSQE   = 5
	QPSErr   = 6
)

// Masks of ModifyQP: enum ibv_qp_attr_mask.
const (
	QPState       = 1 << 0
	QPAccessFlags = 1 << 3
	QPPKeyIndex   = 1 << 4
	QPPort        = 1 << 5
	QPAV          = 1 << 7
	QPPathMTU     = 1 << 8
	QPTimeout     = 1 << 9
	QPRetryCnt    = 1 << 10
	QPRNRRetry    = 1 << 11
	QPRQPSN       = 1 << 12
	QPMaxRdAtomic = 1 << 13
	QPMinRNRTimer = 1 << 15
	QPSQPSN       = 1 << 16
	QPMaxDestRd   = 1 << 17
	QPDestQPN     = 1 << 20
)

// States of ports, link layers, the flag of a port that needs a GRH.
const (
	PortDown   = 1
	PortInit   = 2
	PortArmed  = 3
	PortActive = 4

	LinkUnspecified = 0
	LinkInfiniBand  = 1
	LinkEthernet    = 2

	PortGRHRequired = 1 << 0
)

// Types of GIDs: enum ibv_gid_type.
const (
	GIDTypeIB     = 0
	GIDTypeRoCEv1 = 1
	GIDTypeRoCEv2 = 2
)

// Asynchronous events: enum ibv_event_type.
const (
	EventCQErr          = 0
	EventQPFatal        = 1
	EventQPReqErr       = 2
	EventQPAccessErr    = 3
	EventCommEst        = 4
	EventDeviceFatal    = 8
	EventPortActive     = 9
	EventPortErr        = 10
	EventLIDChange      = 11
	EventPKeyChange     = 12
	EventLastWQE        = 16
	EventClientReregist = 17
	EventGIDChange      = 18
)

// Batch is how many work requests one list on the C stack holds; PostSend and
// PostRecv post longer slices in several lists, in one cgo call.
const Batch = 64
