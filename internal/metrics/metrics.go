// Package metrics names what rfs measures of itself and serves it to Prometheus.
// One process has one registry; in a process of several daemons (`rfs dev`) the
// label target, or replica, tells them apart.
//
//	rfs_request_seconds{side,op,target}     latency; side is client or server
//	rfs_requests_total{side,op,target,status}
//	rfs_request_bytes_total{side,op,target} payload moved
//	rfs_requests_in_flight{side,target}     queue depth
//	rfs_retries_total{reason}               stale_tag, stale_epoch, broken, degraded, ...
//	rfs_crc_failures_total{where,target}    wire, disk
//	rfs_transport_links{carrier,reason}     links open; reason: why not a better carrier
//	rfs_transport_credits{kind,peer}        messages or bytes that may yet be sent
//	rfs_raft_*{replica}                     term, leader, commit, applied, lag
//	rfs_target_bytes{target,kind}           capacity, used, free
//	rfs_target_up{target}                   1: serving
//
// A target of a metadata request is "meta". All names are documented in
// docs/operations.md; they are an interface: renamed only with a release note.
package metrics

import (
	"net/http"
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

// From 50 us (a cached read over a Unix socket) to 26 s (longer than any lease), each double the last.
var latency = prometheus.ExponentialBuckets(50e-6, 2, 20)

var (
	requestSeconds = histogram("rfs_request_seconds", "Time from a request to its answer.", "side", "op", "target")
	requests       = counter("rfs_requests_total", "Requests by how they were answered.", "side", "op", "target", "status")
	requestBytes   = counter("rfs_request_bytes_total", "Payload moved by requests.", "side", "op", "target")
	inFlight       = gauge("rfs_requests_in_flight", "Requests being served or waited for.", "side", "target")

	// Retries counts what had to be done again, by reason.
	Retries = counter("rfs_retries_total", "What had to be done again.", "reason")
	// CRCFailures counts blocks and frames that did not check, by where: wire or disk.
	CRCFailures = counter("rfs_crc_failures_total", "Blocks that did not match their checksum.", "where", "target")
	// Links counts open links by what carries them and why nothing better does.
	Links = gauge("rfs_transport_links", "Open links by carrier, and why not a better one.", "carrier", "reason")
	// Credits are what a peer still lets us send, by kind: messages or bytes.
	Credits = gauge("rfs_transport_credits", "What the receiver still grants.", "kind", "peer")
	// Raft state of a metadata replica.
	RaftTerm    = gauge("rfs_raft_term", "Raft term.", "replica")
	RaftLeader  = gauge("rfs_raft_leader", "1 on the replica that leads.", "replica")
	RaftCommit  = gauge("rfs_raft_commit_index", "Highest log index known committed.", "replica")
	RaftApplied = gauge("rfs_raft_applied_index", "Highest log index applied.", "replica")
	RaftLag     = gauge("rfs_raft_lag", "Committed entries not yet applied.", "replica")
	// TargetBytes is the space of a target by kind: capacity, used, free.
	TargetBytes = gauge("rfs_target_bytes", "Space of a target.", "target", "kind")
	// TargetUp is 1 while a target serves.
	TargetUp = gauge("rfs_target_up", "1 while the target serves.", "target")
)

func init() {
	Registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// Observe records one request that began at start and was answered with status.
func Observe(side, op, target, status string, start time.Time, bytes int) {
	requestSeconds.WithLabelValues(side, op, target).Observe(time.Since(start).Seconds())
	requests.WithLabelValues(side, op, target, status).Inc()
	if bytes > 0 {
		requestBytes.WithLabelValues(side, op, target).Add(float64(bytes))
	}
}

// Begin counts a request in flight; the caller calls Dec on the result when it ends.
func Begin(side, target string) prometheus.Gauge {
	g := inFlight.WithLabelValues(side, target)
	g.Inc()
	return g
}

// Handler serves the registry, after refresh has brought the gauges up to date.
func Handler(refresh func()) http.Handler {
	h := promhttp.HandlerFor(Registry, promhttp.HandlerOpts{EnableOpenMetrics: true})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if refresh != nil {
			refresh()
		}
		h.ServeHTTP(w, r)
	})
}

func histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: latency}, labels)
	Registry.MustRegister(v)
	return v
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	Registry.MustRegister(v)
	return v
}

func gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	Registry.MustRegister(v)
	return v
}
