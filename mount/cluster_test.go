package mount_test

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
	return &cluster{dev}, nil
}

func (c *cluster) close() error { return c.dev.Close() }

// client opens a session of its own, as another machine would have.
func (c *cluster) client(o mount.Options) (*client.FS, func() error, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	conn, err := c.dev.Connect()
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

func (c *cluster) stopTarget(i int) error { return c.dev.StopTarget(i) }

func (c *cluster) startTarget(i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	return c.dev.StartTarget(ctx, i)
}
