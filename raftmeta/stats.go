package raftmeta

import (
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
)

// Stats are a replica's counters since it was opened, and how it stands.
type Stats struct {
	Leads     bool
	Term      uint64
	Commit    uint64
	Applied   uint64
	Proposals uint64 // commands proposed here
	Entries   uint64 // entries applied
	Batches   uint64 // in which they were
	Elections uint64 // times this replica began or ceased to lead
	Fsyncs    uint64
	FsyncTime time.Duration // of all
	FsyncMax  time.Duration
	LogFirst  uint64
	LogLast   uint64
	Sessions  int
	Inodes    uint64
	Purges    uint64 // removed inodes whose shards are still to be deleted
	DiskBytes uint64
}

// Lag is how many committed entries are not applied yet.
func (s *Stats) Lag() uint64 { return s.Commit - min(s.Commit, s.Applied) }

type counts struct {
	proposals, applied, batches, elections atomic.Uint64
	fsyncs                                 atomic.Uint64
	fsyncTime, fsyncMax                    atomic.Int64
}

func (c *counts) synced(d time.Duration) {
	c.fsyncs.Add(1)
	c.fsyncTime.Add(int64(d))
	for {
		old := c.fsyncMax.Load()
		if int64(d) <= old || c.fsyncMax.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// Stats returns the replica's statistics.
func (r *Replica) Stats() Stats {
	soft := r.soft.Load()
	s := Stats{
		Leads: soft.role == raft.StateLeader, Term: soft.term, Commit: soft.commit,
		Proposals: r.stats.proposals.Load(), Entries: r.stats.applied.Load(), Batches: r.stats.batches.Load(),
		Elections: r.stats.elections.Load(), Fsyncs: r.stats.fsyncs.Load(),
		FsyncTime: time.Duration(r.stats.fsyncTime.Load()), FsyncMax: time.Duration(r.stats.fsyncMax.Load()),
	}
	r.serving.RLock()
	defer r.serving.RUnlock()
	if r.self.Load() == nil || r.closed {
		return s
	}
	s.LogFirst, s.LogLast = r.rlog.span()
	s.DiskBytes = r.db.Metrics().DiskSpaceUsage()
	r.st.mu.RLock()
	defer r.st.mu.RUnlock()
	s.Applied, s.Sessions, s.Inodes, s.Purges = r.st.index, len(r.st.sessions), r.st.counters.inodes, r.st.purges
	return s
}
