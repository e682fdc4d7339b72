package chunkstore

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"rfs"
)

var update = flag.Bool("update", false, "write testdata/golden.txt anew; its old lines are on disks already")

func goldenVersions() map[string]Version {
	tag := rfs.Tag{HLC: 0x0102030405060708, Session: 0x11121314, Seq: 0x21222324}
	full := Version{
		Tag: tag, Kind: Full, State: Prepared, Length: 5000, Slot: 0x31323334, Pool: 0x4142,
		ext: extent{seg: 0x51, block: 0x62, order: 1}, payload: 5000, seq: 0x7172737475767778,
	}
	full.W.Add(0)
	full.W.Add(255)
	partial := full
	partial.Kind, partial.State, partial.Length, partial.payload = Partial, Complete, 0, 10
	partial.Segments = []Segment{{Shard: 3, Off: 4090, Len: 10}, {Shard: 4, Off: 1, Len: 2, Zero: true}}
	fold := full
	fold.Fold, fold.Length, fold.payload, fold.State = true, 0, 0, Complete
	return map[string]Version{"full": full, "partial": partial, "fold": fold}
}

// The bytes on disk never change: a store of any rfs 1 opens with this one.
func TestGolden(t *testing.T) {
	key := rfs.ShardKey{Inode: 0x0001000000000002, Stripe: 0x03040506, Shard: 7}
	target := rfs.TargetID{0xa0, 0xa1, 0xa2, 15: 0xaf}
	var lines []string
	for _, name := range []string{"full", "partial", "fold"} {
		v := goldenVersions()[name]
		crcs := []uint32{0xc0c1c2c3, 0xd0d1d2d3}[:v.CRCLen()]
		r := record(appendRecord(nil, &v, crcs))
		lines = append(lines, fmt.Sprintf("record %s %x", name, []byte(r)))
		lines = append(lines, fmt.Sprintf("header %s %x", name, appendHeader(nil, target, key, r)))
		lines = append(lines, fmt.Sprintf("key %s %x", name, appendVersionKey(nil, key, v.Tag, v.Kind)))
		lines = append(lines, fmt.Sprintf("slot %s %x", name, appendSlotKey(nil, v.Pool, v.Slot, key)))
	}
	lines = append(lines, fmt.Sprintf("floor %x", appendFloorKey(nil, key.Inode, key.Stripe)))
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile("testdata/golden.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// What was written parses to what it was, and to nothing else after any change
// that its checksum covers.
func TestHeaderRoundTrip(t *testing.T) {
	key := rfs.ShardKey{Inode: 9, Stripe: 8, Shard: 7}
	for name, v := range goldenVersions() {
		crcs := make([]uint32, v.CRCLen())
		r := record(appendRecord(nil, &v, crcs))
		head := appendHeader(nil, rfs.TargetID{1}, key, r)
		target, k, got, err := parseHeader(slices.Clone(head))
		if err != nil || target != (rfs.TargetID{1}) || k != key || !bytes.Equal(got, r) {
			t.Errorf("%s: %v %v %v", name, target, k, err)
		}
		back := got.version()
		if d := fmt.Sprintf("%+v", back); d != fmt.Sprintf("%+v", withCRCs(v, crcs)) {
			t.Errorf("%s: %s", name, d)
		}
		for i := range head {
			bad := slices.Clone(head)
			bad[i] ^= 0x10
			if _, _, _, err := parseHeader(bad); err == nil && (i < 4 || i >= 8) {
				t.Errorf("%s: byte %d changed, header still parses", name, i)
			}
		}
	}
}

func withCRCs(v Version, crcs []uint32) Version {
	v.crcs = crcs
	return v
}

func goldenBytes(f *testing.F, kind string) (all [][]byte) {
	b, err := os.ReadFile("testdata/golden.txt")
	if err != nil {
		f.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if words[0] == kind {
			x, err := hex.DecodeString(words[len(words)-1])
			if err != nil {
				f.Fatal(err)
			}
			all = append(all, x)
		}
	}
	return all
}

// Whatever parses can be read in place with no more checks, and says the same
// when it is written again.
func FuzzRecord(f *testing.F) {
	for _, b := range goldenBytes(f, "record") {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRecord(b)
		if err != nil {
			return
		}
		v := r.version()
		for i := range r.segments() {
			src := r.source(rfs.ShardKey{}, i)
			if src.blocks() > 0 {
				src.crcOf(r, (src.end()-1)/blockSize)
			}
		}
		again, err := parseRecord(appendRecord(nil, &v, v.crcs))
		if err != nil || fmt.Sprint(again.version()) != fmt.Sprint(v) {
			t.Fatalf("%v, then %v, %v", v, again.version(), err)
		}
	})
}

func FuzzHeader(f *testing.F) {
	for _, b := range goldenBytes(f, "header") {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, r, err := parseHeader(slices.Clone(b)); err == nil {
			_ = r.version()
		}
	})
}

func FuzzEntry(f *testing.F) {
	records := goldenBytes(f, "record")
	for i, k := range goldenBytes(f, "key") {
		f.Add(k, records[i])
	}
	f.Fuzz(func(t *testing.T, k, v []byte) {
		key, r, err := parseEntry(k, v)
		if err == nil && !bytes.Equal(k, appendVersionKey(nil, key, r.tag(), r.kind())) {
			t.Fatalf("key %x is written as another", k)
		}
		if key, err := parseSlotKey(k); err == nil && len(appendSlotKey(nil, 0, 0, key)) != len(k) {
			t.Fatal("slot key")
		}
	})
}

// The allocator against a map of blocks: no extent twice, none lost, buddies
// joined to the last.
func TestAllocator(t *testing.T) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 1))
		a := allocator{blocks: 4 << maxOrder}
		for range 3 {
			a.grow()
		}
		taken := map[[2]uint32]bool{}
		var live []extent
		for range 3000 {
			if rng.IntN(100) < 55 {
				e, ok := a.alloc(uint8(rng.IntN(maxOrder + 1)))
				if !ok {
					continue
				}
				if e.block%e.blocks() != 0 {
					t.Fatalf("seed %d: %v is not aligned", seed, e)
				}
				for b := range e.blocks() {
					at := [2]uint32{e.seg, e.block + b}
					if taken[at] {
						t.Fatalf("seed %d: %v handed out twice", seed, e)
					}
					taken[at] = true
				}
				live = append(live, e)
			} else if len(live) > 0 {
				i := rng.IntN(len(live))
				e := live[i]
				live = slices.Delete(live, i, i+1)
				for b := range e.blocks() {
					delete(taken, [2]uint32{e.seg, e.block + b})
				}
				if err := a.free(e); err != nil {
					t.Fatal(err)
				}
				if a.free(e) == nil {
					t.Fatalf("seed %d: %v freed twice", seed, e)
				}
			}
			if a.used != int64(len(taken))*blockSize {
				t.Fatalf("seed %d: %d used, want %d", seed, a.used, len(taken)*blockSize)
			}
		}
		b := allocator{blocks: a.blocks} // as at open
		for range 3 {
			b.grow()
		}
		for _, e := range live {
			if err := b.mark(e); err != nil {
				t.Fatal(err)
			}
			if b.mark(e) == nil {
				t.Fatalf("seed %d: %v marked twice", seed, e)
			}
		}
		for _, e := range live {
			if a.free(e) != nil || b.free(e) != nil {
				t.Fatal("free")
			}
		}
		for _, x := range []*allocator{&a, &b} {
			for range 12 {
				if _, ok := x.alloc(maxOrder); !ok {
					t.Fatalf("seed %d: buddies did not join", seed)
				}
			}
		}
	}
}
