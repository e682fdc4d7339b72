package mount_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rfs/mount"
	"rfs/mount/mounttest"
)

func mountedAt(t *testing.T, dir string) bool {
	t.Helper()
	points, err := mount.Mounts()
	check(t, err)
	return slices.Contains(points, dir)
}

func TestMountPointsThatCannotBe(t *testing.T) {
	s, root := mounttest.Shared(t)
	for dir, remedy := range map[string]string{
		root:                   "umount " + root, // mounted already
		root + "/no/such":      "mkdir -p",
		s.Point(t, "x") + "/y": "mkdir -p",
	} {
		err := s.Do(mounttest.Request{Op: "mount", Dir: dir})
		if err == nil || !strings.Contains(err.Error(), remedy) {
			t.Errorf("%s: %v; want it to say %q", dir, err, remedy)
		}
	}
	if err := s.Do(mounttest.Request{Op: "mount", Dir: s.Point(t, "x"), Options: "bogus"}); err == nil || !strings.Contains(err.Error(), "bogus") {
		t.Errorf("a bogus option: %v", err)
	}
}

func TestReadOnly(t *testing.T) {
	s, root := mounttest.Shared(t)
	f := create(t, root+"/of-the-other-mount", 'x')
	t.Cleanup(func() { os.Remove(f) })
	ro := s.Mount(t, "ro", "ro")
	content(t, ro+"/of-the-other-mount", "x")
	_, err := unix.Open(ro+"/new", unix.O_CREAT|unix.O_WRONLY, 0o644)
	want(t, "create", err, unix.EROFS)
	want(t, "unlink", unix.Unlink(ro+"/of-the-other-mount"), unix.EROFS)
	want(t, "chmod", unix.Chmod(ro+"/of-the-other-mount", 0), unix.EROFS)
}

func TestSetuidIsOffUnlessAsked(t *testing.T) {
	s, root := mounttest.Shared(t)
	plain := s.Mount(t, "plain", "")
	for dir, nosuid := range map[string]bool{root: false, plain: true} {
		var st unix.Statfs_t
		check(t, unix.Statfs(dir, &st))
		if st.Flags&unix.ST_NOSUID != 0 != nosuid || st.Flags&unix.ST_NODEV != 0 != nosuid {
			t.Errorf("%s: flags %#x", dir, st.Flags)
		}
	}
}

// A mount that somebody uses goes from the tree at once, and serves them until they are done.
func TestUnmountOfABusyMount(t *testing.T) {
	s, _ := mounttest.Shared(t)
	dir := s.Mount(t, "busy", "")
	f := create(t, dir+"/busy-file", []byte("still here")...)
	user := exec.Command("cat")
	user.Dir = dir
	in, err := user.StdinPipe()
	check(t, err)
	check(t, user.Start())
	fd := open(t, f, unix.O_RDWR)
	done := make(chan error, 1)
	go func() { done <- s.Do(mounttest.Request{Op: "unmount", Dir: dir}) }()
	eventually(t, "the mount is out of the tree", func() bool { return !mountedAt(t, dir) })
	b := make([]byte, 20)
	if n, err := unix.Pread(fd, b, 0); err != nil || string(b[:n]) != "still here" {
		t.Errorf("who uses it reads %q, %v", b[:n], err)
	}
	check(t, unix.Close(fd))
	in.Close()
	check(t, user.Wait())
	check(t, <-done)
	_, root := mounttest.Shared(t)
	check(t, os.Remove(root+"/busy-file"))
}

// When somebody else unmounts it, the serving process learns of it.
func TestUnmountByAnother(t *testing.T) {
	s, _ := mounttest.Shared(t)
	dir := s.Mount(t, "other", "")
	create(t, dir+"/other-file", 'x')
	check(t, unix.Unlink(dir+"/other-file"))
	eventually(t, "umount", func() bool { return unix.Unmount(dir, 0) == nil })
	check(t, s.Do(mounttest.Request{Op: "unmount", Dir: dir}))
	check(t, s.Do(mounttest.Request{Op: "mount", Dir: dir}))
}

// A signal ends the mounts cleanly: what was written and closed is there after.
func TestSignalUnmounts(t *testing.T) {
	s := mounttest.Own(t)
	dir := s.Point(t, "mnt")
	create(t, dir+"/f", 'x')
	check(t, s.Signal(syscall.SIGTERM))
	if mountedAt(t, dir) {
		t.Error("the mount is still there")
	}
}

// The mount of a process that was killed is cleared away by the next mount.
func TestDeadMountIsCleared(t *testing.T) {
	s := mounttest.Own(t)
	dir := s.Point(t, "mnt")
	_ = s.Signal(syscall.SIGKILL)
	want(t, "stat of a dead mount", unix.Stat(dir, new(unix.Stat_t)), unix.ENOTCONN)
	next, _ := mounttest.Shared(t)
	check(t, next.Do(mounttest.Request{Op: "mount", Dir: dir}))
	create(t, dir+"/alive", 'x')
	check(t, unix.Unlink(dir+"/alive"))
	check(t, next.Do(mounttest.Request{Op: "unmount", Dir: dir}))
}

// Without an answer from the cluster a soft mount fails with EIO; on a hard one a program waits, and can be killed.
func TestClusterOutOfReach(t *testing.T) {
	s := mounttest.Own(t)
	soft := s.Mount(t, "soft", "soft,timeo=1s")
	hard := s.Point(t, "mnt")
	create(t, hard+"/f", 'x')
	for i := range 2 { // of three
		check(t, s.Do(mounttest.Request{Op: "stop-meta", Target: i}))
	}
	want(t, "soft", unix.Mkdir(soft+"/d", 0o755), unix.EIO)
	waits := exec.Command("stat", hard+"/f")
	check(t, waits.Start())
	eventually(t, "stat waits", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", waits.Process.Pid))
		return strings.Contains(string(b), "request_wait") || strings.Contains(string(b), "fuse")
	})
	check(t, waits.Process.Kill())
	var exit *exec.ExitError
	if err := waits.Wait(); !errors.As(err, &exit) { // hangs if it cannot be killed
		t.Errorf("stat: %v", err)
	}
	for i := range 2 {
		check(t, s.Do(mounttest.Request{Op: "start-meta", Target: i}))
	}
	content(t, hard+"/f", "x")
	check(t, unix.Mkdir(soft+"/e", 0o755))
}
