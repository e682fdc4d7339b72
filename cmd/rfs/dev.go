package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"rfs/internal/cli"
	"rfs/internal/config"
	"rfs/mount"
	"rfs/node"
)

func newDev() *cobra.Command {
	var o node.DevOptions
	var point, capacity string
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole cluster in this process, to play with",
		Long: `Run 3 metadata replicas and 7 storage nodes in this process, with a pool "default" of ec:4+2,
until Ctrl-C. Its data goes to a temporary directory and is removed, or to --dir and is kept for the
next time. With --mount it is mounted too.

It prints the RFS_CONFIG by which the other commands reach it.`,
		Example: `  rfs dev --mount /mnt/rfs
  rfs dev --dir /var/tmp/mycluster --targets 12 --scheme ec:8+2`,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			size, err := config.ParseSize(capacity)
			if err != nil {
				return cli.Usage("--capacity: %w", err)
			}
			o.Capacity = size.Bytes
			verbose, _ := c.Flags().GetBool("verbose")
			o.Log = devLog(verbose)
			return runDev(c.Context(), c.OutOrStdout(), o, point)
		},
	}
	c.Flags().StringVar(&o.Dir, "dir", "", "keep the data in `DIR` (default: temporary)")
	c.Flags().StringVar(&point, "mount", "", "mount it on `DIR`")
	c.Flags().IntVar(&o.Replicas, "replicas", 3, "metadata replicas")
	c.Flags().IntVar(&o.Targets, "targets", 7, "storage nodes, with a target each")
	c.Flags().StringVar(&o.Scheme, "scheme", "ec:4+2", "scheme of the pool")
	c.Flags().StringVar(&capacity, "capacity", "0", "`SIZE` of each target (default: a share of what is free)")
	return c
}

// devLog shows warnings, or everything.
func devLog(verbose bool) *slog.Logger {
	level := "error"
	if verbose {
		level = "debug"
	}
	return node.NewLogger(os.Stderr, config.Log{Level: level, Format: "text"})
}

func runDev(ctx context.Context, out io.Writer, o node.DevOptions, point string) (err error) {
	d, err := node.Dev(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	path, err := writeClientConfig(d.Dir(), d.ClientConfig())
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d metadata replicas, %d targets, pool default (%s), data in %s\n\n  export RFS_CONFIG=%s\n\n",
		o.Replicas, o.Targets, o.Scheme, d.Dir(), path)
	if point == "" {
		fmt.Fprintln(out, "Ctrl-C ends it.")
		<-ctx.Done()
		return nil
	}
	m, err := mountDev(ctx, d, point, o.Log)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "mounted on %s; Ctrl-C unmounts and ends it.\n", point)
	return m.serve(ctx)
}

// devMount is a mount of an embedded cluster.
type devMount struct {
	*mount.Server
	files *files
}

func mountDev(ctx context.Context, d *node.DevCluster, point string, log *slog.Logger) (*devMount, error) {
	f, err := open(ctx, d.ClientConfig(), log)
	if err != nil {
		return nil, err
	}
	m, err := mount.Mount(mount.Config{FS: f.FS, Point: point, Source: "rfs:dev", Options: mount.DefaultOptions(os.Geteuid() == 0), Log: log})
	if err != nil {
		return nil, errors.Join(err, f.close())
	}
	return &devMount{m, f}, nil
}

func (m *devMount) serve(ctx context.Context) error {
	return errors.Join(serveUntil(ctx, m.Server), m.files.close())
}

// cut ends the mount at once: what its users wait for fails.
func (m *devMount) cut() error {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	return m.Unmount(now)
}
