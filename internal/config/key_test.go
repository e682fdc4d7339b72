package config

import (
	"os"
	"path/filepath"
	"reflect"
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
	id := NewIdentity()
	if err := id.Write(path); err != nil {
		t.Fatal(err)
	}
	if have, err := ReadKey(path); err != nil || !reflect.DeepEqual(have, id) || len(have.Key) != KeySize {
		t.Fatalf("read %v, %v; want %v", have, err, id)
	}
	if err := id.Write(path); err == nil || !strings.Contains(err.Error(), "exists, and is kept") {
		t.Errorf("a second key: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	wantError("chmod 600")
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "abc", "id = '" + id.ID.String() + "'\nkey = 'abcd'\n", "key = '" + strings.Repeat("ab", 32) + "'\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		wantError("is not one (an id, and a key of 64 hexadecimal digits)")
	}
}
