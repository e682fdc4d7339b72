package server

import (
	"sync/atomic"

	"rfs/internal/metrics"
	"rfs/server/stripe"
)

// measure reports Stats to Prometheus.
func (s *Server) measure(emit metrics.Emit) {
	st, n := s.Stats(), s.opts.Node.Name
	for event, v := range map[string]int64{"settled": st.Settled, "forward": st.Forward, "back": st.Back, "lost": st.Lost,
		"repair": st.Repairs, "repair_error": st.RepairErrors, "fold": st.Folds, "fold_error": st.FoldErrors} {
		emit("rfs_stripe_events_total", float64(v), n, event)
	}
	emit("rfs_repair_bytes_total", float64(st.RepairBytes), n)
	emit("rfs_resync_slots", float64(st.SlotsSyncing), n)
	emit("rfs_resync_slots_total", float64(st.SlotsSynced), n)
	emit("rfs_resync_stripes_total", float64(st.StripesCompared), n)
	emit("rfs_stripe_backlog", float64(st.Backlog), n)
}

// Stats are what a Server has done besides answering requests, and has to do.
type Stats struct {
	Settled, Forward, Back, Lost int64 // stripes settled; versions completed, dropped, lost
	Repairs, RepairBytes         int64 // parts sent to members that lacked them
	RepairErrors                 int64
	Folds, FoldErrors            int64
	SlotsSynced                  int64 // slots brought up since the start
	SlotsSyncing                 int64 // slots still to be brought up
	StripesCompared              int64
	Backlog                      int // stripes that changed lately
}

type counters struct {
	settled, forward, back, lost       atomic.Int64
	repairs, repairBytes, repairErrors atomic.Int64
	folds, foldErrors                  atomic.Int64
	slotsSynced, compared              atomic.Int64
}

func (c *counters) resolved(r stripe.Result) {
	c.settled.Add(1)
	c.forward.Add(int64(r.Forward))
	c.back.Add(int64(r.Back))
	c.lost.Add(int64(r.Lost))
}

func (c *counters) repaired(n int, err error) {
	if err != nil {
		c.repairErrors.Add(1)
		return
	}
	c.repairs.Add(1)
	c.repairBytes.Add(int64(n))
}

// Stats returns the server's counters.
func (s *Server) Stats() Stats {
	c := &s.counts
	st := Stats{
		Settled: c.settled.Load(), Forward: c.forward.Load(), Back: c.back.Load(), Lost: c.lost.Load(),
		Repairs: c.repairs.Load(), RepairBytes: c.repairBytes.Load(), RepairErrors: c.repairErrors.Load(),
		Folds: c.folds.Load(), FoldErrors: c.foldErrors.Load(),
		SlotsSynced: c.slotsSynced.Load(), StripesCompared: c.compared.Load(),
	}
	for _, t := range s.targets {
		st.SlotsSyncing += t.syncing.Load()
		t.work.mu.Lock()
		st.Backlog += len(t.work.items)
		t.work.mu.Unlock()
	}
	return st
}
