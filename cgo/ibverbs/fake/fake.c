//go:build rdma && cgo && linux

#include "fake.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

// One lock for everything, one condition for all threads: this is a test's device.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct ibv_device devices[2];
static struct fqp *qps;
static struct fmr *mrs;
static uint32_t next_key = 0x1000;
static uint64_t registered, limit;

enum { MAX_INLINE = 512, MAX_SGE = 32, MAX_MSG = 8 << 20, PSN = 0xffffff };

struct fctx {
	struct verbs_context v; // v.context is what the caller sees
	pthread_t thread;
	int stop;
	int async_w; // written to by nobody yet: the fake has no events of its own
};

struct fmr {
	struct ibv_mr mr;
	int access;
	struct fmr *next;
};

struct fcq {
	struct ibv_cq cq;
	struct ibv_wc *ring;
	int head, count, armed, over, users;
};

struct freq {
	struct ibv_send_wr wr;
	struct ibv_sge sge[MAX_SGE];
	uint8_t in[MAX_INLINE];
	uint32_t length;
};

struct frecv {
	uint64_t id;
	int n;
	struct ibv_sge sge[MAX_SGE];
};

struct fqp {
	struct ibv_qp qp;
	struct fqp *next;
	struct ibv_qp_cap cap;
	struct freq *sq;
	struct frecv *rq;
	int sq_head, sq_count, rq_head, rq_count;
	unsigned access;
	struct ibv_qp_attr path; // what RTR and RTS set
	uint32_t sq_psn, rq_psn;
	int tried, rnr;
	int64_t not_before;
};

static struct fctx *fctx_of(struct ibv_context *c) { return (struct fctx *)verbs_get_ctx(c); }
static int device_of(struct ibv_context *c) { return c->device == &devices[1]; }

static void gid_of(int dev, union ibv_gid *g)
{
	memset(g, 0, sizeof(*g));
	g->raw[10] = g->raw[11] = 0xff;
	g->raw[12] = 10;
	g->raw[15] = (uint8_t)(dev + 1);
}

/* completions */

static void cq_add(struct fcq *q, const struct ibv_wc *wc)
{
	if (q->count == q->cq.cqe) {
		q->over = 1;
		return;
	}
	q->ring[(q->head + q->count++) % q->cq.cqe] = *wc;
	if (q->armed && q->cq.channel) {
		struct ibv_cq *cq = &q->cq;
		q->armed = 0;
		// the read end is the channel's fd; a full pipe holds events enough
		if (write(q->cq.channel->refcnt, &cq, sizeof(cq)) < 0)
			return;
	}
}

static void complete(struct ibv_cq *cq, uint32_t qpn, uint64_t id, enum ibv_wc_status st, int opcode, uint32_t len,
		     const uint32_t *imm)
{
	struct ibv_wc wc;

	memset(&wc, 0, sizeof(wc));
	wc.wr_id = id;
	wc.status = st;
	wc.qp_num = qpn;
	wc.opcode = (enum ibv_wc_opcode)opcode;
	wc.byte_len = len;
	if (imm) {
		wc.imm_data = *imm;
		wc.wc_flags = IBV_WC_WITH_IMM;
	}
	if (st != IBV_WC_SUCCESS) {
		wc.opcode = (enum ibv_wc_opcode)(IBV_WC_RECV | 2);
		wc.byte_len = wc.imm_data = wc.src_qp = 0xdeadbeef;
		wc.wc_flags = ~0u;
		wc.vendor_err = 0x52;
	}
	cq_add((struct fcq *)cq, &wc);
}

static int poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
	struct fcq *q = (struct fcq *)cq;
	int got = 0;

	pthread_mutex_lock(&lock);
	if (q->over)
		got = -1;
	else
		for (; got < n && q->count > 0; got++, q->count--) {
			wc[got] = q->ring[q->head];
			q->head = (q->head + 1) % q->cq.cqe;
		}
	pthread_mutex_unlock(&lock);
	return got;
}

static int req_notify_cq(struct ibv_cq *cq, int solicited_only)
{
	(void)solicited_only;
	pthread_mutex_lock(&lock);
	((struct fcq *)cq)->armed = 1;
	pthread_mutex_unlock(&lock);
	return 0;
}

/* queue pairs; lock is held */

