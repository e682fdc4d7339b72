package mount_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// random returns n bytes of a seed.
func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// A random sequence of writes, truncations, punches and reads against the same on a slice.
func TestRandomIO(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	for _, flags := range []int{0, unix.O_SYNC, unix.O_DIRECT} {
		t.Run(fmt.Sprintf("%#o", flags), func(t *testing.T) {
			t.Logf("seed %d", seed)
			r := rand.New(rand.NewPCG(seed, uint64(flags)))
			d := posix(t)
			fd := open(t, d+"/f", unix.O_CREAT|unix.O_RDWR|flags)
			const most = 9 << 20 // two stripes and a bit
			var model []byte
			mem, err := unix.Mmap(-1, 0, 3<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
			check(t, err)
			defer unix.Munmap(mem)
			grow := func(n int) {
				if n > len(model) {
					model = append(model, make([]byte, n-len(model))...)
				}
			}
			for i := range 40 {
				n, off := 1+r.IntN(1<<(4+r.IntN(18))), r.IntN(most-(3<<20))
				if flags == unix.O_DIRECT {
					n, off = (n+4095)&^4095, off&^4095
				}
				p := mem[:n]
				switch k := r.IntN(10); {
				case k < 5:
					copy(p, random(seed+uint64(i), n))
					m, err := unix.Pwrite(fd, p, int64(off))
					if err != nil || m != n {
						t.Fatalf("write %d at %d: %d, %v", n, off, m, err)
					}
					grow(off + n)
					copy(model[off:], p)
				case k == 5:
					check(t, unix.Ftruncate(fd, int64(off)))
					model = model[:min(off, len(model))]
					grow(off)
				case k == 6:
					check(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n)))
					if off < len(model) {
						clear(model[off:min(off+n, len(model))])
					}
				default:
					m, err := unix.Pread(fd, p, int64(off))
					rest := model[min(off, len(model)):]
					rest = rest[:min(n, len(rest))]
					if err != nil || !bytes.Equal(p[:m], rest) {
						t.Fatalf("op %d: read %d at %d of %d: %d bytes, %v; first difference at %d", i, n, off, len(model), m, err, differ(p[:m], rest))
					}
				}
				if st := fstat(t, fd); st.Size != int64(len(model)) {
					t.Fatalf("op %d: size %d, want %d", i, st.Size, len(model))
				}
			}
			check(t, unix.Fsync(fd))
			got, err := os.ReadFile(d + "/f")
			if err != nil || !bytes.Equal(got, model) {
				t.Errorf("in the end: %d bytes of %d, %v; first difference at %d", len(got), len(model), err, differ(got, model))
			}
		})
	}
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func TestHolesReadAsZeros(t *testing.T) {
	d := posix(t)
	fd := open(t, d+"/f", unix.O_CREAT|unix.O_RDWR)
	const far = 5 << 30
	_, err := unix.Pwrite(fd, []byte("end"), far)
	check(t, err)
	b := bytes.Repeat([]byte{1}, 1<<20)
	for _, off := range []int64{0, 1 << 30, far - 1<<20} {
		if n, err := unix.Pread(fd, b, off); err != nil || n != len(b) || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("hole at %d: %d bytes, %v", off, n, err)
		}
	}
	if n, err := unix.Pread(fd, b, far); err != nil || string(b[:n]) != "end" {
		t.Errorf("the end reads %q, %v", b[:n], err)
	}
	if n, err := unix.Pread(fd, b, far+100); n != 0 || err != nil {
		t.Errorf("beyond the end: %d bytes, %v", n, err)
	}
	if st := fstat(t, fd); st.Size != far+3 {
		t.Errorf("size %d", st.Size)
	}
}

func TestSeekDataHole(t *testing.T) {
	d := posix(t)
	fd := open(t, d+"/f", unix.O_CREAT|unix.O_RDWR)
	const hole = 40 << 20
	check(t, write(fd, random(1, 64<<10), 0))
	check(t, write(fd, random(2, 64<<10), hole))
	seek := func(off int64, whence int) int64 {
		n, err := unix.Seek(fd, off, whence)
		if errors.Is(err, unix.ENXIO) {
			return -1
		}
		check(t, err)
		return n
	}
	if n := seek(0, unix.SEEK_DATA); n != 0 {
		t.Errorf("data from 0 is at %d", n)
	}
	// A file system may see a hole later than it begins, and data earlier, but never skips data.
	if n := seek(0, unix.SEEK_HOLE); n < 64<<10 || n > hole {
		t.Errorf("the hole is at %d", n)
	}
	if n := seek(20<<20, unix.SEEK_DATA); n > hole || n < 20<<20 {
		t.Errorf("data from 20 MiB is at %d", n)
	}
	if n := seek(hole, unix.SEEK_HOLE); n != hole+64<<10 {
		t.Errorf("the hole at the end is at %d", n)
	}
	if n := seek(hole+64<<10, unix.SEEK_DATA); n != -1 {
		t.Errorf("data behind the end is at %d", n)
	}
	if n := seek(-5, unix.SEEK_END); n != hole+64<<10-5 {
		t.Errorf("SEEK_END is at %d", n)
	}
}

