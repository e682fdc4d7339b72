package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"

	"rfs/erasure"
	"rfs/internal/cli"
	"rfs/internal/config"
	"rfs/node"
)

// notify returns a context that the next signal ends.
func notify(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Show the version; with --verbose, build and processor",
		Example: "  rfs version --verbose\n  rfs version --json",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			verbose, _ := c.Flags().GetBool("verbose")
			asJSON, _ := c.Flags().GetBool("json")
			return cli.ShowVersion(c.OutOrStdout(), "rfs", verbose, asJSON, features())
		},
	}
}

func newConfig(o *options) *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show, check and write the client's configuration", Example: "  rfs config init > /etc/rfs/client.toml"}
	c.AddCommand(&cobra.Command{
		Use: "init", Short: "Print a configuration with every key, its meaning and default",
		Example: "  rfs config init > /etc/rfs/client.toml", Args: cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(c.OutOrStdout(), config.ClientTOML)
			return err
		},
	}, &cobra.Command{
		Use: "check [FILE]", Short: "Say everything that is wrong with a configuration", Args: cli.Args(cobra.MaximumNArgs(1)),
		Example: "  rfs config check /etc/rfs/client.toml",
		RunE: func(c *cobra.Command, args []string) error {
			flags := *o
			if len(args) > 0 {
				flags.config = args[0]
			}
			cfg, err := flags.client()
			if err != nil {
				return err
			}
			if _, err := config.ReadKey(cfg.KeyFile); err != nil {
				return cli.Usage("%w", err)
			}
			fmt.Fprintln(c.OutOrStdout(), "ok")
			return nil
		},
	}, &cobra.Command{
		Use: "show", Short: "Print the configuration in force", Args: cli.Args(cobra.NoArgs), Example: "  rfs config show",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := o.client()
			if err != nil {
				return err
			}
			return o.print(c.OutOrStdout(), cfg, func(w io.Writer) {
				b, err := toml.Marshal(cfg)
				if err == nil {
					_, _ = w.Write(b)
				}
			})
		},
	})
	return c
}

// writeClientConfig writes a client.toml for a cluster that this process runs.
func writeClientConfig(dir string, cfg config.Client) (string, error) {
	path := filepath.Join(dir, "client.toml")
	b, err := toml.Marshal(cfg)
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, b, 0o600)
}

// features say what this build and processor have.
func features() map[string]string {
	return map[string]string{
		"erasure":    erasure.SIMD(),
		"transports": node.Transports,
	}
}
