//go:build !(rdma && cgo && linux)

package fake

import (
	"errors"
	"fmt"

	"rfs/cgo/ibverbs"
)

// Lib returns the fake library.
func Lib() (*ibverbs.Lib, error) {
	return nil, fmt.Errorf("fake: this binary was built without RDMA: %w", errors.ErrUnsupported)
}

// LimitRegistered does nothing.
func LimitRegistered(uint64) {}