static struct freq *sq_at(struct fqp *q, int i) { return &q->sq[(q->sq_head + i) % (int)q->cap.max_send_wr]; }
static struct frecv *rq_at(struct fqp *q, int i) { return &q->rq[(q->rq_head + i) % (int)q->cap.max_recv_wr]; }

static void sq_pop(struct fqp *q)
{
	q->sq_head = (q->sq_head + 1) % (int)q->cap.max_send_wr;
	q->sq_count--;
	q->tried = q->rnr = 0;
}

static void rq_pop(struct fqp *q)
{
	q->rq_head = (q->rq_head + 1) % (int)q->cap.max_recv_wr;
	q->rq_count--;
}

static void flush(struct fqp *q)
{
	for (; q->sq_count; sq_pop(q))
		complete(q->qp.send_cq, q->qp.qp_num, sq_at(q, 0)->wr.wr_id, IBV_WC_WR_FLUSH_ERR, 0, 0, NULL);
	for (; q->rq_count; rq_pop(q))
		complete(q->qp.recv_cq, q->qp.qp_num, rq_at(q, 0)->id, IBV_WC_WR_FLUSH_ERR, 0, 0, NULL);
}

static void fail(struct fqp *q)
{
	q->qp.state = IBV_QPS_ERR;
	flush(q);
}

static void refused(struct fqp *q, enum ibv_wc_status st)
{
	complete(q->qp.send_cq, q->qp.qp_num, sq_at(q, 0)->wr.wr_id, st, 0, 0, NULL);
	sq_pop(q);
	fail(q);
}

// Returns memory of a region of the domain, if key and access allow it.
static uint8_t *reach(struct ibv_pd *pd, uint32_t key, uint64_t addr, uint64_t n, int want)
{
	for (struct fmr *m = mrs; m; m = m->next) {
		uint64_t base = (uint64_t)(uintptr_t)m->mr.addr;

		if (m->mr.lkey != key || m->mr.pd != pd || (m->access & want) != want)
			continue;
		if (addr < base || addr - base > m->mr.length || n > m->mr.length - (addr - base))
			continue;
		return (uint8_t *)(uintptr_t)addr;
	}
	return NULL;
}

static int reach_all(struct ibv_pd *pd, const struct ibv_sge *s, int n, int want)
{
	for (int i = 0; i < n; i++)
		if (!reach(pd, s[i].lkey, s[i].addr, s[i].length, want))
			return 0;
	return 1;
}

// Copies between memory and the pieces of a list, from its start.
static void scatter(const struct ibv_sge *s, int n, uint8_t *flat, uint64_t len, int into_list)
{
	for (int i = 0; i < n && len; i++) {
		uint64_t k = s[i].length < len ? s[i].length : len;
		void *p = (void *)(uintptr_t)s[i].addr;

		memcpy(into_list ? p : flat, into_list ? flat : p, k);
		flat += k;
		len -= k;
	}
}

static void copy_lists(const struct ibv_sge *to, int nto, const struct ibv_sge *from, int nfrom)
{
	uint32_t used = 0;

	for (int i = 0; i < nfrom && nto; i++) {
		const uint8_t *p = (const uint8_t *)(uintptr_t)from[i].addr;
		uint32_t left = from[i].length;

		while (left && nto) {
			uint32_t k = to->length - used < left ? to->length - used : left;

			memcpy((uint8_t *)(uintptr_t)to->addr + used, p, k);
			p += k, left -= k, used += k;
			if (used == to->length)
				to++, nto--, used = 0;
		}
	}
}

static struct fqp *peer_of(struct fqp *q)
{
	for (struct fqp *p = qps; p; p = p->next) {
		union ibv_gid g;

		gid_of(device_of(p->qp.context), &g);
		if (p->qp.qp_num == q->path.dest_qp_num && p->path.dest_qp_num == q->qp.qp_num &&
		    !memcmp(&g, &q->path.ah_attr.grh.dgid, sizeof(g)) &&
		    (p->qp.state == IBV_QPS_RTR || p->qp.state == IBV_QPS_RTS))
			return p;
	}
	return NULL;
}

static const int64_t rnr_us[32] = { 655360, 10,	  20,	30,   40,   60,	   80,	  120,	 160,	240,   320,
				    480,    640,  960,	1280, 1920, 2560,  3840,  5120,	 7680,	10240, 15360,
				    20480,  30720, 40960, 61440, 81920, 122880, 163840, 245760, 327680, 491520 };

