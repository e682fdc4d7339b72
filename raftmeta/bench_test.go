package raftmeta

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"rfs"
)

// BenchmarkCreate makes and opens files, from 64 callers of one client and from
// one, on three replicas that sync to the file system of the temporary folder.
func BenchmarkCreate(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			dir, n := b.TempDir(), 0
			c := began(b, 3, func(o *Options) {
				o.FS, o.Dir = vfs.Default, fmt.Sprint(dir, "/", n%3)
				n++
			})
			cl := c.session(Events{})
			ctx := c.ctx()
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for {
						i := int(next.Add(1))
						if i > b.N {
							return
						}
						o, err := cl.Create(ctx, rfs.RootInode, fmt.Sprint("f", i), CreateSpec{Mode: 0o644, Open: OpenWrite, Excl: true})
						if err != nil {
							b.Error(err)
							return
						}
						cl.Release(o.Attr.Inode, OpenWrite)
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
			s := c.replicas[c.leader()].r.Stats()
			b.ReportMetric(float64(s.Entries)/float64(max(s.Batches, 1)), "entries/batch")
			b.ReportMetric(float64(s.FsyncTime.Microseconds())/float64(max(s.Fsyncs, 1)), "us/fsync")
		})
	}
}
