package mount_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The suite is calls to the kernel in a directory, and what POSIX and Linux's manual say must come of them. It runs on
// a mount of rfs; RFS_POSIX_DIR=DIR runs it on another file system, which tests the tests.

// posix returns a fresh directory of the file system under test.
func posix(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("RFS_POSIX_DIR")
	if dir == "" {
		dir = sharedMount(t)
	}
	dir, err := os.MkdirTemp(dir, "t")
	check(t, err)
	check(t, os.Chmod(dir, 0o777))
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}

// want fails unless err is errno (0: no error).
func want(t *testing.T, what string, err error, errno syscall.Errno) {
	t.Helper()
	var got syscall.Errno
	if err != nil && !errors.As(err, &got) || got != errno {
		t.Errorf("%s: %v (%s), want %s", what, err, name(got), name(errno))
	}
}

func name(e syscall.Errno) string {
	if e == 0 {
		return "no error"
	}
	return unix.ErrnoName(e)
}

func open(t *testing.T, path string, flags int) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func create(t *testing.T, path string, content ...byte) string {
	t.Helper()
	check(t, os.WriteFile(path, content, 0o644))
	return path
}

func stat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func fstat(t *testing.T, fd int) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	check(t, unix.Fstat(fd, &st))
	return st
}

func content(t *testing.T, path, want string) {
	t.Helper()
	b, err := os.ReadFile(path)
	check(t, err)
	if string(b) != want {
		t.Errorf("%s holds %.40q, want %.40q", filepath.Base(path), b, want)
	}
}

// asUser runs f with the effective user and group of somebody without privileges.
func asUser(t *testing.T, uid, gid int, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	runtime.LockOSThread()
	raw := func(nr uintptr, a, b, c uintptr) {
		if _, _, e := unix.RawSyscall(nr, a, b, c); e != 0 {
			panic(fmt.Sprintf("credentials: %v", e)) // and the thread is not given back
		}
	}
	keep := ^uintptr(0)
	groups, err := unix.Getgroups()
	check(t, err)
	raw(unix.SYS_SETGROUPS, 0, 0, 0)
	raw(unix.SYS_SETRESGID, keep, uintptr(gid), keep)
	raw(unix.SYS_SETRESUID, keep, uintptr(uid), keep)
	f()
	raw(unix.SYS_SETRESUID, keep, 0, keep)
	raw(unix.SYS_SETRESGID, keep, 0, keep)
	if len(groups) > 0 {
		check(t, unix.Setgroups(groups))
	}
	runtime.UnlockOSThread()
}

func TestOpenFlags(t *testing.T) {
	d := posix(t)
	f, dir := create(t, d+"/f", 'a', 'b', 'c'), d+"/dir"
	check(t, os.Mkdir(dir, 0o755))
	check(t, os.Symlink("f", d+"/link"))
	check(t, os.Symlink("none", d+"/dangling"))
	try := func(path string, flags int, errno syscall.Errno) {
		t.Helper()
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
		want(t, fmt.Sprintf("open %s %#o", path[len(d):], flags), err, errno)
		if err == nil {
			unix.Close(fd)
		}
	}
	try(d+"/none", unix.O_RDONLY, unix.ENOENT)
	try(f+"/x", unix.O_RDONLY, unix.ENOTDIR)
	try(f, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, unix.EEXIST)
	try(d+"/link", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, unix.EEXIST)
	try(f, unix.O_CREAT|unix.O_RDWR, 0)
	try(dir, unix.O_WRONLY, unix.EISDIR)
	try(dir, unix.O_CREAT|unix.O_RDWR, unix.EISDIR)
	try(f, unix.O_DIRECTORY, unix.ENOTDIR)
	try(d+"/link", unix.O_NOFOLLOW, unix.ELOOP)
	try(d+"/link", unix.O_RDONLY, 0)
	try(d+"/dangling", unix.O_RDONLY, unix.ENOENT)
	try(d+"/dangling", unix.O_CREAT|unix.O_WRONLY, 0)
	content(t, d+"/none", "")
	try(d+"/none", unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, unix.EEXIST)
	content(t, f, "abc")
	try(f, unix.O_WRONLY|unix.O_TRUNC, 0)
	content(t, f, "")
	long := strings.Repeat("n", 255)
	try(d+"/"+long, unix.O_CREAT|unix.O_WRONLY, 0)
	try(d+"/"+long+"n", unix.O_CREAT|unix.O_WRONLY, unix.ENAMETOOLONG)
	try(d+"/"+long+"n", unix.O_RDONLY, unix.ENAMETOOLONG)
	// A name is bytes, not text.
	odd := d + "/\x01 \xff\n*"
	try(odd, unix.O_CREAT|unix.O_WRONLY, 0)
	stat(t, odd)
}

