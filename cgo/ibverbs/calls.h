// cgo cannot call a function pointer: one wrapper for each of struct rfs_ibv.
#ifndef RFS_IBVERBS_CALLS_H
#define RFS_IBVERBS_CALLS_H

#include "lib.h"

typedef const struct rfs_ibv *rfs_lib;

static inline struct ibv_device **rfs_get_device_list(rfs_lib l, int *n) { return l->get_device_list(n); }
static inline void rfs_free_device_list(rfs_lib l, struct ibv_device **list) { l->free_device_list(list); }
static inline const char *rfs_get_device_name(rfs_lib l, struct ibv_device *d) { return l->get_device_name(d); }
static inline struct ibv_context *rfs_open_device(rfs_lib l, struct ibv_device *d) { return l->open_device(d); }
static inline int rfs_close_device(rfs_lib l, struct ibv_context *c) { return l->close_device(c); }
static inline int rfs_query_device(rfs_lib l, struct ibv_context *c, struct ibv_device_attr *a)
{
	return rfs_errno(l->query_device(c, a));
}
static inline ssize_t rfs_query_gid_table(rfs_lib l, struct ibv_context *c, struct ibv_gid_entry *e, size_t n)
{
	if (!l->query_gid_table)
		return -ENOSYS;
	return l->query_gid_table(c, e, n, 0, sizeof(*e));
}
static inline struct ibv_pd *rfs_alloc_pd(rfs_lib l, struct ibv_context *c) { return l->alloc_pd(c); }
static inline int rfs_dealloc_pd(rfs_lib l, struct ibv_pd *pd) { return rfs_errno(l->dealloc_pd(pd)); }
static inline struct ibv_mr *rfs_reg_mr(rfs_lib l, struct ibv_pd *pd, void *addr, size_t length, int access)
{
	return l->reg_mr(pd, addr, length, access);
}
static inline int rfs_dereg_mr(rfs_lib l, struct ibv_mr *mr) { return rfs_errno(l->dereg_mr(mr)); }
static inline struct ibv_comp_channel *rfs_create_comp_channel(rfs_lib l, struct ibv_context *c)
{
	return l->create_comp_channel(c);
}
static inline int rfs_destroy_comp_channel(rfs_lib l, struct ibv_comp_channel *c)
{
	return rfs_errno(l->destroy_comp_channel(c));
}
static inline struct ibv_cq *rfs_create_cq(rfs_lib l, struct ibv_context *c, int cqe, struct ibv_comp_channel *ch,
					   int vector)
{
	return l->create_cq(c, cqe, NULL, ch, vector);
}
static inline int rfs_destroy_cq(rfs_lib l, struct ibv_cq *cq) { return rfs_errno(l->destroy_cq(cq)); }
static inline int rfs_get_cq_event(rfs_lib l, struct ibv_comp_channel *ch)
{
	struct ibv_cq *cq;
	void *cq_context;

	errno = 0;
	return l->get_cq_event(ch, &cq, &cq_context) ? (errno ? errno : EIO) : 0;
}
static inline void rfs_ack_cq_events(rfs_lib l, struct ibv_cq *cq, unsigned n) { l->ack_cq_events(cq, n); }
static inline struct ibv_qp *rfs_create_qp(rfs_lib l, struct ibv_pd *pd, struct ibv_qp_init_attr *a)
{
	return l->create_qp(pd, a);
}
static inline int rfs_modify_qp(rfs_lib l, struct ibv_qp *qp, struct ibv_qp_attr *a, int mask)
{
	return rfs_errno(l->modify_qp(qp, a, mask));
}
static inline int rfs_query_qp(rfs_lib l, struct ibv_qp *qp, struct ibv_qp_attr *a, int mask,
			       struct ibv_qp_init_attr *i)
{
	return rfs_errno(l->query_qp(qp, a, mask, i));
}
static inline int rfs_destroy_qp(rfs_lib l, struct ibv_qp *qp) { return rfs_errno(l->destroy_qp(qp)); }
static inline int rfs_get_async_event(rfs_lib l, struct ibv_context *c, struct ibv_async_event *e)
{
	errno = 0;
	return l->get_async_event(c, e) ? (errno ? errno : EIO) : 0;
}
static inline void rfs_ack_async_event(rfs_lib l, struct ibv_async_event *e) { l->ack_async_event(e); }

#endif
