package placement

import (
	"fmt"
	"slices"
	"strings"

	"rfs"
)

// A Map is the cluster map: what there is and which slot is where. A published
// Map is immutable; the transitions (transition.go) return a new one that
// shares what did not change.
type Map struct {
	// ClusterID is made once, when the cluster is.
	ClusterID rfs.UUID `json:"cluster_id"`
	// Epoch rises with every change, but for the space of targets (Target.Used
	// and Capacity), of which heartbeats speak too often.
	Epoch   rfs.Epoch `json:"epoch"`
	Nodes   []Node    `json:"nodes"`
	Targets []Target  `json:"targets"`
	Pools   []Pool    `json:"pools"` // Pools[i].ID need not be i

	targets map[rfs.TargetID]int // positions in Targets; see Index
	nodes   map[rfs.NodeID]int
}

// A Node is a machine, or rather one storage daemon on it.
type Node struct {
	ID   rfs.NodeID `json:"id"`
	Name string     `json:"name"` // for people; the host's name
	// Domain is the failure domain, "rack/host", outermost first and of any
	// depth. What stands before the last slash is the rack. If it is empty the
	// node is a domain of its own, in no rack.
	Domain string `json:"domain,omitempty"`
	Addr   Addr   `json:"addr"`
}

// Addr is where a node's daemon can be reached. It has the fields and the
// meaning of transport.Addr, which this package does not import.
type Addr struct {
	Network string `json:"network"` // "tcp"; "unix" (Address is the path)
	Address string `json:"address"`
	Local   string `json:"local,omitempty"`   // a Unix socket of the same daemon, good on host HostID only
	HostID  string `json:"host_id,omitempty"` // of the daemon's host
}

// A Target is one store on a node.
type Target struct {
	ID       rfs.TargetID `json:"id"`
	Node     rfs.NodeID   `json:"node"`
	Name     string       `json:"name"`     // for people; unique on its node
	Capacity int64        `json:"capacity"` // bytes
	Used     int64        `json:"used"`     // bytes, as of its last report
	// Weight scales the share of slots that Capacity gives the target; 0 means 1.
	Weight float64     `json:"weight,omitempty"`
	State  TargetState `json:"state"`
	// Draining targets get no new slots and are being emptied. A target may be
	// draining and Up, or draining and Down (its shards are then rebuilt).
	Draining bool `json:"draining,omitempty"`
}

// Free returns the share of the capacity that is free, 0 to 1.
func (t *Target) Free() float64 {
	if t.Capacity <= 0 {
		return 0
	}
	return float64(max(t.Capacity-t.Used, 0)) / float64(t.Capacity)
}

// weight is what the target's load is proportional to.
func (t *Target) weight() float64 {
	w := float64(max(t.Capacity, 1))
	if t.Weight > 0 {
		w *= t.Weight
	}
	return w
}

// TargetState says whether a target answers. Whether what it answers may be
// read is a matter of each slot: see Slot.Syncing.
type TargetState uint8

const (
	// Down targets are left out of reads and writes.
	Down TargetState = iota
	// Up targets take part in every write of their slots.
	Up
)

func (s TargetState) String() string {
	switch s {
	case Down:
		return "down"
	case Up:
		return "up"
	}
	return fmt.Sprintf("TargetState(%d)", uint8(s))
}

// MarshalText and UnmarshalText make states readable in JSON.
func (s TargetState) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s *TargetState) UnmarshalText(b []byte) error {
	switch string(b) {
	case "down":
		*s = Down
	case "up":
		*s = Up
	default:
		return fmt.Errorf("target state %q: want up or down", b)
	}
	return nil
}

// A Pool is a protection scheme with a fixed number of slots. Neither its
// scheme, unit and cell nor its number of slots ever change: layouts of files
// count on them.
type Pool struct {
	ID     rfs.PoolID `json:"id"`
	Name   string     `json:"name"`
	Scheme Scheme     `json:"scheme"`
	Unit   uint32     `json:"unit"`  // bytes of a full shard, a multiple of Cell
	Cell   uint32     `json:"cell"`  // bytes of a row on one shard, a multiple of rfs.BlockSize
	Slots  []Slot     `json:"slots"` // Slots[i].ID is i
}

