package node

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"rfs/chunkstore"
	"rfs/internal/metrics"
	"rfs/placement"
)

// Health says what is wrong with this daemon, if anything.
func (d *Daemon) Health(ctx context.Context) (wrong []string) {
	if d.replica != nil {
		st := d.self.ClusterStatus(ctx)[0]
		switch {
		case st.Err != nil:
			wrong = append(wrong, fmt.Sprintf("metadata replica: %v", st.Err))
		case st.Role == "uninitialized":
			wrong = append(wrong, "metadata replica: belongs to no cluster yet: rfsd cluster init, or rfs meta add")
		case st.Leader == 0:
			wrong = append(wrong, "metadata replica: no leader: a majority of the replicas cannot be reached")
		}
	}
	if d.server == nil {
		return wrong
	}
	m := d.cachedMap()
	if m == nil {
		return append(wrong, "storage: the metadata service does not answer yet")
	}
	for _, t := range m.Targets {
		if t.Node == d.node.ID && t.State != placement.Up {
			wrong = append(wrong, fmt.Sprintf("target %s (%v) is down", t.Name, t.ID))
		}
	}
	return wrong
}

// measure reports what Prometheus asks for beside the requests.
func (d *Daemon) measure(emit metrics.Emit) {
	d.measureTransport(emit)
	if d.replica != nil {
		d.measureReplica(emit)
	}
	m := d.cachedMap()
	for _, t := range d.stores {
		measureTarget(emit, t.Store, m)
	}
}

// reasons say why no better transport carries a link.
var reasons = map[string]string{"unix": "same host", "tcp": "no RDMA and no DPDK in this build"}

func (d *Daemon) measureTransport(emit metrics.Emit) {
	n, st, a := d.node.Name, d.transport.Stats(), d.arena.Stats()
	emit("rfs_transport_links", float64(st.LinksTCP), n, "tcp", reasons["tcp"])
	emit("rfs_transport_links", float64(st.LinksUnix), n, "unix", reasons["unix"])
	emit("rfs_transport_clients", float64(st.Clients), n)
	emit("rfs_transport_bytes_total", float64(st.BytesIn), n, "in")
	emit("rfs_transport_bytes_total", float64(st.BytesOut), n, "out")
	emit("rfs_transport_frames_total", float64(st.FramesIn), n, "in")
	emit("rfs_transport_frames_total", float64(st.FramesOut), n, "out")
	for event, count := range map[string]int64{"resent": st.Resent, "duplicate": st.Duplicates, "cancelled": st.Cancels,
		"credit_wait": st.CreditWaits, "link_error": st.LinkErrors, "bad_frame": st.BadFrames, "refused": st.Refused} {
		emit("rfs_transport_events_total", float64(count), n, event)
	}
	for kind, bytes := range map[string]int64{"limit": a.Limit, "mapped": a.Mapped, "huge": a.HugeBytes, "used": a.Used} {
		emit("rfs_arena_bytes", float64(bytes), n, kind)
	}
	emit("rfs_arena_waits_total", float64(a.Waits), n)
}

func (d *Daemon) measureReplica(emit metrics.Emit) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	st := d.self.ClusterStatus(ctx)[0]
	if st.Err != nil || st.ID == 0 {
		return
	}
	r, leads := strconv.FormatUint(st.ID, 10), 0.0
	if st.Role == "leader" {
		leads = 1
	}
	emit("rfs_raft_leader", leads, r)
	for name, v := range map[string]uint64{"rfs_raft_term": st.Term, "rfs_raft_commit_index": st.Commit, "rfs_raft_applied_index": st.Applied,
		"rfs_raft_lag": st.Lag(), "rfs_meta_sessions": st.Sessions, "rfs_meta_inodes": st.Inodes, "rfs_meta_purge_queue": st.PurgeQueue} {
		emit(name, float64(v), r)
	}
}

func measureTarget(emit metrics.Emit, s *chunkstore.Store, m *placement.Map) {
	id := s.Identity().Target
	name, up := id.String()[:8], 0.0
	if m != nil && m.IsUp(id) {
		up = 1
	}
	emit("rfs_target_up", up, name)
	if u, err := s.Stat(); err == nil {
		for kind, bytes := range map[string]int64{"capacity": u.Capacity, "used": u.Used, "free": u.Free} {
			emit("rfs_target_bytes", float64(bytes), name, kind)
		}
	}
	st := s.Stats()
	for event, n := range map[string]int64{"put": st.Puts, "commit": st.Commits, "drop": st.Drops, "fold": st.Folds, "read": st.Reads,
		"sync": st.Syncs, "flush": st.Flushes, "read_error": st.ReadErrors, "write_error": st.WriteErrors} {
		emit("rfs_target_events_total", float64(n), name, event)
	}
	emit("rfs_target_io_bytes_total", float64(st.PutBytes), name, "write")
	emit("rfs_target_io_bytes_total", float64(st.ReadBytes), name, "read")
}

// cachedMap returns the newest map that the daemon has, or nil.
func (d *Daemon) cachedMap() *placement.Map {
	if d.meta == nil {
		return nil
	}
	return d.meta.CachedMap()
}
