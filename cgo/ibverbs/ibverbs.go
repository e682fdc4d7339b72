//go:build rdma && cgo && linux

package ibverbs

/*
#cgo CFLAGS: -O2 -Wall -D_GNU_SOURCE
#cgo LDFLAGS: -ldl

#cgo noescape rfs_poll_cq
#cgo nocallback rfs_poll_cq
#cgo noescape rfs_spin_cq
#cgo nocallback rfs_spin_cq
#cgo noescape rfs_req_notify_cq
#cgo nocallback rfs_req_notify_cq
#cgo noescape rfs_post_send
#cgo nocallback rfs_post_send
#cgo noescape rfs_post_recv
#cgo nocallback rfs_post_recv
#cgo noescape rfs_get_cq_event
#cgo nocallback rfs_get_cq_event

#include "calls.h"
#include "load.h"
*/
import "C"

import (
	"fmt"
	"strings"
	"syscall"
	"unsafe"
)

// Built is true when verbs are compiled in.
const Built = true

// Objects of the library. They are C memory.
type (
	Device      C.struct_ibv_device
	Context     C.struct_ibv_context
	PD          C.struct_ibv_pd
	MR          C.struct_ibv_mr
	CompChannel C.struct_ibv_comp_channel
	CQ          C.struct_ibv_cq
	QP          C.struct_ibv_qp
)

// Lib is a loaded libibverbs, or a fake of it.
type Lib struct{ c C.rfs_lib }

// Load opens the shared library name; libibverbs.so.1 if it is empty. It is
// never closed again: its providers keep threads and destructors.
func Load(name string) (*Lib, error) {
	if name == "" {
		name = "libibverbs.so.1"
	}
	n := C.CString(name)
	defer C.free(unsafe.Pointer(n))
	table := (*C.struct_rfs_ibv)(C.calloc(1, C.sizeof_struct_rfs_ibv))
	if why := C.rfs_ibv_load(n, table); why != nil {
		C.free(unsafe.Pointer(table))
		return nil, fmt.Errorf("ibverbs: %s", C.GoString(why))
	}
	return &Lib{table}, nil
}

// FromTable returns the library whose functions stand in the C struct rfs_ibv at table.
func FromTable(table unsafe.Pointer) *Lib { return &Lib{(C.rfs_lib)(table)} }

func errnoOf(rc C.int) error {
	if rc == 0 {
		return nil
	}
	return syscall.Errno(rc)
}

func orErrno(err error) error {
	if err == nil || err == syscall.Errno(0) {
		return syscall.EIO
	}
	return err
}

// DeviceList is the array that GetDeviceList returns.
type DeviceList struct {
	list **C.struct_ibv_device
	n    int
}

// Devices returns the devices of the list, valid until it is freed.
func (d DeviceList) Devices() []*Device {
	return unsafe.Slice((**Device)(unsafe.Pointer(d.list)), d.n)
}

// GetDeviceList lists the devices; ENOSYS means that the kernel has no InfiniBand.
//
// Implements:
//
//	struct ibv_device **ibv_get_device_list(int *num_devices);
func (l *Lib) GetDeviceList() (DeviceList, error) {
	var n C.int
	list, err := C.rfs_get_device_list(l.c, &n)
	if list == nil {
		return DeviceList{}, orErrno(err)
	}
	return DeviceList{list, int(n)}, nil
}

// FreeDeviceList frees the list; a device of it that was opened stays.
//
// Implements:
//
//	void ibv_free_device_list(struct ibv_device **list);
func (l *Lib) FreeDeviceList(d DeviceList) {
	if d.list != nil {
		C.rfs_free_device_list(l.c, d.list)
	}
}

// GetDeviceName returns the name that the kernel gave the device, as mlx5_0.
//
// Implements:
//
//	const char *ibv_get_device_name(struct ibv_device *device);
func (l *Lib) GetDeviceName(d *Device) string {
	return C.GoString(C.rfs_get_device_name(l.c, (*C.struct_ibv_device)(d)))
}

// OpenDevice opens a device.
//
// Implements:
//
//	struct ibv_context *ibv_open_device(struct ibv_device *device);
func (l *Lib) OpenDevice(d *Device) (*Context, error) {
	c, err := C.rfs_open_device(l.c, (*C.struct_ibv_device)(d))
	if c == nil {
		return nil, orErrno(err)
	}
	return (*Context)(c), nil
}

