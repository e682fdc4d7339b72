package mount_test

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const me, other = 1234, 4321

func TestPermissions(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", 'x')
	check(t, os.Chown(f, me, me))
	try := func(uid, gid int, mode os.FileMode, flags int, errno syscall.Errno) {
		t.Helper()
		check(t, os.Chmod(f, mode))
		asUser(t, uid, gid, func() {
			fd, err := unix.Open(f, flags|unix.O_CLOEXEC, 0)
			want(t, "open", err, errno)
			if err == nil {
				unix.Close(fd)
			}
		})
	}
	try(me, me, 0o600, unix.O_RDWR, 0)
	try(me, me, 0o066, unix.O_RDONLY, unix.EACCES)
	try(other, me, 0o060, unix.O_RDWR, 0)
	try(other, me, 0o606, unix.O_RDONLY, unix.EACCES)
	try(other, other, 0o604, unix.O_RDONLY, 0)
	try(other, other, 0o604, unix.O_WRONLY, unix.EACCES)
	check(t, os.Mkdir(d+"/closed", 0o700))
	create(t, d+"/closed/f")
	asUser(t, other, other, func() {
		want(t, "stat behind a closed directory", unix.Stat(d+"/closed/f", new(unix.Stat_t)), unix.EACCES)
		want(t, "create in a closed directory", unix.Mkdir(d+"/closed/d", 0o755), unix.EACCES)
		want(t, "access", unix.Faccessat(unix.AT_FDCWD, f, unix.W_OK, unix.AT_EACCESS), unix.EACCES)
		want(t, "chmod of another's", unix.Chmod(f, 0o777), unix.EPERM)
		want(t, "chown of another's", unix.Chown(f, other, -1), unix.EPERM)
		want(t, "utimes of another's", unix.UtimesNanoAt(unix.AT_FDCWD, f, []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0), unix.EPERM)
	})
	asUser(t, me, me, func() {
		want(t, "giving one's own away", unix.Chown(f, other, -1), unix.EPERM)
		want(t, "chmod of one's own", unix.Chmod(f, 0o640), 0)
		want(t, "mknod of a device", unix.Mknod(d+"/dev", unix.S_IFCHR|0o600, 5), unix.EPERM)
	})
}

func TestSticky(t *testing.T) {
	d := posix(t)
	check(t, os.Mkdir(d+"/tmp", 0o777))
	check(t, unix.Chmod(d+"/tmp", 0o1777))
	asUser(t, me, me, func() { create(t, d+"/tmp/mine"); check(t, os.Mkdir(d+"/tmp/dir", 0o777)) })
	asUser(t, other, other, func() {
		create(t, d+"/tmp/theirs")
		want(t, "unlink in a sticky directory", unix.Unlink(d+"/tmp/mine"), unix.EPERM)
		want(t, "rename in a sticky directory", unix.Rename(d+"/tmp/mine", d+"/tmp/x"), unix.EPERM)
		want(t, "rename over another's", unix.Rename(d+"/tmp/theirs", d+"/tmp/mine"), unix.EPERM)
		want(t, "rmdir of another's", unix.Rmdir(d+"/tmp/dir"), unix.EPERM)
		want(t, "unlink of one's own", unix.Unlink(d+"/tmp/theirs"), 0)
	})
}

func mode(t *testing.T, path string, want uint32) {
	t.Helper()
	if st := stat(t, path); st.Mode&0o7777 != want {
		t.Errorf("mode is %04o, want %04o", st.Mode&0o7777, want)
	}
}

