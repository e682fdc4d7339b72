// Package discover finds by which RDMA device, port and GID a peer is reached.
//
//	peer 10.1.2.3 --rtnetlink--> interface eth4.100, source 10.1.2.9     (the route)
//	devices --verbs, rdmamap--> mlx5_0 port 1: GID 0 RoCE v1 fe80::..    (what there is)
//	                                           GID 3 RoCE v2 10.1.2.9 eth4.100
//	Choose(route, ports) --> mlx5_0 port 1 GID 3, and why nothing better
//
// Choose is a pure function, so that each odd fabric is a line in its test.
package discover

import (
	"fmt"
	"net/netip"
	"strings"

	"rfs/verbs"
)

// Port is one port of a device.
type Port struct {
	Device      string          `json:"device"`
	Port        int             `json:"port"`
	State       verbs.PortState `json:"state"`
	Link        verbs.LinkLayer `json:"link"`
	MTU         verbs.MTU       `json:"mtu"` // active; the code of enum ibv_mtu
	MaxMsg      uint32          `json:"max_msg"`
	LID         uint16          `json:"lid,omitempty"`
	GRHRequired bool            `json:"grh_required,omitempty"`
	Firmware    string          `json:"firmware,omitempty"`
	// Netdevs are the interfaces of the port.
	Netdevs []string `json:"netdevs,omitempty"`
	GIDs    []GID    `json:"gids,omitempty"`
	// Error is why the port could not be read.
	Error string `json:"error,omitempty"`
}

// GID is an entry of a port's GID table.
type GID struct {
	Index int           `json:"index"`
	Type  verbs.GIDType `json:"type"`
	Addr  netip.Addr    `json:"addr"`
	// Netdev is empty where the interface is not visible, as in a container.
	Netdev string `json:"netdev,omitempty"`
}

func (g GID) String() string {
	s := fmt.Sprintf("GID %d %v %v", g.Index, g.Type, g.Addr)
	if g.Netdev != "" {
		s += " " + g.Netdev
	}
	return s
}

// Route is how the kernel reaches a peer.
type Route struct {
	Peer    netip.Addr `json:"peer"`
	Source  netip.Addr `json:"source"`
	Gateway netip.Addr `json:"gateway,omitzero"`
	Netdev  string     `json:"netdev"`
}

// Path is how verbs reach it.
type Path struct {
	Device   string     `json:"device"`
	Port     int        `json:"port"`
	GIDIndex int        `json:"gid_index"`
	GID      netip.Addr `json:"gid"`
	LID      uint16     `json:"lid,omitempty"`
	// Global: the peer is named by its GID; else by its LID.
	Global bool      `json:"global"`
	MTU    verbs.MTU `json:"mtu"`
	// Why says which rule chose it, NotTaken what stood before it and why that was not taken.
	Why      string   `json:"why"`
	NotTaken []string `json:"not_taken,omitempty"`
}

// NoPathError lists what was seen, and why none of it reaches the peer.
type NoPathError struct {
	Route Route
	Seen  []string
}

func (e *NoPathError) Error() string {
	if len(e.Seen) == 0 {
		return fmt.Sprintf("no RDMA device: %v is reached by TCP through %s", e.Route.Peer, e.Route.Netdev)
	}
	return fmt.Sprintf("no RDMA path to %v (route: %s from %v): %s", e.Route.Peer, e.Route.Netdev, e.Route.Source, strings.Join(e.Seen, "; "))
}

func (e *NoPathError) Unwrap() error { return verbs.ErrNoDevice }

// Choose takes, of the active ports,
//
//  1. the RoCE v2 GID whose interface is the route's and whose address is its source;
//  2. a RoCE v2 GID with the source address, whose interface is not visible here;
//  3. a RoCE v2 GID of the route's interface with a global IPv6 address;
//  4. the InfiniBand port whose interface is the route's: by LID, or by GID where the port wants a GRH.
//
// RoCE v1 does not cross a router, and a link-local address names no interface to the peer.
func Choose(r Route, ports []Port) (Path, error) {
	var (
		best Path
		rank = len(rules)
		seen []string
	)
	for _, p := range ports {
		if why := unusable(p); why != "" {
			seen = append(seen, fmt.Sprintf("%s port %d: %s", p.Device, p.Port, why))
			continue
		}
		if k := infiniband(r, p); k < rank {
			rank, best = k, Path{Device: p.Device, Port: p.Port, LID: p.LID, Global: p.GRHRequired || p.LID == 0, MTU: p.MTU}
			if len(p.GIDs) > 0 {
				best.GIDIndex, best.GID = p.GIDs[0].Index, p.GIDs[0].Addr
			}
		}
		for _, g := range p.GIDs {
			k, why := judge(r, p, g)
			if why != "" {
				seen = append(seen, fmt.Sprintf("%s port %d %v: %s", p.Device, p.Port, g, why))
			}
			if k < rank {
				rank, best = k, Path{Device: p.Device, Port: p.Port, GIDIndex: g.Index, GID: g.Addr, Global: true, MTU: p.MTU}
			}
		}
	}
	if rank == len(rules) {
		return Path{}, &NoPathError{r, seen}
	}
	best.Why, best.NotTaken = rules[rank], seen
	return best, nil
}

// rules, best first.
var rules = []string{
	"RoCE v2 GID of the route's interface and source address",
	"RoCE v2 GID of the route's source address, on an interface that is not visible here",
	"RoCE v2 GID of the route's interface with a global IPv6 address",
	"InfiniBand port of the route's interface",
}

func unusable(p Port) string {
	switch {
	case p.Error != "":
		return p.Error
	case p.State != verbs.PortActive:
		return fmt.Sprintf("is %v", p.State)
	case len(p.GIDs) == 0 && p.Link != verbs.LinkInfiniBand:
		return "has no GID: give its interface an address"
	case p.Link == verbs.LinkInfiniBand && p.LID == 0 && !p.GRHRequired:
		return "has no LID: is a subnet manager running?"
	}
	return ""
}

// infiniband returns the rule by which an InfiniBand port serves, or len(rules).
func infiniband(r Route, p Port) int {
	if p.Link == verbs.LinkInfiniBand {
		for _, n := range p.Netdevs {
			if n == r.Netdev {
				return 3
			}
		}
	}
	return len(rules)
}

// judge returns the rule by which a GID serves, or len(rules) and why it does not.
func judge(r Route, p Port, g GID) (rule int, why string) {
	none := len(rules)
	switch {
	case g.Type == verbs.GIDInfiniBand:
		if infiniband(r, p) == none {
			return none, fmt.Sprintf("not of the route's interface %s", r.Netdev)
		}
		return none, ""
	case g.Type != verbs.GIDRoCEv2:
		return none, "RoCE v1 does not cross a router"
	case g.Netdev == "" && g.Addr == r.Source:
		return 1, ""
	case g.Netdev == "":
		return none, "its interface is not visible here, and it is not the route's source"
	case g.Netdev != r.Netdev:
		return none, fmt.Sprintf("not of the route's interface %s", r.Netdev)
	case g.Addr == r.Source:
		return 0, ""
	case g.Addr.IsLinkLocalUnicast():
		return none, "link-local"
	case g.Addr.Is6() && g.Addr.IsGlobalUnicast():
		return 2, ""
	}
	return none, fmt.Sprintf("not the route's source %v", r.Source)
}
