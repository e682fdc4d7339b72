package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rfs"
	"rfs/transport"
)

// A call is one kernel request under way: the context that its client calls run in.
//
// The kernel sends an interrupt for every signal that reaches the waiting thread, be it a
// timer or a preemption of the Go runtime, and regular files do not return EINTR for those:
// programs do not expect it. So an interrupt ends a call only when it waits for a lock, where
// fcntl(2) says EINTR, or when the thread is being killed. Then it has to end, even when the
// cluster does not answer, for the kernel keeps a killed process until its request is answered.
type call struct {
	context.Context
	fs        *fileSystem
	op        string
	node      uint64
	pid       uint32
	trace     uint64
	cancel    context.CancelFunc
	interrupt <-chan struct{}
	any       bool // any signal ends it
	watch     sync.Once
}

// begin starts a call. The caller defers its end.
func (fs *fileSystem) begin(op string, interrupt <-chan struct{}, h *fuse.InHeader) *call {
	id := fs.trace.Add(1)
	ctx, cancel := context.WithCancel(transport.WithTrace(fs.base, id))
	return &call{Context: ctx, fs: fs, op: op, node: h.NodeId, pid: h.Pid, trace: id, cancel: cancel, interrupt: interrupt}
}

func (c *call) end() { c.cancel() }

// Done starts to watch for interrupts when somebody first waits; most calls never do.
func (c *call) Done() <-chan struct{} {
	c.watch.Do(func() {
		if c.interrupt != nil {
			go c.watchInterrupt()
		}
	})
	return c.Context.Done()
}

func (c *call) watchInterrupt() {
	select {
	case <-c.Context.Done():
		return
	case <-c.interrupt:
	}
	// There is no second interrupt: who was hit by a timer first and killed later has to be found out.
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for !c.any && !dying(c.pid) {
		select {
		case <-c.Context.Done():
			return
		case <-tick.C:
		}
	}
	c.cancel()
}

// dying is whether the thread is gone, or has SIGKILL pending, which the kernel adds to every signal that ends a process.
func dying(tid uint32) bool {
	if tid == 0 { // the kernel itself, or a process of another pid namespace
		return false
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(int(tid)) + "/status")
	if err != nil {
		return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH)
	}
	for line := range strings.Lines(string(text)) {
		set, ok := strings.CutPrefix(line, "SigPnd:")
		if !ok {
			continue
		}
		pending, err := strconv.ParseUint(strings.TrimSpace(set), 16, 64)
		return err == nil && pending&(1<<(syscall.SIGKILL-1)) != 0
	}
	return false
}

// status turns what the client said into the reply, and logs what is the service's fault.
func (c *call) status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	if c.Context.Err() != nil {
		return fuse.EINTR // the caller went away, or the mount is being ended
	}
	errno, log := Errno(err)
	if log {
		c.fs.logs.warn(c, errno, err)
	}
	return status(errno)
}

// ofNode is status for calls that name an inode by its number: one that is gone is a stale
// handle, upon which the kernel looks the path up again. Without that, open(2) of a path whose
// file was just replaced by rename(2) would find nothing, although the path always existed.
func (c *call) ofNode(err error) fuse.Status {
	if errors.Is(err, rfs.ErrNotFound) {
		err = rfs.ErrStale
	}
	return c.status(err)
}

// A limitedLog writes at most one line a second for each operation, with the count of those left out:
// a program that writes to a cluster out of reach can fail a hundred thousand times a second.
type limitedLog struct {
	to *slog.Logger
	mu sync.Mutex
	// guarded by mu
	last    map[string]time.Time
	skipped map[string]int
}

func (l *limitedLog) warn(c *call, errno syscall.Errno, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last[c.op]) < time.Second {
		l.skipped[c.op]++
		return
	}
	l.to.Warn("request failed", "op", c.op, "inode", rfs.InodeID(c.node).String(), "errno", errno.Error(), "err", err,
		"trace", fmt.Sprintf("%016x", c.trace), "pid", c.pid, "more_like_it", l.skipped[c.op])
	l.last[c.op], l.skipped[c.op] = now, 0
}

// panicked answers a request whose handler panicked: the mount and all other requests go on.
func panicked(log *slog.Logger) func(any) fuse.Status {
	return func(v any) fuse.Status {
		log.Error("bug: a request's handler panicked; the request is answered with EIO", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
		return fuse.EIO
	}
}

// traces numbers requests; the high bits are random, so that those of several clients differ.
type traces struct{ atomic.Uint64 }
