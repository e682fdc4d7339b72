package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"rfs"
	"rfs/internal/cli"
	"rfs/internal/config"
	"rfs/node"
	"rfs/placement"
	"rfs/raftmeta"
)

func newPool(o *options) *cobra.Command {
	c := &cobra.Command{Use: "pool", Short: "Show and make pools", Example: "  rfs pool ls\n  rfs pool create default ec:4+2"}
	c.AddCommand(newPoolCreate(o), &cobra.Command{
		Use: "ls", Short: "List the pools", Example: "  rfs pool ls --json", Args: cli.Args(cobra.NoArgs),
		RunE: o.withMap(func(c *cobra.Command, m *placement.Map) error {
			ps := poolsOf(m)
			return o.print(c.OutOrStdout(), ps, func(w io.Writer) { showPools(w, ps) })
		}),
	})
	return c
}

func newPoolCreate(o *options) *cobra.Command {
	var unit, cell string
	var slots int
	c := &cobra.Command{
		Use:   "create NAME SCHEME",
		Short: "Make a pool: ec:K+M, or replica:N",
		Long: `Make a pool over the targets that are up. The scheme is ec:K+M (K data and M parity
shards a stripe; any M targets may be lost) or replica:N (N copies). It needs as many
targets as shards, and as many failure domains to survive the loss of one.
Scheme, unit, cell and the number of slots can never be changed.`,
		Example: "  rfs pool create default ec:4+2\n  rfs pool create small replica:3 --slots 64",
		Args:    cli.Args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := poolSpec(args[0], args[1], slots, unit, cell)
			if err != nil {
				return err
			}
			cluster, ctx, done, err := o.connect(c.Context())
			if err != nil {
				return err
			}
			defer done()
			id, err := cluster.Meta.CreatePool(ctx, spec)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "pool %s (%d) is %v over %d slots\n", spec.Name, id, spec.Scheme, spec.Slots)
			return nil
		},
	}
	c.Flags().IntVar(&slots, "slots", raftmeta.DefaultSlots, "number of slots: some 30 a target keep targets evenly full")
	c.Flags().StringVar(&unit, "unit", "1MiB", "bytes of a shard")
	c.Flags().StringVar(&cell, "cell", "128KiB", "bytes of a row on a shard")
	return c
}

func poolSpec(name, scheme string, slots int, unit, cell string) (raftmeta.PoolSpec, error) {
	spec := raftmeta.PoolSpec{Name: name, Slots: slots}
	var err error
	if spec.Scheme, err = placement.ParseScheme(scheme); err != nil {
		return spec, cli.Usage("pool create %s: %w", name, err)
	}
	for _, s := range []struct {
		flag, text string
		into       *uint32
	}{{"unit", unit, &spec.Unit}, {"cell", cell, &spec.Cell}} {
		n, err := config.ParseSize(s.text)
		if err != nil || n.Bytes > math.MaxUint32 {
			return spec, cli.Usage("pool create %s: --%s %s: want a size below 4GiB, like 1MiB", name, s.flag, s.text)
		}
		*s.into = uint32(n.Bytes)
	}
	l := rfs.Layout{K: spec.Scheme.K, M: spec.Scheme.M, Unit: spec.Unit, Cell: spec.Cell}
	if err := l.Validate(); err != nil {
		return spec, cli.Usage("pool create %s: %w", name, err)
	}
	if slots < 1 || slots > 1<<20 {
		return spec, cli.Usage("pool create %s: --slots %d: want 1 to %d", name, slots, 1<<20)
	}
	return spec, nil
}

func newTarget(o *options) *cobra.Command {
	c := &cobra.Command{Use: "target", Short: "Show, check, empty and remove targets", Example: "  rfs target ls\n  rfs target drain node3/t1"}
	c.AddCommand(&cobra.Command{
		Use: "ls", Short: "List the targets", Example: "  rfs target ls --json", Args: cli.Args(cobra.NoArgs),
		RunE: o.withMap(func(c *cobra.Command, m *placement.Map) error {
			ts := targetsOf(m)
			return o.print(c.OutOrStdout(), ts, func(w io.Writer) { showTargets(w, ts) })
		}),
	}, newTargetCheck(o), newTargetDrain(o), &cobra.Command{
		Use:   "rm TARGET",
		Short: "Remove a target that was drained",
		Long: `Take a target off the cluster map. It must have no slots any more: drain it first.
A node without targets leaves the map with its last one.`,
		Example: "  rfs target rm node3/t1",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: o.withTarget(func(ctx context.Context, c *cobra.Command, cl *node.Cluster, m *placement.Map, t *placement.Target) error {
			if err := cl.Meta.RemoveTarget(ctx, t.ID); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "target %s is removed\n", targetName(m, t))
			for _, other := range m.Targets {
				if other.Node == t.Node && other.ID != t.ID {
					return nil
				}
			}
			return cl.Meta.RemoveNode(ctx, t.Node)
		}),
	})
	return c
}

