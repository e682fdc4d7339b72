package chunkstore

import (
	"bytes"
	"log/slog"
	"testing"

	"rfs"
	"rfs/internal/crc"
	"rfs/internal/vfs"
)

func TestSmoke(t *testing.T) {
	for _, fs := range []vfs.FS{vfs.OS, vfs.NewDisk(0)} {
		o := Options{Dir: t.TempDir(), FS: fs, ClusterID: rfs.NewUUID(), TargetID: rfs.NewUUID(), Capacity: 64 << 20, Log: slog.New(slog.DiscardHandler)}
		if err := Format(o); err != nil {
			t.Fatal(err)
		}
		s, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		key := rfs.ShardKey{Inode: 7, Stripe: 1, Shard: 2}
		p := alignedBytes(1 << 20)
		for i := range p {
			p[i] = byte(i * 7 >> 3)
		}
		var crcs []uint32
		for b := range len(p) / 4096 {
			crcs = append(crcs, crc.Block(7, 1, 2, uint32(b), p[b*4096:][:4096]))
		}
		v := Version{Tag: rfs.Tag{HLC: 5}, Kind: Full, Length: 1 << 20, Slot: 3, Pool: 1}
		if err := s.Put(key, v, p, crcs); err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(key, v.Tag, Full); err != nil {
			t.Fatal(err)
		}
		dst := alignedBytes(1 << 20)
		for range 2 {
			res, err := s.Read(key, ReadAt{Off: 100, N: 1<<20 - 300}, dst)
			if err != nil || res.N != 1<<20-300 || !bytes.Equal(dst[:res.N], p[100:1<<20-200]) {
				t.Fatal(res, err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if s, err = Open(o); err != nil {
				t.Fatal(err)
			}
			if !s.Clean() {
				t.Error("not clean")
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
