//go:build rdma && cgo && linux

package ibverbs

/*
#include "lib.h"

#define OFF(s, f) off_##s##_##f = offsetof(struct s, f)
enum {
	OFF(ibv_wc, wr_id), OFF(ibv_wc, status), OFF(ibv_wc, opcode), OFF(ibv_wc, vendor_err), OFF(ibv_wc, byte_len),
	OFF(ibv_wc, imm_data), OFF(ibv_wc, qp_num), OFF(ibv_wc, src_qp), OFF(ibv_wc, wc_flags), OFF(ibv_wc, pkey_index),
	OFF(ibv_wc, slid), OFF(ibv_wc, sl), OFF(ibv_wc, dlid_path_bits),
	OFF(ibv_sge, addr), OFF(ibv_sge, length), OFF(ibv_sge, lkey),
	OFF(ibv_gid_entry, gid), OFF(ibv_gid_entry, gid_index), OFF(ibv_gid_entry, port_num),
	OFF(ibv_gid_entry, gid_type), OFF(ibv_gid_entry, ndev_ifindex),
	OFF(ibv_async_event, element), OFF(ibv_async_event, event_type),
	OFF(rfs_send_wr, id), OFF(rfs_send_wr, remote_addr), OFF(rfs_send_wr, rkey), OFF(rfs_send_wr, imm),
	OFF(rfs_send_wr, opcode), OFF(rfs_send_wr, flags), OFF(rfs_send_wr, num_sge),
	OFF(rfs_recv_wr, id), OFF(rfs_recv_wr, num_sge),
};

static void rfs_golden_wc(struct ibv_wc *w)
{
	memset(w, 0, sizeof(*w));
	w->wr_id = 0x0102030405060708;
	w->status = IBV_WC_REM_ACCESS_ERR;
	w->opcode = IBV_WC_RECV_RDMA_WITH_IMM;
	w->vendor_err = 0x11121314;
	w->byte_len = 0x21222324;
	w->imm_data = htobe32(0x31323334);
	w->qp_num = 0x414243;
	w->src_qp = 0x515253;
	w->wc_flags = IBV_WC_WITH_IMM;
	w->pkey_index = 0x6162;
	w->slid = 0x7172;
	w->sl = 0x81;
	w->dlid_path_bits = 0x91;
}
static void rfs_golden_sge(struct ibv_sge *s)
{
	s->addr = 0x0102030405060708;
	s->length = 0x11121314;
	s->lkey = 0x21222324;
}
static void rfs_golden_gid(struct ibv_gid_entry *g)
{
	memset(g, 0, sizeof(*g));
	for (int i = 0; i < 16; i++)
		g->gid.raw[i] = (uint8_t)(0xa0 + i);
	g->gid_index = 3;
	g->port_num = 1;
	g->gid_type = IBV_GID_TYPE_ROCE_V2;
	g->ndev_ifindex = 7;
}
static void rfs_golden_event(struct ibv_async_event *e)
{
	memset(e, 0, sizeof(*e));
	e->element.port_num = 2;
	e->event_type = IBV_EVENT_PORT_ERR;
}
*/
import "C"

import "unsafe"

// The layouts that Go and C share. An array of a negative or a wrong length does
// not compile: sizes and constants are checked by the compiler, offsets and
// bytes by the tests.
var (
	_ [0]struct{} = [unsafe.Sizeof(WC{}) - C.sizeof_struct_ibv_wc]struct{}{}
	_ [0]struct{} = [unsafe.Sizeof(SGE{}) - C.sizeof_struct_ibv_sge]struct{}{}
	_ [0]struct{} = [unsafe.Sizeof(GIDEntry{}) - C.sizeof_struct_ibv_gid_entry]struct{}{}
	_ [0]struct{} = [unsafe.Sizeof(AsyncEvent{}) - C.sizeof_struct_ibv_async_event]struct{}{}
	_ [0]struct{} = [unsafe.Sizeof(SendWR{}) - C.sizeof_struct_rfs_send_wr]struct{}{}
	_ [0]struct{} = [unsafe.Sizeof(RecvWR{}) - C.sizeof_struct_rfs_recv_wr]struct{}{}
	_ [0]struct{} = [Batch - C.RFS_BATCH]struct{}{}
)

// field is one field of a shared struct: where Go and where C has it.
type field struct {
	name  string
	goOff uintptr
	cOff  uintptr
}

