package verbs

import (
	"fmt"
	"net/netip"
	"strings"

	"rfs/cgo/ibverbs"
)

// Status is the status of a completion: enum ibv_wc_status.
type Status uint32

const (
	StatusSuccess     Status = ibverbs.WCSuccess
	StatusLocLen      Status = ibverbs.WCLocLenErr
	StatusLocQPOp     Status = ibverbs.WCLocQPOpErr
	StatusLocProt     Status = ibverbs.WCLocProtErr
	StatusFlush       Status = ibverbs.WCFlushErr
	StatusBadResp     Status = ibverbs.WCBadRespErr
	StatusLocAccess   Status = ibverbs.WCLocAccessErr
	StatusRemInvReq   Status = ibverbs.WCRemInvReqErr
	StatusRemAccess   Status = ibverbs.WCRemAccessErr
	StatusRemOp       Status = ibverbs.WCRemOpErr
	StatusRetryExc    Status = ibverbs.WCRetryExcErr
	StatusRNRRetryExc Status = ibverbs.WCRNRRetryExcErr
	StatusRemAbort    Status = ibverbs.WCRemAbortErr
	StatusFatal       Status = ibverbs.WCFatalErr
	StatusRespTimeout Status = ibverbs.WCRespTimeoutErr
	StatusGeneral     Status = ibverbs.WCGeneralErr
)

var statusNames = map[Status]string{
	StatusSuccess: "success", StatusLocLen: "local length error", StatusLocQPOp: "local QP operation error",
	StatusLocProt: "local protection error", StatusFlush: "flushed", StatusBadResp: "bad response",
	StatusLocAccess: "local access error", StatusRemInvReq: "remote invalid request", StatusRemAccess: "remote access error",
	StatusRemOp: "remote operation error", StatusRetryExc: "no answer after all retries",
	StatusRNRRetryExc: "receiver not ready after all retries", StatusRemAbort: "remote aborted",
	StatusFatal: "fatal device error", StatusRespTimeout: "response timeout", StatusGeneral: "general error",
}

func (s Status) String() string { return nameOf(statusNames, s, "status") }

// QPState is the state of a queue pair: enum ibv_qp_state.
type QPState uint32

const (
	QPReset QPState = ibverbs.QPSReset
	QPInit  QPState = ibverbs.QPSInit
	QPRTR   QPState = ibverbs.QPSRTR
	QPRTS   QPState = ibverbs.QPSRTS
	QPSQD   QPState = ibverbs.QPSSQD
	QPSQE   QPState = ibverbs.QPSSQE
	QPError QPState = ibverbs.QPSErr
)

var qpStateNames = map[QPState]string{QPReset: "RESET", QPInit: "INIT", QPRTR: "RTR", QPRTS: "RTS", QPSQD: "SQD", QPSQE: "SQE", QPError: "ERR"}

func (s QPState) String() string { return nameOf(qpStateNames, s, "state") }

// EventType is an asynchronous event: enum ibv_event_type.
type EventType uint32

const (
	EventCQError     EventType = ibverbs.EventCQErr
	EventQPFatal     EventType = ibverbs.EventQPFatal
	EventQPReqError  EventType = ibverbs.EventQPReqErr
	EventQPAccess    EventType = ibverbs.EventQPAccessErr
	EventEstablished EventType = ibverbs.EventCommEst
	EventDeviceFatal EventType = ibverbs.EventDeviceFatal
	EventPortActive  EventType = ibverbs.EventPortActive
	EventPortError   EventType = ibverbs.EventPortErr
	EventLIDChange   EventType = ibverbs.EventLIDChange
	EventPKeyChange  EventType = ibverbs.EventPKeyChange
	EventLastWQE     EventType = ibverbs.EventLastWQE
	EventReregister  EventType = ibverbs.EventClientReregist
	EventGIDChange   EventType = ibverbs.EventGIDChange
)

var eventNames = map[EventType]string{
	EventCQError: "completion queue error", EventQPFatal: "queue pair fatal", EventQPReqError: "queue pair request error",
	EventQPAccess: "queue pair access error", EventEstablished: "communication established", EventDeviceFatal: "device fatal",
	EventPortActive: "port active", EventPortError: "port error", EventLIDChange: "LID change", EventPKeyChange: "P_Key change",
	EventLastWQE: "last WQE reached", EventReregister: "client reregister", EventGIDChange: "GID change",
}

func (e EventType) String() string { return nameOf(eventNames, e, "event") }

// PortState is the state of a port: enum ibv_port_state.
type PortState uint32

const (
	PortDown   PortState = ibverbs.PortDown
	PortInit   PortState = ibverbs.PortInit
	PortArmed  PortState = ibverbs.PortArmed
	PortActive PortState = ibverbs.PortActive
)

var portStateNames = map[PortState]string{0: "none", PortDown: "down", PortInit: "init", PortArmed: "armed", PortActive: "active"}

func (s PortState) String() string { return nameOf(portStateNames, s, "port state") }

// LinkLayer is what a port's packets travel in.
type LinkLayer uint8

const (
	LinkInfiniBand LinkLayer = ibverbs.LinkInfiniBand
	LinkEthernet   LinkLayer = ibverbs.LinkEthernet
)

func (l LinkLayer) String() string {
	return nameOf(map[LinkLayer]string{0: "unspecified", LinkInfiniBand: "InfiniBand", LinkEthernet: "Ethernet"}, l, "link layer")
}

// GIDType is the kind of a GID: enum ibv_gid_type.
type GIDType uint32

const (
	GIDInfiniBand GIDType = ibverbs.GIDTypeIB
	GIDRoCEv1     GIDType = ibverbs.GIDTypeRoCEv1
	GIDRoCEv2     GIDType = ibverbs.GIDTypeRoCEv2
)

func (g GIDType) String() string {
	return nameOf(map[GIDType]string{GIDInfiniBand: "IB", GIDRoCEv1: "RoCE v1", GIDRoCEv2: "RoCE v2"}, g, "GID type")
}

// MTU is a path MTU: enum ibv_mtu.
type MTU uint32

// Bytes returns the MTU's payload: 256 << (m-1).
func (m MTU) Bytes() int {
	if m < 1 || m > 5 {
		return 0
	}
	return 128 << m
}

func (m MTU) String() string { return fmt.Sprint(m.Bytes()) }

// Addr returns a GID as an address: an IPv4-mapped one as IPv4.
func Addr(g GID) netip.Addr { return netip.AddrFrom16(g).Unmap() }

// GIDOf returns the GID of an address on RoCE v2.
func GIDOf(a netip.Addr) GID { return a.As16() }

func (a Access) String() string {
	var s []string
	for _, f := range []struct {
		bit  Access
		name string
	}{{LocalWrite, "local write"}, {RemoteWrite, "remote write"}, {RemoteRead, "remote read"}} {
		if a&f.bit != 0 {
			s = append(s, f.name)
		}
	}
	if s == nil {
		return "local read"
	}
	return strings.Join(s, ", ")
}

func nameOf[T ~uint8 | ~uint32](names map[T]string, v T, kind string) string {
	if s, ok := names[v]; ok {
		return s
	}
	return fmt.Sprintf("%s %d", kind, v)
}

// As text in JSON.
func (s PortState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
func (l LinkLayer) MarshalText() ([]byte, error) { return []byte(l.String()), nil }
func (g GIDType) MarshalText() ([]byte, error)   { return []byte(g.String()), nil }
func (m MTU) MarshalText() ([]byte, error)       { return []byte(m.String()), nil }
