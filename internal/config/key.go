package config

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/pelletier/go-toml/v2"

	"rfs"
)

// KeySize is the length of the cluster key in bytes.
const KeySize = 32

// Identity is what a cluster's members have in common, and its key file holds:
//
//	id = "7f3c1e2a-0d4b-4c5e-9f60-112233445566"
//	key = "64 hexadecimal digits"
type Identity struct {
	ID  rfs.UUID
	Key []byte
}

// keyFile is the file as it is written.
type keyFile struct {
	ID  rfs.UUID `toml:"id"`
	Key string   `toml:"key"`
}

// NewIdentity returns a random one.
func NewIdentity() Identity {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // never fails
	return Identity{rfs.NewUUID(), key}
}

// ReadKey reads a key file. It refuses one that others may read.
func ReadKey(path string) (id Identity, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return id, fmt.Errorf("cluster key %s does not exist: copy it from another node of the cluster; `rfsd cluster key` makes that of a new one", path)
	}
	if err == nil {
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			return id, fmt.Errorf("cluster key %s has mode %04o, so that others may use it: chmod 600 %s", path, mode, path)
		}
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrPermission) {
		return id, fmt.Errorf("cluster key %s may not be read by this user: run as root, or as the owner of the key", path)
	}
	if err != nil {
		return id, fmt.Errorf("cluster key: %w", err)
	}
	var f keyFile
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	err = d.Decode(&f)
	key, hexErr := hex.DecodeString(f.Key)
	if err = errors.Join(err, hexErr); err != nil || f.ID.IsZero() || len(key) != KeySize {
		return id, fmt.Errorf("cluster key %s is not one (an id, and a key of %d hexadecimal digits): copy the file again from another node", path, 2*KeySize)
	}
	return Identity{f.ID, key}, nil
}

// Write writes the key file, which must not exist.
func (id Identity) Write(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cluster key %s exists, and is kept: choose another file for a new cluster", path)
	}
	if err != nil {
		return fmt.Errorf("cluster key: %w", err)
	}
	_, err = fmt.Fprintf(f, "# The identity and key of an rfs cluster: whoever has it is a member.\nid = %q\nkey = \"%x\"\n", id.ID, id.Key)
	return errors.Join(err, f.Sync(), f.Close())
}
