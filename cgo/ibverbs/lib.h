// The functions of libibverbs that rfs calls, as found by dlsym or given by a
// fake, and the calls that go through context->ops or are macros.
#ifndef RFS_IBVERBS_LIB_H
#define RFS_IBVERBS_LIB_H

#include <infiniband/verbs.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

struct rfs_ibv {
	struct ibv_device **(*get_device_list)(int *num_devices);
	void (*free_device_list)(struct ibv_device **list);
	const char *(*get_device_name)(struct ibv_device *device);
	struct ibv_context *(*open_device)(struct ibv_device *device);
	int (*close_device)(struct ibv_context *context);
	int (*query_device)(struct ibv_context *context, struct ibv_device_attr *device_attr);
	int (*query_port)(struct ibv_context *context, uint8_t port_num, struct _compat_ibv_port_attr *port_attr);
	ssize_t (*query_gid_table)(struct ibv_context *context, struct ibv_gid_entry *entries, size_t max_entries,
				   uint32_t flags, size_t entry_size); // may be NULL: rdma-core before 33
	struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
	int (*dealloc_pd)(struct ibv_pd *pd);
	struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *addr, size_t length, int access);
	int (*dereg_mr)(struct ibv_mr *mr);
	struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
	int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
	struct ibv_cq *(*create_cq)(struct ibv_context *context, int cqe, void *cq_context,
				    struct ibv_comp_channel *channel, int comp_vector);
	int (*destroy_cq)(struct ibv_cq *cq);
	int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context);
	void (*ack_cq_events)(struct ibv_cq *cq, unsigned int nevents);
	struct ibv_qp *(*create_qp)(struct ibv_pd *pd, struct ibv_qp_init_attr *qp_init_attr);
	int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask);
	int (*query_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attr, int attr_mask, struct ibv_qp_init_attr *init_attr);
	int (*destroy_qp)(struct ibv_qp *qp);
	int (*get_async_event)(struct ibv_context *context, struct ibv_async_event *event);
	void (*ack_async_event)(struct ibv_async_event *event);
	const char *(*wc_status_str)(enum ibv_wc_status status);
	const char *(*event_type_str)(enum ibv_event_type event);
};

enum { RFS_BATCH = 64 };

// Work requests as Go lays them out: ibverbs.SendWR and RecvWR.
struct rfs_send_wr {
	uint64_t id;
	uint64_t remote_addr;
	uint32_t rkey;
	uint32_t imm;
	uint32_t opcode;
	uint32_t flags;
	uint32_t num_sge;
	uint32_t reserved;
};

struct rfs_recv_wr {
	uint64_t id;
	uint32_t num_sge;
	uint32_t reserved;
};

// How far a post came: err is 0 or an errno, posted the requests before the bad one.
struct rfs_posted {
	int err;
	int posted;
};

static inline int rfs_query_port(const struct rfs_ibv *lib, struct ibv_context *context, uint8_t port,
				 struct ibv_port_attr *attr)
{
	struct verbs_context *vctx = verbs_get_ctx_op(context, query_port);

	memset(attr, 0, sizeof(*attr));
	if (!vctx)
		return lib->query_port(context, port, (struct _compat_ibv_port_attr *)attr);
	return vctx->query_port(context, port, attr, sizeof(*attr));
}

static inline int rfs_poll_cq(struct ibv_cq *cq, int num_entries, struct ibv_wc *wc)
{
	return cq->context->ops.poll_cq(cq, num_entries, wc);
}

static inline void rfs_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield");
#endif
}

static inline int64_t rfs_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Polls until there is a completion or ns have passed.
static inline int rfs_spin_cq(struct ibv_cq *cq, int num_entries, struct ibv_wc *wc, int64_t ns)
{
	int64_t end = rfs_now() + ns;

	for (;;) {
		for (int i = 0; i < 16; i++) {
			int n = rfs_poll_cq(cq, num_entries, wc);
			if (n != 0)
				return n;
			rfs_pause();
		}
		if (rfs_now() >= end)
			return 0;
	}
}

static inline int rfs_req_notify_cq(struct ibv_cq *cq, int solicited_only)
{
	return cq->context->ops.req_notify_cq(cq, solicited_only);
}

// A provider returns an errno, some of them negative, some -1 with errno set.
static inline int rfs_errno(int rc)
{
	if (rc == -1)
		return errno ? errno : EIO;
	return rc < 0 ? -rc : rc;
}

static inline struct rfs_posted rfs_post_send(struct ibv_qp *qp, const struct rfs_send_wr *w, int n,
					      const struct ibv_sge *sg, int nsg)
{
	struct ibv_send_wr list[RFS_BATCH];
	struct rfs_posted p = { 0, 0 };

	while (p.posted < n && !p.err) {
		struct ibv_send_wr *bad = NULL;
		int m = 0, rc;

		for (; m < RFS_BATCH && p.posted + m < n; m++, w++) {
			struct ibv_send_wr *s = &list[m];

			if (w->num_sge > (uint32_t)nsg) {
				p.err = EINVAL; // the slice of scatter elements is too short
				break;
			}
			s->wr_id = w->id;
			s->next = s + 1;
			s->sg_list = (struct ibv_sge *)sg;
			s->num_sge = (int)w->num_sge;
			s->opcode = (enum ibv_wr_opcode)w->opcode;
			s->send_flags = w->flags;
			s->imm_data = htobe32(w->imm);
			s->wr.rdma.remote_addr = w->remote_addr;
			s->wr.rdma.rkey = w->rkey;
			sg += w->num_sge;
			nsg -= (int)w->num_sge;
		}
		if (m == 0)
			break;
		list[m - 1].next = NULL;
		rc = qp->context->ops.post_send(qp, list, &bad);
		if (rc) {
			p.err = rfs_errno(rc);
			p.posted += bad ? (int)(bad - list) : 0;
			break;
		}
		p.posted += m;
	}
	return p;
}

static inline struct rfs_posted rfs_post_recv(struct ibv_qp *qp, const struct rfs_recv_wr *w, int n,
					      const struct ibv_sge *sg, int nsg)
{
	struct ibv_recv_wr list[RFS_BATCH];
	struct rfs_posted p = { 0, 0 };

	while (p.posted < n && !p.err) {
		struct ibv_recv_wr *bad = NULL;
		int m = 0, rc;

		for (; m < RFS_BATCH && p.posted + m < n; m++, w++) {
			struct ibv_recv_wr *r = &list[m];

			if (w->num_sge > (uint32_t)nsg) {
				p.err = EINVAL;
				break;
			}
			r->wr_id = w->id;
			r->next = r + 1;
			r->sg_list = (struct ibv_sge *)sg;
			r->num_sge = (int)w->num_sge;
			sg += w->num_sge;
			nsg -= (int)w->num_sge;
		}
		if (m == 0)
			break;
		list[m - 1].next = NULL;
		rc = qp->context->ops.post_recv(qp, list, &bad);
		if (rc) {
			p.err = rfs_errno(rc);
			p.posted += bad ? (int)(bad - list) : 0;
			break;
		}
		p.posted += m;
	}
	return p;
}

#endif