func TestSetIDBitsGoAtWrite(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", 'x')
	check(t, unix.Chmod(d, 0o777))
	arm := func(bits uint32) {
		check(t, os.Chown(f, me, me))
		check(t, unix.Chmod(f, bits))
	}
	writeAs := func(uid int) {
		asUser(t, uid, uid, func() {
			fd, err := unix.Open(f, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			check(t, err)
			check(t, write(fd, []byte("y"), 0))
			unix.Close(fd)
		})
	}
	arm(0o6777)
	writeAs(other)
	mode(t, f, 0o777)
	arm(0o6777)
	writeAs(me)
	mode(t, f, 0o777)
	arm(0o2767) // no execution by the group: not a set-group-ID bit but mandatory locking
	writeAs(other)
	if m := stat(t, f).Mode & 0o7777; m != 0o2767 && m != 0o767 { // what Linux does here depends on its age
		t.Errorf("mode is %04o", m)
	}
	arm(0o6777)
	writeAs(0) // root may
	mode(t, f, 0o6777)
	// Within one open handle, after it wrote already.
	check(t, unix.Chmod(f, 0o777))
	asUser(t, other, other, func() {
		fd, err := unix.Open(f, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		check(t, err)
		check(t, write(fd, []byte("1"), 0))
		defer unix.Close(fd)
		asRoot(t, func() error { return unix.Chmod(f, 0o6777) })
		check(t, write(fd, []byte("2"), 0))
	})
	mode(t, f, 0o777)
	// Truncation.
	arm(0o6777)
	asUser(t, other, other, func() { check(t, unix.Truncate(f, 0)) })
	mode(t, f, 0o777)
	arm(0o6777)
	asUser(t, other, other, func() {
		fd, err := unix.Open(f, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
		check(t, err)
		unix.Close(fd)
	})
	mode(t, f, 0o777)
}

// asRoot runs f on another thread, which still is root.
func asRoot(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() { done <- f() }()
	check(t, <-done)
}

func TestSetIDBitsGoAtChown(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", 'x')
	check(t, unix.Chmod(f, 0o6755))
	check(t, os.Chown(f, me, me))
	mode(t, f, 0o755)
	check(t, unix.Chmod(f, 0o6644))
	check(t, os.Chown(f, other, other))
	mode(t, f, 0o2644)
	check(t, os.Mkdir(d+"/dir", 0o755))
	check(t, unix.Chmod(d+"/dir", 0o6755))
	check(t, os.Chown(d+"/dir", me, me))
	mode(t, d+"/dir", 0o6755) // directories keep them
	// Who is not in the group cannot set the bit.
	check(t, os.Chown(f, me, other))
	asUser(t, me, me, func() { check(t, unix.Chmod(f, 0o2755)) })
	mode(t, f, 0o755)
}

func TestSetGIDDirectory(t *testing.T) {
	d := posix(t)
	check(t, os.Mkdir(d+"/g", 0o777))
	check(t, os.Chown(d+"/g", 0, other))
	check(t, unix.Chmod(d+"/g", 0o2777))
	old := unix.Umask(0)
	asUser(t, me, me, func() {
		create(t, d+"/g/f")
		check(t, os.Mkdir(d+"/g/d", 0o755))
		check(t, unix.Mkfifo(d+"/g/p", 0o644))
		check(t, unix.Symlink("f", d+"/g/l"))
	})
	unix.Umask(old)
	for _, n := range []string{"f", "d", "p", "l"} {
		if st := stat(t, d+"/g/"+n); st.Gid != other || st.Uid != me {
			t.Errorf("%s belongs to %d:%d, want the directory's group", n, st.Uid, st.Gid)
		}
	}
	mode(t, d+"/g/d", 0o2755)
	mode(t, d+"/g/f", 0o644)
}

func TestXattr(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", 'x')
	set := func(n, v string, flags int) error { return unix.Setxattr(f, n, []byte(v), flags) }
	get := func(n string) string {
		b := make([]byte, 1<<17)
		k, err := unix.Getxattr(f, n, b)
		if err != nil {
			return err.Error()
		}
		return string(b[:k])
	}
	check(t, set("user.a", "1", 0))
	want(t, "CREATE of what is there", set("user.a", "2", unix.XATTR_CREATE), unix.EEXIST)
	want(t, "REPLACE of what is not", set("user.b", "2", unix.XATTR_REPLACE), unix.ENODATA)
	check(t, set("user.a", "two", unix.XATTR_REPLACE))
	check(t, set("user.empty", "", unix.XATTR_CREATE))
	check(t, set("trusted.t", "t", 0))
	if get("user.a") != "two" || get("user.empty") != "" || get("trusted.t") != "t" {
		t.Errorf("values %q %q %q", get("user.a"), get("user.empty"), get("trusted.t"))
	}
	n, err := unix.Getxattr(f, "user.a", nil)
	if n != 3 || err != nil {
		t.Errorf("size of a value: %d, %v", n, err)
	}
	_, err = unix.Getxattr(f, "user.a", make([]byte, 2))
	want(t, "a buffer too small", err, unix.ERANGE)
	_, err = unix.Getxattr(f, "user.none", nil)
	want(t, "no such", err, unix.ENODATA)
	list := func() []string {
		b := make([]byte, 4096)
		n, err := unix.Listxattr(f, b)
		check(t, err)
		names := strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 })
		slices.Sort(names)
		return names
	}
	if l := list(); !slices.Equal(l, []string{"trusted.t", "user.a", "user.empty"}) {
		t.Errorf("list: %q", l)
	}
	_, err = unix.Listxattr(f, make([]byte, 3))
	want(t, "list into a buffer too small", err, unix.ERANGE)
	asUser(t, other, other, func() {
		if l := list(); slices.Contains(l, "trusted.t") {
			t.Errorf("trusted attributes are listed to everybody: %q", l)
		}
		want(t, "set on another's file", set("user.x", "", 0), unix.EACCES)
		want(t, "set of trusted", set("trusted.x", "", 0), unix.EPERM)
	})
	check(t, unix.Removexattr(f, "user.a"))
	want(t, "remove again", unix.Removexattr(f, "user.a"), unix.ENODATA)
	want(t, "too long a name", set("user."+strings.Repeat("n", 251), "", 0), unix.ERANGE)
	want(t, "no such namespace", set("bogus.x", "", 0), unix.EOPNOTSUPP)
	check(t, os.Mkdir(d+"/dir", 0o755))
	check(t, unix.Setxattr(d+"/dir", "user.d", []byte("v"), 0))
}

func TestXattrLarge(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", 'x')
	big := bytes.Repeat([]byte("v"), 64<<10)
	if err := unix.Setxattr(f, "user.big", big, 0); err == unix.ENOSPC && os.Getenv("RFS_POSIX_DIR") != "" {
		t.Skip("the reference file system has no room for 64 KiB")
	} else {
		check(t, err)
	}
	b := make([]byte, 1<<17)
	if n, err := unix.Getxattr(f, "user.big", b); err != nil || !bytes.Equal(b[:n], big) {
		t.Errorf("%d bytes, %v", n, err)
	}
	want(t, "larger than Linux allows", unix.Setxattr(f, "user.big", make([]byte, 64<<10+1), 0), unix.E2BIG)
}

// A file with capabilities loses them when somebody writes to it.
func TestCapabilitiesGoAtWrite(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", 'x')
	// VFS_CAP_REVISION_2, effective, CAP_NET_RAW permitted
	caps := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	arm := func() { check(t, unix.Setxattr(f, "security.capability", caps, 0)) }
	gone := func(after string) {
		t.Helper()
		_, err := unix.Getxattr(f, "security.capability", make([]byte, 100))
		want(t, "capability after "+after, err, unix.ENODATA)
	}
	arm()
	b := make([]byte, 100)
	if n, err := unix.Getxattr(f, "security.capability", b); err != nil || !bytes.Equal(b[:n], caps) {
		t.Fatalf("%x, %v", b[:n], err)
	}
	check(t, os.WriteFile(f, []byte("y"), 0))
	gone("open with O_TRUNC")
	arm()
	fd := open(t, f, unix.O_WRONLY)
	check(t, write(fd, []byte("z"), 0))
	gone("write")
	arm()
	check(t, write(fd, []byte("z"), 0))
	gone("write by a handle that wrote before")
	arm()
	check(t, os.Chown(f, me, me))
	gone("chown")
}

func TestACLsAreRefused(t *testing.T) {
	if os.Getenv("RFS_POSIX_DIR") != "" {
		t.Skip("other file systems have them")
	}
	f := create(t, posix(t)+"/f", 'x')
	acl := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 4, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255}
	want(t, "set an ACL", unix.Setxattr(f, "system.posix_acl_access", acl, 0), unix.EOPNOTSUPP)
	_, err := unix.Getxattr(f, "system.posix_acl_access", make([]byte, 100))
	want(t, "get an ACL", err, unix.EOPNOTSUPP)
}
