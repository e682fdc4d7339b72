package mounttest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"rfs/client"
	"rfs/mount"
	"rfs/node"
)

// A cluster is what the serving process mounts: metadata replicas and targets in the process itself, as `rfs dev` has them.
type cluster struct {
	dev *node.DevCluster
	log *slog.Logger
}

// startTime bounds how long a cluster may take to start or stop, on a machine that does much else.
const startTime = 2 * time.Minute

func startCluster(dir string) (*cluster, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	dev, err := node.Dev(ctx, node.DevOptions{Dir: dir, Log: log})
	if err != nil {
		return nil, fmt.Errorf("start a cluster: %w", err)
	}
	return &cluster{dev, log}, nil
}

func (c *cluster) close() error { return c.dev.Close() }

// client opens a session of its own, as another machine would have.
func (c *cluster) client(o mount.Options) (*client.FS, func() error, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	cfg := c.dev.ClientConfig()
	cfg.Soft, cfg.Timeout.Duration = o.Soft, o.Timeout
	conn, err := node.Connect(cfg, c.log)
	if err != nil {
		return nil, nil, err
	}
	fs, err := conn.Files(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return fs, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), startTime)
		defer cancel()
		return errors.Join(fs.Close(ctx), conn.Close())
	}, nil
}

func (c *cluster) startTarget(i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	return c.dev.StartTarget(ctx, i)
}

func (c *cluster) startMeta(i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	return c.dev.StartMeta(ctx, i)
}
