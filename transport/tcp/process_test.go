package tcp

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"rfs/transport"
	"rfs/transport/wire"
)

const serverEnv = "RFS_TEST_SERVER_SOCKET"

// TestMain is also the server process of the tests below.
func TestMain(m *testing.M) {
	if path := os.Getenv(serverEnv); path != "" {
		os.Exit(serveProcess(path))
	}
	os.Exit(m.Run())
}

func serveProcess(path string) int {
	tr, err := New(Config{Key: testKey, Cluster: testCluster, Name: "process"})
	if err != nil {
		return 1
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return 1
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { // until the parent goes
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	_, _ = os.Stdout.WriteString("listening\n")
	if tr.Serve(ctx, l, transport.HandlerFunc(func(ctx context.Context, r transport.Request) {
		b := heapBuf(make([]byte, r.PayloadLen()))
		if r.Pull(ctx, b, 0, len(b)) == nil {
			_ = r.Reply(wire.StatusOK, nil, b, min(len(b), r.CapLen()))
		}
	})) != nil {
		return 1
	}
	return 0
}

// startProcess runs this test's binary as a server.
func startProcess(t *testing.T) (*os.Process, transport.Addr) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+path)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("the server process did not start: %v", err)
	}
	return cmd.Process, transport.Addr{Network: "unix", Address: path}
}

// A server that is stopped (SIGSTOP) with full sockets holds no call beyond its
// deadline; when it goes on, so do calls.
func TestStoppedProcess(t *testing.T) {
	server, addr := startProcess(t)
	a := newArena(t)
	c := dial(t, newTransport(t, func(c *Config) { c.CancelWait = 100 * time.Millisecond }), addr)
	src, dst := mustGet(t, a, 4<<20), mustGet(t, a, 4<<20)
	defer src.Release()
	defer dst.Release()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	call := func(ctx context.Context) error {
		_, err := c.Call(ctx, wire.OpTest, nil, src, dst)
		return err
	}
	if err := call(ctx); err != nil {
		t.Fatal(err)
	}
	if err := server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		if err := call(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while it is stopped: %v", err)
		}
		cancel()
	}
	if err := server.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := call(ctx); err != nil {
		t.Errorf("when it goes on: %v", err)
	}
}

// A call to a process that is killed, and does not come back, ends with its deadline.
func TestKilledProcess(t *testing.T) {
	server, addr := startProcess(t)
	c := dial(t, newTransport(t), addr)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Call(ctx, wire.OpTest, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	for { // one may have been answered before the signal came
		if _, err := c.Call(short, wire.OpTest, nil, nil, nil); err != nil {
			if !errors.Is(err, transport.ErrBroken) && !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			return
		}
	}
}
