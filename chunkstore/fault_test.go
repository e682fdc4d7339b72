package chunkstore_test

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"rfs"
	"rfs/chunkstore"
	"rfs/chunkstore/storetest"
	"rfs/internal/vfs"
)

var faultKey = rfs.ShardKey{Inode: 3, Stripe: 4, Shard: 0}

func putFull(s *chunkstore.Store, stripe uint32, n int) error {
	key := faultKey
	key.Stripe = stripe
	v := chunkstore.Version{Tag: storetest.Tag(1), Kind: chunkstore.Full, Length: uint32(n), State: chunkstore.Complete}
	p := make([]byte, n)
	p[0] = byte(stripe)
	return s.Put(key, v, p, storetest.CRCs(key, v, p))
}

// wantRemedy checks that an error is what it should be, and says what to do.
func wantRemedy(t *testing.T, err, want error, says string) {
	t.Helper()
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) {
		t.Errorf("error %q: want %q, saying %q", err, want, says)
	}
}

func TestFormatRefuses(t *testing.T) {
	d := vfs.NewDisk(0)
	o := storetest.Options(d, "/target")
	if _, err := chunkstore.Open(o); true {
		wantRemedy(t, err, chunkstore.ErrNotTarget, "format it first")
	}
	if err := d.Mkdir("/target/precious"); err != nil {
		t.Fatal(err)
	}
	wantRemedy(t, chunkstore.Format(o), chunkstore.ErrNotEmpty, `"precious"`)
	if err := d.Remove("/target/precious"); err != nil {
		t.Fatal(err)
	}
	small := o
	small.Capacity = 1 << 20
	wantRemedy(t, chunkstore.Format(small), rfs.ErrInvalid, "want 33554432 or more")
	if err := chunkstore.Format(o); err != nil {
		t.Fatal(err)
	}
	wantRemedy(t, chunkstore.Format(o), chunkstore.ErrNotEmpty, "index")
}

func TestOpenRefuses(t *testing.T) {
	d := vfs.NewDisk(0)
	o := storetest.Options(d, "/target")
	s := storetest.Open(t, o)
	_, err := chunkstore.Open(o)
	wantRemedy(t, err, chunkstore.ErrLocked, "stop the other rfsd")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	foreign := o
	foreign.ClusterID = rfs.UUID{9}
	_, err = chunkstore.Open(foreign)
	wantRemedy(t, err, chunkstore.ErrForeign, "another directory")
	foreign = o
	foreign.TargetID = rfs.TargetID{9}
	_, err = chunkstore.Open(foreign)
	wantRemedy(t, err, chunkstore.ErrForeign, "correct the id")

	d.SetReadOnly(true)
	_, err = chunkstore.Open(o)
	wantRemedy(t, err, rfs.ErrReadOnly, "remount")
	d.SetReadOnly(false)

	id, err := vfs.ReadFile(d, "/target/rfs-target")
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(b string) {
		t.Helper()
		if err := vfs.WriteFile(d, "/target", "rfs-target", []byte(b)); err != nil {
			t.Fatal(err)
		}
	}
	rewrite(strings.Replace(string(id), `"format": 1`, `"format": 2`, 1))
	_, err = chunkstore.Open(o)
	wantRemedy(t, err, chunkstore.ErrNewer, "upgrade")
	rewrite("garbage")
	_, err = chunkstore.Open(o)
	wantRemedy(t, err, chunkstore.ErrNotTarget, "restore it")
	rewrite(string(id))
	if s := storetest.Reopen(t, o); !s.Clean() {
		t.Error("refusals left marks")
	}
}

