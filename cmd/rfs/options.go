package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"rfs/client"
	"rfs/internal/cli"
	"rfs/internal/config"
	"rfs/node"
)

// options are the flags that all commands have.
type options struct {
	config  string
	meta    []string
	keyFile string
	timeout time.Duration
	json    bool
	verbose bool
}

// patience is how long a command that only asks waits for an answer.
const patience = 15 * time.Second

func (o *options) flags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&o.config, "config", "", "client configuration `FILE` (default $RFS_CONFIG, else "+config.ClientPath+")")
	f.StringSliceVar(&o.meta, "meta", nil, "metadata replicas `HOST:PORT,...`, instead of the configuration's")
	f.StringVar(&o.keyFile, "key-file", "", "cluster key `FILE`, instead of the configuration's")
	f.DurationVar(&o.timeout, "timeout", 0, "give up after `TIME` without an answer (default 15s; files: wait, like a hard mount)")
	f.BoolVar(&o.json, "json", false, "print listings as JSON")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say more, and log to standard error")
}

// client returns the configuration that the flags name.
func (o *options) client() (config.Client, error) {
	cfg := config.DefaultClient()
	path := o.config
	if path == "" {
		path = os.Getenv("RFS_CONFIG")
	}
	if path == "" && (len(o.meta) == 0 || fileExists(config.ClientPath)) {
		path = config.ClientPath
	}
	if path != "" {
		var err error
		if cfg, err = config.LoadClient(path); err != nil {
			return cfg, cli.Usage("%w", err)
		}
	}
	if len(o.meta) > 0 {
		cfg.Meta = o.meta
	}
	if o.keyFile != "" {
		cfg.KeyFile = o.keyFile
	}
	if err := cfg.Validate(); err != nil {
		return cfg, cli.Usage("%w", err)
	}
	return cfg, nil
}

// connect prepares the way to the cluster for a command that asks or changes
// something about the cluster: its context ends when patience does.
func (o *options) connect(ctx context.Context) (*node.Cluster, context.Context, context.CancelFunc, error) {
	cfg, err := o.client()
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := node.Connect(cfg, o.logger())
	if err != nil {
		return nil, nil, nil, err
	}
	wait := o.timeout
	if wait == 0 {
		wait = patience
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	return c, ctx, func() { cancel(); _ = c.Close() }, nil
}

// files connects for a command that moves files. The client waits for the
// cluster for ever, unless the configuration or --timeout says otherwise.
func (o *options) files(ctx context.Context) (*files, error) {
	cfg, err := o.client()
	if err != nil {
		return nil, err
	}
	if o.timeout > 0 {
		cfg.Soft, cfg.Timeout = true, config.Duration{Duration: o.timeout}
	}
	return open(ctx, cfg, o.logger())
}

// files is a client of the cluster's files.
type files struct {
	*client.FS
	cluster *node.Cluster
	ctx     context.Context // ends when the user interrupts
}

// close writes what is dirty and ends the session, in bounded time: a minute, or,
// after an interrupt, a moment.
func (f *files) close() error {
	patience := time.Minute
	if f.ctx.Err() != nil {
		patience = 5 * time.Second
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(f.ctx), patience)
	defer cancel()
	return errors.Join(f.FS.Close(end), f.cluster.Close())
}

// open connects and opens a session.
func open(ctx context.Context, cfg config.Client, log *slog.Logger) (*files, error) {
	c, err := node.Connect(cfg, log)
	if err != nil {
		return nil, err
	}
	fs, err := c.Files(ctx)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &files{fs, c, ctx}, nil
}

// logger logs to standard error if asked to.
func (o *options) logger() *slog.Logger {
	if !o.verbose {
		return slog.New(slog.DiscardHandler)
	}
	return node.NewLogger(os.Stderr, config.Log{Level: "debug", Format: "text"})
}

// print shows a listing as JSON or as what show writes.
func (o *options) print(w io.Writer, v any, show func(w io.Writer)) error {
	if o.json {
		return cli.JSON(w, v)
	}
	show(w)
	return nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
