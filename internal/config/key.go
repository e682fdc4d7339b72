package config

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// KeySize is the length of the cluster key in bytes.
const KeySize = 32

// ReadKey reads the cluster key. It refuses a file that others may read.
func ReadKey(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cluster key %s does not exist: copy it from another node of the cluster, or make it with `rfsd cluster init`", path)
	}
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("cluster key %s may not be read by this user: run as root, or as the owner of the key", path)
	}
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("cluster key %s has mode %04o, so that others may read it: chmod 600 %s", path, mode, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(key) != KeySize {
		return nil, fmt.Errorf("cluster key %s: want %d hexadecimal digits: copy the file again from another node", path, 2*KeySize)
	}
	return key, nil
}

// CreateKey writes a new random key to path, which must not exist.
func CreateKey(path string) error {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // never fails
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cluster key %s exists: it is kept; move it away first if a new cluster shall have another", path)
	}
	if err != nil {
		return fmt.Errorf("cluster key: %w", err)
	}
	_, err = fmt.Fprintf(f, "%x\n", key)
	return errors.Join(err, f.Sync(), f.Close())
}
