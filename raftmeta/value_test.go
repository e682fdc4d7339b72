package raftmeta

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	"rfs"
	"rfs/raftmeta/metapb"
)

var goldenLayout = rfs.Layout{Pool: 0x0102, Start: 0x03040506, K: 4, M: 2, Unit: 1 << 20, Cell: 128 << 10}

// values are one of each kind, its encoding, and how it is decoded.
var values = map[string]struct {
	hex    string
	value  any
	encode func() []byte
	decode func([]byte) (any, error)
}{
	"inode": {
		hex: "0101040280810000020000000a0000000b0000000c00000064000000000000000100000000000000020000000000000003000000000000000400000000000000050000000000000006000000000000000201010006050403" +
			"00001000" + "00000200" + "320000000000000007000000000000000800000009000000" + "0100000000000000" + "746f",
		value: golden,
		decode: func(b []byte) (any, error) {
			return decodeNode(7, b)
		},
		encode: golden.encode,
	},
	"entry": {
		hex: "010807000000000000006e616d65", value: dirent{8, 7, []byte("name")},
		encode: (&dirent{8, 7, []byte("name")}).encode,
		decode: func(b []byte) (any, error) { return decodeDirent(b) },
	},
	"open": {
		hex: "010201000000020000000900000000000000", value: &open{1, 2, CacheReadWrite, 9},
		encode: (&open{1, 2, CacheReadWrite, 9}).encode,
		decode: func(b []byte) (any, error) { return decodeOpen(b) },
	},
	"session": {
		hex: "0105000000000000006e", value: &live{5, "n", map[rfs.InodeID]struct{}{}},
		encode: (&live{nonce: 5, name: "n"}).encode,
		decode: func(b []byte) (any, error) { return decodeLive(b) },
	},
	"asker": {
		hex: "010300000004000000000000000500000000000000", value: &asker{3, 4, 5, map[uint64][]byte{}},
		encode: (&asker{session: 3, low: 4, last: 5}).encode,
		decode: func(b []byte) (any, error) { return decodeAsker(b) },
	},
	"purge": {
		hex: "01070000000000000002010402060504030000100000000200", value: purge{7, goldenLayout},
		encode: (&purge{7, goldenLayout}).encode,
		decode: func(b []byte) (any, error) { return decodePurge(b) },
	},
	"trimming": {
		hex: "0103000000320000000000000002010402060504030000100000000200", value: trimming{3, 50, goldenLayout},
		encode: (&trimming{3, 50, goldenLayout}).encode,
		decode: func(b []byte) (any, error) { return decodeTrimming(b) },
	},
	"counters": {
		hex:    "01010000000000000002000000030000000000000004000000050000000000000006000000000000000700000000000000",
		value:  counters{1, 2, 3, 4, 5, 6, 7},
		encode: (&counters{1, 2, 3, 4, 5, 6, 7}).encode,
		decode: func(b []byte) (any, error) { return decodeCounters(b) },
	},
	"locks": {
		hex: "010100000001000000" + "0001010000000200000000000000" + "0300000000000000040000000000000005000000" +
			"06000000000000000700000000000000" + "01" + "0102080000000900000000000000" + "0000000000000000ffffffffffffffff0a000000" +
			"01000000" + "0000000000000000ffffffffffffffff",
		value:  goldenLocks,
		encode: goldenLocks.encode,
		decode: func(b []byte) (any, error) { return decodeLocks(b) },
	},
}

var golden = &node{
	Attr: Attr{
		Inode: 7, Mode: TypeFile | 0o600, Nlink: 2, UID: 10, GID: 11, Rdev: 12, Size: 100, Atime: 1, Mtime: 2, Ctime: 3, Btime: 4,
		Parent: 5, Change: 6, Layout: goldenLayout, Trims: []Trim{{Size: 50, Tag: rfs.Tag{HLC: 7, Session: 8, Seq: 9}, Swept: true}},
	},
	written: true, target: "to",
}

