#ifndef RFS_FAKE_H
#define RFS_FAKE_H

#include "lib.h"

const struct rfs_ibv *rfs_fake_lib(void);
void rfs_fake_limit(uint64_t bytes);

#endif