static void lost(struct fqp *q)
{
	if (++q->tried > q->path.retry_cnt)
		refused(q, IBV_WC_RETRY_EXC_ERR);
	else
		q->not_before = rfs_now() + ((int64_t)4096 << q->path.timeout);
}

static int opcode_of(enum ibv_wr_opcode op)
{
	if (op == IBV_WR_RDMA_READ)
		return IBV_WC_RDMA_READ;
	return op == IBV_WR_SEND || op == IBV_WR_SEND_WITH_IMM ? IBV_WC_SEND : IBV_WC_RDMA_WRITE;
}

// Executes the head of q at its peer: 0 done, -1 receiver not ready, else the status of the refusal.
static int arrive(struct fqp *q, struct fqp *p, struct freq *r)
{
	struct ibv_sge in = { (uint64_t)(uintptr_t)r->in, r->length, 0 };
	const struct ibv_sge *from = r->wr.send_flags & IBV_SEND_INLINE ? &in : r->sge;
	int nfrom = r->wr.send_flags & IBV_SEND_INLINE ? 1 : r->wr.num_sge;
	int op = r->wr.opcode, is_read = op == IBV_WR_RDMA_READ;
	int takes = op == IBV_WR_SEND || op == IBV_WR_SEND_WITH_IMM || op == IBV_WR_RDMA_WRITE_WITH_IMM;
	int has_imm = op == IBV_WR_SEND_WITH_IMM || op == IBV_WR_RDMA_WRITE_WITH_IMM;

	if (takes && !p->rq_count)
		return -1;
	if (is_read && !p->path.max_dest_rd_atomic) {
		fail(p);
		return IBV_WC_REM_INV_REQ_ERR;
	}
	if (is_read || op == IBV_WR_RDMA_WRITE || op == IBV_WR_RDMA_WRITE_WITH_IMM) {
		int want = is_read ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;
		uint8_t *m = reach(p->qp.pd, r->wr.wr.rdma.rkey, r->wr.wr.rdma.remote_addr, r->length, want);

		if (r->length && (!m || !(p->access & want))) {
			fail(p);
			return IBV_WC_REM_ACCESS_ERR;
		}
		if (is_read)
			scatter(r->sge, r->wr.num_sge, m, r->length, 1);
		else
			scatter(from, nfrom, m, r->length, 0);
	} else {
		struct frecv *v = rq_at(p, 0);
		uint64_t room = 0;

		for (int i = 0; i < v->n; i++)
			room += v->sge[i].length;
		if (r->length > room || !reach_all(p->qp.pd, v->sge, v->n, IBV_ACCESS_LOCAL_WRITE)) {
			complete(p->qp.recv_cq, p->qp.qp_num, v->id, r->length > room ? IBV_WC_LOC_LEN_ERR : IBV_WC_LOC_PROT_ERR,
				 0, 0, NULL);
			rq_pop(p);
			fail(p);
			return r->length > room ? IBV_WC_REM_INV_REQ_ERR : IBV_WC_REM_OP_ERR;
		}
		copy_lists(v->sge, v->n, from, nfrom);
	}
	if (takes) {
		uint32_t imm = r->wr.imm_data;

		complete(p->qp.recv_cq, p->qp.qp_num, rq_at(p, 0)->id, IBV_WC_SUCCESS,
			 op == IBV_WR_RDMA_WRITE_WITH_IMM ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV, r->length,
			 has_imm ? &imm : NULL);
		rq_pop(p);
	}
	return 0;
}

static uint32_t packets(struct fqp *q, uint32_t n)
{
	uint32_t mtu = 128u << q->path.path_mtu;

	return n ? (n + mtu - 1) / mtu : 1;
}

