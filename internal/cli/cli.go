// Package cli is what the commands rfs and rfsd have in common: how errors become
// one line and an exit code, how listings are printed, man pages.
//
//	exit code   0 done
//	            1 error
//	            2 wrong usage, or a wrong configuration
//	            3 the cluster does not answer, which may pass
//	            4 not found
//	            5 content does not match its checksum
//	          130 interrupted
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"rfs"
	"rfs/internal/version"
)

// Exit codes.
const (
	ExitError       = 1
	ExitUsage       = 2
	ExitUnavailable = 3
	ExitNotFound    = 4
	ExitCorrupt     = 5
	ExitInterrupted = 130
)

// ExitHelp describes the exit codes for help texts.
const ExitHelp = `Exit codes: 0 done; 1 error; 2 wrong usage or configuration; 3 the cluster does not
answer, which may pass; 4 not found; 5 content does not match its checksum; 130 interrupted.`

// ErrUsage is wrapped by errors of wrong usage or configuration.
var ErrUsage = errors.New("wrong usage")

// Usage returns an error with exit code 2.
func Usage(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

type usageError struct{ error }

func (e *usageError) Is(target error) bool { return target == ErrUsage }
func (e *usageError) Unwrap() error        { return e.error }

// ExitCode returns the exit code for err.
func ExitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrUsage):
		return ExitUsage
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	case errors.Is(err, rfs.ErrCorrupt):
		return ExitCorrupt
	case errors.Is(err, rfs.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		return ExitUnavailable
	case errors.Is(err, rfs.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return ExitNotFound
	}
	return ExitError
}

// Execute runs the command and returns the exit code, after one line (or, of a
// configuration, one line for each thing that is wrong) on standard error.
func Execute(ctx context.Context, root *cobra.Command) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return Usage("%w; see `%s --help`", err, c.CommandPath())
	})
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if strings.HasPrefix(err.Error(), "unknown command") { // cobra has no type for it
		err = Usage("%w", err)
	}
	switch {
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		fmt.Fprintf(root.ErrOrStderr(), "%s: interrupted\n", root.Name())
	default:
		fmt.Fprintf(root.ErrOrStderr(), "%s: %v\n", root.Name(), err)
	}
	return ExitCode(err)
}

// Args wraps cobra's checks of the number of arguments, so that they exit with 2
// and say how the command is used.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return Usage("%w; usage: %s", err, c.UseLine())
		}
		return nil
	}
}

// Table returns a table that Render writes to w.
func Table(w io.Writer, header ...any) table.Writer {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	style := table.StyleLight
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft = ""
	style.Box.PaddingRight = "  "
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.AppendHeader(table.Row(header))
	return t
}

// JSON writes v, indented.
func JSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// Bytes prints n with a binary unit and three digits.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for ; f >= 999.5 && u < len(units)-1; u++ {
		f /= 1024
	}
	digits := 0
	if f < 9.995 {
		digits = 2
	} else if f < 99.95 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %ciB", digits, f, units[u])
}

// ManCommand writes the man pages of the command and all below it.
func ManCommand(section string) *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write the man pages to DIR",
		Args:    Args(cobra.ExactArgs(1)),
		Example: "  rfs man /usr/local/share/man/man1",
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			root := c.Root()
			root.DisableAutoGenTag = true
			date := time.Unix(0, 0) // the same pages for the same source
			if err := doc.GenManTree(root, &doc.GenManHeader{Section: section, Source: "rfs " + version.Get().Version, Manual: "rfs", Date: &date}, args[0]); err != nil {
				return err
			}
			pages, err := filepath.Glob(filepath.Join(args[0], root.Name()+"*."+section))
			fmt.Fprintf(c.OutOrStdout(), "%d man pages in %s\n", len(pages), args[0])
			return err
		},
	}
}

// ShowVersion prints what was built, and with verbose how; extra is what the command adds.
func ShowVersion(w io.Writer, name string, verbose, asJSON bool, extra map[string]string) error {
	i := version.Get()
	if asJSON {
		return JSON(w, struct {
			version.Info
			Features map[string]string `json:"features"`
		}{i, extra})
	}
	fmt.Fprintf(w, "%s %s\n", name, i)
	if !verbose {
		return nil
	}
	fmt.Fprintf(w, "  built with   %s for %s/%s, cgo %v, tags %q\n", i.Go, i.OS, i.Arch, i.CGO, i.Tags)
	if i.Commit != "" {
		fmt.Fprintf(w, "  commit       %s\n", i.Commit)
	}
	for _, k := range slices.Sorted(maps.Keys(extra)) {
		fmt.Fprintf(w, "  %-12s %s\n", k, extra[k])
	}
	return nil
}
