//go:build rdma && cgo && linux

package fake

/*
#cgo CFLAGS: -O2 -Wall -D_GNU_SOURCE -I${SRCDIR}/..
#cgo LDFLAGS: -lpthread
#include "fake.h"
*/
import "C"

import (
	"unsafe"

	"rfs/cgo/ibverbs"
)

// Lib returns the fake library.
func Lib() (*ibverbs.Lib, error) {
	return ibverbs.FromTable(unsafe.Pointer(C.rfs_fake_lib())), nil
}

// LimitRegistered makes registrations of the fake fail beyond bytes, as
// RLIMIT_MEMLOCK does; 0: no limit.
func LimitRegistered(bytes uint64) { C.rfs_fake_limit(C.uint64_t(bytes)) }
