package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"rfs/internal/cli"
	"rfs/internal/config"
	"rfs/node"
)

// story is a cluster, and the command as its user has it.
type story struct {
	t      *testing.T
	config string
}

// rfs runs the command and returns its exit code and what it printed.
func (s *story) rfs(args ...string) (code int, stdout, stderr string) {
	s.t.Helper()
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append([]string{"--config", s.config}, args...))
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	code = cli.Execute(ctx, root)
	return code, out.String(), errs.String()
}

// must runs the command, which has to succeed.
func (s *story) must(args ...string) string {
	s.t.Helper()
	code, out, errs := s.rfs(args...)
	if code != 0 {
		s.t.Fatalf("rfs %s: exit %d: %s", strings.Join(args, " "), code, errs)
	}
	return out
}

// fails runs the command, which has to fail so.
func (s *story) fails(want int, says string, args ...string) {
	s.t.Helper()
	code, _, errs := s.rfs(args...)
	if code != want || !strings.Contains(errs, says) {
		s.t.Errorf("rfs %s: exit %d: %q; want %d: %q", strings.Join(args, " "), code, errs, want, says)
	}
	if strings.Count(strings.TrimSpace(errs), "\n") > 0 {
		s.t.Errorf("rfs %s: the error has more than a line: %q", strings.Join(args, " "), errs)
	}
}

