package raftmeta

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// lockStory runs lines such as "A w 0-9", "A wait w 0-9 as x", "A unlock 0-9",
// "take x", "lift x", "end A", on files "f" (or "g", after "on g"). A to D are
// owners 1 of four sessions; a to d are owners 2 of the same.
type lockStory struct {
	*fs
	ids  map[string]rfs.SessionID
	seqs map[string]uint64
	file string
}

func newLockStory(t testing.TB) *lockStory {
	s := &lockStory{fs: newFS(t), ids: map[string]rfs.SessionID{}, seqs: map[string]uint64{}, file: "f"}
	s.run("touch f")
	s.run("touch g")
	for _, n := range []string{"A", "B", "C", "D"} {
		s.ids[n] = s.session()
		s.ids[strings.ToLower(n)] = s.ids[n]
	}
	return s
}

func (s *lockStory) line(l string) string {
	s.t.Helper()
	w := strings.Fields(l)
	switch w[0] {
	case "on":
		s.file = w[1]
		return "ok"
	case "take", "lift":
		rep := s.do(s.ids[w[1][:1]], &metapb.Command{Op: &metapb.Command_Settle{Settle: &metapb.Settle{WaitSeq: s.seqs[w[1]], Cancel: w[0] == "lift"}}})
		return wire.Status(rep.GetStatus()).String()
	case "end":
		s.do(0, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: []uint32{uint32(s.ids[w[1]])}}}})
		return "ok"
	case "granted":
		if _, there := s.s.waits[waitKey{testNonce, s.seqs[w[1]]}]; !there {
			return "gone"
		}
		return fmt.Sprint(s.s.waited(waitKey{testNonce, s.seqs[w[1]]}, s.ids[w[1][:1]]) != nil)
	}
	op := &metapb.Lock{Inode: s.ino(s.file), Spec: &metapb.LockSpec{Owner: 1, End: ^uint64(0)}}
	id := s.ids[w[0]]
	if strings.ToLower(w[0]) == w[0] {
		op.Spec.Owner = 2
	}
	name := ""
	for i := 1; i < len(w); i++ {
		switch w[i] {
		case "wait":
			op.Wait = true
		case "flock":
			op.Spec.Flock = true
		case "r":
			op.Spec.Type = uint32(ReadLock)
		case "w":
			op.Spec.Type = uint32(WriteLock)
		case "unlock":
		case "as":
			i++
			name = w[0] + w[i]
		default:
			fmt.Sscanf(w[i], "%d-%d", &op.Spec.Start, &op.Spec.End)
		}
	}
	rep := s.do(id, &metapb.Command{Op: &metapb.Command_Lock{Lock: op}})
	if name != "" {
		s.seqs[name] = s.seq
	}
	if rep.GetWaiting() {
		return "waits"
	}
	return wire.Status(rep.GetStatus()).String()
}