func fields() []field {
	var (
		w WC
		s SGE
		g GIDEntry
		e AsyncEvent
		x SendWR
		r RecvWR
	)
	return []field{
		{"wc.wr_id", unsafe.Offsetof(w.ID), C.off_ibv_wc_wr_id},
		{"wc.status", unsafe.Offsetof(w.Status), C.off_ibv_wc_status},
		{"wc.opcode", unsafe.Offsetof(w.Opcode), C.off_ibv_wc_opcode},
		{"wc.vendor_err", unsafe.Offsetof(w.VendorErr), C.off_ibv_wc_vendor_err},
		{"wc.byte_len", unsafe.Offsetof(w.ByteLen), C.off_ibv_wc_byte_len},
		{"wc.imm_data", unsafe.Offsetof(w.ImmBE), C.off_ibv_wc_imm_data},
		{"wc.qp_num", unsafe.Offsetof(w.QPNum), C.off_ibv_wc_qp_num},
		{"wc.src_qp", unsafe.Offsetof(w.SrcQP), C.off_ibv_wc_src_qp},
		{"wc.wc_flags", unsafe.Offsetof(w.Flags), C.off_ibv_wc_wc_flags},
		{"wc.pkey_index", unsafe.Offsetof(w.PKeyIndex), C.off_ibv_wc_pkey_index},
		{"wc.slid", unsafe.Offsetof(w.SLID), C.off_ibv_wc_slid},
		{"wc.sl", unsafe.Offsetof(w.SL), C.off_ibv_wc_sl},
		{"wc.dlid_path_bits", unsafe.Offsetof(w.PathBits), C.off_ibv_wc_dlid_path_bits},
		{"sge.addr", unsafe.Offsetof(s.Addr), C.off_ibv_sge_addr},
		{"sge.length", unsafe.Offsetof(s.Length), C.off_ibv_sge_length},
		{"sge.lkey", unsafe.Offsetof(s.LKey), C.off_ibv_sge_lkey},
		{"gid_entry.gid", unsafe.Offsetof(g.GID), C.off_ibv_gid_entry_gid},
		{"gid_entry.gid_index", unsafe.Offsetof(g.Index), C.off_ibv_gid_entry_gid_index},
		{"gid_entry.port_num", unsafe.Offsetof(g.Port), C.off_ibv_gid_entry_port_num},
		{"gid_entry.gid_type", unsafe.Offsetof(g.Type), C.off_ibv_gid_entry_gid_type},
		{"gid_entry.ndev_ifindex", unsafe.Offsetof(g.Ifindex), C.off_ibv_gid_entry_ndev_ifindex},
		{"async_event.element", unsafe.Offsetof(e.Element), C.off_ibv_async_event_element},
		{"async_event.event_type", unsafe.Offsetof(e.Type), C.off_ibv_async_event_event_type},
		{"send_wr.id", unsafe.Offsetof(x.ID), C.off_rfs_send_wr_id},
		{"send_wr.remote_addr", unsafe.Offsetof(x.RemoteAddr), C.off_rfs_send_wr_remote_addr},
		{"send_wr.rkey", unsafe.Offsetof(x.RKey), C.off_rfs_send_wr_rkey},
		{"send_wr.imm", unsafe.Offsetof(x.Imm), C.off_rfs_send_wr_imm},
		{"send_wr.opcode", unsafe.Offsetof(x.Opcode), C.off_rfs_send_wr_opcode},
		{"send_wr.flags", unsafe.Offsetof(x.Flags), C.off_rfs_send_wr_flags},
		{"send_wr.num_sge", unsafe.Offsetof(x.NumSGE), C.off_rfs_send_wr_num_sge},
		{"recv_wr.id", unsafe.Offsetof(r.ID), C.off_rfs_recv_wr_id},
		{"recv_wr.num_sge", unsafe.Offsetof(r.NumSGE), C.off_rfs_recv_wr_num_sge},
	}
}

