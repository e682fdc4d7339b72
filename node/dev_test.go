package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"rfs/client"
	"rfs/raftmeta"
)

// testLog shows warnings of a test's cluster.
func testLog(t *testing.T) *slog.Logger {
	if os.Getenv("RFS_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func startDev(t *testing.T, o DevOptions) *DevCluster {
	t.Helper()
	o.Log = testLog(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	d, err := Dev(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return d
}

func connectFS(t *testing.T, d *DevCluster) *client.FS {
	t.Helper()
	c, err := d.Connect()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := c.Files(t.Context())
	if err != nil {
		t.Fatal(errors.Join(err, c.Close()))
	}
	t.Cleanup(func() {
		if err := errors.Join(fs.Close(context.Background()), c.Close()); err != nil {
			t.Errorf("close the client: %v", err)
		}
	})
	return fs
}

// small makes a cluster that tests can start in a second.
var small = DevOptions{Slots: 8, Unit: 64 << 10, Cell: 16 << 10, Capacity: 256 << 20, TargetLease: 2 * time.Second}

// Two of seven targets are lost at once: everything can be read. They come back,
// and all is in sync.
func TestDevLosesTwoTargets(t *testing.T) {
	d := startDev(t, small)
	fs := connectFS(t, d)
	one := writeRandom(t, fs, "/one", 3<<20+4711)
	stopTargets(t, d, 0, 3)
	mustRead(t, fs, "/one", one)
	startTargets(t, d, 0, 3)
	mustRead(t, connectFS(t, d), "/one", one)
}

// One target is lost and replaced by what is left; then another: five of seven
// are there, everything can be read, and written, and is in sync once the
// second is back.
func TestDevReplacesATarget(t *testing.T) {
	d := startDev(t, small)
	fs := connectFS(t, d)
	one := writeRandom(t, fs, "/one", 3<<20+4711)
	stopTargets(t, d, 0)
	if err := d.Replace(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	stopTargets(t, d, 3)
	mustRead(t, fs, "/one", one)
	two := writeRandom(t, fs, "/two", 1<<20)
	mustRead(t, fs, "/two", two)
	startTargets(t, d, 3)
	other := connectFS(t, d)
	mustRead(t, other, "/one", one)
	mustRead(t, other, "/two", two)
}

func stopTargets(t *testing.T, d *DevCluster, which ...int) {
	t.Helper()
	for _, i := range which {
		if err := d.StopTarget(i); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for i := range d.targets {
		if d.Target(i) != nil {
			n++
		}
	}
	if err := d.WaitUp(t.Context(), n); err != nil {
		t.Fatal(err)
	}
}

func startTargets(t *testing.T, d *DevCluster, which ...int) {
	t.Helper()
	for _, i := range which {
		if err := d.StartTarget(t.Context(), i); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func writeRandom(t *testing.T, fs *client.FS, path string, n int) []byte {
	t.Helper()
	data := make([]byte, n)
	_, _ = rand.Read(data)
	f, err := fs.CreatePath(t.Context(), path, raftmeta.CreateSpec{Mode: 0o644, Excl: true}, client.OpenWrite)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(t.Context(), data, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(t.Context()), f.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	return data
}

func mustRead(t *testing.T, fs *client.FS, path string, want []byte) {
	t.Helper()
	f, err := fs.OpenPath(t.Context(), path, client.OpenRead)
	if err != nil {
		t.Fatal(err)
	}
	have := make([]byte, len(want)+1)
	n, err := f.ReadAt(t.Context(), have, 0)
	if !errors.Is(err, io.EOF) || !bytes.Equal(have[:n], want) {
		t.Fatalf("%s: read %d bytes, %v; want the %d that were written", path, n, err, len(want))
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}