func TestLocks(t *testing.T) {
	for name, story := range map[string]string{
		"read locks share":        `A r 0-9: ok; B r 0-9: ok; C w 5-5: would block; C w 10-10: ok`,
		"write locks exclude":     `A w 0-9: ok; B r 9-20: would block; B r 10-20: ok; A w 0-9: ok; a r 0-0: would block`,
		"ranges split":            `A w 0-99: ok; A unlock 40-59: ok; B w 40-59: ok; B w 39-39: would block; B w 60-60: would block`,
		"ranges join":             `A r 0-9: ok; A r 10-19: ok; A w 5-14: ok; B r 0-4: ok; B r 4-5: would block; B r 15-19: ok`,
		"to the end":              `A w 100-18446744073709551615: ok; B w 0-99: ok; B w 18446744073709551615-18446744073709551615: would block; A unlock: ok; B w: ok`,
		"empty range":             `A w 9-3: invalid`,
		"a wait is granted":       `A w 0-9: ok; B wait w 5-20 as 1: waits; granted B1: false; A unlock 0-4: ok; granted B1: false; A unlock 5-9: ok; granted B1: true; C r 20-20: would block; take B1: ok; C r 20-20: would block; B unlock: ok; C r 20-20: ok`,
		"first come":              `A w: ok; B wait w as 1: waits; C wait w as 1: waits; A unlock: ok; granted B1: true; granted C1: false; take B1: ok; B unlock: ok; granted C1: true`,
		"a wait is given up":      `A w: ok; B wait w as 1: waits; lift B1: ok; A unlock: ok; C w: ok`,
		"granted, then given up":  `A w: ok; B wait w as 1: waits; A unlock: ok; granted B1: true; lift B1: ok; C w: ok`,
		"given up, but held":      `B w 0-4: ok; A w 5-9: ok; B wait w 0-9 as 1: waits; A unlock: ok; granted B1: true; lift B1: ok; C w 0-4: would block; C w 5-9: ok`,
		"held by a later request": `A w 5-9: ok; B wait w 0-9 as 1: waits; A unlock: ok; B w 5-9: ok; lift B1: ok; C w 0-4: ok; D w 5-9: would block`,
		"unlocked in between":     `A w 5-9: ok; B wait w 0-9 as 1: waits; A unlock: ok; B unlock 5-7: ok; take B1: ok; C w 5-7: ok; C w 4-4: would block; C w 8-8: would block`,
		"two given up":            `A w: ok; B wait w 0-9 as 1: waits; B wait w 5-14 as 2: waits; A unlock: ok; lift B1: ok; C w 0-4: ok; D w 5-5: would block; lift B2: ok; D w 5-14: ok`,
		"given up before it came": `A w: ok; lift B1: ok; end A: ok; B w: ok`,
		"deadlock of two":         `A w 0-0: ok; B w 1-1: ok; A wait w 1-1 as 1: waits; B wait w 0-0 as 1: resource; B unlock: ok; granted A1: true`,
		"deadlock of three files": `A w: ok; on g: ok; B w: ok; A wait w as 1: waits; on f: ok; C wait r as 1: waits; B wait r as 1: deadlock; C unlock: ok`,
		"owners of one session":   `A w 0-0: ok; a w 1-1: ok; A wait w 1-1 as 1: waits; a wait w 0-0 as 1: deadlock`,
		"no deadlock by reading":  `A r 0-0: ok; B r 0-0: ok; A wait w 0-0 as 1: waits; B wait r 0-9 as 1: ok; B wait w 0-0 as 2: deadlock`,
		"flock is apart":          `A flock w: ok; B w: ok; B flock r: would block; C flock wait r as 1: waits; A flock unlock: ok; granted C1: true`,
		"flock changes type":      `A flock r: ok; B flock r: ok; A flock w: would block; B flock w: ok; A flock r: would block`,
		"flock has no deadlock":   `A flock w: ok; on g: ok; B flock w: ok; A flock wait w as 1: waits; on f: ok; B flock wait w as 1: waits`,
		"a session ends":          `A w: ok; A flock w: ok; B wait w as 1: waits; C wait w as 1: waits; end C: ok; granted C1: gone; end A: ok; granted B1: true; B flock w: ok`,
		"a file goes":             `A w: ok; B wait w as 1: waits; rm: ok; granted B1: gone`,
		"lowered at once":         `A w 0-9: ok; B wait r 0-9 as 1: waits; A wait r 0-9 as 1: ok; granted B1: true`,
		"at once, then given up":  `A wait w 0-9 as 1: ok; lift A1: ok; B w 0-0: ok`,
		"at once, acknowledged":   `A wait w 0-9 as 1: ok; A r 20-20: ok; lift A1: ok; B w 0-0: would block`,
	} {
		t.Run(name, func(t *testing.T) {
			s := newLockStory(t)
			for _, step := range strings.Split(story, ";") {
				l, want, _ := strings.Cut(strings.TrimSpace(step), ": ")
				var got string
				switch {
				case l == "rm":
					got = s.run("unlink f").String()
				case strings.HasPrefix(l, "lift") && s.seqs[l[5:]] == 0: // a command that has not come yet
					s.seqs[l[5:]] = s.seq + 5
					got = s.line(l)
					late := &metapb.Command{Nonce: testNonce, Seq: s.seq + 4, Session: uint32(s.ids["B"]), Op: &metapb.Command_Lock{Lock: &metapb.Lock{
						Inode: s.ino("f"), Wait: true, Spec: &metapb.LockSpec{Owner: 1, Type: uint32(WriteLock), End: ^uint64(0)},
					}}}
					s.want(s.apply(late), wire.StatusCancelled)
				case strings.HasPrefix(l, "lift") && name == "at once, then given up":
					ack := s.seqs["A1"]
					s.seq++
					s.apply(&metapb.Command{Nonce: testNonce, Seq: s.seq, Ack: ack, Session: uint32(s.ids["A"]), Op: &metapb.Command_Settle{Settle: &metapb.Settle{WaitSeq: ack, Cancel: true}}})
					got = "ok"
				default:
					got = s.line(l)
				}
				if want == "resource" {
					want = "deadlock"
				}
				if got != want {
					t.Errorf("%s: %s, want %s", l, got, want)
				}
				s.check()
			}
		})
	}
}

// A model that knows for each byte who holds it, and settles everything at once.
func TestLocksAgainstBytes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const size, owners = 12, 4
	lt := &lockTable{}
	var model [owners][size]LockType
	for range 3000 {
		o, a, b := rnd.IntN(owners), uint64(rnd.IntN(size)), uint64(rnd.IntN(size))
		l := lock{span: span{min(a, b), max(a, b)}, who: lockOwner{owner: uint64(o)}, typ: LockType(rnd.IntN(3))}
		blocked := false
		for p := range model {
			for x := l.start; x <= l.end; x++ {
				blocked = blocked || p != o && l.typ != Unlock && (model[p][x] == WriteLock || model[p][x] == ReadLock && l.typ == WriteLock)
			}
		}
		if l.typ != Unlock && lt.blocked(&l) != blocked {
			t.Fatalf("blocked(%+v) is %v; table %+v, model %v", l, !blocked, lt, model)
		}
		if blocked {
			continue
		}
		lt.put(l, nil)
		for x := l.start; x <= l.end; x++ {
			model[o][x] = l.typ
		}
		got := [owners][size]LockType{}
		for i, h := range lt.held {
			if i > 0 && h.same(&lt.held[i-1]) && h.start <= lt.held[i-1].end {
				t.Fatalf("overlap in %+v", lt.held)
			}
			for x := h.start; x <= h.end; x++ {
				got[h.who.owner][x] = h.typ
			}
		}
		if got != model {
			t.Fatalf("after %+v: held %v, model %v", l, got, model)
		}
	}
}