// A Slot is where the shards of many stripes are: shard i of each is on Members[i].
type Slot struct {
	ID rfs.SlotID `json:"id"`
	// Epoch rises whenever anything here changes, or the state of a target
	// that is named here. Data requests carry it.
	Epoch rfs.Epoch `json:"epoch"`
	// Members are k+m distinct targets: data 0..k-1, parity k..k+m-1.
	Members []rfs.TargetID `json:"members"`
	// Syncing members missed writes, or may have: they take part in writes but
	// must not be read until they have been compared with the others.
	Syncing rfs.ShardSet `json:"syncing,omitzero"`
	// Incoming is nil, or as long as Members: the target that Members[i] moves
	// to, or zero. It takes part in writes as a second holder of position i,
	// and takes the position over once it is synced.
	Incoming []rfs.TargetID `json:"incoming,omitempty"`
}

// Index returns the position that t is the member of, or -1.
func (s *Slot) Index(t rfs.TargetID) int { return slices.Index(s.Members, t) }

// IncomingAt returns the target that position i moves to, or the zero id.
func (s *Slot) IncomingAt(i int) rfs.TargetID {
	if i < 0 || i >= len(s.Incoming) {
		return rfs.TargetID{}
	}
	return s.Incoming[i]
}

// IncomingIndex returns the position that moves to t, or -1.
func (s *Slot) IncomingIndex(t rfs.TargetID) int {
	if t.IsZero() {
		return -1
	}
	return slices.Index(s.Incoming, t)
}

// Names reports whether t is a member of s or about to become one.
func (s *Slot) Names(t rfs.TargetID) bool { return s.Index(t) >= 0 || s.IncomingIndex(t) >= 0 }

// Position returns the shard number that t holds or is about to hold in s, or -1.
func (s *Slot) Position(t rfs.TargetID) int { return max(s.Index(t), s.IncomingIndex(t)) }

// Index builds the tables by which Target and Node find things; without them
// they search. Call it before others see the Map: after decoding one, say. The
// transitions return Maps that have them.
func (m *Map) Index() {
	m.targets = make(map[rfs.TargetID]int, len(m.Targets))
	for i := range m.Targets {
		m.targets[m.Targets[i].ID] = i
	}
	m.nodes = make(map[rfs.NodeID]int, len(m.Nodes))
	for i := range m.Nodes {
		m.nodes[m.Nodes[i].ID] = i
	}
}

// Target returns the target with the id, or nil.
func (m *Map) Target(id rfs.TargetID) *Target {
	i, ok := m.targets[id]
	if !ok && m.targets == nil {
		i = slices.IndexFunc(m.Targets, func(t Target) bool { return t.ID == id })
		ok = i >= 0
	}
	if !ok {
		return nil
	}
	return &m.Targets[i]
}

// Node returns the node with the id, or nil.
func (m *Map) Node(id rfs.NodeID) *Node {
	i, ok := m.nodes[id]
	if !ok && m.nodes == nil {
		i = slices.IndexFunc(m.Nodes, func(n Node) bool { return n.ID == id })
		ok = i >= 0
	}
	if !ok {
		return nil
	}
	return &m.Nodes[i]
}

// NodeOf returns the node that the target is on, or nil.
func (m *Map) NodeOf(id rfs.TargetID) *Node {
	if t := m.Target(id); t != nil {
		return m.Node(t.Node)
	}
	return nil
}

// Pool returns the pool with the id, or nil.
func (m *Map) Pool(id rfs.PoolID) *Pool {
	for i := range m.Pools {
		if m.Pools[i].ID == id {
			return &m.Pools[i]
		}
	}
	return nil
}

