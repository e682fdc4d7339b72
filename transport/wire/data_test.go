package wire

import (
	"encoding/hex"
	"flag"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"rfs"
)

var updateData = flag.Bool("update-data", false, "write the golden bytes anew: only when the format was appended to")

func sampleCommon() Common {
	return Common{
		Target: rfs.UUID{0: 0xa0, 15: 0xaf}, Key: rfs.ShardKey{Inode: 0x0001000000000203, Stripe: 7, Shard: 5},
		Pool: 3, Slot: 0x11, Epoch: 0x22, Session: 0x33,
	}
}

func tag(n uint64) rfs.Tag { return rfs.Tag{HLC: 0x1000 + n, Session: 0x20, Seq: uint32(n)} }

func set(members ...uint8) (s rfs.ShardSet) {
	for _, m := range members {
		s.Add(m)
	}
	return s
}

var sampleSegments = []Segment{{Shard: 0, Off: 4000, Len: 200}, {Shard: 1, Zero: true, Off: 0, Len: 4096}}

// samples has one of each header.
func samples() map[string][]byte {
	c := sampleCommon()
	partial := c
	partial.Flags = FlagPartial | FlagRepair
	v := Version{Tag: tag(1), W: set(0, 4, 5), Length: 200, Kind: Partial, State: Complete, Fold: true}
	return map[string][]byte{
		"common":          AppendCommon(nil, &c),
		"prepare full":    AppendPrepare(nil, &Prepare{Common: c, Tag: tag(1), W: set(0, 1, 2, 4, 5), Length: 5000}, nil, []uint32{0xdead, 0xbeef}),
		"prepare partial": AppendPrepare(nil, &Prepare{Common: partial, Tag: tag(2), W: set(0, 1, 4, 5), Length: 200}, sampleSegments, []uint32{1, 2}),
		"commit":          AppendCommit(nil, &c, []CommitEntry{{Key: c.Key, Kind: Partial, Tag: tag(3)}, {Key: rfs.ShardKey{Inode: 9}, Tag: tag(4)}}),
		"commit reply":    AppendCommitReply(nil, []uint16{1, 5}),
		"retag":           AppendRetag(nil, &Retag{Common: c, Old: tag(1), New: tag(2)}),
		"read":            AppendRead(nil, &Read{Common: c, Tag: tag(5), Off: 4096, N: 8192, Want: 2}),
		"read reply":      AppendReadReply(nil, &ReadReply{Tag: tag(6), Base: tag(5), Unresolved: tag(7), BaseW: set(0, 5), Length: 9000}, sampleSegments, []uint32{7, 8}),
		"tag request":     AppendTagRequest(nil, &TagRequest{Common: c, Tag: tag(8)}),
		"resolve reply":   AppendResolveReply(nil, &ResolveReply{Newest: tag(8), Forward: 2, Back: 1}),
		"order reply":     AppendOrderReply(nil, &OrderReply{Highest: tag(9), Millis: 1000}),
		"version":         AppendVersion(nil, &v, sampleSegments),
		"query reply":     AppendQueryReply(nil, &QueryReply{Floor: tag(1), Highest: tag(2), Trimmed: tag(3), Epoch: 3, Count: 4, Bytes: 5}),
		"list":            AppendList(nil, &List{Common: c, Max: 100}),
		"list reply":      AppendListReply(nil, &ListReply{NextInode: 1, NextStripe: 2, More: true, Count: 3, Bytes: 4}),
		"listed":          AppendListed(nil, c.Key, 2),
		"extent":          AppendExtent(nil, &Extent{Common: c, K: 4, M: 2, Unit: 1 << 20, Cell: 128 << 10}),
		"extent reply":    AppendExtentReply(nil, 1<<33),
		"target stat":     AppendTargetStat(nil, &TargetStat{Capacity: 1 << 40, Used: 1 << 30, Shards: 77, State: 1, MapEpoch: 9}),
		"stale epoch":     AppendStaleEpoch(nil, 4, 5),
		"stale tag":       AppendTagReply(nil, tag(10)),
		"not leader":      AppendNotLeader(nil, c.Target),
	}
}

