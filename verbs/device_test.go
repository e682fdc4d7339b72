package verbs_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"rfs/verbs"
	"rfs/verbs/verbstest"
)

// TestDevice runs the suite on real devices: soft-RoCE in the rig, or what
// RFS_RDMA_DEVICES names, one or two with a comma. It is skipped where there is
// none, unless RFS_RDMA_REQUIRE is set.
func TestDevice(t *testing.T) {
	p, names, err := devices()
	if err != nil || len(names) == 0 {
		if os.Getenv("RFS_RDMA_REQUIRE") != "" {
			t.Fatalf("RFS_RDMA_REQUIRE is set, and there is no RDMA device: %v %v", names, err)
		}
		t.Skipf("no RDMA device here: run `make test-rdma` (%v)", err)
	}
	pair := [2]string{names[0], names[len(names)-1]}
	t.Logf("devices %s and %s", pair[0], pair[1])
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	verbstest.Run(t, verbstest.Env{Provider: p, Devices: pair, Rounds: rounds})
}

func devices() (verbs.Provider, []string, error) {
	p, err := verbs.Library()
	if err != nil {
		return nil, nil, err
	}
	names, err := p.Devices()
	slices.Sort(names)
	if want := os.Getenv("RFS_RDMA_DEVICES"); want != "" {
		names = strings.Split(want, ",")
	}
	return p, names[:min(len(names), 2)], err
}

// TestLibrary: a build without verbs, and a node without the library, say so in
// a way that the choice of transports understands.
func TestLibrary(t *testing.T) {
	p, err := verbs.Library()
	if err != nil {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v is not ErrUnsupported", err)
		}
		return
	}
	if _, err := p.Devices(); err != nil {
		t.Errorf("a machine without devices: %v", err)
	}
	if _, err := verbs.Open(p, "no-such-device"); !errors.Is(err, verbs.ErrNoDevice) {
		t.Errorf("open of a device that is not there: %v", err)
	}
}