// CloseDevice closes a device.
//
// Implements:
//
//	int ibv_close_device(struct ibv_context *context);
func (l *Lib) CloseDevice(c *Context) error {
	if rc, err := C.rfs_close_device(l.c, (*C.struct_ibv_context)(c)); rc != 0 {
		return orErrno(err)
	}
	return nil
}

// AsyncFD returns the descriptor that is readable when there is an asynchronous event.
func (c *Context) AsyncFD() int { return int(c.async_fd) }

// QueryDevice reads what a device can do.
//
// Implements:
//
//	int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *device_attr);
func (l *Lib) QueryDevice(c *Context) (DeviceAttr, error) {
	var a C.struct_ibv_device_attr
	if rc := C.rfs_query_device(l.c, (*C.struct_ibv_context)(c), &a); rc != 0 {
		return DeviceAttr{}, errnoOf(rc)
	}
	d := DeviceAttr{
		Firmware: C.GoString(&a.fw_ver[0]), VendorID: uint32(a.vendor_id), PartID: uint32(a.vendor_part_id),
		MaxMRSize: uint64(a.max_mr_size), MaxQP: int(a.max_qp), MaxQPWR: int(a.max_qp_wr), MaxSGE: int(a.max_sge),
		MaxCQ: int(a.max_cq), MaxCQE: int(a.max_cqe), MaxMR: int(a.max_mr), MaxPD: int(a.max_pd),
		MaxRdAtom: int(a.max_qp_rd_atom), MaxRdInit: int(a.max_qp_init_rd_atom), Ports: int(a.phys_port_cnt),
		AckDelay: int(a.local_ca_ack_delay), PageSizes: uint64(a.page_size_cap), Capability: uint32(a.device_cap_flags),
	}
	*(*uint64)(unsafe.Pointer(&d.NodeGUID[0])) = uint64(a.node_guid)
	d.Firmware = strings.TrimSpace(d.Firmware)
	return d, nil
}

// QueryPort reads the state of a port.
//
// Implements:
//
//	int ibv_query_port(struct ibv_context *context, uint8_t port_num, struct ibv_port_attr *port_attr);
func (l *Lib) QueryPort(c *Context, port int) (PortAttr, error) {
	var a C.struct_ibv_port_attr
	if rc := C.rfs_query_port(l.c, (*C.struct_ibv_context)(c), C.uint8_t(port), &a); rc != 0 {
		return PortAttr{}, errnoOf(C.rfs_errno(rc))
	}
	return PortAttr{
		State: uint32(a.state), MaxMTU: uint32(a.max_mtu), ActiveMTU: uint32(a.active_mtu), GIDs: int(a.gid_tbl_len),
		MaxMsg: uint32(a.max_msg_sz), LID: uint16(a.lid), SMLID: uint16(a.sm_lid), LMC: uint8(a.lmc),
		Width: uint8(a.active_width), Speed: uint8(a.active_speed), Physical: uint8(a.phys_state),
		LinkLayer: uint8(a.link_layer), Flags: uint8(a.flags),
	}, nil
}

// QueryGIDTable reads the GIDs of all ports into table, without the empty
// slots, and returns how many. ENOSYS: rdma-core is older than 33.
//
// Implements:
//
//	ssize_t ibv_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries,
//	                            size_t max_entries, uint32_t flags);
func (l *Lib) QueryGIDTable(c *Context, table []GIDEntry) (int, error) {
	if len(table) == 0 {
		return 0, nil
	}
	p := (*C.struct_ibv_gid_entry)(unsafe.Pointer(unsafe.SliceData(table)))
	n := C.rfs_query_gid_table(l.c, (*C.struct_ibv_context)(c), p, C.size_t(len(table)))
	if n < 0 {
		return 0, syscall.Errno(-n)
	}
	return int(n), nil
}

// AllocPD allocates a protection domain.
//
// Implements:
//
//	struct ibv_pd *ibv_alloc_pd(struct ibv_context *context);
func (l *Lib) AllocPD(c *Context) (*PD, error) {
	pd, err := C.rfs_alloc_pd(l.c, (*C.struct_ibv_context)(c))
	if pd == nil {
		return nil, orErrno(err)
	}
	return (*PD)(pd), nil
}

