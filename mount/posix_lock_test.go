package mount_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// lockRole is a process with locks of its own. It reads a command a line and answers each:
//
//	setlk|setlkw|getlk r|w|u START LEN       POSIX locks of the file os.Args[1]
//	flock sh|ex|un [nb]                      of its open file
//	dup                                      opens and closes the file again
func lockRole() error {
	fd, err := unix.Open(os.Args[1], unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := lockCommand(fd, strings.Fields(in.Text()))
		if err != nil {
			answer = err.Error()
			var errno syscall.Errno
			if errors.As(err, &errno) {
				answer = unix.ErrnoName(errno)
			}
		}
		fmt.Println(answer)
	}
	return in.Err()
}

func lockCommand(fd int, f []string) (string, error) {
	switch f[0] {
	case "flock":
		how := map[string]int{"sh": unix.LOCK_SH, "ex": unix.LOCK_EX, "un": unix.LOCK_UN}[f[1]]
		if len(f) > 2 {
			how |= unix.LOCK_NB
		}
		return "ok", unix.Flock(fd, how)
	case "dup":
		other, err := unix.Open(os.Args[1], unix.O_RDONLY, 0)
		return "ok", errors.Join(err, unix.Close(other))
	}
	var l unix.Flock_t
	l.Type = map[string]int16{"r": unix.F_RDLCK, "w": unix.F_WRLCK, "u": unix.F_UNLCK}[f[1]]
	if _, err := fmt.Sscan(f[2]+" "+f[3], &l.Start, &l.Len); err != nil {
		return "", err
	}
	how := map[string]int{"setlk": unix.F_SETLK, "setlkw": unix.F_SETLKW, "getlk": unix.F_GETLK}[f[0]]
	err := unix.FcntlFlock(uintptr(fd), how, &l)
	if f[0] == "getlk" && err == nil {
		return fmt.Sprint(map[int16]string{unix.F_RDLCK: "r", unix.F_WRLCK: "w", unix.F_UNLCK: "u"}[l.Type], " ", l.Start, " ", l.Len, " ", l.Pid), nil
	}
	return "ok", err
}

// A locker is such a process.
type locker struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func newLocker(t *testing.T, path string) *locker {
	t.Helper()
	l := &locker{t: t, cmd: play(t, "lock", path)}
	var err error
	l.in, err = l.cmd.StdinPipe()
	check(t, err)
	out, err := l.cmd.StdoutPipe()
	check(t, err)
	l.out = bufio.NewScanner(out)
	check(t, l.cmd.Start())
	t.Cleanup(l.end)
	return l
}

func (l *locker) end() {
	l.in.Close()
	_ = l.cmd.Wait()
}

func (l *locker) send(command string) {
	_, err := io.WriteString(l.in, command+"\n")
	check(l.t, err)
}

func (l *locker) answer() string {
	if !l.out.Scan() {
		return "gone"
	}
	return l.out.Text()
}

// want sends a command and checks the answer.
func (l *locker) want(command, answer string) {
	l.t.Helper()
	l.send(command)
	if got := l.answer(); got != answer {
		l.t.Errorf("%s: %s, want %s", command, got, answer)
	}
}

// blocked waits until the process sleeps in the kernel for its lock.
func (l *locker) blocked() {
	l.t.Helper()
	eventually(l.t, "the locker waits", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", l.cmd.Process.Pid))
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", l.cmd.Process.Pid))
		for _, task := range tasks {
			w, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/wchan", l.cmd.Process.Pid, task.Name()))
			b = append(b, w...)
		}
		return err == nil && (bytes.Contains(b, []byte("request_wait")) || bytes.Contains(b, []byte("fuse")) ||
			bytes.Contains(b, []byte("lock")))
	})
}

