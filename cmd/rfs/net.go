package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"

	"github.com/spf13/cobra"

	"rfs/internal/cli"
	"rfs/verbs"
	"rfs/verbs/discover"
)

func newNet(o *options) *cobra.Command {
	c := &cobra.Command{Use: "net", Short: "Show RDMA devices, and by which of them a peer is reached", Example: "  rfs net devices\n  rfs net route node7"}
	c.AddCommand(&cobra.Command{
		Use: "devices", Short: "List the ports of the RDMA devices with their GIDs", Args: cli.Args(cobra.NoArgs),
		Example: "  rfs net devices\n  rfs net devices --json",
		RunE: func(c *cobra.Command, _ []string) error {
			ports, note, err := rdmaPorts()
			if err != nil {
				return err
			}
			return o.print(c.OutOrStdout(), ports, func(w io.Writer) {
				if note != "" {
					fmt.Fprintln(w, note)
					return
				}
				printPorts(w, ports)
			})
		},
	}, &cobra.Command{
		Use: "route PEER", Short: "Show which device and GID reach a peer, and why not others", Args: cli.Args(cobra.ExactArgs(1)),
		Example: "  rfs net route 10.0.0.2\n  rfs net route node7 --json",
		RunE: func(c *cobra.Command, args []string) error {
			r, err := findRoute(c.Context(), args[0])
			if err != nil {
				return err
			}
			return o.print(c.OutOrStdout(), r, r.write)
		},
	})
	return c
}

// rdmaPorts returns the ports, or a note that says why there are none.
func rdmaPorts() (ports []discover.Port, note string, err error) {
	lib, err := verbs.Library()
	if errors.Is(err, errors.ErrUnsupported) {
		return []discover.Port{}, err.Error(), nil
	}
	if err == nil {
		ports, err = discover.Scan(lib)
	}
	if err == nil && len(ports) == 0 {
		return []discover.Port{}, "no RDMA device", nil
	}
	return ports, "", err
}

func printPorts(w io.Writer, ports []discover.Port) {
	t := cli.Table(w, "DEVICE", "PORT", "STATE", "LINK", "MTU", "LID", "GID", "TYPE", "ADDRESS", "INTERFACE")
	for _, p := range ports {
		if p.Error != "" {
			t.AppendRow([]any{p.Device, p.Port, p.Error})
			continue
		}
		head := []any{p.Device, p.Port, p.State, p.Link, p.MTU, p.LID}
		if len(p.GIDs) == 0 {
			t.AppendRow(head)
		}
		for _, g := range p.GIDs {
			t.AppendRow(append(head, g.Index, g.Type, g.Addr, g.Netdev))
			head = []any{"", "", "", "", "", ""}
		}
	}
	t.Render()
}

// route is how a peer is reached.
type route struct {
	discover.Route
	RDMA *discover.Path `json:"rdma"`
	// Why is why there is no RDMA path.
	Why string `json:"why_not,omitempty"`
}

func findRoute(ctx context.Context, peer string) (route, error) {
	a, err := netip.ParseAddr(peer)
	if err != nil {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", peer)
		if err != nil {
			return route{}, fmt.Errorf("net route: %w", err)
		}
		a = addrs[0].Unmap()
	}
	var r route
	if r.Route, err = discover.RouteTo(a); err != nil {
		return r, err
	}
	ports, note, err := rdmaPorts()
	if err != nil {
		return r, err
	}
	p, err := discover.Choose(r.Route, ports)
	switch {
	case note != "":
		r.Why = note
	case err != nil:
		r.Why = err.Error()
	default:
		r.RDMA = &p
	}
	return r, nil
}

func (r route) write(w io.Writer) {
	fmt.Fprintf(w, "%v  by %s from %v", r.Peer, r.Netdev, r.Source)
	if r.Gateway.IsValid() {
		fmt.Fprintf(w, " through %v", r.Gateway)
	}
	fmt.Fprintln(w)
	if r.RDMA == nil {
		fmt.Fprintf(w, "  tcp   %s\n", r.Why)
		return
	}
	fmt.Fprintf(w, "  rdma  %s port %d, GID %d %v, MTU %v: %s\n", r.RDMA.Device, r.RDMA.Port, r.RDMA.GIDIndex, r.RDMA.GID, r.RDMA.MTU, r.RDMA.Why)
	for _, n := range r.RDMA.NotTaken {
		fmt.Fprintf(w, "  not   %s\n", n)
	}
}
