package discover

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/Mellanox/rdmamap"

	"rfs/verbs"
)

// Scan reads all ports of all devices of p. A device that cannot be read is a
// Port with an Error; that there is none is no error.
func Scan(p verbs.Provider) ([]Port, error) {
	names, err := p.Devices()
	if err != nil {
		return nil, err
	}
	ifs := interfaces()
	slices.Sort(names)
	var out []Port
	for _, name := range names {
		ports, err := scanDevice(p, name, ifs)
		if err != nil {
			out = append(out, Port{Device: name, Port: 1, Error: err.Error()})
			continue
		}
		out = append(out, ports...)
	}
	return out, nil
}

func scanDevice(p verbs.Provider, name string, ifs []net.Interface) (ports []Port, err error) {
	c, err := verbs.Open(p, name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	gids, err := c.GIDs()
	if err != nil {
		return nil, err
	}
	for i := 1; i <= c.Attr().Ports; i++ {
		a, err := c.Port(i)
		if err != nil {
			return nil, err
		}
		q := Port{Device: name, Port: i, State: verbs.PortState(a.State), Link: verbs.LinkLayer(a.LinkLayer), MTU: verbs.MTU(a.ActiveMTU),
			MaxMsg: a.MaxMsg, LID: a.LID, GRHRequired: a.Flags&1 != 0 && verbs.LinkLayer(a.LinkLayer) == verbs.LinkInfiniBand, Firmware: c.Attr().Firmware}
		q.addGIDs(gids, ifs)
		ports = append(ports, q)
	}
	addNetdevs(name, ports, ifs)
	return ports, nil
}

func (p *Port) addGIDs(gids []verbs.GIDEntry, ifs []net.Interface) {
	for _, g := range gids {
		if int(g.Port) != p.Port {
			continue
		}
		x := GID{Index: int(g.Index), Type: verbs.GIDType(g.Type), Addr: verbs.Addr(g.GID), Netdev: netdev(g, ifs)}
		p.GIDs = append(p.GIDs, x)
		if x.Netdev != "" && !slices.Contains(p.Netdevs, x.Netdev) {
			p.Netdevs = append(p.Netdevs, x.Netdev)
		}
	}
}

// netdev returns the interface of a GID; a provider that does not say is known by its address.
func netdev(g verbs.GIDEntry, ifs []net.Interface) string {
	for _, i := range ifs {
		if g.Ifindex != 0 && uint32(i.Index) == g.Ifindex {
			return i.Name
		}
	}
	return ""
}

// addNetdevs asks rdmamap for the interfaces of a device whose GIDs name none:
// IPoIB, and kernels that keep them from us.
func addNetdevs(device string, ports []Port, ifs []net.Interface) {
	if len(ports) != 1 || len(ports[0].Netdevs) > 0 {
		return // with several ports the device alone does not tell which
	}
	for _, i := range ifs {
		if d, err := rdmamap.GetRdmaDeviceForNetdevice(i.Name); err == nil && d == device {
			ports[0].Netdevs = append(ports[0].Netdevs, i.Name)
		}
	}
}

func interfaces() []net.Interface {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil // the GIDs alone then
	}
	return ifs
}

// To finds the path to a peer: the kernel's route, the devices, and Choose.
func To(p verbs.Provider, peer netip.Addr) (Route, Path, error) {
	r, err := RouteTo(peer)
	if err != nil {
		return r, Path{}, err
	}
	ports, err := Scan(p)
	if err != nil {
		return r, Path{}, fmt.Errorf("discover: %w", err)
	}
	path, err := Choose(r, ports)
	return r, path, err
}