// Sends the head once.
static void attempt(struct fqp *q)
{
	struct freq *r = sq_at(q, 0);
	struct fqp *p = peer_of(q);
	int want = r->wr.opcode == IBV_WR_RDMA_READ ? IBV_ACCESS_LOCAL_WRITE : 0, rc;

	if (r->length > MAX_MSG) {
		refused(q, IBV_WC_LOC_LEN_ERR);
		return;
	}
	if (!(r->wr.send_flags & IBV_SEND_INLINE) && !reach_all(q->qp.pd, r->sge, r->wr.num_sge, want)) {
		refused(q, IBV_WC_LOC_PROT_ERR);
		return;
	}
	if (!p || q->sq_psn != p->rq_psn) {
		lost(q);
		return;
	}
	rc = arrive(q, p, r);
	if (rc == -1) {
		if (++q->rnr > q->path.rnr_retry && q->path.rnr_retry != 7)
			refused(q, IBV_WC_RNR_RETRY_EXC_ERR);
		else
			q->not_before = rfs_now() + rnr_us[p->path.min_rnr_timer & 31] * 1000;
		return;
	}
	if (rc) {
		refused(q, (enum ibv_wc_status)rc);
		return;
	}
	q->sq_psn = (q->sq_psn + packets(q, r->length)) & PSN;
	p->rq_psn = q->sq_psn;
	if (r->wr.send_flags & IBV_SEND_SIGNALED)
		complete(q->qp.send_cq, q->qp.qp_num, r->wr.wr_id, IBV_WC_SUCCESS, opcode_of(r->wr.opcode), r->length, NULL);
	sq_pop(q);
}

// The device: sends for the queue pairs of a context, one message of each in turn.
static void *device_thread(void *arg)
{
	struct fctx *c = arg;

	pthread_mutex_lock(&lock);
	while (!c->stop) {
		int64_t now = rfs_now(), next = INT64_MAX;
		int sent = 0;

		for (struct fqp *q = qps; q; q = q->next) {
			if (q->qp.context != &c->v.context || q->qp.state != IBV_QPS_RTS || !q->sq_count)
				continue;
			if (q->not_before <= now) {
				attempt(q);
				sent = 1;
			} else if (q->not_before < next) {
				next = q->not_before;
			}
		}
		if (sent)
			continue;
		if (next == INT64_MAX) {
			pthread_cond_wait(&work, &lock);
		} else {
			struct timespec t = { next / 1000000000, next % 1000000000 };

			pthread_cond_timedwait(&work, &lock, &t);
		}
	}
	pthread_mutex_unlock(&lock);
	return NULL;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct fqp *q = (struct fqp *)qp;
	int rc = 0;

	pthread_mutex_lock(&lock);
	for (; wr && !rc; wr = wr->next) {
		struct freq *r;
		uint64_t n = 0;

		*bad = wr;
		if (wr->num_sge > (int)q->cap.max_send_sge || (qp->state != IBV_QPS_RTS && qp->state != IBV_QPS_ERR)) {
			rc = EINVAL;
			break;
		}
		if (q->sq_count == (int)q->cap.max_send_wr) {
			rc = ENOMEM;
			break;
		}
		for (int i = 0; i < wr->num_sge; i++)
			n += wr->sg_list[i].length;
		if (wr->send_flags & IBV_SEND_INLINE && (n > MAX_INLINE || wr->opcode == IBV_WR_RDMA_READ)) {
			rc = EINVAL;
			break;
		}
		r = sq_at(q, q->sq_count++);
		r->wr = *wr;
		r->length = n > UINT32_MAX ? UINT32_MAX : (uint32_t)n;
		memcpy(r->sge, wr->sg_list, sizeof(*wr->sg_list) * (size_t)wr->num_sge);
		if (wr->send_flags & IBV_SEND_INLINE)
			scatter(r->sge, wr->num_sge, r->in, n, 0);
	}
	if (qp->state == IBV_QPS_ERR)
		flush(q);
	pthread_cond_broadcast(&work);
	pthread_mutex_unlock(&lock);
	return rc;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct fqp *q = (struct fqp *)qp;
	int rc = 0;

	pthread_mutex_lock(&lock);
	for (; wr && !rc; wr = wr->next) {
		struct frecv *r;

		*bad = wr;
		if (wr->num_sge > (int)q->cap.max_recv_sge || qp->state == IBV_QPS_RESET) {
			rc = EINVAL;
			break;
		}
		if (q->rq_count == (int)q->cap.max_recv_wr) {
			rc = ENOMEM;
			break;
		}
		r = rq_at(q, q->rq_count++);
		r->id = wr->wr_id;
		r->n = wr->num_sge;
		memcpy(r->sge, wr->sg_list, sizeof(*wr->sg_list) * (size_t)wr->num_sge);
	}
	if (qp->state == IBV_QPS_ERR)
		flush(q);
	pthread_mutex_unlock(&lock);
	return rc;
}

