package verbs_test

import (
	"testing"

	"rfs/cgo/ibverbs/fake"
	"rfs/verbs"
	"rfs/verbs/verbstest"
)

// TestFake runs the suite over the true cgo path, on a C provider that fills context->ops.
func TestFake(t *testing.T) {
	l, err := fake.Lib()
	if err != nil {
		t.Skip(err)
	}
	rounds := 2000
	if testing.Short() {
		rounds = 100 // in the rig two threads that wait for each other are slow
	}
	verbstest.Run(t, verbstest.Env{
		Provider: verbs.FromLib(l), Devices: [2]string{"fake0", "fake1"}, Rounds: rounds,
		Memlock: func(limit uint64, f func() error) error {
			fake.LimitRegistered(limit)
			defer fake.LimitRegistered(0)
			return verbstest.LimitMemlock(limit, f)
		},
	})
}
