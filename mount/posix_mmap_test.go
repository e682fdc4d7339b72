package mount_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// mmapRole maps a file in several ways and compares what is seen through the mappings, by
// read(2) and by write(2). It is a process of its own: a page fault stops the whole Go runtime.
func mmapRole() error {
	path := os.Args[1]
	const size = 3<<20 + 100
	data := random(5, size)
	if err := os.WriteFile(path, data, 0o755); err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	private, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("MAP_PRIVATE: %w", err)
	}
	if !bytes.Equal(private, data) {
		return fmt.Errorf("MAP_PRIVATE: first difference at %d", differ(private, data))
	}
	private[0] ^= 0xff
	sharedMap, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("MAP_SHARED: %w", err)
	}
	if !bytes.Equal(sharedMap, data) {
		return fmt.Errorf("MAP_SHARED, or a private change was seen: first difference at %d", differ(sharedMap, data))
	}
	change := func(off int, b []byte) { copy(sharedMap[off:], b); copy(data[off:], b) }
	change(4090, []byte("across a page"))
	change(1<<20-3, []byte("across a request"))
	change(size-4, []byte("tail"))
	if err := unix.Msync(sharedMap, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	if err := same(path, data, "read after msync"); err != nil {
		return err
	}
	// write(2) is seen in the mapping, and a store not yet written back is not lost by it.
	change(10_000, []byte("stored"))
	if _, err := unix.Pwrite(fd, []byte("written"), 10_100); err != nil {
		return err
	}
	copy(data[10_100:], "written")
	if !bytes.Equal(sharedMap, data) {
		return fmt.Errorf("mapping after write: first difference at %d", differ(sharedMap, data))
	}
	if err := errors.Join(unix.Munmap(sharedMap), unix.Munmap(private), unix.Close(fd)); err != nil {
		return err
	}
	if err := same(path, data, "read after munmap"); err != nil {
		return err
	}
	st, err := os.Stat(path)
	if err == nil && st.Size() != size {
		err = fmt.Errorf("size %d after mapped writes, want %d", st.Size(), size)
	}
	return err
}

func same(path string, want []byte, what string) error {
	got, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%s: %d bytes of %d, first difference at %d", what, len(got), len(want), differ(got, want))
	}
	return err
}

func TestMmap(t *testing.T) {
	if out, err := play(t, "mmap", posix(t)+"/f").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// appendRole appends os.Args[2] records of 64 bytes made of os.Args[3] to os.Args[1].
func appendRole() error {
	fd, err := unix.Open(os.Args[1], unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	var n int
	if _, err := fmt.Sscan(os.Args[2], &n); err != nil {
		return err
	}
	for range n {
		if m, err := unix.Write(fd, bytes.Repeat([]byte(os.Args[3][:1]), 64)); m != 64 || err != nil {
			return fmt.Errorf("append: %d, %w", m, err)
		}
	}
	return unix.Close(fd)
}
