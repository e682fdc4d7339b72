package tcp

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"rfs"
	"rfs/transport"
	"rfs/transport/arena"
	"rfs/transport/wire"
)

var (
	testKey     = bytes.Repeat([]byte{7}, 32)
	testCluster = rfs.UUID{1, 2, 3}
)

func newTransport(t testing.TB, change ...func(*Config)) *Transport {
	t.Helper()
	cfg := Config{Key: testKey, Cluster: testCluster, Name: t.Name(), Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&cfg)
	}
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func listen(t testing.TB, network string) (net.Listener, transport.Addr) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l, transport.Addr{Network: network, Address: l.Addr().String()}
}

// serve serves h until the test ends.
func serve(t testing.TB, tr *Transport, l net.Listener, h transport.HandlerFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Serve(ctx, l, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func dial(t testing.TB, tr *Transport, addr transport.Addr) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := tr.Dial(ctx, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*Conn)
}

func newArena(t testing.TB) *arena.Arena {
	t.Helper()
	a, err := arena.New(arena.Config{Bytes: 128 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func mustGet(t testing.TB, a *arena.Arena, n int) transport.Buf {
	b, err := a.Get(context.Background(), n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pullPush takes all of src and pushes it back.
func pullPush(t testing.TB, a *arena.Arena) transport.HandlerFunc {
	return func(ctx context.Context, r transport.Request) {
		b, err := a.Get(ctx, r.PayloadLen())
		if err != nil {
			r.Reply(wire.StatusUnavailable, nil, nil, 0)
			return
		}
		defer b.Release()
		if err := r.Pull(ctx, b, 0, r.PayloadLen()); err != nil {
			r.Reply(wire.StatusCancelled, nil, nil, 0)
			return
		}
		r.Reply(wire.StatusOK, r.Header(), b, min(r.PayloadLen(), r.CapLen()))
	}
}

func TestEchoOverBothCarriers(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			a := newArena(t)
			tr := newTransport(t)
			l, addr := listen(t, network)
			serve(t, tr, l, pullPush(t, a))
			c := dial(t, tr, addr)
			for _, n := range []int{0, 1, 4096, 4097, 1 << 20, 4 << 20} {
				src, dst := mustGet(t, a, n), mustGet(t, a, n)
				for i := range src.Bytes() {
					src.Bytes()[i] = byte(i * 7 >> 3)
				}
				r, err := c.Call(t.Context(), wire.OpTest, []byte("header"), src, dst)
				if err != nil || r.Status != wire.StatusOK || r.Pushed != n || string(r.Header) != "header" {
					t.Fatalf("%d bytes: %+v, %v", n, r, err)
				}
				if !bytes.Equal(src.Bytes(), dst.Bytes()) {
					t.Fatalf("%d bytes came back changed", n)
				}
				src.Release()
				dst.Release()
			}
		})
	}
}

func BenchmarkWrite(b *testing.B) { benchmark(b, true) }
func BenchmarkRead(b *testing.B)  { benchmark(b, false) }

func benchmark(b *testing.B, write bool) {
	for _, network := range []string{"unix", "tcp"} {
		for _, n := range []int{0, 4 << 10, 128 << 10, 1 << 20} {
			for _, own := range []bool{true, false} {
				b.Run(fmt.Sprintf("%s/%dKiB/ownCRC=%v", network, n>>10, own), func(b *testing.B) {
					benchmarkCalls(b, network, n, own, write)
				})
			}
		}
	}
}

func benchmarkCalls(b *testing.B, network string, n int, own, write bool) {
	a := newArena(b)
	tr := newTransport(b, func(c *Config) { c.OwnCRC = func(wire.Op) bool { return own } })
	l, addr := listen(b, network)
	serve(b, tr, l, func(ctx context.Context, r transport.Request) {
		x := mustGet(b, a, n)
		defer x.Release()
		if write {
			if err := r.Pull(ctx, x, 0, n); err != nil {
				b.Error(err)
			}
			r.Reply(wire.StatusOK, r.Header(), nil, 0)
		} else {
			r.Reply(wire.StatusOK, r.Header(), x, n)
		}
	})
	c := dial(b, tr, addr)
	hdr := make([]byte, 100)
	b.SetBytes(int64(n))
	b.ReportAllocs()
	b.SetParallelism(2)
	cpu := cpuTime()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		x := mustGet(b, a, n)
		defer x.Release()
		into := make([]byte, 0, 128)
		var src, dst transport.Buf = x, nil
		if !write {
			src, dst = nil, x
		}
		for pb.Next() {
			r, err := c.CallInto(context.Background(), wire.OpTest, hdr, src, dst, into)
			if err != nil || r.Status != wire.StatusOK {
				b.Error(r.Status, err)
			}
		}
	})
	used := (cpuTime() - cpu).Seconds()
	if n > 0 {
		b.ReportMetric(used/(float64(b.N)*float64(n)/(1<<30)), "cpu-s/GiB")
	}
	b.ReportMetric(used/float64(b.N)*1e6, "cpu-us/op")
}