/* the library */

static void init(void)
{
	pthread_condattr_t a;

	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(&work, &a);
	for (int i = 0; i < 2; i++)
		snprintf(devices[i].name, sizeof(devices[i].name), "fake%d", i);
}

static struct ibv_device **get_device_list(int *n)
{
	struct ibv_device **list = calloc(3, sizeof(*list));

	pthread_once(&once, init);
	list[0] = &devices[0];
	list[1] = &devices[1];
	*n = 2;
	return list;
}

static void free_device_list(struct ibv_device **list) { free(list); }
static const char *get_device_name(struct ibv_device *d) { return d->name; }

static int query_port(struct ibv_context *c, uint8_t port, struct ibv_port_attr *a, size_t len)
{
	(void)c;
	if (port != 1 || len < sizeof(*a))
		return EINVAL;
	memset(a, 0, len);
	a->state = IBV_PORT_ACTIVE;
	a->max_mtu = a->active_mtu = IBV_MTU_4096;
	a->gid_tbl_len = 1;
	a->max_msg_sz = MAX_MSG;
	a->link_layer = IBV_LINK_LAYER_ETHERNET;
	return 0;
}

static int no_query_port(struct ibv_context *c, uint8_t port, struct _compat_ibv_port_attr *a)
{
	(void)c, (void)port, (void)a;
	return ENOSYS;
}

// A pipe whose read end does not block: the descriptor of a channel or of events.
static int event_pipe(int fd[2]) { return pipe2(fd, O_CLOEXEC | O_NONBLOCK); }

static struct ibv_context *open_device(struct ibv_device *d)
{
	struct fctx *c = calloc(1, sizeof(*c));
	int fd[2];

	if (event_pipe(fd)) {
		free(c);
		return NULL;
	}
	c->async_w = fd[1];
	c->v.sz = sizeof(c->v);
	c->v.query_port = query_port;
	c->v.context.device = d;
	c->v.context.async_fd = fd[0];
	c->v.context.abi_compat = __VERBS_ABI_IS_EXTENDED;
	c->v.context.ops.poll_cq = poll_cq;
	c->v.context.ops.req_notify_cq = req_notify_cq;
	c->v.context.ops.post_send = post_send;
	c->v.context.ops.post_recv = post_recv;
	pthread_create(&c->thread, NULL, device_thread, c);
	return &c->v.context;
}

static int close_device(struct ibv_context *ctx)
{
	struct fctx *c = fctx_of(ctx);

	pthread_mutex_lock(&lock);
	c->stop = 1;
	pthread_cond_broadcast(&work);
	pthread_mutex_unlock(&lock);
	pthread_join(c->thread, NULL);
	close(ctx->async_fd);
	close(c->async_w);
	free(c);
	return 0;
}

static int query_device(struct ibv_context *c, struct ibv_device_attr *a)
{
	(void)c;
	memset(a, 0, sizeof(*a));
	strcpy(a->fw_ver, "fake");
	a->max_mr_size = UINT64_MAX;
	a->max_qp = a->max_cq = a->max_mr = a->max_pd = 1 << 16;
	a->max_qp_wr = 4096;
	a->max_sge = MAX_SGE;
	a->max_cqe = 1 << 16;
	a->max_qp_rd_atom = a->max_qp_init_rd_atom = 16;
	a->phys_port_cnt = 1;
	return 0;
}

static ssize_t query_gid_table(struct ibv_context *c, struct ibv_gid_entry *e, size_t n, uint32_t flags, size_t size)
{
	(void)flags;
	if (n < 1 || size != sizeof(*e))
		return -EINVAL;
	memset(e, 0, sizeof(*e));
	gid_of(device_of(c), &e->gid);
	e->port_num = 1;
	e->gid_type = IBV_GID_TYPE_ROCE_V2;
	return 1;
}

static struct ibv_pd *alloc_pd(struct ibv_context *c)
{
	struct ibv_pd *pd = calloc(1, sizeof(*pd));

	pd->context = c;
	return pd;
}

static int dealloc_pd(struct ibv_pd *pd)
{
	int rc = 0;

	pthread_mutex_lock(&lock);
	for (struct fqp *q = qps; q; q = q->next)
		rc |= q->qp.pd == pd;
	for (struct fmr *m = mrs; m; m = m->next)
		rc |= m->mr.pd == pd;
	pthread_mutex_unlock(&lock);
	if (rc)
		return EBUSY;
	free(pd);
	return 0;
}

