// Package metrics names what rfs measures of itself and serves it to Prometheus.
// One process has one registry; in a process of several daemons (`rfs dev`) the
// labels node, target and replica tell them apart.
//
// Requests are measured as they happen:
//
//	rfs_request_seconds{side,op,target}         latency; side is client or server
//	rfs_requests_total{side,op,target,status}
//	rfs_request_bytes_total{side,op,target}     payload moved
//	rfs_requests_in_flight{side,target}         depth of queues
//	rfs_retries_total{reason}                   stale_tag, stale_epoch, broken, ...
//	rfs_crc_failures_total{where,target}        blocks that did not check: wire, disk
//
// The rest is asked of its owners when Prometheus asks (AddSource); the table
// below has its names. A target is named by the first 8 digits of its id; that of a
// metadata request is "meta". Names are an interface, documented in
// docs/operations.md: they change only with a release note.
package metrics

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Registry holds all collectors of the process.
var Registry = prometheus.NewRegistry()

// Sides of a request.
const (
	Client = "client"
	Server = "server"
)

// From 50 us (a cached read over a Unix socket) to 26 s (nearly a session's lease), each double the last.
var latency = prometheus.ExponentialBuckets(50e-6, 2, 20)

var (
	requestSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "rfs_request_seconds",
		Help: "Time from a request to its answer.", Buckets: latency}, []string{"side", "op", "target"})
	requests = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rfs_requests_total",
		Help: "Requests by how they were answered."}, []string{"side", "op", "target", "status"})
	requestBytes = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rfs_request_bytes_total",
		Help: "Payload moved by requests."}, []string{"side", "op", "target"})
	inFlight = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "rfs_requests_in_flight",
		Help: "Requests being served or waited for."}, []string{"side", "target"})

	// Retries counts what had to be done again, by reason.
	Retries = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rfs_retries_total",
		Help: "What had to be done again."}, []string{"reason"})
	// CRCFailures counts blocks that did not check, by where (wire, disk) and whose they are.
	CRCFailures = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rfs_crc_failures_total",
		Help: "Blocks that did not match their checksum."}, []string{"where", "target"})
)

// family is a metric whose owner is asked for it.
type family struct {
	name, help string
	kind       prometheus.ValueType
	labels     []string
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
)

var families = []family{
	{"rfs_transport_links", "Open links by what carries them, and why nothing better does.", gauge, []string{"node", "carrier", "reason"}},
	{"rfs_transport_clients", "Clients that the daemon has memory and credits for.", gauge, []string{"node"}},
	{"rfs_transport_bytes_total", "Bytes on the wire, frames included.", counter, []string{"node", "direction"}},
	{"rfs_transport_frames_total", "Frames on the wire.", counter, []string{"node", "direction"}},
	{"rfs_transport_events_total", "What is worth counting: resent, duplicate, cancelled, credit_wait, link_error, bad_frame, refused.", counter, []string{"node", "event"}},
	{"rfs_arena_bytes", "Memory for payload: limit, mapped, huge, used.", gauge, []string{"node", "kind"}},
	{"rfs_arena_waits_total", "Requests that waited for memory.", counter, []string{"node"}},
	{"rfs_raft_term", "Raft term.", gauge, []string{"replica"}},
	{"rfs_raft_leader", "1 on the replica that leads.", gauge, []string{"replica"}},
	{"rfs_raft_commit_index", "Highest index known committed.", gauge, []string{"replica"}},
	{"rfs_raft_applied_index", "Highest index applied.", gauge, []string{"replica"}},
	{"rfs_raft_lag", "Committed entries that are not applied.", gauge, []string{"replica"}},
	{"rfs_meta_sessions", "Clients with a session.", gauge, []string{"replica"}},
	{"rfs_meta_inodes", "Files, directories, links.", gauge, []string{"replica"}},
	{"rfs_meta_purge_queue", "Removed files whose shards are still to be deleted.", gauge, []string{"replica"}},
	{"rfs_target_up", "1 while the target is up in the cluster map.", gauge, []string{"target"}},
	{"rfs_target_bytes", "Space of a target: capacity, used, free.", gauge, []string{"target", "kind"}},
	{"rfs_target_events_total", "What a target did: put, commit, drop, fold, read, sync, flush, read_error, write_error.", counter, []string{"target", "event"}},
	{"rfs_stripe_events_total", "What leaders did: settled, forward, back, lost, repair, repair_error, fold, fold_error.", counter, []string{"node", "event"}},
	{"rfs_repair_bytes_total", "Bytes of shards sent to targets that lacked them.", counter, []string{"node"}},
	{"rfs_resync_slots", "Slots of the node's targets that are still to be brought up.", gauge, []string{"node"}},
	{"rfs_resync_slots_total", "Slots that were brought up.", counter, []string{"node"}},
	{"rfs_resync_stripes_total", "Stripes that were compared with their peers'.", counter, []string{"node"}},
	{"rfs_stripe_backlog", "Stripes that changed lately, to be settled or folded.", gauge, []string{"node"}},
	{"rfs_target_io_bytes_total", "Bytes of shards written and read.", counter, []string{"target", "direction"}},
}

// Emit reports a value of one of the families, with its labels in their order.
type Emit func(name string, value float64, labels ...string)

var sources = &collector{descs: map[string]described{}}

func init() {
	for _, f := range families {
		sources.descs[f.name] = described{prometheus.NewDesc(f.name, f.help, f.labels, nil), f.kind}
	}
	Registry.MustRegister(requestSeconds, requests, requestBytes, inFlight, Retries, CRCFailures, sources,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// AddSource has src asked whenever Prometheus asks, until remove is called.
func AddSource(src func(Emit)) (remove func()) {
	sources.mu.Lock()
	defer sources.mu.Unlock()
	s := &src
	sources.all = append(sources.all, s)
	return func() {
		sources.mu.Lock()
		defer sources.mu.Unlock()
		for i := range sources.all {
			if sources.all[i] == s {
				sources.all = append(sources.all[:i:i], sources.all[i+1:]...)
				return
			}
		}
	}
}

// collector asks the sources.
type collector struct {
	descs map[string]described

	mu  sync.Mutex
	all []*func(Emit)
}

type described struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d.desc
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	all := c.all
	c.mu.Unlock()
	for _, src := range all {
		(*src)(func(name string, value float64, labels ...string) {
			d, ok := c.descs[name]
			if !ok {
				panic(fmt.Sprintf("metrics: no family %s", name))
			}
			ch <- prometheus.MustNewConstMetric(d.desc, d.kind, value, labels...)
		})
	}
}

// OK is the status of most requests.
const OK = "ok"

// Begin counts a request in flight; the caller calls Dec on the result when it ends.
func Begin(side, target string) prometheus.Gauge {
	g := inFlight.WithLabelValues(side, target)
	g.Inc()
	return g
}

// Observe records one request that began at start, was answered with status,
// and moved so many bytes. Neither allocates.
func Observe(side, op, target, status string, start time.Time, bytes int) {
	requestSeconds.WithLabelValues(side, op, target).Observe(time.Since(start).Seconds())
	requests.WithLabelValues(side, op, target, status).Inc()
	requestBytes.WithLabelValues(side, op, target).Add(float64(bytes))
}

// Handler serves the registry.
func Handler() http.Handler {
	return promhttp.HandlerFor(Registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
}
