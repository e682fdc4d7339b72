//go:build rdma && cgo && linux

#include "load.h"

#include <dlfcn.h>
#include <stdio.h>

const char *rfs_ibv_load(const char *name, struct rfs_ibv *lib)
{
	static char why[512];
	void *h = dlopen(name, RTLD_NOW | RTLD_GLOBAL); // its providers look for its symbols

	if (!h) {
		snprintf(why, sizeof(why), "%s", dlerror());
		return why;
	}
#define FIND(field, symbol)                                                                          \
	do {                                                                                         \
		*(void **)&lib->field = dlsym(h, symbol);                                            \
		if (!lib->field) {                                                                   \
			snprintf(why, sizeof(why), "%s has no %s", name, symbol);                    \
			return why;                                                                  \
		}                                                                                    \
	} while (0)
	FIND(get_device_list, "ibv_get_device_list");
	FIND(free_device_list, "ibv_free_device_list");
	FIND(get_device_name, "ibv_get_device_name");
	FIND(open_device, "ibv_open_device");
	FIND(close_device, "ibv_close_device");
	FIND(query_device, "ibv_query_device");
	FIND(query_port, "ibv_query_port");
	*(void **)&lib->query_gid_table = dlsym(h, "_ibv_query_gid_table");
	FIND(alloc_pd, "ibv_alloc_pd");
	FIND(dealloc_pd, "ibv_dealloc_pd");
	FIND(reg_mr, "ibv_reg_mr");
	FIND(dereg_mr, "ibv_dereg_mr");
	FIND(create_comp_channel, "ibv_create_comp_channel");
	FIND(destroy_comp_channel, "ibv_destroy_comp_channel");
	FIND(create_cq, "ibv_create_cq");
	FIND(destroy_cq, "ibv_destroy_cq");
	FIND(get_cq_event, "ibv_get_cq_event");
	FIND(ack_cq_events, "ibv_ack_cq_events");
	FIND(create_qp, "ibv_create_qp");
	FIND(modify_qp, "ibv_modify_qp");
	FIND(query_qp, "ibv_query_qp");
	FIND(destroy_qp, "ibv_destroy_qp");
	FIND(get_async_event, "ibv_get_async_event");
	FIND(ack_async_event, "ibv_ack_async_event");
	FIND(wc_status_str, "ibv_wc_status_str");
	FIND(event_type_str, "ibv_event_type_str");
#undef FIND
	return NULL;
}
