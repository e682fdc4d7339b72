package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"rfs/internal/cli"
	"rfs/transfer"
)

func newPut(o *options) *cobra.Command {
	var f copyFlags
	c := &cobra.Command{
		Use:   "put LOCAL... PATH",
		Short: "Copy local files into rfs, without a mount",
		Long: `Copy local files, and with -r whole trees, to PATH in rfs: into it if it is a directory,
else under that name. A file has its old content until all of the new is durable.

An interrupted put goes on where it was when it is started again with the same,
unchanged source. Files that are there already with the same size and mtime are passed over. The SHA-256
of what was copied is kept with the file, for rfs get to compare with.

` + cli.ExitHelp,
		Example: "  rfs put result.h5 /jobs/4711/\n  rfs put -r --verify dataset /data",
		Args:    cli.Args(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return f.run(c, o, func(t *transfer.Copier) (transfer.Result, error) {
				return t.Put(c.Context(), args[:len(args)-1], args[len(args)-1], f.recursive)
			})
		},
	}
	f.flags(c, "read each file back from the targets and compare its SHA-256")
	return c
}

func newGet(o *options) *cobra.Command {
	var f copyFlags
	c := &cobra.Command{
		Use:   "get PATH... LOCAL",
		Short: "Copy files out of rfs, without a mount",
		Long: `Copy files of rfs, and with -r whole trees, to LOCAL: into it if it is a directory, else
under that name. A file has its old content until all of the new is on the disk.

An interrupted get goes on where it was when it is started again while the source is
unchanged. Files that are there already with the same size and mtime are passed over. The
content is compared with the SHA-256 that rfs put recorded, if the file was not changed since.

` + cli.ExitHelp,
		Example: "  rfs get /jobs/4711/result.h5 .\n  rfs get -r /data/run7 /local/scratch",
		Args:    cli.Args(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return f.run(c, o, func(t *transfer.Copier) (transfer.Result, error) {
				return t.Get(c.Context(), args[:len(args)-1], args[len(args)-1], f.recursive)
			})
		},
	}
	f.flags(c, "where no SHA-256 is recorded, read the source again and compare")
	return c
}

// copyFlags are the flags of put and get.
type copyFlags struct {
	recursive, verify, quiet bool
	jobs                     int
}

func (f *copyFlags) flags(c *cobra.Command, verify string) {
	c.Flags().BoolVarP(&f.recursive, "recursive", "r", false, "copy directories and all below them")
	c.Flags().BoolVar(&f.verify, "verify", false, verify)
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "no progress")
	c.Flags().IntVarP(&f.jobs, "jobs", "j", 4, "files at once")
}

func (f *copyFlags) run(c *cobra.Command, o *options, do func(*transfer.Copier) (transfer.Result, error)) error {
	if f.jobs < 1 || f.jobs > 256 {
		return cli.Usage("--jobs %d: want 1 to 256", f.jobs)
	}
	fs, err := o.files(c.Context())
	if err != nil {
		return err
	}
	p := newProgress(c.ErrOrStderr(), f.quiet || o.json)
	start := time.Now()
	r, err := do(&transfer.Copier{FS: fs.FS, Jobs: f.jobs, Verify: f.verify, Planned: p.planned, Moved: p.moved,
		Skipped: func(path, why string) { p.say("%s is %s: not copied", path, why) }})
	p.end(err)
	if err = errors.Join(err, fs.close()); err != nil {
		return err
	}
	return o.print(c.OutOrStdout(), r, func(w io.Writer) {
		took := time.Since(start)
		fmt.Fprintf(w, "%d files, %s in %v, %s/s", r.Files, cli.Bytes(r.Bytes), took.Round(10*time.Millisecond), cli.Bytes(int64(float64(r.Bytes)/took.Seconds())))
		if r.Same > 0 {
			fmt.Fprintf(w, "; %d were there already", r.Same)
		}
		if r.Resumed > 0 {
			fmt.Fprintf(w, "; %s were copied before", cli.Bytes(r.Resumed))
		}
		fmt.Fprintln(w)
	})
}

// progress is one bar for the whole copy, on a terminal; else nothing.
type progress struct {
	out         io.Writer
	bars        *mpb.Progress
	bar         *mpb.Bar
	files, done atomic.Int64
	bytes       atomic.Int64
}

func newProgress(out io.Writer, quiet bool) *progress {
	p := &progress{out: out}
	if f, ok := out.(*os.File); ok && !quiet {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			p.bars = mpb.New(mpb.WithOutput(f), mpb.WithWidth(40))
		}
	}
	return p
}

func (p *progress) planned(files int, bytes int64) {
	p.files.Store(int64(files))
	if p.bars == nil {
		return
	}
	p.bar = p.bars.AddBar(max(bytes, 1),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return fmt.Sprintf("%d/%d files ", p.done.Load(), p.files.Load()) })),
		mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f"), decor.AverageSpeed(decor.SizeB1024(0), "  % .1f"),
			decor.AverageETA(decor.ET_STYLE_GO, decor.WC{W: 8})))
}

func (p *progress) moved(files int, bytes int64) {
	p.done.Add(int64(files))
	n := p.bytes.Add(bytes)
	if p.bar != nil {
		p.bar.SetCurrent(n)
	}
}

func (p *progress) say(format string, args ...any) {
	if p.bars != nil {
		fmt.Fprintf(p.bars, format+"\n", args...)
	} else {
		fmt.Fprintf(p.out, format+"\n", args...)
	}
}

func (p *progress) end(err error) {
	if p.bars == nil {
		return
	}
	if p.bar != nil {
		if err != nil {
			p.bar.Abort(false)
		} else {
			p.bar.SetTotal(-1, true)
		}
	}
	p.bars.Wait()
}
