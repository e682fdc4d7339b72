package discover

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// RouteTo asks the kernel how it reaches peer.
func RouteTo(peer netip.Addr) (Route, error) {
	peer = peer.Unmap()
	c, err := rtnetlink.Dial(nil)
	if err != nil {
		return Route{}, fmt.Errorf("discover: route netlink: %w", err)
	}
	defer c.Close()
	req := &rtnetlink.RouteMessage{Family: unix.AF_INET, DstLength: 32, Attributes: rtnetlink.RouteAttributes{Dst: peer.AsSlice()}}
	if peer.Is6() {
		req.Family, req.DstLength = unix.AF_INET6, 128
	}
	got, err := c.Route.Get(req)
	if err != nil || len(got) == 0 {
		return Route{}, fmt.Errorf("discover: no route to %v: %w", peer, errOr(err, os.ErrNotExist))
	}
	a := got[0].Attributes
	r := Route{Peer: peer, Source: addr(a.Src), Gateway: addr(a.Gateway)}
	i, err := net.InterfaceByIndex(int(a.OutIface))
	if err != nil {
		return Route{}, fmt.Errorf("discover: interface %d of the route to %v: %w", a.OutIface, peer, err)
	}
	r.Netdev = i.Name
	return r, nil
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func addr(b net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}

// Watch calls f after each change of a link, an address or a route, several at
// once as one, until ctx ends. Then it returns ctx's error.
func Watch(ctx context.Context, f func()) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE})
	if err != nil {
		return fmt.Errorf("discover: watch the network: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		_, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && !isOverrun(err):
			return fmt.Errorf("discover: watch the network: %w", err)
		}
		f() // an overrun lost events: there was a change at least
	}
}

func isOverrun(err error) bool { return errors.Is(err, unix.ENOBUFS) }