func newTargetDrain(o *options) *cobra.Command {
	var undo bool
	c := &cobra.Command{
		Use:   "drain TARGET",
		Short: "Empty a target: its slots move to others",
		Long: `Begin to empty a target. Each of its slots gets another target in its place; the shards of
one that is down are rebuilt from the others. It goes on in the background, whoever leads,
and is done when "rfs target ls" shows no slots.`,
		Example: "  rfs target drain node3/t1\n  rfs target drain --undo node3/t1",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: o.withTarget(func(ctx context.Context, c *cobra.Command, cl *node.Cluster, m *placement.Map, t *placement.Target) error {
			if err := cl.Meta.Drain(ctx, t.ID, undo); err != nil {
				return err
			}
			if undo {
				fmt.Fprintf(c.OutOrStdout(), "target %s stays\n", targetName(m, t))
			} else {
				fmt.Fprintf(c.OutOrStdout(), "target %s is being emptied: `rfs target ls` shows how many slots are left\n", targetName(m, t))
			}
			return nil
		}),
	}
	c.Flags().BoolVar(&undo, "undo", false, "stop, and keep the target")
	return c
}

func newMeta(o *options) *cobra.Command {
	c := &cobra.Command{Use: "meta", Short: "Show, add and remove metadata replicas", Example: "  rfs meta members\n  rfs meta add node4:7440"}
	c.AddCommand(&cobra.Command{
		Use: "members", Aliases: []string{"ls"}, Short: "List the metadata replicas", Example: "  rfs meta members --json", Args: cli.Args(cobra.NoArgs),
		RunE: o.withCluster(func(ctx context.Context, c *cobra.Command, cl *node.Cluster, _ []string) error {
			leader, err := cl.Meta.LeaderStatus(ctx)
			if err != nil {
				return err
			}
			return o.print(c.OutOrStdout(), leader.Members, func(w io.Writer) {
				t := cli.Table(w, "replica", "address", "role")
				for _, m := range leader.Members {
					role := "voter"
					switch {
					case m.ID == leader.ID:
						role = "leader"
					case m.Learner:
						role = "learner"
					}
					t.AppendRow([]any{m.ID, m.Addr.Address, role})
				}
				t.Render()
			})
		}),
	}, &cobra.Command{
		Use:   "add HOST:PORT",
		Short: "Add a metadata replica",
		Long: `Add the replica at the address: an rfsd with the role "meta" and an empty meta.dir that is
running and belongs to no cluster yet. It catches up as a learner and votes from then on.
The command returns when it does, and may be run again.`,
		Example: "  rfs meta add node4:7440 --timeout 10m",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: o.withCluster(func(ctx context.Context, c *cobra.Command, cl *node.Cluster, args []string) error {
			id, err := cl.Meta.AddMember(ctx, node.ParseAddr(args[0]))
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "metadata replica %d at %s votes; add the address to cluster.meta and client.toml everywhere\n", id, args[0])
			return nil
		}),
	}, &cobra.Command{
		Use:     "remove ID",
		Short:   "Remove a metadata replica",
		Long:    `Remove a replica by its number ("rfs meta members"). Its meta.dir is of no use afterwards: empty it.`,
		Example: "  rfs meta remove 2",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: o.withCluster(func(ctx context.Context, c *cobra.Command, cl *node.Cluster, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 64)
			if err != nil || id == 0 {
				return cli.Usage("meta remove %s: want a replica's number: `rfs meta members` lists them", args[0])
			}
			if err := cl.Meta.RemoveMember(ctx, id); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "metadata replica %d is removed\n", id)
			return nil
		}),
	})
	return c
}

type clusterFunc func(ctx context.Context, c *cobra.Command, cl *node.Cluster, args []string) error

// withCluster runs do with a way to the cluster.
func (o *options) withCluster(do clusterFunc) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		cluster, ctx, done, err := o.connect(c.Context())
		if err != nil {
			return err
		}
		defer done()
		return do(ctx, c, cluster, args)
	}
}

// withMap runs do with the newest cluster map.
func (o *options) withMap(do func(*cobra.Command, *placement.Map) error) func(*cobra.Command, []string) error {
	return o.withCluster(func(ctx context.Context, c *cobra.Command, cl *node.Cluster, _ []string) error {
		m, err := cl.Meta.RefreshMap(ctx)
		if err != nil {
			return err
		}
		return do(c, m)
	})
}

type targetFunc func(ctx context.Context, c *cobra.Command, cl *node.Cluster, m *placement.Map, t *placement.Target) error

// withTarget runs do with the target that the first argument names.
func (o *options) withTarget(do targetFunc) func(*cobra.Command, []string) error {
	return o.withCluster(func(ctx context.Context, c *cobra.Command, cl *node.Cluster, args []string) error {
		m, err := cl.Meta.RefreshMap(ctx)
		if err != nil {
			return err
		}
		t, err := findTarget(m, args[0])
		if err != nil {
			return err
		}
		return do(ctx, c, cl, m, t)
	})
}

// findTarget finds a target by node/target, by its id, or by the id's first digits.
func findTarget(m *placement.Map, name string) (*placement.Target, error) {
	var found []*placement.Target
	for i := range m.Targets {
		t := &m.Targets[i]
		if targetName(m, t) == name {
			return t, nil
		}
		if len(name) >= 4 && strings.HasPrefix(t.ID.String(), strings.ToLower(name)) {
			found = append(found, t)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("target %s: %w: `rfs target ls` lists them", name, rfs.ErrNotFound)
	}
	return nil, cli.Usage("target %s: %d targets have ids that begin so: give more digits", name, len(found))
}
