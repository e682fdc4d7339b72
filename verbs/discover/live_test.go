package discover

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"rfs/verbs"
	"rfs/verbs/sim"
)

func TestRouteToLoopback(t *testing.T) {
	r, err := RouteTo(ip("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Netdev != "lo" || r.Source != ip("127.0.0.1") || r.Peer != ip("127.0.0.1") {
		t.Errorf("%+v", r)
	}
	// as a peer's address comes from an IPv6 socket
	if m, err := RouteTo(ip("::ffff:127.0.0.1")); err != nil || m != r {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Watch(ctx, func() {}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestScanAndTo(t *testing.T) {
	f := sim.New(sim.Config{Name: "sim0", Addrs: []netip.Addr{ip("fe80::1"), ip("127.0.0.1")}}, sim.Config{Name: "sim1"})
	ports, err := Scan(f)
	if err != nil || len(ports) != 2 || ports[0].Device != "sim0" || len(ports[0].GIDs) != 2 || ports[1].State != verbs.PortActive {
		t.Fatalf("%+v, %v", ports, err)
	}
	r, p, err := To(f, ip("127.0.0.1"))
	if err != nil || r.Netdev != "lo" || p.Device != "sim0" || p.GIDIndex != 1 || p.Why != rules[1] {
		t.Errorf("%+v, %+v, %v", r, p, err)
	}
	if _, _, err := To(sim.New(), ip("127.0.0.1")); !errors.Is(err, verbs.ErrNoDevice) {
		t.Error(err)
	}
}

// TestRealDevices: in the rig each end of the pair reaches the other by its own device.
func TestRealDevices(t *testing.T) {
	lib, err := verbs.Library()
	if err != nil {
		t.Skip(err)
	}
	if _, err := net.InterfaceByName("veth1"); err != nil {
		t.Skip("not in the rig")
	}
	ports, err := Scan(lib)
	if err != nil || len(ports) != 2 || ports[0].Netdevs[0] != "veth0" {
		t.Fatalf("%+v, %v", ports, err)
	}
	p, err := Choose(Route{Peer: ip("10.0.0.2"), Source: ip("10.0.0.1"), Netdev: "veth0"}, ports)
	if err != nil || p.Device != "rxe0" || p.GID != ip("10.0.0.1") || p.Why != rules[0] {
		t.Errorf("%+v, %v", p, err)
	}
}
