package verbstest

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// LimitMemlock runs f where the process may lock limit bytes: on a thread of its
// own, that has not root's right to lock more and ends afterwards, since uverbs
// serves only the credentials that a device was opened with.
func LimitMemlock(limit uint64, f func() error) error {
	got := make(chan error)
	go func() {
		runtime.LockOSThread()
		got <- limited(limit, f)
	}()
	return <-got
}

func limited(limit uint64, f func() error) (err error) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &old); err != nil {
		return err
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return err
	}
	caps[0].Effective &^= 1 << unix.CAP_IPC_LOCK
	if err := unix.Capset(&hdr, &caps[0]); err != nil {
		return err
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: limit, Max: old.Max}); err != nil {
		return err
	}
	defer func() {
		if e := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &old); err == nil {
			err = e
		}
	}()
	return f()
}
