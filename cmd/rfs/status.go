package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"rfs"
	"rfs/internal/cli"
	"rfs/node"
	"rfs/placement"
	"rfs/raftmeta"
)

// status is what `rfs status` shows.
type status struct {
	Cluster  rfs.UUID                 `json:"cluster"`
	MapEpoch rfs.Epoch                `json:"map_epoch"`
	Health   []string                 `json:"health"` // what is wrong; empty if all is well
	Replicas []raftmeta.ReplicaStatus `json:"replicas"`
	Nodes    []nodeStatus             `json:"nodes"`
	Targets  []targetStatus           `json:"targets"`
	Pools    []poolStatus             `json:"pools"`
}

type nodeStatus struct {
	Name      string     `json:"name"`
	ID        rfs.NodeID `json:"id"`
	Domain    string     `json:"domain"`
	Address   string     `json:"address"`
	Transport string     `json:"transport"` // what carries the link from here; empty if there is none
	Reason    string     `json:"reason"`    // why that, or why there is none
}

type targetStatus struct {
	Name     string       `json:"name"` // node/target
	ID       rfs.TargetID `json:"id"`
	State    string       `json:"state"` // up, down, syncing, draining
	Slots    int          `json:"slots"`
	Syncing  int          `json:"syncing"` // of those, still being compared with their peers
	Used     int64        `json:"used"`
	Capacity int64        `json:"capacity"`
}

type poolStatus struct {
	Name     string     `json:"name"`
	ID       rfs.PoolID `json:"id"`
	Scheme   string     `json:"scheme"`
	Unit     uint32     `json:"unit"`
	Cell     uint32     `json:"cell"`
	Slots    int        `json:"slots"`
	Degraded int        `json:"degraded"` // slots with a member that is down or syncing
	Blocked  int        `json:"blocked"`  // slots that cannot be written now
	Moving   int        `json:"moving"`   // slots with a member on its way to another target
}

func newStatus(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show nodes, targets, metadata replicas, pools and transports",
		Long: `Show the whole cluster: the metadata replicas as each answers, nodes and what carries
the link from this host to each (and why), targets, pools, and what is wrong.

Exit code 3 means that no metadata replica leads; what each said is shown.`,
		Example: "  rfs status\n  rfs status --json | jq '.targets[] | select(.state != \"up\")'",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cluster, ctx, done, err := o.connect(c.Context())
			if err != nil {
				return err
			}
			defer done()
			s, err := gather(ctx, cluster)
			if perr := o.print(c.OutOrStdout(), s, s.show); perr != nil {
				return perr
			}
			return err
		},
	}
}

// gather asks for everything. An error leaves s with what could be had.
func gather(ctx context.Context, c *node.Cluster) (s status, err error) {
	s = status{Cluster: c.Identity.ID, Health: []string{}, Nodes: []nodeStatus{}, Targets: []targetStatus{}, Pools: []poolStatus{}}
	s.Replicas = c.Meta.ClusterStatus(ctx)
	leader := false
	for _, r := range s.Replicas {
		leader = leader || r.Role == "leader"
		if r.Err != nil {
			s.Health = append(s.Health, fmt.Sprintf("metadata replica %s does not answer: %v", r.Addr.Address, r.Err))
		}
	}
	if !leader {
		s.Health = append(s.Health, "no metadata replica leads: the file system waits; bring a majority of the replicas back")
		return s, fmt.Errorf("status: no metadata replica leads: %w", rfs.ErrUnavailable)
	}
	m, err := c.Meta.RefreshMap(ctx)
	if err != nil {
		return s, fmt.Errorf("status: cluster map: %w", err)
	}
	s.MapEpoch = m.Epoch
	s.Nodes = nodesOf(ctx, c, m)
	s.Targets, s.Pools = targetsOf(m), poolsOf(m)
	s.judge()
	return s, nil
}

// judge says what is wrong.
func (s *status) judge() {
	for _, n := range s.Nodes {
		if n.Transport == "" {
			s.Health = append(s.Health, fmt.Sprintf("node %s cannot be reached from here: %s", n.Name, n.Reason))
		}
	}
	for _, t := range s.Targets {
		if !strings.HasPrefix(t.State, "up") {
			s.Health = append(s.Health, fmt.Sprintf("target %s is %s", t.Name, t.State))
		}
		if t.Capacity > 0 && t.Used*100 > t.Capacity*85 {
			s.Health = append(s.Health, fmt.Sprintf("target %s is %d%% full: add targets", t.Name, t.Used*100/t.Capacity))
		}
	}
	for _, p := range s.Pools {
		if p.Blocked > 0 {
			s.Health = append(s.Health, fmt.Sprintf("pool %s: %d of %d slots cannot be written: bring targets back", p.Name, p.Blocked, p.Slots))
		}
	}
	if len(s.Pools) == 0 {
		s.Health = append(s.Health, "there is no pool: rfs pool create default ec:4+2")
	}
}