func TestPosixLocks(t *testing.T) {
	f := posix(t) + "/f"
	a, b := newLocker(t, f), newLocker(t, f)
	a.want("setlk w 10 20", "ok")
	b.want("setlk w 0 10", "ok")
	b.want("setlk w 29 1", "EAGAIN")
	b.want("setlk r 15 1", "EAGAIN")
	b.want("setlk w 30 0", "ok") // to the end of the file
	b.want("getlk w 0 0", fmt.Sprintf("w 10 20 %d", a.cmd.Process.Pid))
	a.want("setlk r 12 4", "ok") // a part is made shared
	b.want("setlk r 13 1", "ok")
	b.want("setlk u 13 1", "ok")
	b.want("getlk r 12 4", "u 12 4 0")
	a.want("setlk u 16 4", "ok") // a hole
	b.want("setlk w 16 4", "ok")
	a.want("getlk w 100 1", fmt.Sprintf("w 30 0 %d", b.cmd.Process.Pid))
	// Closing any descriptor of the file gives up the process's locks of it.
	a.want("dup", "ok")
	b.want("setlk w 0 0", "ok")
	a.want("setlk w 5 1", "EAGAIN")
	// The end of a process does, too.
	b.end()
	a.want("setlk w 5 1", "ok")
}

// Two processes wait for each other. Whoever came second is told: which one that
// is, the service decides, as a process is seen to sleep before it has been asked.
func TestPosixLocksWait(t *testing.T) {
	f := posix(t) + "/f"
	a, b := newLocker(t, f), newLocker(t, f)
	a.want("setlk w 0 10", "ok")
	b.want("setlk w 10 10", "ok")
	type answer struct {
		l    *locker
		text string
	}
	answers := make(chan answer, 2)
	wait := func(l *locker, command string) {
		l.send(command)
		go func() { answers <- answer{l, l.answer()} }()
	}
	wait(b, "setlkw w 0 1")
	b.blocked()
	wait(a, "setlkw w 10 1")
	told := <-answers
	if told.text != "EDEADLK" {
		t.Errorf("the first answer to two that wait for each other is %s, want EDEADLK", told.text)
	}
	told.l.want("setlk u 0 20", "ok")
	if got := <-answers; got.l == told.l || got.text != "ok" {
		t.Errorf("the waiter got %s", got.text)
	}
	told.l.want("setlk w 0 20", "EAGAIN")
}

func TestWaitingForALockCanBeKilled(t *testing.T) {
	f := posix(t) + "/f"
	a, b := newLocker(t, f), newLocker(t, f)
	a.want("flock ex", "ok")
	b.send("flock ex")
	b.blocked()
	check(t, b.cmd.Process.Kill())
	_ = b.cmd.Wait() // hangs if the wait cannot be ended
	a.want("flock un", "ok")
	c := newLocker(t, f)
	c.want("flock ex nb", "ok") // the dead one does not have it
}

func TestFlock(t *testing.T) {
	f := posix(t) + "/f"
	a, b := newLocker(t, f), newLocker(t, f)
	a.want("flock sh", "ok")
	b.want("flock sh nb", "ok")
	b.want("flock ex nb", "EAGAIN")
	a.want("flock un", "ok")
	b.want("flock ex nb", "ok")
	a.want("flock sh nb", "EAGAIN")
	a.want("setlk w 0 0", "ok") // the two kinds do not see each other
	a.send("flock ex")
	a.blocked()
	b.want("flock un", "ok")
	if got := a.answer(); got != "ok" {
		t.Errorf("the waiter got %s", got)
	}
	a.end()
	// The kernel tells of the last close in its own time.
	eventually(t, "the lock of an ended process is free", func() bool { b.send("flock ex nb"); return b.answer() == "ok" })
}

func TestOpenFileLocks(t *testing.T) {
	f := posix(t) + "/f"
	a, b := open(t, f, unix.O_RDWR|unix.O_CREAT), open(t, f, unix.O_RDWR)
	lock := func(fd int, typ int16) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Len: 10})
	}
	check(t, lock(a, unix.F_WRLCK))
	want(t, "a second open file of the process", lock(b, unix.F_RDLCK), unix.EAGAIN)
	check(t, lock(a, unix.F_UNLCK))
	check(t, lock(b, unix.F_WRLCK))
}