// A rotten or lost index is named with its remedy, and the remedy works.
func TestRebuildIndex(t *testing.T) {
	for name, harm := range map[string]func(*testing.T, *vfs.Disk){
		"manifest rots": func(t *testing.T, d *vfs.Disk) { harmIndex(t, d, "MANIFEST") },
		"tables rot":    func(t *testing.T, d *vfs.Disk) { harmIndex(t, d, ".sst") },
		"all is gone": func(t *testing.T, d *vfs.Disk) {
			if err := d.Pebble().RemoveAll("/target/index"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := vfs.NewDisk(0)
			o := storetest.Options(d, "/target")
			s := storetest.Open(t, o)
			for i := range 200 {
				if err := putFull(s, uint32(i), 100+i*50); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			// Once more, so that Pebble makes a table of its log.
			if err := storetest.Reopen(t, o).Close(); err != nil {
				t.Fatal(err)
			}
			harm(t, d)
			_, err := chunkstore.Open(o)
			wantRemedy(t, err, chunkstore.ErrBadIndex, "rfs target check --rebuild /target")
			rep, err := chunkstore.Rebuild(t.Context(), o, func(done, total int64) {
				if done > total {
					t.Error("progress", done, total)
				}
			})
			if err != nil || rep.Versions != 200 || rep.Shards != 200 || rep.Prepared != 0 {
				t.Fatalf("%+v, %v", rep, err)
			}
			s = storetest.Reopen(t, o)
			for i := range 200 {
				key := faultKey
				key.Stripe = uint32(i)
				buf := make([]byte, 20000)
				if res, err := s.Read(key, chunkstore.ReadAt{N: 20000}, buf); err != nil || res.N != 100+i*50 || buf[0] != byte(i) {
					t.Fatal(res, err)
				}
			}
		})
	}
}

func harmIndex(t *testing.T, d *vfs.Disk, part string) {
	t.Helper()
	names, err := d.List("/target/index")
	if err != nil {
		t.Fatal(err)
	}
	harmed := 0
	for _, n := range names {
		if !strings.Contains(n, part) {
			continue
		}
		st, err := d.Stat("/target/index/" + n)
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < st.Size(); off += 97 {
			if err := d.FlipBit("/target/index/"+n, off, 3); err != nil {
				t.Fatal(err)
			}
		}
		harmed++
	}
	if harmed == 0 {
		t.Fatal("nothing to harm in", names)
	}
}

// Check finds what rots behind the store's back.
func TestCheckFinds(t *testing.T) {
	d := vfs.NewDisk(0)
	o := storetest.Options(d, "/target")
	s := storetest.Open(t, o)
	for i := range 20 {
		if err := putFull(s, uint32(i), 4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.FlipBit("/target/segments/00000000.data", 5*4096+7, 1), d.FlipBit("/target/segments/00000000.head", 9*256+60, 1)); err != nil {
		t.Fatal(err)
	}
	rep, err := chunkstore.Check(t.Context(), o, chunkstore.CheckOptions{Data: true, Repair: true})
	if err != nil || rep.OK() || rep.BadBlocks != 1 || rep.BadHeaders != 1 || rep.Repaired != 1 || rep.Versions != 20 || len(rep.Problems) != 2 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if rep, err = chunkstore.Check(t.Context(), o, chunkstore.CheckOptions{}); err != nil || !rep.OK() {
		t.Fatalf("after repair: %+v, %v", rep, err)
	}
}

// A write that fails costs its own Put; the next goes elsewhere.
func TestWriteFails(t *testing.T) {
	d := vfs.NewDisk(0)
	s := storetest.Open(t, storetest.Options(d, "/target"))
	for _, rule := range []vfs.Rule{
		{Op: vfs.OpWrite, Path: "*.data", Times: 1, Err: syscall.EIO},
		{Op: vfs.OpWrite, Path: "*.data", Times: 1, Err: syscall.ENOSPC, Short: true},
		{Op: vfs.OpWrite, Path: "*.head", Times: 1, Err: syscall.EIO},
	} {
		defer d.Inject(rule)()
		err := putFull(s, 1, 5000)
		if rule.Err == syscall.ENOSPC && !errors.Is(err, rfs.ErrNoSpace) || !errors.Is(err, rule.Err) {
			t.Errorf("%v: %v", rule, err)
		}
		if vs, err := s.Versions(rfs.ShardKey{Inode: 3, Stripe: 1}); err != nil || len(vs) != 0 {
			t.Error("a version whose write failed:", vs, err)
		}
	}
	if err := putFull(s, 1, 5000); err != nil {
		t.Error(err)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

// After a flush that failed the store answers nothing until it is opened again;
// what was synced before is there then.
func TestFlushFails(t *testing.T) {
	for _, file := range []string{"*.data", "*.log"} {
		d := vfs.NewDisk(0)
		o := storetest.Options(d, "/target")
		s := storetest.Open(t, o)
		if err := errors.Join(putFull(s, 1, 5000), s.Sync(t.Context()), putFull(s, 2, 5000)); err != nil {
			t.Fatal(err)
		}
		heal := d.Inject(vfs.Rule{Op: vfs.OpSync, Path: file, Err: syscall.EIO})
		if err := s.Sync(t.Context()); err == nil {
			t.Errorf("%s: sync succeeded", file)
		}
		heal()
		if err := s.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "out of service") {
			t.Errorf("%s: after a failed flush: %v", file, err)
		}
		if err := putFull(s, 3, 10); err == nil {
			t.Errorf("%s: put after a failed flush succeeded", file)
		}
		if err := s.Close(); err == nil {
			t.Errorf("%s: close says that all is well", file)
		}
		s = storetest.Reopen(t, o)
		if s.Clean() {
			t.Errorf("%s: clean", file)
		}
		if vs, err := s.Versions(rfs.ShardKey{Inode: 3, Stripe: 1}); err != nil || len(vs) != 1 {
			t.Errorf("%s: %v %v", file, vs, err)
		}
	}
}

// The disk may be full although the target is not.
func TestDiskFull(t *testing.T) {
	d := vfs.NewDisk(24 << 20)
	o := storetest.Options(d, "/target")
	o.MinAvail = 8 << 20
	s := storetest.Open(t, o)
	var err error
	n := uint32(0)
	for ; err == nil; n++ {
		err = putFull(s, n, 256<<10)
	}
	if !errors.Is(err, rfs.ErrNoSpace) {
		t.Fatal(err)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Error("no room was left for the index:", err)
	}
	if u, err := s.Stat(); err != nil || u.Free > 1<<20 {
		t.Error(u, err)
	}
}

// Seven stores and the index cache of a process: nothing is left when they are closed.
func TestManyStores(t *testing.T) {
	for range 7 {
		o := storetest.Options(vfs.OS, t.TempDir())
		s := storetest.Open(t, o)
		if err := putFull(s, 1, 100); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(o.Dir + "/segments/00000000.data")
		if err != nil || st.Size() != chunkstore.MinCapacity/4 {
			t.Error(st, err)
		}
	}
}

func BenchmarkPut1MiB(b *testing.B)  { benchmarkPut(b, 1<<20) }
func BenchmarkPut4KiB(b *testing.B)  { benchmarkPut(b, 4096) }
func BenchmarkRead1MiB(b *testing.B) { benchmarkRead(b, 1<<20) }
func BenchmarkRead4KiB(b *testing.B) { benchmarkRead(b, 4096) }

func benchmarkStore(b *testing.B, n int) (*chunkstore.Store, chunkstore.Version, []byte, []uint32) {
	dir := b.TempDir()
	o := storetest.Options(vfs.OS, dir)
	o.Capacity = 1 << 30
	p := make([]byte, n)
	v := chunkstore.Version{Tag: storetest.Tag(1), Kind: chunkstore.Full, Length: uint32(n), State: chunkstore.Complete}
	b.SetBytes(int64(n))
	b.ReportAllocs()
	return storetest.Open(b, o), v, p, storetest.CRCs(faultKey, v, p)
}

func benchmarkPut(b *testing.B, n int) {
	s, v, p, crcs := benchmarkStore(b, n)
	for i := 0; b.Loop(); i++ {
		key := rfs.ShardKey{Inode: 1, Stripe: uint32(i % 256)}
		v.Tag = storetest.Tag(i + 1)
		if err := s.Put(key, v, p, crcs); err != nil {
			b.Fatal(err)
		}
	}
}

func benchmarkRead(b *testing.B, n int) {
	s, v, p, crcs := benchmarkStore(b, n)
	if err := s.Put(faultKey, v, p, crcs); err != nil {
		b.Fatal(err)
	}
	at := chunkstore.ReadAt{N: uint32(n), CRCs: crcs}
	for b.Loop() {
		if _, err := s.Read(faultKey, at, p); err != nil {
			b.Fatal(err)
		}
	}
}
