package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"rfs"
)

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{fmt.Errorf("x"), ExitError},
		{Usage("x"), ExitUsage},
		{fmt.Errorf("put: %w", Usage("x")), ExitUsage},
		{fmt.Errorf("ls: %w", rfs.ErrUnavailable), ExitUnavailable},
		{context.DeadlineExceeded, ExitUnavailable},
		{fmt.Errorf("ls: %w", rfs.ErrNotFound), ExitNotFound},
		{&os.PathError{Op: "open", Path: "/x", Err: os.ErrNotExist}, ExitNotFound},
		{fmt.Errorf("get: %w", rfs.ErrCorrupt), ExitCorrupt},
		{context.Canceled, ExitInterrupted},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("exit code of %v is %d, want %d", c.err, got, c.want)
		}
	}
}

func TestExecute(t *testing.T) {
	run := func(args ...string) (int, string) {
		root := &cobra.Command{Use: "rfs"}
		root.AddCommand(&cobra.Command{Use: "ls PATH", Args: Args(cobra.ExactArgs(1)),
			RunE: func(*cobra.Command, []string) error { return fmt.Errorf("ls /x: %w", rfs.ErrNotFound) }})
		var stderr bytes.Buffer
		root.SetErr(&stderr)
		root.SetOut(&stderr)
		root.SetArgs(args)
		code := Execute(t.Context(), root)
		return code, stderr.String()
	}
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"ls /x", ExitNotFound, "rfs: ls /x: no such file or directory\n"},
		{"ls", ExitUsage, "rfs: accepts 1 arg(s), received 0; usage: rfs ls PATH"},
		{"ls --colour /x", ExitUsage, "rfs: unknown flag: --colour; see `rfs ls --help`\n"},
		{"sl", ExitUsage, "unknown command \"sl\""},
	} {
		code, out := run(strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("rfs %s: exit %d, %q; want %d, %q", c.args, code, out, c.code, c.want)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1 << 20: "1.00 MiB", 10 << 30: "10.0 GiB",
		1023 << 10: "1.00 MiB", 123 << 40: "123 TiB", 1<<63 - 1: "8.00 EiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) is %q, want %q", n, got, want)
		}
	}
}

func TestManPages(t *testing.T) {
	dir := t.TempDir()
	root := &cobra.Command{Use: "rfs", Short: "x"}
	root.AddCommand(ManCommand("1"))
	root.SetArgs([]string{"man", dir})
	root.SetOut(&bytes.Buffer{})
	if code := Execute(t.Context(), root); code != 0 {
		t.Fatalf("exit %d", code)
	}
	b, err := os.ReadFile(dir + "/rfs-man.1")
	if err != nil || !strings.Contains(string(b), "SYNOPSIS") {
		t.Errorf("page: %v", err)
	}
}
