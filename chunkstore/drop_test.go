package chunkstore

import (
	"testing"

	"rfs"
)

// A base that is dropped takes with it what it superseded, durable or not, and all space returns once.
func TestDropOfABase(t *testing.T) {
	dir := t.TempDir() + "/target"
	o := Options{Dir: dir, ClusterID: rfs.UUID{1}, TargetID: rfs.UUID{2}, Capacity: MinCapacity, MinAvail: -1, FlushInterval: -1}
	if err := Format(o); err != nil {
		t.Fatal(err)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	key := rfs.ShardKey{Inode: 1}
	for i := range 3 {
		v := Version{Tag: rfs.Tag{HLC: uint64(1 + i)}, Kind: Full, State: Complete}
		if err := s.Put(key, v, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Drop(key, rfs.Tag{HLC: 9}, Full); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Drop(key, rfs.Tag{HLC: 3}, Full); err != nil {
			t.Fatal(err)
		}
		if vs, err := s.Versions(key); err != nil || len(vs) != 0 {
			t.Fatalf("after the drop of the base: %v, %v", vs, err)
		}
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Stat(); err != nil || u.Used != 0 {
		t.Fatalf("%+v, %v", u, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
