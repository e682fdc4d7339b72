package client

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"rfs/internal/metrics"
)

// Stats are counts since the client was made.
type Stats struct {
	BytesWritten, BytesRead int64 // of file bytes, by callers
	FullWrites              int64 // versions of whole stripes
	PartialWrites           int64 // overlays
	LostWrites              int64 // write-backs that failed for good
	Retags, Orders          int64 // conflicts of writers
	Retries                 int64 // rounds that had to wait or take a newer map
	DegradedReads           int64 // shard ranges rebuilt from others
	HedgedReads             int64 // of these, because a target was slow
	CRCFailures             int64 // blocks that did not check
	Repairs                 int64 // shards rewritten because of that
	Resolves                int64 // versions whose fate had to be asked for
	ReadAheadHits           int64
	Recalls                 int64 // leases given back
}

// A count is one of the Stats, and what the process's metrics know it by.
type count struct {
	n       atomic.Int64
	process prometheus.Counter
}

func (c *count) add(n int64) {
	c.n.Add(n)
	c.process.Add(float64(n))
}

func (c *count) inc() { c.add(1) }

type stats struct {
	written, read, full, partial, lost, retags, orders, retries, degraded,
	hedged, crcFailures, repairs, resolves, hits, recalls count
}

// clientEvents counts what the client library did.
var clientEvents = func() *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rfs_client_events_total",
		Help: "What the client library did: bytes written and read, versions by kind, read-ahead hits, recalls, lost writes.",
	}, []string{"event"})
	metrics.Registry.MustRegister(v)
	return v
}()

func newStats() *stats {
	s := new(stats)
	for name, c := range map[string]*count{
		"bytes_written": &s.written, "bytes_read": &s.read, "full_write": &s.full, "partial_write": &s.partial,
		"lost_write": &s.lost, "crc_failure": &s.crcFailures, "repair": &s.repairs,
		"read_ahead_hit": &s.hits, "recall": &s.recalls,
	} {
		c.process = clientEvents.WithLabelValues(name)
	}
	for reason, c := range map[string]*count{
		"stale_tag": &s.retags, "order": &s.orders, "write": &s.retries, "degraded": &s.degraded,
		"slow": &s.hedged, "unresolved": &s.resolves,
	} {
		c.process = metrics.Retries.WithLabelValues(reason)
	}
	return s
}

// Stats returns the counts of this client.
func (fs *FS) Stats() Stats {
	s := fs.stats
	return Stats{
		BytesWritten: s.written.n.Load(), BytesRead: s.read.n.Load(), FullWrites: s.full.n.Load(),
		PartialWrites: s.partial.n.Load(), LostWrites: s.lost.n.Load(), Retags: s.retags.n.Load(),
		Orders: s.orders.n.Load(), Retries: s.retries.n.Load(), DegradedReads: s.degraded.n.Load(),
		HedgedReads: s.hedged.n.Load(), CRCFailures: s.crcFailures.n.Load(), Repairs: s.repairs.n.Load(),
		Resolves: s.resolves.n.Load(), ReadAheadHits: s.hits.n.Load(), Recalls: s.recalls.n.Load(),
	}
}
