package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"rfs/bench"
	"rfs/internal/cli"
	"rfs/node"
)

func newDemo() *cobra.Command {
	var o demoOptions
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show it: copy real files into a cluster, lose two targets, verify everything",
		Long: `Run an embedded cluster (see rfs dev), mount it, copy a source tree and one big file into it,
verify every checksum, stop two of the seven targets, verify everything again, write more,
and print how long each took. Nothing is left behind, also after Ctrl-C.`,
		Example: "  rfs demo\n  rfs demo --source ~/src --mib 256",
		Args:    cli.Args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			verbose, _ := c.Flags().GetBool("verbose")
			o.json, _ = c.Flags().GetBool("json")
			return o.run(c.Context(), c.OutOrStdout(), verbose)
		},
	}
	c.Flags().StringVar(&o.source, "source", "", "the tree to copy (default: the source of the Go toolchain)")
	c.Flags().Int64Var(&o.size, "mib", 1024, "size of the big file in MiB")
	c.Flags().IntVarP(&o.workers, "jobs", "j", 8, "files at once")
	c.Flags().StringVar(&o.dir, "dir", "", "where the cluster's data goes for the time of the demo (default: memory if it suffices, else the disk)")
	return c
}

type demoOptions struct {
	source, dir string
	size        int64
	workers     int
	json        bool
}

// run is the demo, step by step. Whatever happens, what it made is taken away again.
func (o *demoOptions) run(ctx context.Context, out io.Writer, verbose bool) (err error) {
	tree, err := o.scan()
	if err != nil {
		return err
	}
	big := o.size << 20
	need := 3*tree.Bytes + 2*big + 2<<30 // shards, and what Pebble and half-full extents take
	base, err := workDir(o.dir, need)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(base, "rfs-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()

	run := bench.NewRun(os.Stderr)
	var d *node.DevCluster
	err = run.Do(ctx, "start 3 replicas, 7 targets", 0, 0, func(ctx context.Context, _ bench.Progress) (err error) {
		d, err = node.Dev(ctx, node.DevOptions{Dir: filepath.Join(tmp, "c"), Log: devLog(verbose)})
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	point := filepath.Join(tmp, "mnt")
	if err := os.Mkdir(point, 0o755); err != nil {
		return err
	}
	m, err := mountDev(ctx, d, point, devLog(verbose))
	if err != nil {
		return err
	}
	// An interrupt must reach a phase that waits in a system call on the mount.
	stop := context.AfterFunc(ctx, func() { _ = m.cut() })
	defer func() {
		stop()
		err = errors.Join(err, m.cut(), m.files.close())
		if ctx.Err() != nil {
			err = ctx.Err() // the rest follows from it
		}
	}()
	fmt.Fprintf(run.Out, "mounted on %s; the cluster's data is in %s\n", point, filepath.Join(tmp, "c"))

	if err := o.phases(ctx, run, d, tree, point, big); err != nil {
		return err
	}
	if o.json {
		return cli.JSON(out, run.Phases)
	}
	run.Out = out
	run.Table()
	return nil
}

// phases is what the table shows.
func (o *demoOptions) phases(ctx context.Context, run *bench.Run, d *node.DevCluster, tree *bench.Tree, point string, big int64) error {
	n, copied, file := len(tree.Files), filepath.Join(point, "tree"), filepath.Join(point, "big")
	var sum, more bench.Sum
	verify := func(ctx context.Context, p bench.Progress) error { return tree.Verify(ctx, copied, o.workers, p) }
	verifyBig := func(ctx context.Context, p bench.Progress) error {
		return bench.VerifyFile(ctx, file, big, sum, nil, p)
	}
	for _, s := range []struct {
		name  string
		files int
		bytes int64
		do    func(context.Context, bench.Progress) error
	}{
		{"copy the source tree", n, tree.Bytes, func(ctx context.Context, p bench.Progress) error {
			return tree.Copy(ctx, copied, o.workers, p)
		}},
		{"write one big file", 1, big, func(ctx context.Context, p bench.Progress) (err error) {
			sum, err = bench.WriteFile(ctx, file, big, 1, p)
			return err
		}},
		{"verify the source tree", n, tree.Bytes, verify},
		{"verify the big file", 1, big, verifyBig},
		{"stop two targets", 0, 0, func(ctx context.Context, _ bench.Progress) error { return stopTwo(ctx, d) }},
		{"verify the tree, two of seven lost", n, tree.Bytes, verify},
		{"verify the big file, two lost", 1, big, verifyBig},
		{"write more, two lost", 1, big / 4, func(ctx context.Context, p bench.Progress) (err error) {
			more, err = bench.WriteFile(ctx, file+"2", big/4, 2, p)
			return err
		}},
		{"verify that too", 1, big / 4, func(ctx context.Context, p bench.Progress) error {
			return bench.VerifyFile(ctx, file+"2", big/4, more, nil, p)
		}},
		{"start them again, until in sync", 0, 0, func(ctx context.Context, _ bench.Progress) error { return startAgain(ctx, d) }},
	} {
		if err := run.Do(ctx, s.name, s.files, s.bytes, s.do); err != nil {
			return err
		}
	}
	return nil
}

// lost are the targets that the demo loses. The slots that had both are given
// the seventh target in the place of one, and can be written (placement.Relieve).
var lost = [...]int{1, 4}

func stopTwo(ctx context.Context, d *node.DevCluster) error {
	for _, i := range lost {
		if err := d.StopTarget(i); err != nil {
			return err
		}
	}
	return d.WaitUp(ctx, 7-len(lost))
}

func startAgain(ctx context.Context, d *node.DevCluster) error {
	for _, i := range lost {
		if err := d.StartTarget(ctx, i); err != nil {
			return err
		}
	}
	return d.WaitSynced(ctx)
}

// scan lists the tree to copy.
func (o *demoOptions) scan() (*bench.Tree, error) {
	if o.source == "" {
		b, err := exec.Command("go", "env", "GOROOT").Output()
		if err != nil {
			return nil, cli.Usage("demo: `go env GOROOT` failed (%w): name a tree with --source", err)
		}
		o.source = filepath.Join(strings.TrimSpace(string(b)), "src")
	}
	t, err := bench.Scan(o.source)
	if err == nil && len(t.Files) == 0 {
		err = cli.Usage("demo: %s has no files", o.source)
	}
	return t, err
}

// workDir chooses where the data goes: memory if there is enough, else the disk.
func workDir(dir string, need int64) (string, error) {
	if dir != "" {
		return dir, nil
	}
	if free("/dev/shm") > need && available() > need+2<<30 {
		return "/dev/shm", nil
	}
	if tmp := os.TempDir(); free(tmp) > need {
		return tmp, nil
	}
	return "", fmt.Errorf("demo: neither /dev/shm nor %s has %s free: name a directory with --dir, or a smaller --mib and --source", os.TempDir(), cli.Bytes(need))
}

func free(dir string) int64 {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

// available is the memory that can be had without swapping, in bytes.
func available() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}