func write(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func TestAppend(t *testing.T) {
	d := posix(t)
	const writers, records, size = 4, 25, 100
	var wg sync.WaitGroup
	for w := range writers {
		fd := open(t, d+"/log", unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND)
		wg.Go(func() {
			for range records {
				if n, err := unix.Write(fd, bytes.Repeat([]byte{'a' + byte(w)}, size)); n != size || err != nil {
					t.Error(n, err)
				}
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(d + "/log")
	check(t, err)
	if len(b) != writers*records*size {
		t.Fatalf("%d bytes, want %d", len(b), writers*records*size)
	}
	for i := 0; i < len(b); i += size {
		if !bytes.Equal(b[i:i+size], bytes.Repeat(b[i:i+1], size)) {
			t.Fatalf("the record at %d is torn", i)
		}
	}
	// pwrite(2): on Linux O_APPEND beats the offset.
	fd := open(t, d+"/log", unix.O_RDWR|unix.O_APPEND)
	_, err = unix.Pwrite(fd, []byte("tail"), 0)
	check(t, err)
	if off, err := unix.Seek(fd, 0, io.SeekEnd); err != nil || off != int64(len(b)+4) {
		t.Errorf("the end is at %d, %v", off, err)
	}
	_, err = unix.Write(fd, []byte("more"))
	check(t, err)
	if off, err := unix.Seek(fd, 0, io.SeekCurrent); err != nil || off != int64(len(b)+8) {
		t.Errorf("after an append the position is %d, %v", off, err)
	}
	// The flag can be taken away and set again.
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
	check(t, err)
	check(t, write(fd, []byte("HEAD"), 0))
	if got, err := os.ReadFile(d + "/log"); err != nil || string(got[:4]) != "HEAD" || string(got[len(b):]) != "tailmore" {
		t.Errorf("head %q, tail %q, %v", got[:4], got[len(b):], err)
	}
}

func TestTruncate(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", bytes.Repeat([]byte("x"), 300_000)...)
	check(t, os.Truncate(f, 100))
	check(t, os.Truncate(f, 200_000))
	b, err := os.ReadFile(f)
	check(t, err)
	if len(b) != 200_000 || !bytes.Equal(b[:100], bytes.Repeat([]byte("x"), 100)) || !bytes.Equal(b[100:], make([]byte, 199_900)) {
		t.Errorf("what was cut off came back, or more is gone")
	}
	want(t, "truncate of a directory", unix.Truncate(d, 0), unix.EISDIR)
	want(t, "truncate of nothing", unix.Truncate(d+"/none", 0), unix.ENOENT)
	want(t, "truncate to less than nothing", unix.Truncate(f, -1), unix.EINVAL)
	fd := open(t, f, unix.O_RDONLY)
	want(t, "ftruncate of what is open for reading", unix.Ftruncate(fd, 0), unix.EINVAL)
	check(t, os.Chmod(f, 0o444))
	asUser(t, 1234, 1234, func() { want(t, "truncate of what is read-only", unix.Truncate(f, 0), unix.EACCES) })
}

func TestFallocate(t *testing.T) {
	d := posix(t)
	f := create(t, d+"/f", bytes.Repeat([]byte("x"), 20_000)...)
	fd := open(t, f, unix.O_RDWR)
	alloc := func(mode uint32, off, n int64, size int64) {
		t.Helper()
		check(t, unix.Fallocate(fd, mode, off, n))
		if st := fstat(t, fd); st.Size != size {
			t.Errorf("fallocate %#x: size %d, want %d", mode, st.Size, size)
		}
	}
	alloc(0, 0, 10_000, 20_000)
	alloc(0, 10_000, 20_000, 30_000)
	alloc(unix.FALLOC_FL_KEEP_SIZE, 0, 100_000, 30_000)
	alloc(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 1000, 5000, 30_000)
	alloc(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 19_000, 50_000, 30_000)
	alloc(unix.FALLOC_FL_ZERO_RANGE, 8000, 24_000, 32_000)
	expect := append(bytes.Repeat([]byte("x"), 1000), make([]byte, 31_000)...)
	copy(expect[6000:8000], bytes.Repeat([]byte("x"), 2000))
	b, err := os.ReadFile(f)
	if err != nil || !bytes.Equal(b, expect) {
		t.Errorf("%d bytes, %v, first difference at %d", len(b), err, differ(b, expect))
	}
	want(t, "fallocate of nothing", unix.Fallocate(fd, 0, 0, 0), unix.EINVAL)
	want(t, "collapse", unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), unix.EOPNOTSUPP)
}

func TestCopyFileRange(t *testing.T) {
	d := posix(t)
	data := random(3, 6<<20)
	src := open(t, create(t, d+"/src", data...), unix.O_RDWR)
	dst := open(t, d+"/dst", unix.O_CREAT|unix.O_RDWR)
	check(t, write(dst, []byte("0123"), 0))
	from, to := int64(1000), int64(4)
	for left := len(data); left > 0; {
		n, err := unix.CopyFileRange(src, &from, dst, &to, left, 0)
		check(t, err)
		if n == 0 {
			break
		}
		left -= n
	}
	b, err := os.ReadFile(d + "/dst")
	if expect := append([]byte("0123"), data[1000:]...); err != nil || !bytes.Equal(b, expect) {
		t.Errorf("%d bytes, want %d, %v, first difference at %d", len(b), len(expect), err, differ(b, expect))
	}
	from, to = 0, 100
	_, err = unix.CopyFileRange(src, &from, src, &to, 1000, 0)
	want(t, "overlapping ranges of one file", err, unix.EINVAL)
}

func TestSyncs(t *testing.T) {
	d := posix(t)
	fd := open(t, create(t, d+"/f", 'x'), unix.O_RDWR)
	check(t, unix.Fsync(fd))
	check(t, unix.Fdatasync(fd))
	check(t, unix.SyncFileRange(fd, 0, 1, unix.SYNC_FILE_RANGE_WRITE))
	dir := open(t, d, unix.O_RDONLY|unix.O_DIRECTORY)
	check(t, unix.Fsync(dir))
	check(t, unix.Syncfs(dir))
}

// What one process writes another sees at once, whatever handle it has.
func TestWritesAreSeenAtOnce(t *testing.T) {
	d := posix(t)
	w := open(t, d+"/f", unix.O_CREAT|unix.O_RDWR)
	r := open(t, d+"/f", unix.O_RDONLY)
	b := make([]byte, 100)
	for i := range 20 {
		line := fmt.Sprintf("line %d\n", i)
		check(t, write(w, []byte(line), int64(i*100)))
		if st := fstat(t, r); st.Size != int64(i*100+len(line)) {
			t.Errorf("size %d after write %d", st.Size, i)
		}
		if n, err := unix.Pread(r, b, int64(i*100)); err != nil || string(b[:n]) != line {
			t.Errorf("read %q, %v, want %q", b[:n], err, line)
		}
	}
}

func TestParallelWritersOfOneFile(t *testing.T) {
	d := posix(t)
	const n, part = 8, 1<<20 + 12345
	data := random(4, n*part)
	var wg sync.WaitGroup
	for i := range n {
		fd := open(t, d+"/f", unix.O_CREAT|unix.O_WRONLY)
		wg.Go(func() {
			for off := i * part; off < (i+1)*part; off += 200_000 {
				if err := write(fd, data[off:min(off+200_000, (i+1)*part)], int64(off)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(d + "/f")
	if err != nil || !bytes.Equal(b, data) {
		t.Errorf("%d bytes, %v, first difference at %d of %d", len(b), err, differ(b, data), len(data))
	}
}

// A program whose timer signals come all the time gets no EINTR from files.
func TestSignalsDoNotBreakIO(t *testing.T) {
	d := posix(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	tid := make(chan int, 1)
	wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		defer close(stop)
		fd, err := unix.Open(d+"/f", unix.O_CREAT|unix.O_RDWR|unix.O_SYNC, 0o644)
		if err != nil {
			t.Error(err)
			return
		}
		defer unix.Close(fd)
		for i := range 30 {
			if n, err := unix.Pwrite(fd, random(uint64(i), 100_000), int64(i)*100_000); n != 100_000 || err != nil {
				t.Errorf("write: %d, %v", n, err)
			}
			if err := unix.Stat(d+"/f", new(unix.Stat_t)); err != nil {
				t.Errorf("stat: %v", err)
			}
		}
	})
	id := <-tid
	for {
		select {
		case <-stop:
			wg.Wait()
			return
		default:
			_ = unix.Tgkill(os.Getpid(), id, unix.SIGURG) // the Go runtime's own, which it ignores
			runtime.Gosched()
		}
	}
}