// TestStory is a session at the command line, on an embedded cluster.
func TestStory(t *testing.T) {
	dir := t.TempDir()
	d, err := node.Dev(t.Context(), node.DevOptions{Slots: 8, Capacity: 512 << 20, TargetLease: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	s := &story{t: t}
	if s.config, err = writeClientConfig(dir, d.ClientConfig()); err != nil {
		t.Fatal(err)
	}

	t.Run("listings", s.listings)
	t.Run("files", func(t *testing.T) { (&story{t, s.config}).files(dir) })
	t.Run("mistakes", func(t *testing.T) { (&story{t, s.config}).mistakes(dir) })
	for i := range 2 {
		if err := d.StopMeta(i); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("no quorum", func(t *testing.T) {
		s := &story{t, s.config}
		s.fails(cli.ExitUnavailable, "service unavailable", "status", "--timeout", "5s")
		s.fails(cli.ExitUnavailable, "service unavailable", "ls", "/", "--timeout", "2s")
	})
	for i := range 2 {
		if err := d.StartMeta(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	s.must("ls", "/", "--timeout", "60s")
}

func (s *story) listings(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"pool", "ls"}, {"target", "ls"}, {"meta", "members"}} {
		if out := s.must(args...); len(out) < 20 {
			t.Errorf("rfs %s printed %q", strings.Join(args, " "), out)
		}
		var v any
		if out := s.must(append(args, "--json")...); json.Unmarshal([]byte(out), &v) != nil {
			t.Errorf("rfs %s --json printed %q", strings.Join(args, " "), out)
		}
	}
	var st status
	if err := json.Unmarshal([]byte(s.must("status", "--json")), &st); err != nil {
		t.Fatal(err)
	}
	if len(st.Targets) != 7 || len(st.Nodes) != 7 || len(st.Replicas) != 3 || len(st.Pools) != 1 || len(st.Health) != 0 {
		t.Errorf("status: %+v", st)
	}
	for _, n := range st.Nodes {
		if n.Transport != "unix" || n.Reason != "same host" {
			t.Errorf("node %s is reached by %q, because %q", n.Name, n.Transport, n.Reason)
		}
	}
	s.must("pool", "create", "copies", "replica:3", "--slots", "4")
	s.must("mkdir", "--pool", "copies", "/copies")
}

func (s *story) files(dir string) {
	t := s.t
	tree := filepath.Join(dir, "tree")
	big := randomFile(t, filepath.Join(tree, "big"), 9<<20+77)
	small := randomFile(t, filepath.Join(tree, "sub", "small"), 100)
	if err := os.Symlink("sub/small", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	s.must("mkdir", "-p", "/a/b")
	s.must("put", "-r", "--verify", tree, "/a/b")
	if out := s.must("ls", "/a/b/tree"); out != "big\nlink\nsub\n" {
		t.Errorf("ls: %q", out)
	}
	if out := s.must("put", "-r", tree, "/a/b"); !strings.Contains(out, "2 were there already") {
		t.Errorf("the same put again: %q", out)
	}
	var st []fileStatus
	if err := json.Unmarshal([]byte(s.must("stat", "--json", "/a/b/tree/big")), &st); err != nil {
		t.Fatal(err)
	}
	if st[0].Size != int64(len(big)) || st[0].Scheme != "ec:4+2" || len(st[0].Stripes) != 3 || len(st[0].Stripes[0].Shards) != 6 {
		t.Errorf("stat: %+v", st[0])
	}
	s.must("put", filepath.Join(tree, "sub", "small"), "/copies/")
	if out := s.must("stat", "/copies/small"); !strings.Contains(out, "replica:3") {
		t.Errorf("stat in a directory with a pool of its own: %s", out)
	}

	back := filepath.Join(dir, "back")
	if err := os.Mkdir(back, 0o755); err != nil {
		t.Fatal(err)
	}
	s.must("get", "-r", "--verify", "/a/b/tree", back)
	sameFile(t, filepath.Join(back, "tree", "big"), big)
	sameFile(t, filepath.Join(back, "tree", "link"), small)
	if out := s.must("get", "-r", "/a/b/tree", back); !strings.Contains(out, "2 were there already") {
		t.Errorf("the same get again: %q", out)
	}
	// A part that an interrupted get left is gone on with.
	if err := os.Remove(filepath.Join(back, "tree", "big")); err != nil {
		t.Fatal(err)
	}
	s.must("rm", "-r", "/a/b/tree")
	s.fails(cli.ExitNotFound, "ls /a/b/tree", "ls", "/a/b/tree")
	s.must("rm", "-f", "/a/b/tree")
}

func (s *story) mistakes(dir string) {
	for _, c := range []struct {
		code int
		says string
		args []string
	}{
		{cli.ExitUsage, "accepts 2 arg(s)", []string{"pool", "create", "x"}},
		{cli.ExitUsage, "ec:0+2", []string{"pool", "create", "x", "ec:0+2"}},
		{cli.ExitUsage, "255", []string{"pool", "create", "x", "ec:250+6"}},
		{cli.ExitUsage, "raid6", []string{"pool", "create", "x", "raid6"}},
		{cli.ExitUsage, "--unit 7", []string{"pool", "create", "x", "ec:2+1", "--unit", "7"}},
		{cli.ExitError, "targets", []string{"pool", "create", "x", "ec:8+4"}},
		{cli.ExitNotFound, "`rfs target ls` lists them", []string{"target", "drain", "nowhere/t9"}},
		{cli.ExitUsage, "`rfs meta members` lists them", []string{"meta", "remove", "x"}},
		{cli.ExitNotFound, "put", []string{"put", filepath.Join(dir, "missing"), "/"}},
		{cli.ExitNotFound, "get", []string{"get", "/missing", dir}},
		{cli.ExitError, "give -r", []string{"put", dir, "/"}},
		{cli.ExitError, "name longer than 255 bytes", []string{"mkdir", "/" + strings.Repeat("n", 256)}},
		{cli.ExitError, "does not exist: create it", []string{"mount", filepath.Join(dir, "missing")}},
		{cli.ExitUsage, "mount option", []string{"mount", "-o", "colour=blue", dir}},
		{cli.ExitUsage, "does not have: use", []string{"mount", "-o", "transport=rdma", dir}},
		{cli.ExitNotFound, "no rfs is mounted there", []string{"umount", dir}},
		{cli.ExitUsage, "does not exist: write it", []string{"ls", "--config", filepath.Join(dir, "missing.toml")}},
	} {
		s.fails(c.code, c.says, c.args...)
	}
	// The right id with a wrong secret.
	wrong := config.NewIdentity()
	cfg, err := config.LoadClient(s.config)
	if err != nil {
		s.t.Fatal(err)
	}
	right, err := config.ReadKey(cfg.KeyFile)
	if err != nil {
		s.t.Fatal(err)
	}
	wrong.ID = right.ID
	key := filepath.Join(dir, "wrong.key")
	if err := wrong.Write(key); err != nil {
		s.t.Fatal(err)
	}
	code, _, errs := s.rfs("ls", "/", "--key-file", key, "--timeout", "3s")
	if code == 0 || !strings.Contains(errs, "key") {
		s.t.Errorf("with a wrong key: exit %d: %s", code, errs)
	}
}

func randomFile(t *testing.T, path string, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.Read(b)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return b
}

func sameFile(t *testing.T, path string, want []byte) {
	t.Helper()
	have, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(have, want) {
		t.Errorf("%s: %d bytes, %v; want the %d that were written", path, len(have), err, len(want))
	}
}

// Every command has a sentence, an example, and a man page.
func TestEveryCommandIsDocumented(t *testing.T) {
	dir := t.TempDir()
	s := &story{t: t}
	s.must("man", dir)
	for _, c := range newRoot().Commands() {
		if c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		if c.Short == "" || c.Example == "" {
			t.Errorf("rfs %s has no sentence or no example", c.Name())
		}
		if _, err := os.Stat(filepath.Join(dir, "rfs-"+c.Name()+".1")); err != nil {
			t.Error(err)
		}
	}
}
