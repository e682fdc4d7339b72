package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func nothing(int, int64) {}

func sampleTree(t *testing.T) *Tree {
	t.Helper()
	src := t.TempDir()
	for path, text := range map[string]string{"a": "alpha", "d/b": strings.Repeat("beta", 1<<19), "d/e/empty": ""} {
		p := filepath.Join(src, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o444)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("d/b", filepath.Join(src, "link")); err != nil {
		t.Fatal(err)
	}
	tree, err := Scan(src)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// A tree is copied and verified; then each way of damage is found.
func TestTreeCopyVerify(t *testing.T) {
	tree := sampleTree(t)
	if len(tree.Files) != 3 || len(tree.Dirs) != 3 || len(tree.Links) != 1 || tree.Bytes != 5+4<<19 {
		t.Fatalf("scanned %+v", tree)
	}
	var out strings.Builder
	run := &Run{Out: &out}
	dst := filepath.Join(t.TempDir(), "copy")
	err := run.Do(t.Context(), "copy", len(tree.Files), tree.Bytes, func(ctx context.Context, p Progress) error {
		return tree.Copy(ctx, dst, 2, p)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.Verify(t.Context(), dst, 2, nothing); err != nil {
		t.Fatal(err)
	}
	if p := run.Phases[0]; p.Files != 3 || p.Bytes != tree.Bytes {
		t.Errorf("measured %+v", p)
	}
	run.Table()
	if !strings.Contains(out.String(), "copy") || !strings.Contains(out.String(), "files/s") {
		t.Errorf("table:\n%s", out.String())
	}

	damage := map[string]func() error{
		"a byte": func() error { return os.WriteFile(filepath.Join(dst, "a"), []byte("alphA"), 0o644) },
		"a tail": func() error { return os.Truncate(filepath.Join(dst, "a"), 4) },
		"a link": func() error {
			return errors.Join(os.Remove(filepath.Join(dst, "link")), os.Symlink("a", filepath.Join(dst, "link")))
		},
		"removal": func() error { return os.Remove(filepath.Join(dst, "d/b")) },
	}
	for name, do := range damage {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if err := tree.Verify(t.Context(), dst, 2, nothing); err == nil {
			t.Errorf("after damage of %s the tree verifies", name)
		}
	}
}

func TestWriteVerifyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "big")
	const size = 3<<20 + 7
	sum, err := WriteFile(t.Context(), path, size, 1, nothing)
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifyFile(t.Context(), path, size, sum, nil, nothing); err != nil {
		t.Fatal(err)
	}
	sum[0]++
	if err := VerifyFile(t.Context(), path, size, sum, nil, nothing); !errors.Is(err, ErrMismatch) {
		t.Errorf("another sum: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := VerifyFile(ctx, path, size, sum, nil, nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
