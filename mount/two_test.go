package mount_test

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"rfs/mount/mounttest"
)

// Two mounts of one cluster, each with a client of its own: what one does the other sees at once.

func two(t *testing.T) (a, b string) {
	t.Helper()
	s, root := mounttest.Shared(t)
	a, err := os.MkdirTemp(root, "two")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(a)) })
	return a, s.Mount(t, "second", "suid,dev") + a[len(root):]
}

func TestNamesAreSeenAtOnce(t *testing.T) {
	a, b := two(t)
	for i := range 10 {
		n := fmt.Sprint("/n", i)
		create(t, a+n, 'x')
		content(t, b+n, "x")
		check(t, unix.Rename(b+n, b+n+"r"))
		want(t, "stat of the old name", unix.Stat(a+n, new(unix.Stat_t)), unix.ENOENT)
		check(t, os.Chmod(a+n+"r", 0o600))
		if st := stat(t, b+n+"r"); st.Mode&0o777 != 0o600 {
			t.Errorf("mode %o", st.Mode)
		}
		check(t, unix.Unlink(b+n+"r"))
		want(t, "stat of what is gone", unix.Stat(a+n+"r", new(unix.Stat_t)), unix.ENOENT)
	}
	want(t, "mkdir", unix.Mkdir(a+"/d", 0o755), 0)
	want(t, "mkdir by the other", unix.Mkdir(b+"/d", 0o755), unix.EEXIST)
}

func TestBytesAreSeenAtOnce(t *testing.T) {
	a, b := two(t)
	w := open(t, a+"/f", unix.O_CREAT|unix.O_RDWR)
	check(t, write(w, random(1, 300_000), 0)) // in the writer's memory yet
	r := open(t, b+"/f", unix.O_RDWR)
	p := make([]byte, 100)
	for i := range 20 {
		from, to, off := w, r, int64(i*10_000)
		if i%2 == 1 {
			from, to = r, w
		}
		line := fmt.Sprintf("line %d", i)
		check(t, write(from, []byte(line), off))
		if n, err := unix.Pread(to, p[:len(line)], off); err != nil || string(p[:n]) != line {
			t.Errorf("the other reads %q, %v, want %q", p[:n], err, line)
		}
	}
	check(t, write(w, []byte("longer"), 1<<20))
	if st := stat(t, b+"/f"); st.Size != 1<<20+6 {
		t.Errorf("the other sees %d bytes", st.Size)
	}
	check(t, unix.Ftruncate(r, 5))
	if st := fstat(t, w); st.Size != 5 {
		t.Errorf("after truncation by the other: %d bytes", st.Size)
	}
}

func TestAppendByTwoClients(t *testing.T) {
	if os.Getenv("RFS_TEST_KNOWN") == "" {
		t.Skip("known to fail now and then: a record is overwritten when a lease changes hands (docs/posix.md); RFS_TEST_KNOWN=1 runs it")
	}
	a, b := two(t)
	const each = 30
	var wg sync.WaitGroup
	for i, dir := range []string{a, b, a, b} {
		cmd := mounttest.Play("append", dir+"/log", fmt.Sprint(each), string(rune('a'+i)))
		wg.Go(func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	wg.Wait()
	log, err := os.ReadFile(b + "/log")
	check(t, err)
	if len(log) != 4*each*64 {
		t.Fatalf("%d bytes, want %d", len(log), 4*each*64)
	}
	for i := 0; i < len(log); i += 64 {
		if !bytes.Equal(log[i:i+64], bytes.Repeat(log[i:i+1], 64)) {
			t.Fatalf("the record at %d is torn", i)
		}
	}
}

func TestLocksOfTwoClients(t *testing.T) {
	a, b := two(t)
	la, lb := newLocker(t, a+"/f"), newLocker(t, b+"/f")
	la.want("setlk w 0 10", "ok")
	lb.want("setlk r 5 1", "EAGAIN")
	lb.want("getlk w 0 0", "w 0 10 0") // whose process it is only the other machine knows
	la.want("flock ex", "ok")
	lb.want("flock sh nb", "EAGAIN")
	lb.send("setlkw w 0 1")
	lb.blocked()
	la.end()
	if got := lb.answer(); got != "ok" {
		t.Errorf("the waiter got %s", got)
	}
}

func TestUnlinkedByAnother(t *testing.T) {
	a, b := two(t)
	fd := open(t, create(t, a+"/f", 'x'), unix.O_RDWR)
	check(t, unix.Unlink(b+"/f"))
	check(t, write(fd, []byte("still"), 0))
	p := make([]byte, 10)
	if n, err := unix.Pread(fd, p, 0); err != nil || string(p[:n]) != "still" {
		t.Errorf("%q, %v", p[:n], err)
	}
	if st := fstat(t, fd); st.Nlink != 0 {
		t.Errorf("%d links", st.Nlink)
	}
}

// With timeouts and the page cache the mount does less for each call, and the single client's view is as strict.
func TestCachedMount(t *testing.T) {
	s, _ := mounttest.Shared(t)
	dir := s.Mount(t, "cached", "cache=page,entry_timeout=1,attr_timeout=1")
	data := random(9, 3<<20)
	for i := range 50 { // enough for READDIRPLUS to come in parts
		create(t, fmt.Sprintf("%s/cached%02d", dir, i), data[:i]...)
	}
	es, err := os.ReadDir(dir)
	check(t, err)
	n := 0
	for _, e := range es {
		var i int
		if _, err := fmt.Sscanf(e.Name(), "cached%d", &i); err != nil {
			continue
		}
		n++
		info, err := e.Info()
		if err != nil || info.Size() != int64(i) {
			t.Errorf("%s: %v, %v", e.Name(), info, err)
		}
		check(t, os.Remove(dir+"/"+e.Name()))
	}
	if n != 50 {
		t.Errorf("%d entries", n)
	}
	f := create(t, dir+"/big", data...)
	check(t, same(f, data, "through the page cache"))
	copy(data[100:], "changed")
	fd := open(t, f, unix.O_RDWR)
	check(t, write(fd, []byte("changed"), 100))
	check(t, same(f, data, "after a change"))
	check(t, os.Remove(f))
	if out, err := mounttest.Play("mmap", dir+"/m").CombinedOutput(); err != nil {
		t.Errorf("mmap: %v: %s", err, out)
	}
	check(t, os.Remove(dir+"/m"))
}
