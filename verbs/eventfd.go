package verbs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// eventFD waits in Go's netpoller for a descriptor of libibverbs. It holds a
// duplicate: an os.File closes what it owns, and the library closes its own.
type eventFD struct {
	f   *os.File
	raw syscall.RawConn

	// of the one goroutine that waits
	take func() error
	err  error
	try  func(uintptr) bool

	mu    sync.Mutex // guards below
	bound context.Context
	stop  func() bool
}

func newEventFD(fd int, name string) (*eventFD, error) {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("verbs: duplicate the descriptor of the %s: %w", name, err)
	}
	// Both share the description: the library's reads no longer block either.
	if err := unix.SetNonblock(dup, true); err != nil {
		unix.Close(dup)
		return nil, fmt.Errorf("verbs: %s: %w", name, err)
	}
	e := &eventFD{f: os.NewFile(uintptr(dup), name)}
	if err = e.f.SetReadDeadline(time.Time{}); err == nil {
		e.raw, err = e.f.SyscallConn()
	}
	if err != nil {
		e.f.Close()
		return nil, fmt.Errorf("verbs: wait for the %s: %w", name, err)
	}
	e.try = func(uintptr) bool {
		e.err = e.take()
		return !errors.Is(e.err, syscall.EAGAIN) && !errors.Is(e.err, syscall.EINTR)
	}
	return e, nil
}

// wait calls take whenever the descriptor is readable, until it says something else than EAGAIN.
func (e *eventFD) wait(ctx context.Context, take func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	e.bind(ctx)
	e.take = take
	err := e.raw.Read(e.try)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		if err := ctx.Err(); err != nil {
			return err
		}
		return err
	case errors.Is(err, os.ErrClosed):
		return ErrClosed
	case err != nil:
		return err
	}
	return e.err
}

// bind makes the end of ctx end the wait. A poller comes with the same context
// each time, and pays only once.
func (e *eventFD) bind(ctx context.Context) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.bound == ctx {
		return
	}
	if e.stop != nil {
		e.stop()
	}
	e.bound, e.stop = ctx, nil
	_ = e.f.SetReadDeadline(time.Time{}) // fails only when it is closed, which the read will tell
	if ctx.Done() == nil {
		return
	}
	e.stop = context.AfterFunc(ctx, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.bound == ctx {
			_ = e.f.SetReadDeadline(time.Unix(1, 0))
		}
	})
}

// close ends the wait with ErrClosed, and returns when the waiter is out of the descriptor.
func (e *eventFD) close() {
	e.mu.Lock()
	if e.stop != nil {
		e.stop()
	}
	e.mu.Unlock()
	e.f.Close()
}
