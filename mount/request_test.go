package mount

import (
	"bytes"
	"context"
	"log/slog"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rfs"
	"rfs/raftmeta"
	"rfs/transport"
)

func testFS(log *bytes.Buffer) *fileSystem {
	return newFileSystem(Config{Options: DefaultOptions(true), Log: slog.New(slog.NewTextHandler(log, nil))})
}

// stopped starts a process that is stopped: a signal to it stays pending until it goes on.
func stopped(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func TestInterruptEndsACallOnlyWhenItsCallerDies(t *testing.T) {
	fs := testFS(new(bytes.Buffer))
	caller := stopped(t)
	signal := make(chan struct{})
	c := fs.begin("read", signal, &fuse.InHeader{Caller: fuse.Caller{Pid: uint32(caller.Process.Pid)}})
	defer c.end()
	done := c.Done()
	close(signal) // a timer's, say: the caller lives
	select {
	case <-done:
		t.Fatal("a signal that does not kill ended the call")
	case <-time.After(50 * time.Millisecond):
	}
	if err := caller.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = caller.Wait()
	<-done
	if st := c.status(c.Err()); st != fuse.EINTR {
		t.Errorf("status %v", st)
	}
}

func TestAnySignalEndsAWaitForALock(t *testing.T) {
	fs := testFS(new(bytes.Buffer))
	signal := make(chan struct{})
	c := fs.begin("setlkw", signal, &fuse.InHeader{Caller: fuse.Caller{Pid: 1}})
	c.any = true
	defer c.end()
	close(signal)
	<-c.Done()
	if st := c.status(context.Canceled); st != fuse.EINTR {
		t.Errorf("status %v", st)
	}
}

func TestCallsOfTheClientSeeTheInterrupt(t *testing.T) {
	fs := testFS(new(bytes.Buffer))
	signal := make(chan struct{})
	c := fs.begin("read", signal, &fuse.InHeader{Caller: fuse.Caller{Pid: 1 << 30}}) // nobody has this pid: gone
	defer c.end()
	ctx, cancel := context.WithTimeout(c, time.Hour)
	defer cancel()
	if transport.TraceID(ctx) != c.trace || c.trace == 0 {
		t.Errorf("trace id %x, want %x", transport.TraceID(ctx), c.trace)
	}
	close(signal)
	<-ctx.Done()
}

func TestFaultsAreLoggedWithTheirTrace(t *testing.T) {
	var log bytes.Buffer
	fs := testFS(&log)
	c := fs.begin("write", nil, &fuse.InHeader{NodeId: 0xabc})
	defer c.end()
	for range 1000 {
		if st := c.status(rfs.ErrUnavailable); st != fuse.EIO {
			t.Fatal(st)
		}
	}
	c.status(rfs.ErrNotFound)
	if n := strings.Count(log.String(), "\n"); n < 1 || n > 20 {
		t.Errorf("%d lines", n)
	}
	for _, want := range []string{"op=write", "inode=abc", "service unavailable", "trace="} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %s: %s", want, log.String())
		}
	}
}

func TestGoneInodesAreStaleHandles(t *testing.T) {
	fs := testFS(new(bytes.Buffer))
	c := fs.begin("open", nil, &fuse.InHeader{})
	defer c.end()
	if st := c.ofNode(rfs.ErrNotFound); st != fuse.Status(syscall.ESTALE) {
		t.Error(st)
	}
	if st := c.status(rfs.ErrNotFound); st != fuse.ENOENT {
		t.Error(st)
	}
}

func TestPanicIsEIO(t *testing.T) {
	var log bytes.Buffer
	st := panicked(slog.New(slog.NewTextHandler(&log, nil)))("boom")
	if st != fuse.EIO || !strings.Contains(log.String(), "boom") || !strings.Contains(log.String(), "request_test.go") {
		t.Errorf("%v, %s", st, log.String())
	}
}

func TestRecentIsForOneUseOfOneThread(t *testing.T) {
	var r recent
	a := raftmeta.Attr{Inode: 7, Size: 3}
	put := func() { r.put(100, &a) }
	put()
	if got, ok := r.take(100, 7); !ok || got.Size != 3 {
		t.Error("it is not there")
	}
	if _, ok := r.take(100, 7); ok {
		t.Error("it is there twice")
	}
	put()
	if _, ok := r.take(100, 8); ok {
		t.Error("it is another inode's")
	}
	if _, ok := r.take(100, 7); ok {
		t.Error("it outlived another call of the thread")
	}
	put()
	if _, ok := r.take(100+256, 7); ok {
		t.Error("it is another thread's")
	}
	put()
	r.slots[100].at = time.Now().Add(-time.Second)
	if _, ok := r.take(100, 7); ok {
		t.Error("it is old")
	}
	a.Writers = true
	put()
	if _, ok := r.take(100, 7); ok {
		t.Error("others write the file")
	}
}

func TestSeconds(t *testing.T) {
	for _, ns := range []int64{0, 1, -1, 1_500_000_000, -1_500_000_000, -86400e9 + 5} {
		s, rest := seconds(ns)
		if int64(s)*1e9+int64(rest) != ns || rest >= 1e9 {
			t.Errorf("%d ns: %d s, %d ns", ns, int64(s), rest)
		}
	}
}

func TestDisarmed(t *testing.T) {
	for mode, want := range map[uint32]uint32{
		0o100644: 0o644, 0o104755: 0o755, 0o106755: 0o755, 0o102755: 0o755, 0o102745: 0o2745, 0o101777: 0o1777,
	} {
		if got, had := disarmed(mode); got != want || had != (mode&0o7777 != want) {
			t.Errorf("%o: %o, %v, want %o", mode, got, had, want)
		}
	}
}
