package discover

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"rfs/verbs"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// roce is an active Ethernet port.
func roce(dev string, gids ...GID) Port {
	for i := range gids {
		if gids[i].Index == 0 {
			gids[i].Index = i
		}
	}
	return Port{Device: dev, Port: 1, State: verbs.PortActive, Link: verbs.LinkEthernet, MTU: 5, GIDs: gids}
}

func v1(addr, dev string) GID { return GID{Type: verbs.GIDRoCEv1, Addr: ip(addr), Netdev: dev} }
func v2(addr, dev string) GID { return GID{Type: verbs.GIDRoCEv2, Addr: ip(addr), Netdev: dev} }

func TestChoose(t *testing.T) {
	route := Route{Peer: ip("10.0.0.2"), Source: ip("10.0.0.1"), Netdev: "eth0"}
	down := roce("mlx5_0", v2("10.0.0.1", "eth0"))
	down.State = verbs.PortDown
	slot7 := v2("10.0.0.1", "eth0")
	slot7.Index = 7
	broken := Port{Device: "mlx5_9", Port: 1, Error: "permission denied"}
	ib := Port{Device: "mlx4_0", Port: 2, State: verbs.PortActive, Link: verbs.LinkInfiniBand, MTU: 4, LID: 12, Netdevs: []string{"ib0"},
		GIDs: []GID{{Type: verbs.GIDInfiniBand, Addr: ip("fe80::2:c903:0:1"), Netdev: "ib0"}}}
	grh, noLID := ib, ib
	grh.GRHRequired = true
	noLID.LID = 0
	ibRoute := Route{Peer: ip("10.9.0.2"), Source: ip("10.9.0.1"), Netdev: "ib0"}

	for _, c := range []struct {
		name  string
		route Route
		ports []Port
		want  string // device/port/gid index/address, or what the error says
		rule  int
		not   string // in NotTaken
	}{
		{"soft-RoCE: link-local first", route, []Port{roce("rxe0", v2("fe80::1", "eth0"), v2("10.0.0.1", "eth0"))}, "rxe0/1/1/10.0.0.1", 0, "link-local"},
		{"RoCE v1 listed first", route, []Port{roce("mlx5_0", v1("fe80::1", "eth0"), v2("fe80::1", "eth0"), v1("10.0.0.1", "eth0"), v2("10.0.0.1", "eth0"))}, "mlx5_0/1/3/10.0.0.1", 0, "RoCE v1 does not cross a router"},
		{"only RoCE v1", route, []Port{roce("mlx5_0", v1("10.0.0.1", "eth0"))}, "RoCE v1 does not cross", 0, ""},
		{"VLAN of the same port", Route{Peer: ip("10.1.0.2"), Source: ip("10.1.0.1"), Netdev: "eth0.100"},
			[]Port{roce("mlx5_0", v2("10.0.0.1", "eth0"), v2("10.1.0.1", "eth0.100"))}, "mlx5_0/1/1/10.1.0.1", 0, "not of the route's interface eth0.100"},
		{"route by the plain interface, not its VLAN", route, []Port{roce("mlx5_0", v2("10.1.0.1", "eth0.100"), v2("10.0.0.1", "eth0"))}, "mlx5_0/1/1/10.0.0.1", 0, "eth0.100"},
		{"link-local only", route, []Port{roce("mlx5_0", v2("fe80::1", "eth0"))}, "link-local", 0, ""},
		{"several addresses of one interface", route, []Port{roce("mlx5_0", v2("10.0.0.9", "eth0"), v2("10.0.0.1", "eth0"), v2("10.0.0.3", "eth0"))}, "mlx5_0/1/1/10.0.0.1", 0, "10.0.0.9"},
		{"empty slots before it", route, []Port{roce("mlx5_0", slot7)}, "mlx5_0/1/7/10.0.0.1", 0, ""},
		{"two devices", route, []Port{roce("mlx5_0", v2("10.2.0.1", "eth1")), roce("mlx5_1", v2("10.0.0.1", "eth0"))}, "mlx5_1/1/0/10.0.0.1", 0, "mlx5_0 port 1"},
		{"the route's interface is no RDMA device", Route{Peer: ip("10.5.0.2"), Source: ip("10.5.0.1"), Netdev: "eno1"},
			[]Port{roce("mlx5_0", v2("10.0.0.1", "eth0"))}, "not of the route's interface eno1", 0, ""},
		{"global IPv6 where the source is not there", route, []Port{roce("mlx5_0", v2("fe80::1", "eth0"), v2("2001:db8::1", "eth0"))}, "mlx5_0/1/1/2001:db8::1", 2, "link-local"},
		{"IPv6 route", Route{Peer: ip("2001:db8::2"), Source: ip("2001:db8::1"), Netdev: "eth0"},
			[]Port{roce("mlx5_0", v2("fe80::1", "eth0"), v2("10.0.0.1", "eth0"), v2("2001:db8::1", "eth0"))}, "mlx5_0/1/2/2001:db8::1", 0, "10.0.0.1"},
		{"port down", route, []Port{down}, "mlx5_0 port 1: is down", 0, ""},
		{"port down, another up", route, []Port{down, roce("mlx5_1", v2("10.0.0.1", "eth0"))}, "mlx5_1/1/0/10.0.0.1", 0, "is down"},
		{"no GID", route, []Port{roce("mlx5_0")}, "give its interface an address", 0, ""},
		{"container: interface not visible, address matches", route, []Port{roce("mlx5_0", v2("10.8.0.1", ""), v2("10.0.0.1", ""))}, "mlx5_0/1/1/10.0.0.1", 1, "not visible"},
		{"container: nothing matches", route, []Port{roce("mlx5_0", v2("10.8.0.1", ""))}, "not visible here", 0, ""},
		{"container: visible is better than not", route, []Port{roce("mlx5_0", v2("10.0.0.1", "")), roce("mlx5_1", v2("10.0.0.1", "eth0"))}, "mlx5_1/1/0/10.0.0.1", 0, ""},
		{"a device that cannot be read", route, []Port{broken, roce("mlx5_0", v2("10.0.0.1", "eth0"))}, "mlx5_0/1/0/10.0.0.1", 0, "permission denied"},
		{"no device", route, nil, "no RDMA device", 0, ""},
		{"InfiniBand by LID", ibRoute, []Port{ib}, "mlx4_0/2/0/lid 12", 3, ""},
		{"InfiniBand port that wants a GRH", ibRoute, []Port{grh}, "mlx4_0/2/0/fe80::2:c903:0:1", 3, ""},
		{"InfiniBand without a subnet manager", ibRoute, []Port{noLID}, "subnet manager", 0, ""},
		{"InfiniBand is not the route's", route, []Port{ib}, "not of the route's interface eth0", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Choose(c.route, c.ports)
			if err != nil {
				var e *NoPathError
				if !strings.Contains(err.Error(), c.want) || !errors.As(err, &e) || !errors.Is(err, verbs.ErrNoDevice) {
					t.Fatalf("got %v, want %q", err, c.want)
				}
				return
			}
			if got := describe(p); got != c.want || p.Why != rules[c.rule] {
				t.Errorf("got %s (%s), want %s (%s)", got, p.Why, c.want, rules[c.rule])
			}
			if not := strings.Join(p.NotTaken, "; "); !strings.Contains(not, c.not) {
				t.Errorf("not taken: %q, want %q in it", not, c.not)
			}
		})
	}
}

func describe(p Path) string {
	addr := p.GID.String()
	if !p.Global {
		addr = "lid " + strconv.Itoa(int(p.LID))
	}
	return p.Device + "/" + strconv.Itoa(p.Port) + "/" + strconv.Itoa(p.GIDIndex) + "/" + addr
}
