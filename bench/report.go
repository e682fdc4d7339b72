package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// A Phase is one step of a run, as measured.
type Phase struct {
	Name  string        `json:"name"`
	Files int64         `json:"files"`
	Bytes int64         `json:"bytes"`
	Time  time.Duration `json:"ns"`
}

// A Run shows phases while they happen and keeps what they took.
type Run struct {
	Out    io.Writer
	Bars   bool // progress bars: Out is a terminal
	Phases []Phase
}

// NewRun writes to f, with progress bars if it is a terminal.
func NewRun(f *os.File) *Run {
	info, err := f.Stat()
	return &Run{Out: f, Bars: err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"}
}

// Do runs one phase of so many files and bytes (0: not known) and records it.
func (r *Run) Do(ctx context.Context, name string, files int, bytes int64, do func(context.Context, Progress) error) error {
	var doneFiles, doneBytes atomic.Int64
	show, end := r.show(name, files, bytes, &doneFiles, &doneBytes)
	start := time.Now()
	err := do(ctx, func(f int, b int64) {
		doneFiles.Add(int64(f))
		doneBytes.Add(b)
		show()
	})
	p := Phase{name, doneFiles.Load(), doneBytes.Load(), time.Since(start)}
	end(p, err)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r.Phases = append(r.Phases, p)
	return nil
}

// show returns what to call on each step, and at the end.
func (r *Run) show(name string, files int, bytes int64, doneFiles, doneBytes *atomic.Int64) (step func(), end func(Phase, error)) {
	if !r.Bars || bytes == 0 {
		return func() {}, func(p Phase, err error) {
			if err == nil {
				fmt.Fprintf(r.Out, "%-34s %s\n", name, p.rates())
			}
		}
	}
	bars := mpb.New(mpb.WithOutput(r.Out), mpb.WithWidth(40))
	bar := bars.AddBar(bytes,
		mpb.PrependDecorators(decor.Name(fmt.Sprintf("%-34s", name))),
		mpb.AppendDecorators(
			decor.Percentage(decor.WC{W: 5}),
			decor.Any(func(decor.Statistics) string { return fmt.Sprintf("  %d/%d files", doneFiles.Load(), files) }),
			decor.AverageSpeed(decor.SizeB1000(0), "  % .1f")))
	return func() { bar.SetCurrent(doneBytes.Load()) }, func(_ Phase, err error) {
		if err != nil {
			bar.Abort(false)
		} else {
			bar.SetTotal(-1, true)
		}
		bars.Wait()
	}
}

func (p Phase) rates() string {
	s := fmt.Sprintf("%8.2f s", p.Time.Seconds())
	if p.Bytes > 0 {
		s += fmt.Sprintf("  %7.3f GB/s", float64(p.Bytes)/1e9/p.Time.Seconds())
	}
	if p.Files > 1 {
		s += fmt.Sprintf("  %8.0f files/s", float64(p.Files)/p.Time.Seconds())
	}
	return s
}

// Table writes the phases as a table.
func (r *Run) Table() {
	t := table.NewWriter()
	t.SetOutputMirror(r.Out)
	style := table.StyleLight
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.AppendHeader(table.Row{"phase", "files", "MB", "time", "GB/s", "files/s"})
	right := func(n int) table.ColumnConfig {
		return table.ColumnConfig{Number: n, Align: text.AlignRight, AlignHeader: text.AlignRight}
	}
	t.SetColumnConfigs([]table.ColumnConfig{right(2), right(3), right(4), right(5), right(6)})
	for _, p := range r.Phases {
		row := table.Row{p.Name, "", "", fmt.Sprintf("%.2f s", p.Time.Seconds()), "", ""}
		if p.Bytes > 0 {
			row[1], row[2] = p.Files, fmt.Sprintf("%.1f", float64(p.Bytes)/1e6)
			row[4] = fmt.Sprintf("%.3f", float64(p.Bytes)/1e9/p.Time.Seconds())
		}
		if p.Files > 1 {
			row[5] = fmt.Sprintf("%.0f", float64(p.Files)/p.Time.Seconds())
		}
		t.AppendRow(row)
	}
	t.Render()
}