// constants are what the header says of each number of types.go.
var constants = []struct {
	name  string
	got   int64
	value int64
}{
	{"ACCESS_LOCAL_WRITE", AccessLocalWrite, C.IBV_ACCESS_LOCAL_WRITE},
	{"ACCESS_REMOTE_WRITE", AccessRemoteWrite, C.IBV_ACCESS_REMOTE_WRITE},
	{"ACCESS_REMOTE_READ", AccessRemoteRead, C.IBV_ACCESS_REMOTE_READ},
	{"WR_RDMA_WRITE", WRWrite, C.IBV_WR_RDMA_WRITE}, {"WR_RDMA_WRITE_WITH_IMM", WRWriteImm, C.IBV_WR_RDMA_WRITE_WITH_IMM},
	{"WR_SEND", WRSend, C.IBV_WR_SEND}, {"WR_SEND_WITH_IMM", WRSendImm, C.IBV_WR_SEND_WITH_IMM},
	{"WR_RDMA_READ", WRRead, C.IBV_WR_RDMA_READ},
	{"SEND_FENCE", SendFence, C.IBV_SEND_FENCE}, {"SEND_SIGNALED", SendSignaled, C.IBV_SEND_SIGNALED},
	{"SEND_SOLICITED", SendSolicited, C.IBV_SEND_SOLICITED}, {"SEND_INLINE", SendInline, C.IBV_SEND_INLINE},
	{"WC_SEND", WCSend, C.IBV_WC_SEND}, {"WC_RDMA_WRITE", WCWrite, C.IBV_WC_RDMA_WRITE}, {"WC_RDMA_READ", WCRead, C.IBV_WC_RDMA_READ},
	{"WC_RECV", WCRecv, C.IBV_WC_RECV}, {"WC_RECV_RDMA_WITH_IMM", WCRecvWriteImm, C.IBV_WC_RECV_RDMA_WITH_IMM},
	{"WC_WITH_IMM", WCWithImm, C.IBV_WC_WITH_IMM},
	{"WC_SUCCESS", WCSuccess, C.IBV_WC_SUCCESS}, {"WC_LOC_LEN_ERR", WCLocLenErr, C.IBV_WC_LOC_LEN_ERR},
	{"WC_LOC_QP_OP_ERR", WCLocQPOpErr, C.IBV_WC_LOC_QP_OP_ERR}, {"WC_LOC_PROT_ERR", WCLocProtErr, C.IBV_WC_LOC_PROT_ERR},
	{"WC_WR_FLUSH_ERR", WCFlushErr, C.IBV_WC_WR_FLUSH_ERR}, {"WC_BAD_RESP_ERR", WCBadRespErr, C.IBV_WC_BAD_RESP_ERR},
	{"WC_LOC_ACCESS_ERR", WCLocAccessErr, C.IBV_WC_LOC_ACCESS_ERR}, {"WC_REM_INV_REQ_ERR", WCRemInvReqErr, C.IBV_WC_REM_INV_REQ_ERR},
	{"WC_REM_ACCESS_ERR", WCRemAccessErr, C.IBV_WC_REM_ACCESS_ERR}, {"WC_REM_OP_ERR", WCRemOpErr, C.IBV_WC_REM_OP_ERR},
	{"WC_RETRY_EXC_ERR", WCRetryExcErr, C.IBV_WC_RETRY_EXC_ERR}, {"WC_RNR_RETRY_EXC_ERR", WCRNRRetryExcErr, C.IBV_WC_RNR_RETRY_EXC_ERR},
	{"WC_REM_ABORT_ERR", WCRemAbortErr, C.IBV_WC_REM_ABORT_ERR}, {"WC_FATAL_ERR", WCFatalErr, C.IBV_WC_FATAL_ERR},
	{"WC_RESP_TIMEOUT_ERR", WCRespTimeoutErr, C.IBV_WC_RESP_TIMEOUT_ERR}, {"WC_GENERAL_ERR", WCGeneralErr, C.IBV_WC_GENERAL_ERR},
	{"QPS_RESET", QPSReset, C.IBV_QPS_RESET}, {"QPS_INIT", QPSInit, C.IBV_QPS_INIT}, {"QPS_RTR", QPSRTR, C.IBV_QPS_RTR},
	{"QPS_RTS", QPSRTS, C.IBV_QPS_RTS}, {"QPS_SQD", QPSSQD, C.IBV_QPS_SQD}, {"QPS_SQE", QPSSQE, C.IBV_QPS_SQE}, {"QPS_ERR", QPSErr, C.IBV_QPS_ERR},
	{"QP_STATE", QPState, C.IBV_QP_STATE}, {"QP_ACCESS_FLAGS", QPAccessFlags, C.IBV_QP_ACCESS_FLAGS},
	{"QP_PKEY_INDEX", QPPKeyIndex, C.IBV_QP_PKEY_INDEX}, {"QP_PORT", QPPort, C.IBV_QP_PORT}, {"QP_AV", QPAV, C.IBV_QP_AV},
	{"QP_PATH_MTU", QPPathMTU, C.IBV_QP_PATH_MTU}, {"QP_TIMEOUT", QPTimeout, C.IBV_QP_TIMEOUT}, {"QP_RETRY_CNT", QPRetryCnt, C.IBV_QP_RETRY_CNT},
	{"QP_RNR_RETRY", QPRNRRetry, C.IBV_QP_RNR_RETRY}, {"QP_RQ_PSN", QPRQPSN, C.IBV_QP_RQ_PSN},
	{"QP_MAX_QP_RD_ATOMIC", QPMaxRdAtomic, C.IBV_QP_MAX_QP_RD_ATOMIC}, {"QP_MIN_RNR_TIMER", QPMinRNRTimer, C.IBV_QP_MIN_RNR_TIMER},
	{"QP_SQ_PSN", QPSQPSN, C.IBV_QP_SQ_PSN}, {"QP_MAX_DEST_RD_ATOMIC", QPMaxDestRd, C.IBV_QP_MAX_DEST_RD_ATOMIC}, {"QP_DEST_QPN", QPDestQPN, C.IBV_QP_DEST_QPN},
	{"PORT_DOWN", PortDown, C.IBV_PORT_DOWN}, {"PORT_INIT", PortInit, C.IBV_PORT_INIT}, {"PORT_ARMED", PortArmed, C.IBV_PORT_ARMED}, {"PORT_ACTIVE", PortActive, C.IBV_PORT_ACTIVE},
	{"LINK_LAYER_UNSPECIFIED", LinkUnspecified, C.IBV_LINK_LAYER_UNSPECIFIED}, {"LINK_LAYER_INFINIBAND", LinkInfiniBand, C.IBV_LINK_LAYER_INFINIBAND},
	{"LINK_LAYER_ETHERNET", LinkEthernet, C.IBV_LINK_LAYER_ETHERNET}, {"QPF_GRH_REQUIRED", PortGRHRequired, C.IBV_QPF_GRH_REQUIRED},
	{"GID_TYPE_IB", GIDTypeIB, C.IBV_GID_TYPE_IB}, {"GID_TYPE_ROCE_V1", GIDTypeRoCEv1, C.IBV_GID_TYPE_ROCE_V1}, {"GID_TYPE_ROCE_V2", GIDTypeRoCEv2, C.IBV_GID_TYPE_ROCE_V2},
	{"EVENT_CQ_ERR", EventCQErr, C.IBV_EVENT_CQ_ERR}, {"EVENT_QP_FATAL", EventQPFatal, C.IBV_EVENT_QP_FATAL},
	{"EVENT_QP_REQ_ERR", EventQPReqErr, C.IBV_EVENT_QP_REQ_ERR}, {"EVENT_QP_ACCESS_ERR", EventQPAccessErr, C.IBV_EVENT_QP_ACCESS_ERR},
	{"EVENT_COMM_EST", EventCommEst, C.IBV_EVENT_COMM_EST}, {"EVENT_DEVICE_FATAL", EventDeviceFatal, C.IBV_EVENT_DEVICE_FATAL},
	{"EVENT_PORT_ACTIVE", EventPortActive, C.IBV_EVENT_PORT_ACTIVE}, {"EVENT_PORT_ERR", EventPortErr, C.IBV_EVENT_PORT_ERR},
	{"EVENT_LID_CHANGE", EventLIDChange, C.IBV_EVENT_LID_CHANGE}, {"EVENT_PKEY_CHANGE", EventPKeyChange, C.IBV_EVENT_PKEY_CHANGE},
	{"EVENT_QP_LAST_WQE_REACHED", EventLastWQE, C.IBV_EVENT_QP_LAST_WQE_REACHED},
	{"EVENT_CLIENT_REREGISTER", EventClientReregist, C.IBV_EVENT_CLIENT_REREGISTER}, {"EVENT_GID_CHANGE", EventGIDChange, C.IBV_EVENT_GID_CHANGE},
}

// golden fills Go values with the C compiler's idea of them.
func golden(w *WC, s *SGE, g *GIDEntry, e *AsyncEvent) {
	C.rfs_golden_wc((*C.struct_ibv_wc)(unsafe.Pointer(w)))
	C.rfs_golden_sge((*C.struct_ibv_sge)(unsafe.Pointer(s)))
	C.rfs_golden_gid((*C.struct_ibv_gid_entry)(unsafe.Pointer(g)))
	C.rfs_golden_event((*C.struct_ibv_async_event)(unsafe.Pointer(e)))
}
