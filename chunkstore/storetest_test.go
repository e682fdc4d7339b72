package chunkstore_test

import (
	"testing"

	"rfs/chunkstore"
	"rfs/chunkstore/storetest"
	"rfs/internal/vfs"
)

func TestStoreOS(t *testing.T) {
	storetest.Run(t, func(t *testing.T) chunkstore.Options { return storetest.Options(vfs.OS, t.TempDir()) })
}

func TestStoreBuffered(t *testing.T) {
	storetest.Run(t, func(t *testing.T) chunkstore.Options {
		o := storetest.Options(vfs.OS, t.TempDir())
		o.NoDirect = true
		return o
	})
}

func TestStoreDisk(t *testing.T) {
	storetest.Run(t, func(*testing.T) chunkstore.Options { return storetest.Options(vfs.NewDisk(0), "/target") })
}
