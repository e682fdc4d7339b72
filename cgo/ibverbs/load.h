#ifndef RFS_IBVERBS_LOAD_H
#define RFS_IBVERBS_LOAD_H

#include "lib.h"

// Opens libibverbs and fills *lib. Returns NULL, or what is missing (static memory).
const char *rfs_ibv_load(const char *name, struct rfs_ibv *lib);

#endif