var goldenLocks = &lockTable{
	held: []lock{{span: span{3, 4}, who: lockOwner{1, 2}, typ: ReadLock, pid: 5}},
	waits: []*wait{{
		key: waitKey{6, 7}, granted: true, spans: []span{{0, ^uint64(0)}},
		want: lock{span: span{0, ^uint64(0)}, who: lockOwner{8, 9}, flock: true, typ: WriteLock, pid: 10},
	}},
}

// The encodings are on disks: they must stay.
func TestGoldenValues(t *testing.T) {
	for name, v := range values {
		want, err := hex.DecodeString(v.hex)
		ok(t, err)
		if got := v.encode(); !bytes.Equal(got, want) {
			t.Errorf("%s is\n%x, want\n%x", name, got, want)
		}
		got, err := v.decode(want)
		if err != nil || !reflect.DeepEqual(got, v.value) {
			t.Errorf("%s decodes to\n%+v, %v; want\n%+v", name, got, err, v.value)
		}
		if _, err := v.decode(append([]byte{2}, want[1:]...)); err == nil {
			t.Errorf("%s of version 2 is taken", name)
		}
		if _, err := v.decode(nil); err == nil {
			t.Errorf("an empty %s is taken", name)
		}
	}
}

// FuzzValues: a decoder takes any bytes, and what it takes it encodes the same.
func FuzzValues(f *testing.F) {
	for _, v := range values {
		f.Add(v.encode())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := decodeNode(7, b); err == nil {
			again, err := decodeNode(7, n.encode())
			if err != nil || !reflect.DeepEqual(n, again) {
				t.Errorf("inode %+v becomes %+v, %v", n, again, err)
			}
		}
		if lt, err := decodeLocks(b); err == nil {
			if again, err := decodeLocks(lt.encode()); err != nil || !reflect.DeepEqual(lt, again) {
				t.Errorf("locks %+v become %+v, %v", lt, again, err)
			}
		}
		for _, v := range values {
			v.decode(b)
		}
	})
}

