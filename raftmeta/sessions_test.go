package raftmeta

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// TestCaches tells who may cache what, and who is to be recalled.
func TestCaches(t *testing.T) {
	for name, story := range map[string]string{
		"the only reader":         `A open r: read`,
		"the only writer":         `A open w: read-write; A open r: read-write; A close w: ok; A has: read`,
		"readers share":           `A open r: read; B open r: read; recalls: []`,
		"a writer joins a reader": `A open r: read; B open w: none; recalls: [A none]; A done: ok; recalls: []`,
		"a reader joins a writer": `A open w: read-write; B open r: none; recalls: [A none]; A done: ok; recalls: []; A has: none`,
		"the writer leaves":       `A open w: read-write; B open r: none; recalls: [A none]; A close w: ok; recalls: []; B open r: read`,
		"a late answer":           `A open w: read-write; B open r: none; recalls: [A none]; B close r: ok; A open w: read-write; A late: ok; A has: read-write`,
		"a session ends":          `A open w: read-write; B open r: none; recalls: [A none]; end A: ok; recalls: []`,
		"closed twice":            `A open r: read; A close r: ok; A close r: ok; A has: nothing`,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFS(t)
			f.run("touch f")
			ino := rfs.InodeID(f.ino("f"))
			ids := map[string]rfs.SessionID{"A": f.session(), "B": f.session()}
			at := uint64(0)
			for _, step := range strings.Split(story, ";") {
				l, want, _ := strings.Cut(strings.TrimSpace(step), ": ")
				w := strings.Fields(l)
				mode := OpenRead
				if w[len(w)-1] == "w" {
					mode = OpenWrite
				}
				id, got := ids[w[0]], "ok"
				switch {
				case w[0] == "recalls":
					var out []string
					for _, n := range []string{"A", "B"} {
						if m, ok := f.s.recalls(ino, 0)[ids[n]]; ok {
							out = append(out, n+" "+m.String())
						}
					}
					at, got = f.index, fmt.Sprint(out)
				case w[0] == "end":
					f.do(0, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: []uint32{uint32(ids[w[1]])}}}})
				case w[1] == "open":
					got = CacheMode(f.want(f.do(id, &metapb.Command{Op: &metapb.Command_Open{Open: &metapb.Open{Inode: uint64(ino), Mode: uint32(mode)}}}), wire.StatusOK).GetOpen().GetCache()).String()
				case w[1] == "close":
					f.do(id, &metapb.Command{Op: &metapb.Command_Close{Close: &metapb.Close{Files: []*metapb.CloseOne{{Inode: uint64(ino), Mode: uint32(mode)}}}}})
				case w[1] == "done" || w[1] == "late":
					f.do(id, &metapb.Command{Op: &metapb.Command_RecallDone{RecallDone: &metapb.RecallDone{Inode: uint64(ino), Mode: uint32(CacheNone), At: at}}})
				case w[1] == "has":
					if got = "nothing"; f.s.opens[ino][id] != nil {
						got = f.s.opens[ino][id].cache.String()
					}
				}
				if got != want {
					t.Errorf("%s: %s, want %s", l, got, want)
				}
				f.check()
			}
		})
	}
}

func TestAWriterThatDiesLeavesItsSizeToBeRecovered(t *testing.T) {
	f := newFS(t)
	f.run("create a")
	f.run("create b")
	f.run("open b")
	a, b := rfs.InodeID(f.ino("a")), rfs.InodeID(f.ino("b"))
	f.do(f.id, &metapb.Command{Op: &metapb.Command_Close{Close: &metapb.Close{Files: []*metapb.CloseOne{{Inode: uint64(b), Mode: uint32(OpenWrite)}}}}})
	f.do(0, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: []uint32{uint32(f.id)}, Expired: true}}})
	if _, ok := f.s.recover[b]; ok || len(f.s.recover) != 1 {
		t.Fatalf("to be recovered: %v, want %v alone", f.s.recover, a)
	}
	f.check()
	for _, size := range []int64{100, 50} {
		f.do(0, &metapb.Command{Op: &metapb.Command_Recovered{Recovered: &metapb.Recovered{Inode: uint64(a), Size: size}}})
		if got := f.stat("a").GetAttr().GetSize(); got != 100 {
			t.Errorf("size %d, want 100", got)
		}
		f.check()
	}
	if len(f.s.recover) != 0 {
		t.Error("it is still to be recovered")
	}
}

func TestAnOpenThatIsGivenUpIsUndone(t *testing.T) {
	f := newFS(t)
	f.run("touch f")
	f.run("openw f") // under f.seq
	ino := rfs.InodeID(f.ino("f"))
	undo := func(seq uint64) {
		f.seq++
		f.want(f.apply(&metapb.Command{
			Nonce: testNonce, Seq: f.seq, Ack: seq, Session: uint32(f.id),
			Op: &metapb.Command_Settle{Settle: &metapb.Settle{WaitSeq: seq, Cancel: true, Open: uint32(OpenWrite)}},
		}), wire.StatusOK)
		f.check()
	}
	opened := f.seq
	undo(opened)
	undo(opened)
	if len(f.s.opens[ino]) != 0 {
		t.Fatal("it is open")
	}
	late := f.seq + 5
	undo(late) // before it came
	f.want(f.apply(&metapb.Command{
		Nonce: testNonce, Seq: late, Session: uint32(f.id), Op: &metapb.Command_Open{Open: &metapb.Open{Inode: uint64(ino), Mode: uint32(OpenWrite)}},
	}), wire.StatusCancelled)
	if len(f.s.opens[ino]) != 0 {
		t.Fatal("it is open")
	}
}