func TestCreateHonoursUmaskAndOwner(t *testing.T) {
	d := posix(t)
	old := unix.Umask(0o027)
	err := errors.Join(os.WriteFile(d+"/f", nil, 0o666), os.Mkdir(d+"/d", 0o777), unix.Mkfifo(d+"/p", 0o666))
	unix.Umask(old)
	check(t, err)
	for n, mode := range map[string]uint32{"f": unix.S_IFREG | 0o640, "d": unix.S_IFDIR | 0o750, "p": unix.S_IFIFO | 0o640} {
		if st := stat(t, d+"/"+n); st.Mode != mode {
			t.Errorf("%s has mode %o, want %o", n, st.Mode, mode)
		}
	}
	asUser(t, 1234, 2345, func() { create(t, d+"/u"); check(t, os.Mkdir(d+"/ud", 0o755)); check(t, os.Symlink("x", d+"/ul")) })
	for _, n := range []string{"u", "ud", "ul"} {
		if st := stat(t, d+"/"+n); st.Uid != 1234 || st.Gid != 2345 {
			t.Errorf("%s belongs to %d:%d", n, st.Uid, st.Gid)
		}
	}
}

func TestTmpfile(t *testing.T) {
	d := posix(t)
	fd, err := unix.Open(d, unix.O_TMPFILE|unix.O_RDWR, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal("O_TMPFILE is not supported")
	}
	check(t, err)
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("unnamed")); err != nil {
		t.Fatal(err)
	}
	if n := fstat(t, fd).Nlink; n != 0 {
		t.Errorf("it has %d links", n)
	}
	if es, _ := os.ReadDir(d); len(es) != 0 {
		t.Errorf("the directory has %v", es)
	}
	check(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, d+"/named", unix.AT_SYMLINK_FOLLOW))
	content(t, d+"/named", "unnamed")
	if n := fstat(t, fd).Nlink; n != 1 {
		t.Errorf("after linkat it has %d links", n)
	}
}

func TestMkdirRmdir(t *testing.T) {
	d := posix(t)
	before := stat(t, d)
	check(t, os.Mkdir(d+"/a", 0o755))
	if n := stat(t, d).Nlink; n != before.Nlink+1 {
		t.Errorf("parent has %d links, had %d", n, before.Nlink)
	}
	if n := stat(t, d+"/a").Nlink; n != 2 {
		t.Errorf("a new directory has %d links", n)
	}
	want(t, "mkdir again", unix.Mkdir(d+"/a", 0o755), unix.EEXIST)
	want(t, "mkdir below nothing", unix.Mkdir(d+"/x/y", 0o755), unix.ENOENT)
	create(t, d+"/a/f")
	want(t, "mkdir below a file", unix.Mkdir(d+"/a/f/y", 0o755), unix.ENOTDIR)
	want(t, "rmdir of what is not empty", unix.Rmdir(d+"/a"), unix.ENOTEMPTY)
	want(t, "rmdir of a file", unix.Rmdir(d+"/a/f"), unix.ENOTDIR)
	want(t, "rmdir .", unix.Rmdir(d+"/a/."), unix.EINVAL)
	want(t, "rmdir ..", unix.Rmdir(d+"/a/.."), unix.ENOTEMPTY)
	want(t, "unlink of a directory", unix.Unlink(d+"/a"), unix.EISDIR)
	check(t, unix.Unlink(d+"/a/f"))
	check(t, unix.Rmdir(d+"/a"))
	want(t, "rmdir again", unix.Rmdir(d+"/a"), unix.ENOENT)
	if n := stat(t, d).Nlink; n != before.Nlink {
		t.Errorf("parent has %d links in the end, had %d", n, before.Nlink)
	}
}