// The bytes are a contract: they are compared with those of the day they were fixed.
func TestGolden(t *testing.T) {
	const file = "testdata/data.golden"
	var b strings.Builder
	all := samples()
	for _, name := range sortedKeys(all) {
		fmt.Fprintf(&b, "== %s\n%s", name, hex.Dump(all[name]))
	}
	if *updateData {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != b.String() {
		t.Errorf("the bytes of data headers changed:\n%s", b.String())
	}
}

func sortedKeys(m map[string][]byte) []string { return slices.Sorted(maps.Keys(m)) }

// redo decodes b as the named header and encodes what it got.
func redo(name string, b []byte) ([]byte, error) {
	switch strings.Fields(name)[0] + " " + last(name) {
	case "common common":
		c, err := DecodeCommon(b)
		return AppendCommon(nil, &c), err
	case "prepare full", "prepare partial":
		p, s, c, err := DecodePrepare(b)
		return AppendPrepare(nil, &p, segments(s), c.Append(nil)), err
	case "commit commit":
		c, e, err := DecodeCommit(b)
		var l []CommitEntry
		for i := range e.Len() {
			l = append(l, e.At(i))
		}
		return AppendCommit(nil, &c, l), err
	case "commit reply":
		m, err := DecodeCommitReply(b, nil)
		return AppendCommitReply(nil, m), err
	case "retag retag":
		r, err := DecodeRetag(b)
		return AppendRetag(nil, &r), err
	case "read read":
		r, err := DecodeRead(b)
		return AppendRead(nil, &r), err
	case "read reply":
		r, s, c, err := DecodeReadReply(b)
		return AppendReadReply(nil, &r, segments(s), c.Append(nil)), err
	case "tag request":
		r, err := DecodeTagRequest(b)
		return AppendTagRequest(nil, &r), err
	case "resolve reply":
		r, err := DecodeResolveReply(b)
		return AppendResolveReply(nil, &r), err
	case "order reply":
		r, err := DecodeOrderReply(b)
		return AppendOrderReply(nil, &r), err
	case "version version":
		v, _, err := DecodeVersion(b)
		return AppendVersion(nil, &v, segments(v.Segments)), err
	case "query reply":
		r, err := DecodeQueryReply(b)
		return AppendQueryReply(nil, &r), err
	case "list list":
		l, err := DecodeList(b)
		return AppendList(nil, &l), err
	case "list reply":
		r, err := DecodeListReply(b)
		return AppendListReply(nil, &r), err
	case "listed listed":
		k, n, _, err := DecodeListed(b)
		return AppendListed(nil, k, n), err
	case "extent extent":
		e, err := DecodeExtent(b)
		return AppendExtent(nil, &e), err
	case "extent reply":
		n, err := DecodeExtentReply(b)
		return AppendExtentReply(nil, n), err
	case "target stat":
		s, err := DecodeTargetStat(b)
		return AppendTargetStat(nil, &s), err
	case "stale epoch":
		s, m, err := DecodeStaleEpoch(b)
		return AppendStaleEpoch(nil, s, m), err
	case "stale tag":
		g, err := DecodeTagReply(b)
		return AppendTagReply(nil, g), err
	case "not leader":
		u, err := DecodeNotLeader(b)
		return AppendNotLeader(nil, u), err
	}
	panic(name)
}

func last(name string) string { f := strings.Fields(name); return f[len(f)-1] }

func segments(s Segments) (l []Segment) {
	for i := range s.Len() {
		l = append(l, s.At(i))
	}
	return l
}

func TestRoundTrip(t *testing.T) {
	for name, b := range samples() {
		got, err := redo(name, b)
		if err != nil || !reflect.DeepEqual(got, b) {
			t.Errorf("%s: %v\n%s", name, err, hex.Dump(got))
		}
		for n := range b { // every truncation is an error, never a panic
			if _, err := redo(name, b[:n:n]); err == nil {
				t.Errorf("%s: cut to %d of %d bytes: no error", name, n, len(b))
			}
		}
	}
}

func TestPrepareThatContradictsItself(t *testing.T) {
	c := sampleCommon()
	local := c
	local.Flags = FlagLocal
	partial := c
	partial.Flags = FlagPartial
	for name, b := range map[string][]byte{
		"zero tag":               AppendPrepare(nil, &Prepare{Common: c}, nil, nil),
		"too few checksums":      AppendPrepare(nil, &Prepare{Common: c, Tag: tag(1), Length: 5000}, nil, []uint32{1}),
		"too long":               AppendPrepare(nil, &Prepare{Common: c, Tag: tag(1), Length: MaxShardSize + 1}, nil, nil),
		"local but no fold":      AppendPrepare(nil, &Prepare{Common: local, Tag: tag(1), Length: 5000}, nil, nil),
		"partial of nothing":     AppendPrepare(nil, &Prepare{Common: partial, Tag: tag(1)}, nil, nil),
		"segments of other size": AppendPrepare(nil, &Prepare{Common: partial, Tag: tag(1), Length: 199}, sampleSegments, []uint32{1, 2}),
		"segment that overflows": AppendPrepare(nil, &Prepare{Common: partial, Tag: tag(1), Length: 2}, []Segment{{Off: 1<<32 - 1, Len: 2}}, []uint32{1}),
		"full with segments":     AppendPrepare(nil, &Prepare{Common: c, Tag: tag(1), Length: 5000}, sampleSegments, []uint32{1, 2}),
	} {
		if _, _, _, err := DecodePrepare(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestBlocks(t *testing.T) {
	for _, c := range []struct{ off, n, want uint32 }{{0, 0, 0}, {0, 1, 1}, {4095, 1, 1}, {4095, 2, 2}, {0, 4096, 1}, {1, 4096, 2}, {4096, 1 << 20, 256}} {
		if got := Blocks(c.off, c.n); got != int(c.want) {
			t.Errorf("Blocks(%d, %d) = %d, want %d", c.off, c.n, got, c.want)
		}
	}
}

func TestEncodeAndDecodeDoNotAllocate(t *testing.T) {
	c := sampleCommon()
	crcs := make([]uint32, 256)
	buf := make([]byte, 0, 8192)
	n := testing.AllocsPerRun(100, func() {
		b := AppendPrepare(buf[:0], &Prepare{Common: c, Tag: tag(1), Length: 1 << 20}, nil, crcs)
		if _, _, got, err := DecodePrepare(b); err != nil || got.Len() != 256 {
			t.Fatal(err)
		}
		b = AppendReadReply(buf[:0], &ReadReply{Tag: tag(1), Length: 1 << 20}, nil, crcs)
		if _, _, _, err := DecodeReadReply(b); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// What decodes encodes to what decodes to the same; nothing panics.
func FuzzData(f *testing.F) {
	all := samples()
	names := sortedKeys(all)
	for i, name := range names {
		f.Add(uint8(i), all[name])
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		name := names[int(which)%len(names)]
		one, err := redo(name, b)
		if err != nil {
			return
		}
		two, err := redo(name, one)
		if err != nil || !reflect.DeepEqual(one, two) {
			t.Fatalf("%s: %v\n%x\n%x", name, err, one, two)
		}
	})
}