func TestEndedSessionsAreToldToDaemons(t *testing.T) {
	m := newMachine(t).pool()
	var ids []uint32
	for range 5 {
		ids = append(ids, uint32(m.session()))
	}
	end := func(ids ...uint32) {
		m.do(0, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: ids}}})
	}
	end(ids[1], ids[3])
	rep := m.s.heartbeatReply(&metapb.Heartbeat{}, 0)
	if !reflect.DeepEqual(rep.GetEnded(), []uint32{ids[1], ids[3]}) {
		t.Fatalf("ended %v", rep.GetEnded())
	}
	end(ids[0])
	rep = m.s.heartbeatReply(&metapb.Heartbeat{EndedSince: rep.GetEndedCursor()}, 0)
	if !reflect.DeepEqual(rep.GetEnded(), ids[:1]) {
		t.Fatalf("ended %v since", rep.GetEnded())
	}
	for range maxEnded + 5 {
		end(uint32(m.session()))
	}
	if rep = m.s.heartbeatReply(&metapb.Heartbeat{}, 0); len(rep.GetEnded()) != maxEnded || len(m.s.ended) != maxEnded {
		t.Errorf("%d told, %d kept, want %d", len(rep.GetEnded()), len(m.s.ended), maxEnded)
	}
	for _, id := range rep.GetEnded() {
		if id == 0 {
			t.Fatal("session 0 has ended")
		}
	}
	m.check()
}

func TestTargetsComeAndGo(t *testing.T) {
	m := newMachine(t).pool()
	id, node := rfs.UUID{1, 0}, rfs.UUID{9}
	epoch := func() rfs.Epoch { return m.s.cmap.Epoch }
	register := func(clean bool) {
		m.want(m.do(0, &metapb.Command{Op: &metapb.Command_RegisterTarget{RegisterTarget: &metapb.RegisterTarget{
			Id: id[:], Node: node[:], Name: "t0", Capacity: 1 << 30, Clean: clean,
		}}}), wire.StatusOK)
		m.check()
	}
	before := epoch()
	register(true)
	if epoch() != before {
		t.Error("a target that was never missed and is clean raised the epoch")
	}
	down := &metapb.Command{Op: &metapb.Command_TargetState{TargetState: &metapb.TargetState{Targets: [][]byte{id[:]}}}}
	m.do(0, down)
	if m.s.cmap.IsUp(id) || epoch() == before || !m.last.mapped {
		t.Error("the target is not down")
	}
	before = epoch()
	m.do(0, &metapb.Command{Op: down.Op})
	if epoch() != before {
		t.Error("down twice raised the epoch twice")
	}
	register(true)
	p := &m.s.cmap.Pools[0]
	syncing := 0
	for i := range p.Slots {
		if at := p.Slots[i].Index(id); at >= 0 && p.Slots[i].Syncing.Has(uint8(at)) {
			syncing++
			m.want(m.do(0, &metapb.Command{Op: &metapb.Command_SlotSynced{SlotSynced: &metapb.SlotSynced{
				Target: id[:], Slots: []*metapb.SlotEpoch{{Slot: uint32(i), Epoch: uint32(p.Slots[i].Epoch)}},
			}}}), wire.StatusOK)
			p = &m.s.cmap.Pools[0]
		}
	}
	if syncing != len(p.Slots) || !m.s.cmap.Readable(&p.Slots[0], p.Slots[0].Index(id)) {
		t.Errorf("%d slots of %d synced", syncing, len(p.Slots))
	}
	rep := m.do(0, &metapb.Command{Op: &metapb.Command_SlotSynced{SlotSynced: &metapb.SlotSynced{Target: id[:], Slots: []*metapb.SlotEpoch{{Epoch: 1}}}}})
	m.want(rep, wire.StatusStaleEpoch)
	m.want(m.do(0, &metapb.Command{Op: &metapb.Command_RemoveTarget{RemoveTarget: &metapb.RemoveTarget{Target: id[:]}}}), wire.StatusNotEmpty)
	m.want(m.do(0, &metapb.Command{Op: &metapb.Command_DrainTarget{DrainTarget: &metapb.DrainTarget{Target: id[:]}}}), wire.StatusNoSpace)
	m.want(m.do(0, &metapb.Command{Op: &metapb.Command_CreatePool{CreatePool: &metapb.CreatePool{Name: "p", Scheme: "ec:4+2"}}}), wire.StatusExist)
	m.want(m.do(0, &metapb.Command{Op: &metapb.Command_CreatePool{CreatePool: &metapb.CreatePool{Name: "q", Scheme: "ec:0+2"}}}), wire.StatusInvalid)
	m.want(m.do(0, &metapb.Command{Op: &metapb.Command_CreatePool{CreatePool: &metapb.CreatePool{Name: "q", Scheme: "ec:8+2"}}}), wire.StatusInvalid)
	m.want(m.do(0, &metapb.Command{Op: &metapb.Command_RemoveNode{RemoveNode: &metapb.RemoveNode{Node: node[:]}}}), wire.StatusNotEmpty)
	m.check()
}