func TestRemovedDirectoryIsEmptyForWhoHoldsIt(t *testing.T) {
	d := posix(t)
	check(t, os.Mkdir(d+"/a", 0o755))
	fd := open(t, d+"/a", unix.O_RDONLY|unix.O_DIRECTORY)
	check(t, unix.Rmdir(d+"/a"))
	// ESTALE is the kernel's when it has to ask for the directory's attributes first: they went with its name.
	gone := func(what string, err error) {
		t.Helper()
		if err != unix.ENOENT && err != unix.ESTALE {
			t.Errorf("%s in a removed directory: %v, want ENOENT or ESTALE", what, err)
		}
	}
	_, err := unix.Openat(fd, "new", unix.O_CREAT|unix.O_WRONLY, 0o644)
	gone("create", err)
	gone("mkdir", unix.Mkdirat(fd, "new", 0o755))
}

func TestLink(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", 'x')
	check(t, os.Mkdir(d+"/sub", 0o755))
	check(t, unix.Link(f, d+"/sub/g"))
	a, b := stat(t, f), stat(t, d+"/sub/g")
	if a.Ino != b.Ino || a.Nlink != 2 || b.Nlink != 2 {
		t.Errorf("links: inodes %d %d, counts %d %d", a.Ino, b.Ino, a.Nlink, b.Nlink)
	}
	want(t, "link over a name", unix.Link(f, d+"/sub/g"), unix.EEXIST)
	want(t, "link of nothing", unix.Link(d+"/none", d+"/h"), unix.ENOENT)
	want(t, "link of a directory", unix.Link(d+"/sub", d+"/h"), unix.EPERM)
	check(t, os.WriteFile(d+"/sub/g", []byte("both"), 0o644))
	content(t, f, "both")
	check(t, unix.Unlink(f))
	content(t, d+"/sub/g", "both")
	if n := stat(t, d+"/sub/g").Nlink; n != 1 {
		t.Errorf("one of two names removed: %d links", n)
	}
}

func TestSymlink(t *testing.T) {
	d := posix(t)
	target := strings.Repeat("t", 4095)
	check(t, os.Symlink(target, d+"/l"))
	if got, err := os.Readlink(d + "/l"); err != nil || got != target {
		t.Errorf("readlink: %d bytes, %v", len(got), err)
	}
	if st := stat(t, d+"/l"); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Size != 4095 {
		t.Errorf("mode %o, size %d", st.Mode, st.Size)
	}
	want(t, "symlink over a name", unix.Symlink("x", d+"/l"), unix.EEXIST)
	check(t, os.Symlink("loop", d+"/loop"))
	_, err := unix.Open(d+"/loop", unix.O_RDONLY, 0)
	want(t, "open of a loop", err, unix.ELOOP)
	_, err = unix.Readlink(create(t, d+"/f"), make([]byte, 10))
	want(t, "readlink of a file", err, unix.EINVAL)
	check(t, unix.Fchownat(unix.AT_FDCWD, d+"/loop", 5, 6, unix.AT_SYMLINK_NOFOLLOW))
	if st := stat(t, d+"/loop"); st.Uid != 5 || st.Gid != 6 {
		t.Errorf("lchown: %d:%d", st.Uid, st.Gid)
	}
}

func TestUnlinkedFileLivesUntilClosed(t *testing.T) {
	d := posix(t)
	fd := open(t, create(t, d+"/f", []byte("hello")...), unix.O_RDWR)
	check(t, unix.Unlink(d+"/f"))
	create(t, d+"/f", 'n')
	if st := fstat(t, fd); st.Nlink != 0 || st.Size != 5 {
		t.Errorf("unlinked: %d links, %d bytes", st.Nlink, st.Size)
	}
	if _, err := unix.Pwrite(fd, []byte(" world"), 5); err != nil {
		t.Fatal(err)
	}
	check(t, unix.Fsync(fd))
	check(t, unix.Fchmod(fd, 0o600))
	b := make([]byte, 20)
	if n, err := unix.Pread(fd, b, 0); err != nil || string(b[:n]) != "hello world" {
		t.Errorf("read %q, %v", b[:n], err)
	}
	content(t, d+"/f", "n")
}