// PoolByName returns the pool with the name, or nil.
func (m *Map) PoolByName(name string) *Pool {
	for i := range m.Pools {
		if m.Pools[i].Name == name {
			return &m.Pools[i]
		}
	}
	return nil
}

// Slot returns where the given stripe of a file with the layout is.
func (m *Map) Slot(l rfs.Layout, stripe uint32) (*Pool, *Slot, error) {
	p := m.Pool(l.Pool)
	if p == nil {
		return nil, nil, fmt.Errorf("pool %d: not in the map of epoch %d: %w", l.Pool, m.Epoch, rfs.ErrStaleEpoch)
	}
	return p, &p.Slots[p.SlotOf(l, stripe)], nil
}

// Layout returns the layout of a new file whose first stripe is in slot start.
func (p *Pool) Layout(start rfs.SlotID) rfs.Layout {
	return rfs.Layout{Pool: p.ID, Start: start, K: p.Scheme.K, M: p.Scheme.M, Unit: p.Unit, Cell: p.Cell}
}

// SlotOf returns the slot of the given stripe of a file with the layout.
// Stripes walk all slots, from l.Start in steps of a stride that is coprime to
// their number, so that len(p.Slots) consecutive stripes are in as many slots;
// files with other starts walk in other orders. Where files are depends on
// this function: it never changes.
func (p *Pool) SlotOf(l rfs.Layout, stripe uint32) rfs.SlotID {
	n := uint64(len(p.Slots))
	return rfs.SlotID((uint64(l.Start) + uint64(stripe)%n*stride(uint64(l.Start), n)) % n)
}

// stride returns the step of the walk from start through n slots.
func stride(start, n uint64) uint64 {
	if n <= 2 {
		return 1
	}
	s := 1 + mix(start^0x5851f42d4c957f2d)%(n-1)
	for gcd(s, n) != 1 {
		s = s%(n-1) + 1
	}
	return s
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// Writable reports whether member i of s takes part in writes: its target is Up.
func (m *Map) Writable(s *Slot, i int) bool { return m.IsUp(s.Members[i]) }

// Readable reports whether member i of s may be read: it is Up and not Syncing.
func (m *Map) Readable(s *Slot, i int) bool {
	return !s.Syncing.Has(uint8(i)) && m.IsUp(s.Members[i])
}

// IsUp reports whether the target is known and Up.
func (m *Map) IsUp(id rfs.TargetID) bool {
	t := m.Target(id)
	return t != nil && t.State == Up
}

// Leader returns the position of the slot's leader, its first readable parity
// member, or, while no parity member is readable, its first readable member; -1
// if there is none now.
func (m *Map) Leader(p *Pool, s *Slot) int {
	for j := range s.Members {
		if i := (int(p.Scheme.K) + j) % len(s.Members); m.Readable(s, i) {
			return i
		}
	}
	return -1
}

// Live returns how many positions of s have a target that takes part in
// writes: the member, or the one that takes its place.
func (m *Map) Live(s *Slot) int {
	n := 0
	for i := range s.Members {
		if m.Writable(s, i) || m.IsUp(s.IncomingAt(i)) {
			n++
		}
	}
	return n
}

// CanWrite reports whether s has enough live positions for a write: k+1, so that
// one more may be lost before the writer knows; k if there is but one parity.
func (m *Map) CanWrite(p *Pool, s *Slot) bool {
	return m.Live(s) >= p.needLive()
}

func (p *Pool) needLive() int {
	if p.Scheme.M > 1 {
		return int(p.Scheme.K) + 1
	}
	return int(p.Scheme.K)
}

// domain returns the failure domains of a target: rack and rack/host. A target
// on an unknown node is a domain of its own.
func (m *Map) domain(t *Target) (rack, host string) {
	n := m.Node(t.Node)
	if n == nil || n.Domain == "" {
		return "", "\x00" + t.Node.String()
	}
	if i := strings.LastIndexByte(n.Domain, '/'); i >= 0 {
		return n.Domain[:i], n.Domain
	}
	return "", n.Domain
}
