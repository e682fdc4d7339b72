package verbs

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrClosed is returned for an object that was closed.
	ErrClosed = errors.New("verbs: closed")
	// ErrBusy is wrapped when an object is closed before what was made from it.
	ErrBusy = errors.New("verbs: still in use")
	// ErrState is wrapped when a queue pair's state does not allow what was asked.
	ErrState = errors.New("verbs: wrong state")
	// ErrTooLong is wrapped when a message is longer than the port carries.
	ErrTooLong = errors.New("verbs: message too long")
	// ErrNoDevice is wrapped when there is no RDMA device, or none of the name.
	ErrNoDevice = errors.New("verbs: no RDMA device")
)

// WCError is a completion that is not a success.
type WCError struct {
	Status Status
	Vendor uint32
	QPN    uint32
	ID     uint64
}

func (e *WCError) Error() string {
	return fmt.Sprintf("verbs: queue pair %d: %v (status %d, vendor %#x)", e.QPN, e.Status, uint32(e.Status), e.Vendor)
}

// Retryable reports whether the same request may succeed on a new connection:
// the peer or the path was away.
func (e *WCError) Retryable() bool {
	switch e.Status {
	case StatusRetryExc, StatusRNRRetryExc, StatusRespTimeout, StatusRemAbort, StatusRemOp:
		return true
	}
	return false
}

// Flushed reports whether the request only went down with its queue pair; the
// cause is in an earlier completion or event.
func (e *WCError) Flushed() bool { return e.Status == StatusFlush }

// Fatal reports whether to repeat the request would fail again: one side is
// wrong about memory, length or state, or the device is broken.
func (e *WCError) Fatal() bool { return !e.Retryable() && !e.Flushed() }

// Err returns nil for a success, else a *WCError.
func Err(wc *WC) error {
	if wc.Status == 0 {
		return nil
	}
	return &WCError{Status(wc.Status), wc.VendorErr, wc.QPNum, wc.ID}
}

// MemlockError means that a registration exceeds what the process may lock.
type MemlockError struct {
	Need  uint64 // bytes locked already by this device, and those asked for
	Limit uint64 // RLIMIT_MEMLOCK
	Err   error
}

func (e *MemlockError) Error() string {
	return fmt.Sprintf("verbs: cannot lock memory for the device: %d bytes are needed and the MEMLOCK limit is %d: "+
		"set LimitMEMLOCK=infinity in the systemd unit, or memlock in /etc/security/limits.conf, or `ulimit -l unlimited` "+
		"in the shell that starts it; in a container start it with --ulimit memlock=-1: %v", e.Need, e.Limit, e.Err)
}

func (e *MemlockError) Unwrap() error { return e.Err }

// busy returns an error that wraps ErrBusy if any of the counts is not 0.
func busy(what string, counts ...any) error {
	var parts []string
	for i := 0; i < len(counts); i += 2 {
		if n := counts[i].(int); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, counts[i+1]))
		}
	}
	if parts == nil {
		return nil
	}
	return fmt.Errorf("%w: %s: close first its %s", ErrBusy, what, strings.Join(parts, " and "))
}
