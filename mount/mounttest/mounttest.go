// Package mounttest mounts a real cluster for tests. It is served by another process, the test binary itself in the
// role "serve": a Go program that uses a mount which it serves itself can wait for itself (a
// fork, or a page fault of a mapping, holds up the runtime that should answer).
//
//	test process                     serving process
//	Do("mount", dir, options)  --->  cluster, a client each mount
//	open, read, write, ...     --->  kernel ---> mount ---> client ---> targets
//
// Closing its standard input ends the serving process and its mounts, so that nothing is left when a test dies.
package mounttest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rfs/mount"
)

const roleVar = "RFS_TEST_ROLE"

// Main is the test binary's TestMain. The process may play more roles than that of the server; see Play.
func Main(m *testing.M, roles map[string]func() error) {
	role := os.Getenv(roleVar)
	if role == "" {
		code := m.Run()
		shared.stop()
		os.Exit(code)
	}
	play := roles[role]
	if role == "serve" {
		play = serve
	}
	if err := play(); err != nil {
		fmt.Fprintln(os.Stderr, role+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Play returns this binary in a role, to be started.
func Play(role string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	return cmd
}

// A Request is a line to the serving process: Op is
//
//	mount Dir Options     by a client with a session of its own
//	unmount Dir
//	stop, start Target    a storage daemon, numbered from 0
//	stop-meta, start-meta Target
type Request struct {
	Op, Dir, Options string
	Target           int
}

type reply struct{ Error string }

// serve is the serving process.
func serve() error {
	c, err := startCluster(os.Args[1])
	if err != nil {
		return err
	}
	defer c.close()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	mounts := map[string]func() error{}
	requests := make(chan Request)
	go readRequests(requests)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	for {
		select {
		case r, ok := <-requests:
			if !ok {
				return endAll(mounts)
			}
			err := c.handle(r, mounts, log)
			var rep reply
			if err != nil {
				rep.Error = err.Error()
			}
			if err := json.NewEncoder(os.Stdout).Encode(rep); err != nil {
				return errors.Join(err, endAll(mounts))
			}
		case <-stop:
			return endAll(mounts)
		}
	}
}

func readRequests(to chan<- Request) {
	defer close(to)
	in := json.NewDecoder(os.Stdin)
	for {
		var r Request
		if in.Decode(&r) != nil {
			return
		}
		to <- r
	}
}

func endAll(mounts map[string]func() error) error {
	var errs []error
	for _, end := range mounts {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

func (c *cluster) handle(r Request, mounts map[string]func() error, log *slog.Logger) error {
	switch r.Op {
	case "mount":
		o, err := mount.ParseOptions(mount.DefaultOptions(os.Geteuid() == 0), r.Options, false)
		if err != nil {
			return err
		}
		fs, end, err := c.client(o)
		if err != nil {
			return err
		}
		m, err := mount.Mount(mount.Config{FS: fs, Point: r.Dir, Source: "rfs:test", Options: o, Log: log})
		if err != nil {
			return errors.Join(err, end())
		}
		mounts[r.Dir] = func() error {
			ctx, cancel := context.WithTimeout(context.Background(), unmountTime)
			defer cancel()
			return errors.Join(m.Unmount(ctx), end())
		}
	case "unmount":
		end := mounts[r.Dir]
		delete(mounts, r.Dir)
		return end()
	case "stop":
		return c.dev.StopTarget(r.Target)
	case "start":
		return c.startTarget(r.Target)
	case "stop-meta":
		return c.dev.StopMeta(r.Target)
	case "start-meta":
		return c.startMeta(r.Target)
	default:
		return fmt.Errorf("what is %q", r.Op)
	}
	return nil
}

// A Server is a serving process as the tests see it.
type Server struct {
	cmd *exec.Cmd
	dir string
	in  io.WriteCloser

	mu  sync.Mutex // one request at a time
	out *bufio.Reader
}

func startServer() (*Server, error) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return nil, nil // the tests skip
	}
	dir, err := os.MkdirTemp(fastDir(), "rfs-mount-test")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, cmd: exec.Command(os.Args[0], filepath.Join(dir, "cluster"))}
	s.cmd.Env = append(os.Environ(), roleVar+"=serve")
	s.cmd.Stderr = os.Stderr
	// Its own process group: an interrupt from the terminal ends the tests, whose end ends it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	return s, s.cmd.Start()
}

// fastDir returns where ten servers' fsyncs cost little: memory, if the machine has enough of it there.
func fastDir() string {
	const dir, need = "/dev/shm", 4 << 30
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || int64(st.Bavail)*st.Bsize < need {
		return ""
	}
	return dir
}

// Signal sends the process a signal that ends it, and waits for its end.
func (s *Server) Signal(sig syscall.Signal) error {
	if err := s.cmd.Process.Signal(sig); err != nil {
		return err
	}
	return s.cmd.Wait()
}

// Do asks the serving process for something.
func (s *Server) Do(r Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := json.NewEncoder(s.in).Encode(r); err != nil {
		return fmt.Errorf("the serving process is gone: %w", err)
	}
	line, err := s.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("the serving process is gone: %w", err)
	}
	var rep reply
	if err := json.Unmarshal(line, &rep); err != nil {
		return err
	}
	if rep.Error != "" {
		return errors.New(rep.Error)
	}
	return nil
}

// stop ends the process and its mounts, also when it hangs or has died.
func (s *Server) stop() {
	s.in.Close()
	_ = s.cmd.Wait()
	points, _ := mount.Mounts()
	for _, p := range points {
		if strings.HasPrefix(p, s.dir+"/") {
			_ = unix.Unmount(p, unix.MNT_DETACH)
		}
	}
	_ = os.RemoveAll(s.dir)
}

// Point makes an empty directory to mount upon.
func (s *Server) Point(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(s.dir, name)
	Check(t, os.MkdirAll(dir, 0o755))
	Check(t, os.Chmod(s.dir, 0o755))
	return dir
}

// Mount mounts with options for the time of the test.
func (s *Server) Mount(t testing.TB, name, options string) string {
	t.Helper()
	dir := s.Point(t, name)
	Check(t, s.Do(Request{Op: "mount", Dir: dir, Options: options}))
	t.Cleanup(func() {
		if mounted, _ := mount.Mounts(); strings.Contains(strings.Join(mounted, " ")+" ", dir+" ") {
			if err := s.Do(Request{Op: "unmount", Dir: dir}); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

// shared is the server that all tests use which do not break theirs.
var shared sharedServer

type sharedServer struct {
	once sync.Once
	s    *Server
	root string
	err  error
}

func (h *sharedServer) get(t testing.TB) *Server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	h.once.Do(func() {
		h.s, h.err = startServer()
		if h.s != nil && h.err == nil {
			h.root = h.s.Point(t, "mnt")
			h.err = h.s.Do(Request{Op: "mount", Dir: h.root, Options: "suid,dev"})
		}
	})
	Check(t, h.err)
	if h.s == nil {
		t.Skip("this machine has no /dev/fuse")
	}
	return h.s
}

func (h *sharedServer) stop() {
	if h.s != nil {
		h.s.stop()
	}
}

// Shared returns a server that all tests of a package share, and where it is mounted, with "suid,dev".
// Without /dev/fuse the test is skipped.
func Shared(t testing.TB) (*Server, string) {
	t.Helper()
	s := shared.get(t)
	return s, shared.root
}

// Own returns a server that ends with the test; it is mounted at Point("mnt").
func Own(t testing.TB) *Server {
	t.Helper()
	h := sharedServer{}
	t.Cleanup(h.stop)
	return h.get(t)
}

// unmountTime bounds how long a test's mount waits for its users.
const unmountTime = 10 * time.Second

// Eventually waits until cond holds, for what has no event to wait for.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// Check fails the test at once if err is not nil.
func Check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
