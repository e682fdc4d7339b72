package mount_test

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

// The tests mount a real cluster. It is served by another process, this test binary in the role "serve": a Go program
// that uses a mount which it serves itself can wait for itself (a fork, or a page
// fault of a mapping, holds up the runtime that should answer).
//
//	test process                     serving process
//	do("mount", dir, options)  --->  cluster, a client each mount
//	open, read, write, ...     --->  kernel ---> mount ---> client ---> targets
//
// Closing its standard input ends the serving process and its mounts, so that nothing is left when a test dies.

const roleVar = "RFS_TEST_ROLE"

var roles = map[string]func() error{"serve": serve, "mmap": mmapRole, "lock": lockRole, "append": appendRole}

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		if err := roles[role](); err != nil {
			fmt.Fprintln(os.Stderr, role+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	shared.stop()
	os.Exit(code)
}

// play starts this binary in a role.
func play(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	return cmd
}

// request is a line to the serving process, reply its answer.
type request struct {
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
	requests := make(chan request)
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

func readRequests(to chan<- request) {
	defer close(to)
	in := json.NewDecoder(os.Stdin)
	for {
		var r request
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

func (c *cluster) handle(r request, mounts map[string]func() error, log *slog.Logger) error {
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
		return c.stopTarget(r.Target)
	case "start":
		return c.startTarget(r.Target)
	default:
		return fmt.Errorf("what is %q", r.Op)
	}
	return nil
}

// A server is a serving process as the tests see it.
type server struct {
	cmd *exec.Cmd
	dir string
	in  io.WriteCloser

	mu  sync.Mutex // one request at a time
	out *bufio.Reader
}

func startServer() (*server, error) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return nil, nil // the tests skip
	}
	dir, err := os.MkdirTemp(fastDir(), "rfs-mount-test")
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, cmd: exec.Command(os.Args[0], filepath.Join(dir, "cluster"))}
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

// do asks the serving process for something.
func (s *server) do(r request) error {
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
func (s *server) stop() {
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

// point makes an empty directory to mount upon.
func (s *server) point(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(s.dir, name)
	check(t, os.MkdirAll(dir, 0o755))
	check(t, os.Chmod(s.dir, 0o755))
	return dir
}

// mount mounts with options for the time of the test.
func (s *server) mount(t *testing.T, name, options string) string {
	t.Helper()
	dir := s.point(t, name)
	check(t, s.do(request{Op: "mount", Dir: dir, Options: options}))
	t.Cleanup(func() {
		if mounted, _ := mount.Mounts(); strings.Contains(strings.Join(mounted, " ")+" ", dir+" ") {
			if err := s.do(request{Op: "unmount", Dir: dir}); err != nil {
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
	s    *server
	root string
	err  error
}

func (h *sharedServer) get(t *testing.T) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	h.once.Do(func() {
		h.s, h.err = startServer()
		if h.s != nil && h.err == nil {
			h.root = h.s.point(t, "mnt")
			h.err = h.s.do(request{Op: "mount", Dir: h.root, Options: "suid,dev"})
		}
	})
	check(t, h.err)
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

// sharedMount returns a mount point that all tests share.
func sharedMount(t *testing.T) string {
	t.Helper()
	shared.get(t)
	return shared.root
}

// unmountTime bounds how long a test's mount waits for its users.
const unmountTime = 10 * time.Second

// eventually waits until cond holds, for what has no event to wait for.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}