// DeallocPD frees a protection domain; EBUSY while it has regions or queue pairs.
//
// Implements:
//
//	int ibv_dealloc_pd(struct ibv_pd *pd);
func (l *Lib) DeallocPD(pd *PD) error {
	return errnoOf(C.rfs_dealloc_pd(l.c, (*C.struct_ibv_pd)(pd)))
}

// RegMR registers length bytes at addr, which must not be on the Go heap.
//
// Implements:
//
//	struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access);
func (l *Lib) RegMR(pd *PD, addr unsafe.Pointer, length int, access uint32) (*MR, error) {
	mr, err := C.rfs_reg_mr(l.c, (*C.struct_ibv_pd)(pd), addr, C.size_t(length), C.int(access))
	if mr == nil {
		return nil, orErrno(err)
	}
	return (*MR)(mr), nil
}

// LKey and RKey return the keys of a region.
func (m *MR) LKey() uint32 { return uint32(m.lkey) }
func (m *MR) RKey() uint32 { return uint32(m.rkey) }

// DeregMR ends the registration of a region.
//
// Implements:
//
//	int ibv_dereg_mr(struct ibv_mr *mr);
func (l *Lib) DeregMR(mr *MR) error { return errnoOf(C.rfs_dereg_mr(l.c, (*C.struct_ibv_mr)(mr))) }

// CreateCompChannel creates a completion channel.
//
// Implements:
//
//	struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context);
func (l *Lib) CreateCompChannel(c *Context) (*CompChannel, error) {
	ch, err := C.rfs_create_comp_channel(l.c, (*C.struct_ibv_context)(c))
	if ch == nil {
		return nil, orErrno(err)
	}
	return (*CompChannel)(ch), nil
}

// FD returns the channel's descriptor, which the channel owns.
func (ch *CompChannel) FD() int { return int(ch.fd) }

// DestroyCompChannel destroys a channel; EBUSY while a completion queue uses it.
//
// Implements:
//
//	int ibv_destroy_comp_channel(struct ibv_comp_channel *channel);
func (l *Lib) DestroyCompChannel(ch *CompChannel) error {
	return errnoOf(C.rfs_destroy_comp_channel(l.c, (*C.struct_ibv_comp_channel)(ch)))
}

// CreateCQ creates a completion queue of at least cqe entries.
//
// Implements:
//
//	struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context,
//	                             struct ibv_comp_channel *channel, int comp_vector);
func (l *Lib) CreateCQ(c *Context, cqe int, ch *CompChannel, vector int) (*CQ, error) {
	cq, err := C.rfs_create_cq(l.c, (*C.struct_ibv_context)(c), C.int(cqe), (*C.struct_ibv_comp_channel)(ch), C.int(vector))
	if cq == nil {
		return nil, orErrno(err)
	}
	return (*CQ)(cq), nil
}

// CQE returns how many entries the queue has.
func (cq *CQ) CQE() int { return int(cq.cqe) }

// DestroyCQ destroys a queue. It waits until all its events are acknowledged.
//
// Implements:
//
//	int ibv_destroy_cq(struct ibv_cq *cq);
func (l *Lib) DestroyCQ(cq *CQ) error { return errnoOf(C.rfs_destroy_cq(l.c, (*C.struct_ibv_cq)(cq))) }

// GetCQEvent takes one event from the channel: EAGAIN if there is none and its
// descriptor does not block. Each is to be acknowledged by AckCQEvents.
//
// Implements:
//
//	int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context);
func (l *Lib) GetCQEvent(ch *CompChannel) error {
	return errnoOf(C.rfs_get_cq_event(l.c, (*C.struct_ibv_comp_channel)(ch)))
}

// AckCQEvents acknowledges n events.
//
// Implements:
//
//	void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int nevents);
func (l *Lib) AckCQEvents(cq *CQ, n int) {
	C.rfs_ack_cq_events(l.c, (*C.struct_ibv_cq)(cq), C.uint(n))
}