static struct ibv_mr *reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	struct fmr *m = NULL;

	pthread_mutex_lock(&lock);
	if (limit && registered + length > limit) {
		errno = ENOMEM;
	} else {
		m = calloc(1, sizeof(*m));
		m->mr.context = pd->context;
		m->mr.pd = pd;
		m->mr.addr = addr;
		m->mr.length = length;
		m->mr.lkey = m->mr.rkey = next_key += 0x101;
		m->access = access;
		m->next = mrs;
		mrs = m;
		registered += length;
	}
	pthread_mutex_unlock(&lock);
	return m ? &m->mr : NULL;
}

static int dereg_mr(struct ibv_mr *mr)
{
	pthread_mutex_lock(&lock);
	for (struct fmr **m = &mrs; *m; m = &(*m)->next)
		if (&(*m)->mr == mr) {
			*m = (*m)->next;
			break;
		}
	registered -= mr->length;
	pthread_mutex_unlock(&lock);
	free(mr);
	return 0;
}

// refcnt of a channel of the fake is the write end of its pipe.
static struct ibv_comp_channel *create_comp_channel(struct ibv_context *c)
{
	struct ibv_comp_channel *ch = calloc(1, sizeof(*ch));
	int fd[2];

	if (event_pipe(fd)) {
		free(ch);
		return NULL;
	}
	ch->context = c;
	ch->fd = fd[0];
	ch->refcnt = fd[1];
	return ch;
}

static int destroy_comp_channel(struct ibv_comp_channel *ch)
{
	close(ch->fd);
	close(ch->refcnt);
	free(ch);
	return 0;
}

static struct ibv_cq *create_cq(struct ibv_context *c, int cqe, void *cq_context, struct ibv_comp_channel *ch, int vector)
{
	struct fcq *q = calloc(1, sizeof(*q));

	(void)vector;
	q->cq.context = c;
	q->cq.channel = ch;
	q->cq.cq_context = cq_context;
	q->cq.cqe = cqe; // exactly, so that one too many shows
	q->ring = calloc((size_t)cqe, sizeof(*q->ring));
	return &q->cq;
}

static int destroy_cq(struct ibv_cq *cq)
{
	struct fcq *q = (struct fcq *)cq;

	if (q->users)
		return EBUSY;
	free(q->ring);
	free(q);
	return 0;
}

static int get_cq_event(struct ibv_comp_channel *ch, struct ibv_cq **cq, void **cq_context)
{
	if (read(ch->fd, cq, sizeof(*cq)) != sizeof(*cq))
		return -1;
	*cq_context = (*cq)->cq_context;
	return 0;
}

static void ack_cq_events(struct ibv_cq *cq, unsigned int n) { cq->comp_events_completed += n; }

static struct ibv_qp *create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *a)
{
	struct fqp *q, *p;
	uint32_t num = 17;

	if (a->cap.max_inline_data > MAX_INLINE || a->cap.max_send_sge > MAX_SGE || a->cap.max_recv_sge > MAX_SGE) {
		errno = EINVAL;
		return NULL;
	}
	a->cap.max_inline_data = MAX_INLINE;
	q = calloc(1, sizeof(*q));
	q->cap = a->cap;
	q->sq = calloc(a->cap.max_send_wr, sizeof(*q->sq));
	q->rq = calloc(a->cap.max_recv_wr, sizeof(*q->rq));
	q->qp.context = pd->context;
	q->qp.pd = pd;
	q->qp.send_cq = a->send_cq;
	q->qp.recv_cq = a->recv_cq;
	q->qp.qp_type = a->qp_type;
	pthread_mutex_lock(&lock);
again: // the lowest free number: it comes back at once
	for (p = qps; p; p = p->next)
		if (p->qp.qp_num == num) {
			num++;
			goto again;
		}
	q->qp.qp_num = num;
	q->next = qps;
	qps = q;
	((struct fcq *)a->send_cq)->users++;
	((struct fcq *)a->recv_cq)->users++;
	pthread_mutex_unlock(&lock);
	return &q->qp;
}

