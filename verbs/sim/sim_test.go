package sim_test

import (
	"testing"

	"go.uber.org/goleak"

	"rfs/verbs/sim"
	"rfs/verbs/verbstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	f := sim.Pair()
	verbstest.Run(t, verbstest.Env{
		Provider: f, Devices: [2]string{"sim0", "sim1"}, Allocates: true,
		Memlock: func(limit uint64, run func() error) error {
			f.SetMemlock("sim0", limit)
			defer f.SetMemlock("sim0", 0)
			return verbstest.LimitMemlock(limit, run)
		},
	})
	f.Wait()
}