// PollCQ takes up to len(wc) completions.
//
// Implements:
//
//	int ibv_poll_cq(struct ibv_cq *cq, int num_entries, struct ibv_wc *wc);
func PollCQ(cq *CQ, wc []WC) (int, error) {
	n := C.rfs_poll_cq((*C.struct_ibv_cq)(cq), C.int(len(wc)), (*C.struct_ibv_wc)(unsafe.Pointer(unsafe.SliceData(wc))))
	if n < 0 {
		return 0, syscall.EIO
	}
	return int(n), nil
}

// SpinCQ is PollCQ until there is a completion or ns nanoseconds have passed.
//
// Implements:
//
//	int ibv_poll_cq(struct ibv_cq *cq, int num_entries, struct ibv_wc *wc);
func SpinCQ(cq *CQ, wc []WC, ns int64) (int, error) {
	n := C.rfs_spin_cq((*C.struct_ibv_cq)(cq), C.int(len(wc)), (*C.struct_ibv_wc)(unsafe.Pointer(unsafe.SliceData(wc))), C.int64_t(ns))
	if n < 0 {
		return 0, syscall.EIO
	}
	return int(n), nil
}

// ReqNotifyCQ arms the queue: the next completion makes an event on its channel.
//
// Implements:
//
//	int ibv_req_notify_cq(struct ibv_cq *cq, int solicited_only);
func ReqNotifyCQ(cq *CQ, solicitedOnly bool) error {
	var s C.int
	if solicitedOnly {
		s = 1
	}
	return errnoOf(C.rfs_errno(C.rfs_req_notify_cq((*C.struct_ibv_cq)(cq), s)))
}

// CreateQP creates an RC queue pair; what it got is written to cap.
//
// Implements:
//
//	struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *qp_init_attr);
func (l *Lib) CreateQP(pd *PD, send, recv *CQ, cap *QPCap) (*QP, error) {
	var a C.struct_ibv_qp_init_attr
	a.send_cq, a.recv_cq = (*C.struct_ibv_cq)(send), (*C.struct_ibv_cq)(recv)
	a.qp_type = C.IBV_QPT_RC
	a.cap.max_send_wr, a.cap.max_recv_wr = C.uint32_t(cap.MaxSendWR), C.uint32_t(cap.MaxRecvWR)
	a.cap.max_send_sge, a.cap.max_recv_sge = C.uint32_t(cap.MaxSendSGE), C.uint32_t(cap.MaxRecvSGE)
	a.cap.max_inline_data = C.uint32_t(cap.MaxInline)
	qp, err := C.rfs_create_qp(l.c, (*C.struct_ibv_pd)(pd), &a)
	if qp == nil {
		return nil, orErrno(err)
	}
	cap.MaxSendWR, cap.MaxRecvWR = uint32(a.cap.max_send_wr), uint32(a.cap.max_recv_wr)
	cap.MaxSendSGE, cap.MaxRecvSGE = uint32(a.cap.max_send_sge), uint32(a.cap.max_recv_sge)
	cap.MaxInline = uint32(a.cap.max_inline_data)
	return (*QP)(qp), nil
}

// Num returns the queue pair's number.
func (qp *QP) Num() uint32 { return uint32(qp.qp_num) }

// ModifyQP sets the attributes of mask.
//
// Implements:
//
//	int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask);
func (l *Lib) ModifyQP(qp *QP, x *QPAttr, mask uint32) error {
	var a C.struct_ibv_qp_attr
	a.qp_state, a.path_mtu = C.enum_ibv_qp_state(x.State), C.enum_ibv_mtu(x.PathMTU)
	a.rq_psn, a.sq_psn, a.dest_qp_num = C.uint32_t(x.RQPSN), C.uint32_t(x.SQPSN), C.uint32_t(x.DestQPN)
	a.qp_access_flags, a.pkey_index = C.uint(x.Access), C.uint16_t(x.PKeyIndex)
	a.max_rd_atomic, a.max_dest_rd_atomic = C.uint8_t(x.MaxRdAtomic), C.uint8_t(x.MaxDestRd)
	a.min_rnr_timer, a.port_num, a.timeout = C.uint8_t(x.MinRNRTimer), C.uint8_t(x.Port), C.uint8_t(x.Timeout)
	a.retry_cnt, a.rnr_retry = C.uint8_t(x.RetryCount), C.uint8_t(x.RNRRetry)
	h := &a.ah_attr
	h.dlid, h.sl, h.src_path_bits, h.static_rate = C.uint16_t(x.DLID), C.uint8_t(x.SL), C.uint8_t(x.SrcPathBits), C.uint8_t(x.StaticRate)
	h.port_num = C.uint8_t(x.Port)
	if x.Global {
		h.is_global = 1
		*(*GID)(unsafe.Pointer(&h.grh.dgid)) = x.DGID
		h.grh.flow_label, h.grh.sgid_index = C.uint32_t(x.FlowLabel), C.uint8_t(x.SGIDIndex)
		h.grh.hop_limit, h.grh.traffic_class = C.uint8_t(x.HopLimit), C.uint8_t(x.TrafficClass)
	}
	return errnoOf(C.rfs_modify_qp(l.c, (*C.struct_ibv_qp)(qp), &a, C.int(mask)))
}

