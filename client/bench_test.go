package client

import (
	"context"
	"testing"

	"rfs"
	"rfs/raftmeta"
	"rfs/transport/wire"
)

// The client's own cost of a stream: copy, parity, checksums, headers. The
// targets of these say yes and keep nothing.

func nullTargets(c *model) {
	for _, s := range c.stores {
		s.answer = func(op wire.Op, c wire.Common, hdr []byte) (wire.Status, []byte, bool) {
			return wire.StatusOK, nil, op != wire.OpRead
		}
	}
}

func BenchmarkStreamWrite(b *testing.B) {
	c := newModel(b, 4, 2, rfs.DefaultUnit, rfs.DefaultCell, 7)
	nullTargets(c)
	fs := c.client(Config{})
	f, _, err := fs.Create(b.Context(), rfs.RootInode, "a", raftmeta.CreateSpec{}, OpenRead|OpenWrite)
	if err != nil {
		b.Fatal(err)
	}
	p := randomBytes(1, 1<<20)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		if _, err := f.WriteAt(b.Context(), p, off); err != nil {
			b.Fatal(err)
		}
		off += int64(len(p))
	}
	if err := f.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkSmallWrite(b *testing.B) {
	c := newModel(b, 4, 2, rfs.DefaultUnit, rfs.DefaultCell, 7)
	nullTargets(c)
	fs := c.client(Config{})
	f, _, err := fs.Create(b.Context(), rfs.RootInode, "a", raftmeta.CreateSpec{}, OpenRead|OpenWrite)
	if err != nil {
		b.Fatal(err)
	}
	p := randomBytes(1, 4096)
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() { // scattered: each makes a Partial version of its own
		if _, err := f.WriteAt(b.Context(), p, i*7_919*4096%(1<<36)); err != nil {
			b.Fatal(err)
		}
		i++
	}
	if err := f.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkRead(b *testing.B) {
	for name, cfg := range map[string]struct {
		n    int
		step int64
	}{"stream": {1 << 20, 1 << 20}, "random4k": {4096, 7_919 * 4096}} {
		b.Run(name, func(b *testing.B) {
			c := newModel(b, 4, 2, rfs.DefaultUnit, rfs.DefaultCell, 7)
			fs := c.client(Config{})
			f, _, err := fs.Create(b.Context(), rfs.RootInode, "a", raftmeta.CreateSpec{}, OpenRead|OpenWrite)
			if err != nil {
				b.Fatal(err)
			}
			const size = 64 << 20
			for off := int64(0); off < size; off += 1 << 20 {
				if _, err := f.WriteAt(b.Context(), randomBytes(uint64(off), 1<<20), off); err != nil {
					b.Fatal(err)
				}
			}
			if err := f.Sync(b.Context()); err != nil {
				b.Fatal(err)
			}
			p := make([]byte, cfg.n)
			b.SetBytes(int64(cfg.n))
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				if _, err := f.ReadAt(b.Context(), p, off); err != nil {
					b.Fatal(err)
				}
				off = (off + cfg.step) % size
			}
			if err := f.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}
