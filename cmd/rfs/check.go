package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"rfs"
	"rfs/chunkstore"
	"rfs/internal/cli"
)

func newTargetCheck(o *options) *cobra.Command {
	var opts chunkstore.CheckOptions
	var rebuild, quick bool
	c := &cobra.Command{
		Use:   "check DIR",
		Short: "Check a target's directory, offline",
		Long: `Check the store in DIR while no rfsd has it open: the index against the extents' headers, both
ways, and every payload against its checksums. Bad payload is left: the cluster rebuilds it from
the other shards when it is read.

When the index itself cannot be read, --rebuild makes it anew out of the extents' headers; the
daemon then compares the target with its peers before it serves.

Exit code 5 if anything is wrong that a crash does not explain.`,
		Example: "  rfs target check /srv/rfs/nvme1\n  rfs target check --rebuild /srv/rfs/nvme1",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			opts.Data = !quick
			p := newProgress(c.ErrOrStderr(), o.json)
			r, err := checkTarget(c.Context(), args[0], opts, rebuild, p)
			p.end(err)
			if err != nil {
				return err
			}
			if err := o.print(c.OutOrStdout(), r, func(w io.Writer) { showReport(w, r) }); err != nil {
				return err
			}
			if !r.OK() {
				return fmt.Errorf("target %s: %d index entries, %d headers, %d blocks are bad: %w", args[0],
					r.BadIndex+r.BadSlots+r.Overlaps, r.BadHeaders, r.BadBlocks, rfs.ErrCorrupt)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&quick, "quick", false, "do not read payload")
	c.Flags().BoolVar(&opts.Repair, "repair", false, "write headers anew where the index is right and they are not")
	c.Flags().BoolVar(&rebuild, "rebuild", false, "make the index anew out of the extents' headers")
	return c
}

func checkTarget(ctx context.Context, dir string, opts chunkstore.CheckOptions, rebuild bool, p *progress) (*chunkstore.Report, error) {
	o := chunkstore.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)}
	opts.Progress = p.reached
	if rebuild {
		return chunkstore.Rebuild(ctx, o, opts.Progress)
	}
	return chunkstore.Check(ctx, o, opts)
}

// reached is progress that is told by how much is done of how much.
func (p *progress) reached(done, total int64) {
	if p.bars != nil && p.bar == nil {
		p.planned(1, total)
	}
	if p.bar != nil {
		p.bar.SetCurrent(done)
	}
}

func showReport(w io.Writer, r *chunkstore.Report) {
	fmt.Fprintf(w, "target %v of cluster %v in %s\n", r.Target, r.Cluster, r.Dir)
	fmt.Fprintf(w, "  %d shards, %d versions (%d not known complete), %s of payload in %s, %d segments\n",
		r.Shards, r.Versions, r.Prepared, cli.Bytes(r.Bytes), cli.Bytes(r.Extents), r.Segments)
	if r.Unsynced+r.Stale+r.Superseded > 0 {
		fmt.Fprintf(w, "  left by a crash, harmless: %d unsynced versions, %d stale headers, %d superseded versions\n", r.Unsynced, r.Stale, r.Superseded)
	}
	if r.Repaired+r.Dropped > 0 {
		fmt.Fprintf(w, "  repaired %d headers, dropped %d versions\n", r.Repaired, r.Dropped)
	}
	for _, p := range r.Problems {
		fmt.Fprintln(w, "  "+p)
	}
	if r.OK() {
		fmt.Fprintln(w, "ok")
	}
}