// QueryQP returns the state of a queue pair: one of QPSReset to QPSErr.
//
// Implements:
//
//	int ibv_query_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask,
//	                 struct ibv_qp_init_attr *init_attr);
func (l *Lib) QueryQP(qp *QP) (state uint32, err error) {
	var a C.struct_ibv_qp_attr
	var i C.struct_ibv_qp_init_attr
	if rc := C.rfs_query_qp(l.c, (*C.struct_ibv_qp)(qp), &a, QPState, &i); rc != 0 {
		return 0, errnoOf(rc)
	}
	return uint32(a.qp_state), nil
}

// DestroyQP destroys a queue pair. It waits until all its events are acknowledged.
//
// Implements:
//
//	int ibv_destroy_qp(struct ibv_qp *qp);
func (l *Lib) DestroyQP(qp *QP) error { return errnoOf(C.rfs_destroy_qp(l.c, (*C.struct_ibv_qp)(qp))) }

// PostSend posts wr in order, in lists of Batch, with their elements from sge.
// It returns how many were posted; on an error the one after them was refused,
// and it and those after it will never complete.
//
// Implements:
//
//	int ibv_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr);
func PostSend(qp *QP, wr []SendWR, sge []SGE) (int, error) {
	p := C.rfs_post_send((*C.struct_ibv_qp)(qp),
		(*C.struct_rfs_send_wr)(unsafe.Pointer(unsafe.SliceData(wr))), C.int(len(wr)),
		(*C.struct_ibv_sge)(unsafe.Pointer(unsafe.SliceData(sge))), C.int(len(sge)))
	return int(p.posted), errnoOf(p.err)
}

// PostRecv posts wr in order, as PostSend.
//
// Implements:
//
//	int ibv_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr);
func PostRecv(qp *QP, wr []RecvWR, sge []SGE) (int, error) {
	p := C.rfs_post_recv((*C.struct_ibv_qp)(qp),
		(*C.struct_rfs_recv_wr)(unsafe.Pointer(unsafe.SliceData(wr))), C.int(len(wr)),
		(*C.struct_ibv_sge)(unsafe.Pointer(unsafe.SliceData(sge))), C.int(len(sge)))
	return int(p.posted), errnoOf(p.err)
}

// GetAsyncEvent takes one asynchronous event of the device: EAGAIN if there is
// none and AsyncFD does not block. Each is to be acknowledged.
//
// Implements:
//
//	int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event);
func (l *Lib) GetAsyncEvent(c *Context, e *AsyncEvent) error {
	return errnoOf(C.rfs_get_async_event(l.c, (*C.struct_ibv_context)(c), (*C.struct_ibv_async_event)(unsafe.Pointer(e))))
}

// AckAsyncEvent acknowledges an event.
//
// Implements:
//
//	void ibv_ack_async_event(struct ibv_async_event *event);
func (l *Lib) AckAsyncEvent(e *AsyncEvent) {
	C.rfs_ack_async_event(l.c, (*C.struct_ibv_async_event)(unsafe.Pointer(e)))
}

// QPNum returns the number of the queue pair of a QP event that is not yet acknowledged.
func (e *AsyncEvent) QPNum() uint32 {
	return uint32((*(**C.struct_ibv_qp)(unsafe.Pointer(&e.Element))).qp_num)
}

// Is reports whether a CQ event that is not yet acknowledged is of cq.
func (e *AsyncEvent) Is(cq *CQ) bool { return e.Element == uint64(uintptr(unsafe.Pointer(cq))) }
