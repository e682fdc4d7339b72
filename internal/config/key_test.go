package config

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.key")
	wantError := func(want string) {
		t.Helper()
		if _, err := ReadKey(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("error %v: want %q", err, want)
		}
	}
	wantError("does not exist: copy it from another node")
	if err := CreateKey(path); err != nil {
		t.Fatal(err)
	}
	a, err := ReadKey(path)
	if err != nil || len(a) != KeySize || bytes.Equal(a, make([]byte, KeySize)) {
		t.Fatalf("key %x, %v", a, err)
	}
	if err := CreateKey(path); err == nil || !strings.Contains(err.Error(), "exists: it is kept") {
		t.Errorf("a second key: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	wantError("chmod 600")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError("want 64 hexadecimal digits")
}
