// Rfsd is the daemon of the machines that store an rfs cluster: metadata
// replicas, storage targets, or both, from one TOML file.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"rfs/erasure"
	"rfs/internal/cli"
	"rfs/internal/config"
	"rfs/node"
	"rfs/raftmeta"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(cli.Execute(ctx, newRoot()))
}

func newRoot() *cobra.Command {
	var path string
	root := &cobra.Command{
		Use:   "rfsd",
		Short: "The daemon of an rfs cluster: metadata replica, storage targets, or both",
		Long: `rfsd serves what its configuration says: a metadata replica (role "meta"), storage targets (role
"storage"), or both. ` + config.DaemonPath + ` is the file if --config names no other.

` + cli.ExitHelp,
		Example: `  rfsd cluster key /etc/rfs/cluster.key     # once, then copied to all machines
  rfsd config init > /etc/rfs/rfsd.toml
  rfsd config check
  rfsd run                                  # or: systemctl start rfsd
  rfsd cluster init                         # once, when all replicas run`,
	}
	root.PersistentFlags().StringVar(&path, "config", config.DaemonPath, "configuration `FILE`")
	root.AddCommand(newRun(&path), newConfig(&path), newCluster(&path), newTarget(&path), newVersion(), cli.ManCommand("8"))
	return root
}

// load reads the configuration; what is wrong with it exits with 2.
func load(path string) (config.Daemon, error) {
	c, err := config.LoadDaemon(path)
	if err != nil {
		return c, cli.Usage("%w", err)
	}
	return c, nil
}

func newRun(path *string) *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the daemon until SIGTERM or SIGINT",
		Long: `Run the daemon in the foreground until SIGTERM or SIGINT, which end it cleanly: a target that
was stopped cleanly need not be compared with its peers at the next start. Under systemd
(Type=notify) it says when it serves.`,
		Example: "  rfsd run --config /etc/rfs/rfsd.toml",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := load(*path)
			if err != nil {
				return err
			}
			return run(c.Context(), cfg)
		},
	}
}

func run(ctx context.Context, cfg config.Daemon) error {
	log := node.NewLogger(os.Stderr, cfg.Log)
	slog.SetDefault(log)
	d, err := node.Start(ctx, cfg, log)
	if err != nil {
		return err
	}
	notify("READY=1\nSTATUS=serving")
	select {
	case <-ctx.Done():
		log.Info("stopping")
	case <-d.Failed():
		err = d.Err()
		log.Error("stopping", "err", err)
	}
	notify("STOPPING=1")
	// TimeoutStopSec of the unit is longer.
	end, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	return errors.Join(err, d.Stop(end))
}

// notify tells systemd; see sd_notify(3).
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, state)
}

func newConfig(path *string) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Check the configuration, or print a new one", Example: "  rfsd config check /etc/rfs/rfsd.toml"}
	c.AddCommand(&cobra.Command{
		Use:   "check [FILE]",
		Short: "Say everything that is wrong with a configuration",
		Long: `Check a file: unknown keys with the nearest known one, values out of range, keys that
contradict each other; all at once, one a line. Exit code 2 if anything is wrong.`,
		Example: "  rfsd config check /etc/rfs/rfsd.toml",
		Args:    cli.Args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				*path = args[0]
			}
			if _, err := load(*path); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: ok\n", *path)
			return nil
		},
	}, &cobra.Command{
		Use: "init", Short: "Print a configuration with every key, its meaning and default",
		Example: "  rfsd config init > /etc/rfs/rfsd.toml", Args: cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(c.OutOrStdout(), config.DefaultTOML)
			return err
		},
	})
	return c
}

func newCluster(path *string) *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "Make a new cluster", Example: "  rfsd cluster key /etc/rfs/cluster.key\n  rfsd cluster init"}
	var wait time.Duration
	init := &cobra.Command{
		Use:   "init",
		Short: "Make the metadata replicas of the configuration a cluster, once",
		Long: `Make a cluster of the metadata replicas that cluster.meta lists. All must be running ("rfsd run")
and belong to none yet. When it fails half-way it may be run again with the same configuration.`,
		Example: "  rfsd cluster init --config /etc/rfs/rfsd.toml",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := load(*path)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), wait)
			defer cancel()
			return initCluster(ctx, c.OutOrStdout(), cfg)
		},
	}
	init.Flags().DurationVar(&wait, "timeout", 30*time.Second, "give up after `TIME`")
	c.AddCommand(init, &cobra.Command{
		Use:   "key FILE",
		Short: "Make the id and the secret key of a new cluster",
		Long: `Write a new cluster's id and secret key to FILE, which must not exist, with mode 0600. Copy it to all
servers and to the compute nodes that mount: whoever has it is a member of the cluster.`,
		Example: "  rfsd cluster key /etc/rfs/cluster.key",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			id := config.NewIdentity()
			if err := id.Write(args[0]); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s has the key of cluster %v: copy it to all its machines\n", args[0], id.ID)
			return nil
		},
	})
	return c
}

func initCluster(ctx context.Context, out io.Writer, cfg config.Daemon) error {
	cc := config.DefaultClient()
	cc.Meta, cc.KeyFile, cc.Transport = cfg.Cluster.Meta, cfg.Cluster.KeyFile, cfg.Transport
	cluster, err := node.Connect(cc, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer cluster.Close()
	id, err := cluster.Meta.ClusterInit(ctx)
	if err != nil {
		return err
	}
	var members []raftmeta.Member
	if members, err = cluster.Meta.Members(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "cluster %v has %d metadata replicas; next: `rfs status`, `rfs pool create default ec:4+2`\n", id, len(members))
	return nil
}

func newTarget(path *string) *cobra.Command {
	c := &cobra.Command{Use: "target", Short: "Targets of this node", Example: "  rfsd target forget /srv/rfs/nvme1"}
	c.AddCommand(&cobra.Command{
		Use:   "forget DIR",
		Short: "Let an empty directory, where a target was, become a new target",
		Long: `A directory that is empty where a target was may be a disk that is not mounted: rfsd
refuses to start. When the disk was replaced, forget the old target; the next start formats the
directory as a new one. Drain and remove the old one ("rfs target drain", "rfs target rm").`,
		Example: "  rfsd target forget /srv/rfs/nvme1",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := load(*path)
			if err != nil {
				return err
			}
			return node.ForgetTarget(cfg.Node.StateDir, args[0])
		},
	})
	return c
}

func newVersion() *cobra.Command {
	var verbose, asJSON bool
	c := &cobra.Command{
		Use: "version", Short: "Show the version", Example: "  rfsd version --verbose", Args: cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return cli.ShowVersion(c.OutOrStdout(), "rfsd", verbose, asJSON,
				map[string]string{"erasure": erasure.SIMD(), "transports": node.Transports})
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "how it was built")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}
