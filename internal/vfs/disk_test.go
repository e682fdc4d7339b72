package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

func write(t *testing.T, fsys FS, name string, data []byte, off int64, sync bool) {
	t.Helper()
	f, err := fsys.Open(name, ReadWrite)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = fsys.Create(name)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
	if sync {
		if err := errors.Join(f.Sync(), fsys.SyncDir("/d")); err != nil {
			t.Fatal(err)
		}
	}
}

// Both file systems do the same with the same calls.
func TestFS(t *testing.T) {
	for name, c := range map[string]struct {
		fsys FS
		dir  string
	}{"os": {OS, t.TempDir()}, "disk": {NewDisk(0), "/x"}} {
		t.Run(name, func(t *testing.T) { testFS(t, c.fsys, c.dir+"/a/b") })
	}
}

func testFS(t *testing.T, fsys FS, dir string) {
	if err := errors.Join(fsys.Mkdir(dir), fsys.Mkdir(dir)); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(fsys, dir, "one", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := fsys.Rename(dir+"/one", dir+"/two"); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadFile(fsys, dir+"/two"); err != nil || string(b) != "hello" {
		t.Error(string(b), err)
	}
	if _, err := fsys.Open(dir+"/one", ReadOnly); !errors.Is(err, fs.ErrNotExist) {
		t.Error("open of what was renamed:", err)
	}
	f, err := fsys.Open(dir+"/two", ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Allocate(0, 8192), f.Truncate(10000)); err != nil {
		t.Error(err)
	}
	if n, err := f.Size(); err != nil || n != 10000 {
		t.Error(n, err)
	}
	if err := f.PunchHole(0, 4096); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	got := make([]byte, 10000)
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got[5:], make([]byte, 9995)) {
		t.Error("not zeros after truncate and punch", err)
	}
	l, err := fsys.Lock(dir + "/lock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.Lock(dir + "/lock"); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Error("second lock:", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	names, err := fsys.List(dir)
	if err != nil || len(names) != 2 || names[0] != "lock" || names[1] != "two" {
		t.Error(names, err)
	}
	if err := fsys.Remove(dir); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Error("removal of a directory that is not empty:", err)
	}
	if u, err := fsys.Usage(dir); err != nil || u.Total < u.Avail || u.Avail == 0 {
		t.Error(u, err)
	}
}

// A crash keeps what was flushed; of the rest, each sector is old or new, or
// torn when asked for; all fates occur.
func TestCrashClone(t *testing.T) {
	d := NewDisk(0)
	if err := d.Mkdir("/d"); err != nil {
		t.Fatal(err)
	}
	old, new := bytes.Repeat([]byte{1}, 4*SectorSize), bytes.Repeat([]byte{2}, 4*SectorSize)
	write(t, d, "/d/f", old, 0, true)
	write(t, d, "/d/f", new, 0, false)
	write(t, d, "/d/g", new, 0, false)
	rng := rand.New(rand.NewPCG(1, 2))
	kept, lost, torn, named := 0, 0, 0, 0
	for range 200 {
		c := d.CrashClone(Crash{Keep: 50, Tear: 20}, rng)
		if c.BootID() == d.BootID() {
			t.Fatal("same boot after a crash")
		}
		b, err := ReadFile(c, "/d/f")
		if err != nil || len(b) != len(old) {
			t.Fatal(len(b), err)
		}
		for s := range 4 {
			switch n := bytes.Count(b[s*SectorSize:][:SectorSize], []byte{2}); n {
			case 0:
				lost++
			case SectorSize:
				kept++
			default:
				torn++
			}
		}
		if _, err := c.Stat("/d/g"); err == nil {
			named++
		}
	}
	if kept == 0 || lost == 0 || torn == 0 || named == 0 || named == 200 {
		t.Error(kept, lost, torn, named)
	}
	if b, err := ReadFile(d.CrashClone(Crash{}, rng), "/d/f"); err != nil || !bytes.Equal(b, old) {
		t.Error("a crash that keeps nothing:", err)
	}
	if b, err := ReadFile(d.CrashClone(Crash{Keep: 100}, rng), "/d/g"); err != nil || !bytes.Equal(b, new) {
		t.Error("a crash that keeps all:", err)
	}
}

func TestFaults(t *testing.T) {
	d := NewDisk(10 * SectorSize)
	f, err := d.Create("/f")
	if err != nil {
		t.Fatal(err)
	}
	heal := d.Inject(Rule{Op: OpWrite, Path: "f*", Skip: 1, Times: 1, Err: syscall.EIO, Short: true})
	for i, want := range []struct {
		n   int
		err error
	}{{1024, nil}, {512, syscall.EIO}, {1024, nil}} {
		if n, err := f.WriteAt(make([]byte, 1024), 0); n != want.n || !errors.Is(err, want.err) {
			t.Error(i, n, err)
		}
	}
	heal()
	if n, err := f.WriteAt(make([]byte, 11*SectorSize), 0); n != 10*SectorSize || !errors.Is(err, syscall.ENOSPC) {
		t.Error("full disk:", n, err)
	}
	d.SetReadOnly(true)
	if _, err := f.WriteAt([]byte{1}, 0); !errors.Is(err, syscall.EROFS) {
		t.Error("read-only disk:", err)
	}
	d.SetReadOnly(false)
	if err := d.FlipBit("/f", 700, 0); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadFile(d, "/f"); err != nil || b[700] != 1 || bytes.Count(b, []byte{0}) != len(b)-1 {
		t.Error("flipped bit:", err)
	}
}

// A Pebble on the disk has after any crash what it had synced.
func TestPebbleCrash(t *testing.T) {
	d := NewDisk(0)
	db, err := pebble.Open("/d", &pebble.Options{FS: d.Pebble(), MemTableSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for i := range 400 {
		if err := db.Set([]byte{byte(i >> 8), byte(i)}, bytes.Repeat([]byte{byte(i)}, 500), pebble.Sync); err != nil {
			t.Fatal(err)
		}
		if i%40 != 39 {
			continue
		}
		c := d.CrashClone(Crash{Keep: 50, Tear: 10}, rng)
		after, err := pebble.Open("/d", &pebble.Options{FS: c.Pebble()})
		if err != nil {
			t.Fatal(err)
		}
		for j := range i + 1 {
			_, done, err := after.Get([]byte{byte(j >> 8), byte(j)})
			if err != nil {
				t.Fatalf("key %d of %d: %v", j, i, err)
			}
			done.Close()
		}
		if err := after.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
