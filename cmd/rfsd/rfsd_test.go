package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rfs/client"
	"rfs/internal/cli"
	"rfs/internal/config"
	"rfs/node"
	"rfs/placement"
	"rfs/raftmeta"
)

// TestMain lets the test binary be rfsd, so that the processes of the story are real.
func TestMain(m *testing.M) {
	if os.Getenv("RFSD_TEST_IS_RFSD") == "1" {
		main()
	}
	os.Exit(m.Run())
}

// rfsd runs a command of rfsd in this process.
func rfsd(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	var b bytes.Buffer
	root := newRoot()
	root.SetOut(&b)
	root.SetErr(&b)
	root.SetArgs(args)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return cli.Execute(ctx, root), b.String()
}

// machines are three nodes on addresses of their own in 127/8, each metadata
// replica and storage with one target.
type machines struct {
	t    *testing.T
	dir  string
	host [3]string
	proc [3]*exec.Cmd
	logs [3]*bytes.Buffer
}

func newMachines(t *testing.T) *machines {
	m := &machines{t: t, dir: t.TempDir()}
	pid := os.Getpid()
	for i := range m.host {
		m.host[i] = fmt.Sprintf("127.%d.%d.%d", 1+pid>>8%254, pid%256, 10+i)
	}
	for i := range m.host {
		if err := os.MkdirAll(filepath.Join(m.dir, fmt.Sprint(i), "t0"), 0o755); err != nil {
			t.Fatal(err)
		}
		m.write(i, m.key(), filepath.Join(m.dir, fmt.Sprint(i), "t0"))
	}
	if code, out := rfsd(t, "cluster", "key", m.key()); code != 0 {
		t.Fatal(out)
	}
	t.Cleanup(func() {
		for i := range m.proc {
			m.end(i, syscall.SIGKILL)
		}
	})
	return m
}

func (m *machines) key() string          { return filepath.Join(m.dir, "cluster.key") }
func (m *machines) config(i int) string  { return filepath.Join(m.dir, fmt.Sprintf("%d.toml", i)) }
func (m *machines) address(i int) string { return m.host[i] + ":7440" }
func (m *machines) http(i int) string    { return m.host[i] + ":7441" }
func (m *machines) replicas() (a []string) {
	for i := range m.host {
		a = append(a, m.address(i))
	}
	return a
}

func (m *machines) write(i int, key, target string) {
	m.t.Helper()
	base := filepath.Join(m.dir, fmt.Sprint(i))
	text := fmt.Sprintf(`[cluster]
key_file = %q
meta = ["%s"]
[node]
roles = ["meta", "storage"]
failure_domain = "host%d"
listen = %q
advertise = %q
socket = %q
state_dir = %q
[transport]
arena = "64MiB"
window = "16MiB"
[meta]
dir = %q
target_lease = "3s"
[[storage.target]]
dir = %q
capacity = "256MiB"
[http]
listen = %q
`, key, strings.Join(m.replicas(), `", "`), i, m.address(i), m.address(i), filepath.Join(base, "sock"), filepath.Join(base, "state"),
		filepath.Join(base, "meta"), target, m.http(i))
	if err := os.WriteFile(m.config(i), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// start starts the process and waits until its HTTP endpoint answers.
func (m *machines) start(i int) {
	m.t.Helper()
	m.logs[i] = &bytes.Buffer{}
	c := m.command(i)
	c.Stderr = m.logs[i]
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.proc[i] = c
	m.until("the daemon answers", func() bool {
		r, err := http.Get("http://" + m.http(i) + "/healthz")
		if err != nil {
			return false
		}
		_ = r.Body.Close()
		return true
	})
}

func (m *machines) command(i int) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		m.t.Fatal(err)
	}
	c := exec.Command(exe, "run", "--config", m.config(i))
	c.Env = append(os.Environ(), "RFSD_TEST_IS_RFSD=1")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return c
}