func TestRename(t *testing.T) {
	d := posix(t)
	mk := func(n string) string { check(t, os.Mkdir(d+"/"+n, 0o755)); return d + "/" + n }
	a, b, dir, full := create(t, d+"/a", 'a'), create(t, d+"/b", 'b'), mk("dir"), mk("full")
	create(t, full+"/x")
	want(t, "file over directory", unix.Rename(a, dir), unix.EISDIR)
	want(t, "directory over file", unix.Rename(dir, a), unix.ENOTDIR)
	want(t, "directory over a full one", unix.Rename(dir, full), unix.ENOTEMPTY)
	want(t, "into itself", unix.Rename(full, full+"/sub"), unix.EINVAL)
	want(t, "nothing", unix.Rename(d+"/none", a), unix.ENOENT)
	want(t, "too long a name", unix.Rename(a, d+"/"+strings.Repeat("n", 256)), unix.ENAMETOOLONG)
	fd := open(t, b, unix.O_RDONLY)
	check(t, unix.Rename(a, b))
	content(t, b, "a")
	got := make([]byte, 1)
	if _, err := unix.Pread(fd, got, 0); err != nil || got[0] != 'b' {
		t.Errorf("the replaced file, still open, reads %q, %v", got, err)
	}
	check(t, unix.Rename(full, dir)) // over the empty one
	stat(t, dir+"/x")
	want(t, "stat of the old name", unix.Stat(full, new(unix.Stat_t)), unix.ENOENT)
	// Two names of one file: rename does nothing.
	check(t, unix.Link(b, d+"/b2"))
	check(t, unix.Rename(b, d+"/b2"))
	content(t, b, "a")
	content(t, d+"/b2", "a")
}

func TestRenameMovesDirectories(t *testing.T) {
	d := posix(t)
	check(t, os.MkdirAll(d+"/p/q/r", 0o755))
	check(t, os.Mkdir(d+"/to", 0o755))
	create(t, d+"/p/q/r/f", 'x')
	p, to := stat(t, d+"/p").Nlink, stat(t, d+"/to").Nlink
	check(t, unix.Rename(d+"/p/q", d+"/to/q2"))
	content(t, d+"/to/q2/r/f", "x")
	if stat(t, d+"/p").Nlink != p-1 || stat(t, d+"/to").Nlink != to+1 {
		t.Errorf("links of the parents: %d -> %d, %d -> %d", p, stat(t, d+"/p").Nlink, to, stat(t, d+"/to").Nlink)
	}
	if stat(t, d+"/to/q2/..").Ino != stat(t, d+"/to").Ino {
		t.Error(".. leads to the old parent")
	}
	want(t, "below itself, deep", unix.Rename(d+"/to", d+"/to/q2/r/s"), unix.EINVAL)
}