static int modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask)
{
	struct fqp *q = (struct fqp *)qp;
	int rc = 0;

	pthread_mutex_lock(&lock);
	if (!(mask & IBV_QP_STATE)) {
		rc = EINVAL;
	} else if (a->qp_state == IBV_QPS_RESET) {
		q->sq_count = q->rq_count = q->tried = q->rnr = 0;
		q->not_before = 0;
		qp->state = IBV_QPS_RESET;
	} else if (a->qp_state == IBV_QPS_ERR) {
		if (qp->state != IBV_QPS_RESET)
			fail(q);
	} else if (a->qp_state == IBV_QPS_INIT && qp->state == IBV_QPS_RESET && mask & IBV_QP_ACCESS_FLAGS) {
		q->access = a->qp_access_flags;
		qp->state = IBV_QPS_INIT;
	} else if (a->qp_state == IBV_QPS_RTR && qp->state == IBV_QPS_INIT && mask & IBV_QP_AV && mask & IBV_QP_RQ_PSN &&
		   mask & IBV_QP_DEST_QPN && a->ah_attr.is_global) {
		q->path = *a;
		q->rq_psn = a->rq_psn & PSN;
		qp->state = IBV_QPS_RTR;
	} else if (a->qp_state == IBV_QPS_RTS && qp->state == IBV_QPS_RTR && mask & IBV_QP_SQ_PSN) {
		q->path.timeout = a->timeout;
		q->path.retry_cnt = a->retry_cnt;
		q->path.rnr_retry = a->rnr_retry;
		q->sq_psn = a->sq_psn & PSN;
		qp->state = IBV_QPS_RTS;
	} else {
		rc = EINVAL;
	}
	pthread_cond_broadcast(&work);
	pthread_mutex_unlock(&lock);
	return rc;
}

static int query_qp(struct ibv_qp *qp, struct ibv_qp_attr *a, int mask, struct ibv_qp_init_attr *i)
{
	(void)mask, (void)i;
	pthread_mutex_lock(&lock);
	a->qp_state = qp->state;
	pthread_mutex_unlock(&lock);
	return 0;
}

static int destroy_qp(struct ibv_qp *qp)
{
	struct fqp *q = (struct fqp *)qp;

	pthread_mutex_lock(&lock);
	for (struct fqp **p = &qps; *p; p = &(*p)->next)
		if (*p == q) {
			*p = q->next;
			break;
		}
	((struct fcq *)qp->send_cq)->users--;
	((struct fcq *)qp->recv_cq)->users--;
	pthread_mutex_unlock(&lock);
	free(q->sq);
	free(q->rq);
	free(q);
	return 0;
}

static int get_async_event(struct ibv_context *c, struct ibv_async_event *e)
{
	return read(c->async_fd, e, sizeof(*e)) == sizeof(*e) ? 0 : -1;
}

static void ack_async_event(struct ibv_async_event *e) { (void)e; }
static const char *wc_status_str(enum ibv_wc_status s) { return s == IBV_WC_SUCCESS ? "success" : "error"; }
static const char *event_type_str(enum ibv_event_type e) { return (void)e, "event"; }

const struct rfs_ibv *rfs_fake_lib(void)
{
	static const struct rfs_ibv lib = {
		.get_device_list = get_device_list, .free_device_list = free_device_list, .get_device_name = get_device_name,
		.open_device = open_device, .close_device = close_device, .query_device = query_device,
		.query_port = no_query_port, .query_gid_table = query_gid_table, .alloc_pd = alloc_pd,
		.dealloc_pd = dealloc_pd, .reg_mr = reg_mr, .dereg_mr = dereg_mr,
		.create_comp_channel = create_comp_channel, .destroy_comp_channel = destroy_comp_channel,
		.create_cq = create_cq, .destroy_cq = destroy_cq, .get_cq_event = get_cq_event,
		.ack_cq_events = ack_cq_events, .create_qp = create_qp, .modify_qp = modify_qp, .query_qp = query_qp,
		.destroy_qp = destroy_qp, .get_async_event = get_async_event, .ack_async_event = ack_async_event,
		.wc_status_str = wc_status_str, .event_type_str = event_type_str,
	};
	return &lib;
}

void rfs_fake_limit(uint64_t bytes)
{
	pthread_mutex_lock(&lock);
	limit = bytes;
	pthread_mutex_unlock(&lock);
}