// hostile are commands to begin with: of each kind, on the machine of hostileFS.
func hostile() (out []*metapb.Command) {
	dir, file, owner := uint64(2), uint64(3), &metapb.LockSpec{Type: 2, End: 10}
	target, name := []byte{1, 15: 0}, []byte("x")
	for _, cmd := range []*metapb.Command{
		{Op: &metapb.Command_OpenSession{OpenSession: &metapb.OpenSession{Name: "s"}}},
		{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: []uint32{1, 1}, Expired: true}}},
		{Op: &metapb.Command_Create{Create: &metapb.Create{Parent: 1, Name: name, Open: 3}}},
		{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: dir, Name: name, Mode: TypeDir}}},
		{Op: &metapb.Command_Link{Link: &metapb.Link{Inode: file, Parent: 1, Name: name}}},
		{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: dir, Name: []byte("f")}}},
		{Op: &metapb.Command_Rename{Rename: &metapb.Rename{Parent: 1, Name: []byte("d"), NewParent: dir, NewName: name}}},
		{Op: &metapb.Command_Setattr{Setattr: &metapb.Setattr{Inode: file, Size: new(int64(9)), Tag: &metapb.Tag{Hlc: 1}}}},
		{Op: &metapb.Command_Open{Open: &metapb.Open{Inode: file, Mode: 3}}},
		{Op: &metapb.Command_Close{Close: &metapb.Close{Files: []*metapb.CloseOne{{Inode: file, Mode: 3, Count: 9}}}}},
		{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Inode: file, Size: 8}}},
		{Op: &metapb.Command_ReserveAppend{ReserveAppend: &metapb.ReserveAppend{Inode: file, N: 8}}},
		{Op: &metapb.Command_TrimDone{TrimDone: &metapb.TrimDone{Inode: file, Tag: &metapb.Tag{Hlc: 1}}}},
		{Op: &metapb.Command_TrimSwept{TrimSwept: &metapb.TrimSwept{Inode: file, Tag: &metapb.Tag{Hlc: 1}}}},
		{Op: &metapb.Command_Setxattr{Setxattr: &metapb.Setxattr{Inode: file, Name: name, Value: name}}},
		{Op: &metapb.Command_Removexattr{Removexattr: &metapb.Removexattr{Inode: file, Name: name}}},
		{Op: &metapb.Command_RecallDone{RecallDone: &metapb.RecallDone{Inode: file, At: 99}}},
		{Op: &metapb.Command_Lock{Lock: &metapb.Lock{Inode: file, Wait: true, Spec: owner}}},
		{Op: &metapb.Command_Settle{Settle: &metapb.Settle{WaitSeq: 1, Cancel: true, Open: 1}}},
		{Op: &metapb.Command_SetLayout{SetLayout: &metapb.SetLayout{Inode: dir}}},
		{Op: &metapb.Command_RegisterNode{RegisterNode: &metapb.RegisterNode{Id: target, Name: "n"}}},
		{Op: &metapb.Command_RegisterTarget{RegisterTarget: &metapb.RegisterTarget{Id: target, Node: []byte{9, 15: 0}, Capacity: 1}}},
		{Op: &metapb.Command_TargetState{TargetState: &metapb.TargetState{Targets: [][]byte{target}}}},
		{Op: &metapb.Command_TargetSpace{TargetSpace: &metapb.TargetSpace{Spaces: []*metapb.Space{{Target: target, Used: 5}}}}},
		{Op: &metapb.Command_SlotSynced{SlotSynced: &metapb.SlotSynced{Target: target, Slots: []*metapb.SlotEpoch{{Slot: 1, Epoch: 1}}}}},
		{Op: &metapb.Command_CreatePool{CreatePool: &metapb.CreatePool{Name: "q", Scheme: "ec:2+1", Slots: 4}}},
		{Op: &metapb.Command_DrainTarget{DrainTarget: &metapb.DrainTarget{Target: target}}},
		{Op: &metapb.Command_RemoveTarget{RemoveTarget: &metapb.RemoveTarget{Target: target}}},
		{Op: &metapb.Command_RemoveNode{RemoveNode: &metapb.RemoveNode{Node: target}}},
		{Op: &metapb.Command_Purged{Purged: &metapb.Purged{Cursors: []*metapb.Cursor{{Target: target, Seq: 1}}}}},
		{Op: &metapb.Command_Recovered{Recovered: &metapb.Recovered{Inode: file, Size: 9}}},
	} {
		cmd.Nonce, cmd.Seq, cmd.Session = testNonce, 1<<20+uint64(len(out)), 1
		out = append(out, cmd)
	}
	return out
}

func hostileFS(t testing.TB) *fs {
	m := &fs{newMachine(t).pool(), 0}
	m.id = m.session()
	m.run("mkdir d")
	m.run("create d/f")
	return m
}

// FuzzCommand: whatever a command says, it is applied or refused, and the
// mirror stays what the keys say. (A panic would stop all replicas, for good.)
func FuzzCommand(f *testing.F) {
	for _, cmd := range hostile() {
		b, err := proto.Marshal(cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd := new(metapb.Command)
		if proto.Unmarshal(b, cmd) != nil {
			return
		}
		m := hostileFS(t)
		m.apply(cmd)
		m.check()
	})
}

// The same at random, on one machine that has been through all before.
func TestHostileCommands(t *testing.T) {
	rnd := seeded(t)
	m := hostileFS(t)
	for i := range 6000 {
		seeds := hostile()
		b, err := proto.Marshal(seeds[rnd.IntN(len(seeds))])
		ok(t, err)
		for range rnd.IntN(4) {
			b[rnd.IntN(len(b))] = byte(rnd.IntN(256))
		}
		cmd := new(metapb.Command)
		if proto.Unmarshal(b, cmd) != nil {
			continue
		}
		if rnd.IntN(3) > 0 {
			cmd.Nonce, cmd.Seq, cmd.Session = testNonce, m.seq+uint64(rnd.IntN(5)), uint32(rnd.IntN(4))
			m.seq++
		}
		if p := cmd.GetCreatePool(); p != nil {
			p.Slots = min(p.Slots, 64)
		}
		m.apply(cmd)
		if i%500 == 0 {
			m.check()
		}
	}
	m.check()
}