// end ends the process and returns its exit code.
func (m *machines) end(i int, sig syscall.Signal) int {
	if m.proc[i] == nil {
		return 0
	}
	_ = m.proc[i].Process.Signal(sig)
	_ = m.proc[i].Wait()
	code := m.proc[i].ProcessState.ExitCode()
	m.proc[i] = nil
	return code
}

// until polls for what the processes do in their own time.
func (m *machines) until(what string, ok func() bool) {
	m.t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			for i, l := range m.logs {
				if l != nil {
					m.t.Logf("log of %d:\n%s", i, l)
				}
			}
			m.t.Fatalf("not within 90 s: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (m *machines) connect() *node.Cluster {
	m.t.Helper()
	cfg := config.DefaultClient()
	cfg.Meta, cfg.KeyFile = m.replicas(), m.key()
	c, err := node.Connect(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		m.t.Fatal(err)
	}
	return c
}

// Three real processes: a cluster is made, a file is written; one process is
// killed, the file is read and another written; it comes back; all stop, start
// again, and both files are there.
func TestThreeProcesses(t *testing.T) {
	m := newMachines(t)
	for i := range m.proc {
		m.start(i)
	}
	if body := m.get(0, "/healthz"); !strings.Contains(body, "belongs to no cluster yet") {
		t.Errorf("health before init: %q", body)
	}
	if code, out := rfsd(t, "cluster", "init", "--config", m.config(1)); code != 0 || !strings.Contains(out, "3 metadata replicas") {
		t.Fatalf("cluster init: exit %d: %s", code, out)
	}
	c := m.connect()
	defer c.Close()
	m.waitUp(c, 3)
	if _, err := c.Meta.CreatePool(t.Context(), raftmeta.PoolSpec{Name: "default", Scheme: placement.Scheme{K: 2, M: 1}, Slots: 4}); err != nil {
		t.Fatal(err)
	}
	fs, err := c.Files(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	put(t, fs, "/one", 5<<20)
	m.end(2, syscall.SIGKILL)
	m.waitUp(c, 2)
	check(t, fs, "/one", 5<<20)
	put(t, fs, "/two", 3<<20)
	m.start(2)
	m.waitUp(c, 3)
	m.until("all is in sync", func() bool { return synced(t.Context(), c) })
	m.until("health is ok", func() bool { return m.get(2, "/healthz") == "ok\n" })
	text := m.get(0, "/metrics")
	for _, want := range []string{"rfs_raft_lag", `rfs_request_seconds_count{op="prepare",side="server"`, "rfs_target_bytes", "rfs_transport_links"} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if err := fs.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range m.proc {
		if code := m.end(i, syscall.SIGTERM); code != 0 {
			t.Errorf("rfsd %d ended with %d:\n%s", i, code, m.logs[i])
		}
	}
	for i := range m.proc {
		m.start(i)
	}
	again := m.connect()
	defer again.Close()
	m.waitUp(again, 3)
	if fs, err = again.Files(t.Context()); err != nil {
		t.Fatal(err)
	}
	check(t, fs, "/one", 5<<20)
	check(t, fs, "/two", 3<<20)
	if err := fs.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.mistakes()
}

// mistakes are starts that must fail and say why, beside daemons that run.
func (m *machines) mistakes() {
	t := m.t
	other := filepath.Join(m.dir, "other.key")
	if code, out := rfsd(t, "cluster", "key", other); code != 0 {
		t.Fatal(out)
	}
	full := filepath.Join(m.dir, "full")
	if err := os.MkdirAll(full, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(full, "thesis.tex"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(m.dir, "2", "t0")
	if code, out := m.run(0); code != cli.ExitError || !strings.Contains(out, "is another rfsd running") {
		t.Errorf("a second rfsd: exit %d: %s", code, out)
	}
	m.end(2, syscall.SIGTERM)
	for _, c := range []struct{ name, key, target, says string }{
		{"a disk of another cluster", other, target, "belongs to another cluster"},
		{"a directory with something else", m.key(), full, "directory is not empty"},
	} {
		m.write(2, c.key, c.target)
		if code, out := m.run(2); code != cli.ExitError || !strings.Contains(out, c.says) {
			t.Errorf("%s: exit %d: %s", c.name, code, out)
		}
	}
	// The disk is not mounted: where the target was, there is an empty directory.
	m.write(2, m.key(), target)
	if err := os.Rename(target, target+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if code, out := m.run(2); code != cli.ExitError || !strings.Contains(out, "is its disk mounted?") {
		t.Errorf("an empty directory where a target was: exit %d: %s", code, out)
	}
	if code, out := rfsd(t, "target", "forget", target, "--config", m.config(2)); code != 0 {
		t.Error(out)
	}
	m.start(2)
}

// run runs a daemon that is expected to end by itself.
func (m *machines) run(i int) (code int, out string) {
	c := m.command(i)
	var b bytes.Buffer
	c.Stdout, c.Stderr = &b, &b
	_ = c.Run()
	return c.ProcessState.ExitCode(), b.String()
}

func (m *machines) get(i int, path string) string {
	r, err := http.Get("http://" + m.http(i) + path)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return string(b)
}

func (m *machines) waitUp(c *node.Cluster, n int) {
	m.t.Helper()
	m.until(fmt.Sprintf("%d targets are up", n), func() bool {
		cm, err := c.Meta.RefreshMap(m.t.Context())
		up := 0
		if err == nil {
			for _, t := range cm.Targets {
				if t.State == placement.Up {
					up++
				}
			}
		}
		return up == n
	})
}

func synced(ctx context.Context, c *node.Cluster) bool {
	m, err := c.Meta.RefreshMap(ctx)
	if err != nil {
		return false
	}
	for _, p := range m.Pools {
		for i := range p.Slots {
			for j := range p.Slots[i].Members {
				if !m.Readable(&p.Slots[i], j) {
					return false
				}
			}
		}
	}
	return true
}

// pattern is a file's content: the same for the same path and length.
func pattern(path string, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7+i>>8) + path[i%len(path)]
	}
	return b
}

func put(t *testing.T, fs *client.FS, path string, n int) {
	t.Helper()
	f, err := fs.CreatePath(t.Context(), path, raftmeta.CreateSpec{Mode: 0o644}, client.OpenWrite)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(t.Context(), pattern(path, n), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, fs *client.FS, path string, n int) {
	t.Helper()
	f, err := fs.OpenPath(t.Context(), path, client.OpenRead)
	if err != nil {
		t.Fatal(err)
	}
	have := make([]byte, n)
	k, err := f.ReadAt(t.Context(), have, 0)
	if err != nil && err != io.EOF || !bytes.Equal(have[:k], pattern(path, n)) {
		t.Fatalf("%s: %d bytes, %v: not what was written", path, k, err)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// The printed configuration is one that check accepts once what is required is set.
func TestConfigCommands(t *testing.T) {
	code, text := rfsd(t, "config", "init")
	if code != 0 || text != config.DefaultTOML {
		t.Fatalf("config init: exit %d", code)
	}
	path := filepath.Join(t.TempDir(), "rfsd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out := rfsd(t, "config", "check", path)
	if code != cli.ExitUsage || !strings.Contains(out, "cluster.meta is empty") || !strings.Contains(out, "node.roles is empty") {
		t.Errorf("config check of the bare file: exit %d: %s", code, out)
	}
	for _, f := range []string{"node1", "node6"} {
		if code, out := rfsd(t, "config", "check", "../../examples/six-nodes/"+f+".toml"); code != 0 || !strings.HasSuffix(out, ": ok\n") {
			t.Errorf("%s: exit %d: %s", f, code, out)
		}
	}
	if code, _ := rfsd(t, "config", "check", "/nonexistent"); code != cli.ExitUsage {
		t.Errorf("config check of a missing file: exit %d", code)
	}
}