// nodesOf lists the nodes and tries the link to each.
func nodesOf(ctx context.Context, c *node.Cluster, m *placement.Map) []nodeStatus {
	out := make([]nodeStatus, 0, len(m.Nodes))
	for _, n := range m.Nodes {
		st := nodeStatus{Name: n.Name, ID: n.ID, Domain: n.Domain, Address: n.Addr.Address}
		st.Transport, st.Reason = c.Probe(ctx, n.Addr)
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b nodeStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func targetsOf(m *placement.Map) []targetStatus {
	slots, syncing := map[rfs.TargetID]int{}, map[rfs.TargetID]int{}
	for _, p := range m.Pools {
		for _, s := range p.Slots {
			for i, t := range s.Members {
				slots[t]++
				if s.Syncing.Has(uint8(i)) {
					syncing[t]++
				}
				if in := s.IncomingAt(i); !in.IsZero() {
					slots[in]++
					syncing[in]++
				}
			}
		}
	}
	out := make([]targetStatus, 0, len(m.Targets))
	for _, t := range m.Targets {
		st := targetStatus{Name: targetName(m, &t), ID: t.ID, State: t.State.String(), Slots: slots[t.ID],
			Syncing: syncing[t.ID], Used: t.Used, Capacity: t.Capacity}
		if t.State == placement.Up && st.Syncing > 0 {
			st.State = "syncing"
		}
		if t.Draining {
			st.State += ", draining"
		}
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b targetStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// targetName is the name by which people call a target: node/target.
func targetName(m *placement.Map, t *placement.Target) string {
	if n := m.Node(t.Node); n != nil {
		return n.Name + "/" + t.Name
	}
	return t.Node.String()[:8] + "/" + t.Name
}

func poolsOf(m *placement.Map) []poolStatus {
	out := make([]poolStatus, 0, len(m.Pools))
	for i := range m.Pools {
		p := &m.Pools[i]
		st := poolStatus{Name: p.Name, ID: p.ID, Scheme: p.Scheme.String(), Unit: p.Unit, Cell: p.Cell, Slots: len(p.Slots)}
		for j := range p.Slots {
			s := &p.Slots[j]
			moving := slices.ContainsFunc(s.Incoming, func(t rfs.TargetID) bool { return !t.IsZero() })
			readable := true
			for k := range s.Members {
				readable = readable && m.Readable(s, k)
			}
			st.Moving += count(moving)
			st.Degraded += count(!readable)
			st.Blocked += count(!m.CanWrite(p, s))
		}
		out = append(out, st)
	}
	return out
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (s status) show(w io.Writer) {
	fmt.Fprintf(w, "cluster %v, map epoch %d\n\n", s.Cluster, s.MapEpoch)
	t := cli.Table(w, "replica", "role", "address", "term", "commit", "lag", "sessions", "inodes")
	for _, r := range s.Replicas {
		if r.Err != nil {
			t.AppendRow([]any{"-", "no answer", r.Addr.Address})
			continue
		}
		t.AppendRow([]any{r.ID, r.Role, r.Addr.Address, r.Term, r.Commit, r.Lag(), r.Sessions, r.Inodes})
	}
	t.Render()
	if len(s.Nodes) > 0 {
		fmt.Fprintln(w)
		t = cli.Table(w, "node", "domain", "address", "transport", "why")
		for _, n := range s.Nodes {
			t.AppendRow([]any{n.Name, n.Domain, n.Address, n.Transport, n.Reason})
		}
		t.Render()
	}
	if len(s.Targets) > 0 {
		fmt.Fprintln(w)
		showTargets(w, s.Targets)
	}
	if len(s.Pools) > 0 {
		fmt.Fprintln(w)
		showPools(w, s.Pools)
	}
	if len(s.Health) == 0 {
		fmt.Fprintln(w, "\nhealth: ok")
		return
	}
	fmt.Fprintln(w, "\nhealth:")
	for _, h := range s.Health {
		fmt.Fprintln(w, " ", h)
	}
}

func showTargets(w io.Writer, ts []targetStatus) {
	t := cli.Table(w, "target", "state", "slots", "to sync", "used", "capacity", "full", "id")
	for _, s := range ts {
		full := ""
		if s.Capacity > 0 {
			full = fmt.Sprintf("%d%%", s.Used*100/s.Capacity)
		}
		t.AppendRow([]any{s.Name, s.State, s.Slots, s.Syncing, cli.Bytes(s.Used), cli.Bytes(s.Capacity), full, s.ID})
	}
	t.Render()
}

func showPools(w io.Writer, ps []poolStatus) {
	t := cli.Table(w, "pool", "scheme", "unit", "cell", "slots", "degraded", "blocked", "moving")
	for _, p := range ps {
		t.AppendRow([]any{p.Name, p.Scheme, cli.Bytes(int64(p.Unit)), cli.Bytes(int64(p.Cell)), p.Slots, p.Degraded, p.Blocked, p.Moving})
	}
	t.Render()
}