func TestRename2(t *testing.T) {
	d := posix(t)
	a, b := create(t, d+"/a", 'a'), create(t, d+"/b", 'b')
	rename := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
	}
	want(t, "NOREPLACE over a name", rename(a, b, unix.RENAME_NOREPLACE), unix.EEXIST)
	check(t, rename(a, d+"/c", unix.RENAME_NOREPLACE))
	content(t, d+"/c", "a")
	check(t, os.Mkdir(d+"/dir", 0o755))
	create(t, d+"/dir/in")
	check(t, rename(b, d+"/dir", unix.RENAME_EXCHANGE))
	content(t, d+"/dir", "b")
	stat(t, b+"/in")
	want(t, "EXCHANGE with nothing", rename(b, d+"/none", unix.RENAME_EXCHANGE), unix.ENOENT)
	want(t, "EXCHANGE and NOREPLACE", rename(b, d+"/c", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
}

// Whoever opens a path that others keep replacing finds a whole file, always.
func TestRenameIsAtomicForReaders(t *testing.T) {
	d := posix(t)
	create(t, d+"/f", bytes.Repeat([]byte("0"), 100)...)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := range 25 {
				tmp := fmt.Sprintf("%s/.tmp%d", d, w)
				if err := errors.Join(os.WriteFile(tmp, bytes.Repeat([]byte{'0' + byte(i%10)}, 100), 0o644), os.Rename(tmp, d+"/f")); err != nil {
					t.Error(err)
				}
			}
			stop.Store(true)
		})
	}
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				b, err := os.ReadFile(d + "/f")
				if err != nil || len(b) != 100 || !bytes.Equal(b, bytes.Repeat(b[:1], 100)) {
					t.Errorf("read %d bytes: %v", len(b), err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Of many who create one name exclusively one succeeds.
func TestExclusiveCreate(t *testing.T) {
	d := posix(t)
	for i := range 10 {
		var won atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				fd, err := unix.Open(fmt.Sprint(d, "/f", i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
				if err == nil {
					won.Add(1)
					unix.Close(fd)
				} else if err != unix.EEXIST {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d succeeded", won.Load())
		}
	}
}

func TestMknod(t *testing.T) {
	d := posix(t)
	for n, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "sock": unix.S_IFSOCK, "file": unix.S_IFREG, "chr": unix.S_IFCHR, "blk": unix.S_IFBLK} {
		dev := 0
		if mode == unix.S_IFCHR || mode == unix.S_IFBLK {
			dev = int(unix.Mkdev(7, 300))
		}
		if err := unix.Mknod(d+"/"+n, mode|0o640, dev); err != nil {
			t.Errorf("mknod %s: %v", n, err)
			continue
		}
		if st := stat(t, d+"/"+n); st.Mode != mode|0o640 || st.Rdev != uint64(dev) {
			t.Errorf("%s: mode %o, device %x", n, st.Mode, st.Rdev)
		}
	}
	want(t, "mknod over a name", unix.Mknod(d+"/fifo", unix.S_IFIFO|0o600, 0), unix.EEXIST)
	done := make(chan error, 1)
	go func() { done <- os.WriteFile(d+"/fifo", []byte("through"), 0) }()
	content(t, d+"/fifo", "through")
	check(t, <-done)
}

func TestDirectoryStream(t *testing.T) {
	d := posix(t)
	const n = 600
	for i := range n {
		create(t, fmt.Sprintf("%s/keep%04d", d, i))
	}
	f, err := os.Open(d)
	check(t, err)
	defer f.Close()
	seen := map[string]int{}
	for i := 0; ; i++ {
		names, err := f.Readdirnames(20)
		if len(names) == 0 {
			break
		}
		check(t, err)
		for _, n := range names {
			seen[n]++
		}
		// The directory changes under the stream.
		create(t, fmt.Sprintf("%s/new%04d", d, i))
		check(t, os.Remove(fmt.Sprintf("%s/keep%04d", d, n-1-i)))
	}
	for name, times := range seen {
		if times != 1 {
			t.Errorf("%s was listed %d times", name, times)
		}
	}
	for i := range n {
		if seen[fmt.Sprintf("keep%04d", i)] == 0 && exists(fmt.Sprintf("%s/keep%04d", d, i)) {
			t.Errorf("keep%04d, which nobody touched, was not listed", i)
		}
	}
}

func exists(path string) bool { return unix.Lstat(path, new(unix.Stat_t)) == nil }

type dirent struct {
	ino  uint64
	off  int64
	typ  byte
	name string
}

func getdents(t *testing.T, fd int) []dirent {
	t.Helper()
	b := make([]byte, 1000)
	n, err := unix.Getdents(fd, b)
	check(t, err)
	var out []dirent
	for b = b[:n]; len(b) > 0; {
		size := int(b[16]) | int(b[17])<<8
		e := dirent{typ: b[18], name: string(b[19:size])}
		e.name, _, _ = strings.Cut(e.name, "\x00")
		for i := range 8 {
			e.ino |= uint64(b[i]) << (8 * i)
			e.off |= int64(b[8+i]) << (8 * i)
		}
		out, b = append(out, e), b[size:]
	}
	return out
}

func TestSeekdir(t *testing.T) {
	d := posix(t)
	for i := range 100 {
		create(t, fmt.Sprint(d, "/f", i))
	}
	fd := open(t, d, unix.O_RDONLY|unix.O_DIRECTORY)
	var all []dirent
	for es := getdents(t, fd); len(es) > 0; es = getdents(t, fd) {
		all = append(all, es...)
	}
	if len(all) != 102 {
		t.Fatalf("%d entries, want 100 and . and ..", len(all))
	}
	for _, i := range []int{57, 3, 99, 0} {
		_, err := unix.Seek(fd, all[i].off, 0)
		check(t, err)
		if es := getdents(t, fd); i+1 < len(all) && (len(es) == 0 || es[0].name != all[i+1].name) {
			t.Errorf("after seeking behind entry %d (%s) comes %v, want %s", i, all[i].name, es, all[i+1].name)
		}
	}
	for _, e := range all {
		p := d + "/" + e.name
		if st := stat(t, p); st.Ino != e.ino && e.name != ".." || byte(st.Mode>>12) != e.typ {
			t.Errorf("%s: entry says inode %d type %d, stat %d %o", e.name, e.ino, e.typ, st.Ino, st.Mode)
		}
	}
	_, err := unix.Seek(fd, 0, 0)
	check(t, err)
	create(t, d+"/later")
	found := false
	for es := getdents(t, fd); len(es) > 0; es = getdents(t, fd) {
		for _, e := range es {
			found = found || e.name == "later"
		}
	}
	if !found {
		t.Error("a name created before rewinddir is not listed after it")
	}
}

func TestTimes(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f")
	set := []unix.Timespec{{Sec: 1_000_000_007, Nsec: 123_456_789}, {Sec: -86400, Nsec: 5}}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, f, set, 0))
	st := stat(t, f)
	if st.Atim != set[0] || st.Mtim != set[1] {
		t.Errorf("utimensat: %v %v, want %v", st.Atim, st.Mtim, set)
	}
	omit := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
	check(t, unix.UtimesNanoAt(unix.AT_FDCWD, f, omit, 0))
	now := stat(t, f)
	if now.Atim != set[0] || time.Since(time.Unix(now.Mtim.Unix())).Abs() > time.Hour {
		t.Errorf("UTIME_OMIT, UTIME_NOW: %v %v", now.Atim, now.Mtim)
	}
	newer := func(what string, a, b unix.Timespec) {
		t.Helper()
		if b.Nano() <= a.Nano() {
			t.Errorf("%s: time went from %d to %d", what, a.Nano(), b.Nano())
		}
	}
	// One step each, so that clocks with ticks of 10 ms tell them apart.
	step := func(what string, f func() error, of string, get func(unix.Stat_t) unix.Timespec) {
		t.Helper()
		before := get(stat(t, of))
		for start := time.Now(); time.Since(start) < 12*time.Millisecond; {
			runtime.Gosched()
		}
		check(t, f())
		newer(what, before, get(stat(t, of)))
	}
	mtime := func(s unix.Stat_t) unix.Timespec { return s.Mtim }
	ctime := func(s unix.Stat_t) unix.Timespec { return s.Ctim }
	step("mtime at write", func() error { return os.WriteFile(f, []byte("x"), 0) }, f, mtime)
	step("ctime at write", func() error { return os.WriteFile(f, []byte("x"), 0) }, f, ctime)
	step("mtime at truncate", func() error { return os.Truncate(f, 0) }, f, mtime)
	step("ctime at chmod", func() error { return os.Chmod(f, 0o600) }, f, ctime)
	step("ctime at link", func() error { return os.Link(f, d+"/g") }, f, ctime)
	step("ctime at unlink", func() error { return os.Remove(d + "/g") }, f, ctime)
	step("ctime at rename", func() error { return os.Rename(f, d+"/h") }, d, ctime)
	step("directory mtime at create", func() error { return os.WriteFile(d+"/i", nil, 0o644) }, d, mtime)
	step("directory mtime at unlink", func() error { return os.Remove(d + "/i") }, d, mtime)
	step("directory mtime at mkdir", func() error { return os.Mkdir(d+"/j", 0o755) }, d, mtime)
}

func TestStatx(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", bytes.Repeat([]byte("x"), 100_000)...)
	var x unix.Statx_t
	check(t, unix.Statx(unix.AT_FDCWD, f, 0, unix.STATX_ALL, &x))
	if x.Size != 100_000 || x.Blocks*512 < 100_000 || x.Nlink != 1 || x.Blksize == 0 {
		t.Errorf("size %d, blocks %d, links %d, block size %d", x.Size, x.Blocks, x.Nlink, x.Blksize)
	}
	fd := open(t, f, unix.O_PATH)
	if st := fstat(t, fd); st.Size != 100_000 {
		t.Errorf("fstat of O_PATH: %d bytes", st.Size)
	}
}

func TestStatfs(t *testing.T) {
	d := posix(t)
	var s unix.Statfs_t
	check(t, unix.Statfs(d, &s))
	if s.Blocks == 0 || s.Bfree > s.Blocks || s.Bavail > s.Bfree || s.Namelen != 255 || s.Bsize == 0 {
		t.Errorf("%+v", s)
	}
}
