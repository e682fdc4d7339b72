package server

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"rfs"
	"rfs/chunkstore"
	"rfs/placement"
	"strings"
	"testing"
	"time"

	"rfs/server/stripe"
	"rfs/transport/wire"
)

var one = stripe.Stripe{Inode: 100, Stripe: 3}

func seg(shard uint8, off, n uint32) []wire.Segment {
	return []wire.Segment{{Shard: shard, Off: off, Len: n}}
}

// What was written is read, whole and in parts, directly and rebuilt, committed or not.
func TestWriteAndRead(t *testing.T) {
	c := newTestCluster(t, "ec:2+2", 4)
	rng := rand.New(rand.NewPCG(1, 2))
	model := c.model()
	c.check(one, model) // never written: zeros

	w := c.full(one, [][]byte{random(rng, unit), random(rng, unit)}).send()
	w.apply(model)
	c.check(one, model) // the reader has the leader complete it
	w.commit()
	c.check(one, model)

	for range 5 {
		off, n := uint32(rng.IntN(unit-9000)), uint32(1+rng.IntN(9000))
		w := c.partial(one, seg(uint8(rng.IntN(2)), off, n), random(rng, int(n))).send()
		w.apply(model)
		if rng.IntN(2) == 0 {
			w.commit()
		}
		c.check(one, model)
	}
	both := c.partial(one, []wire.Segment{{Shard: 0, Off: 100, Len: 5000}, {Shard: 1, Zero: true, Off: 4000, Len: 20000}}, random(rng, 5000)).send()
	both.apply(model)
	c.check(one, model)

	short := c.full(one, [][]byte{random(rng, 10000), nil}) // as a client may that knows the rest was never written
	short.x.Stripe = 9
	model = c.model()
	short.send().apply(model)
	c.check(short.x, model)
}

// A writer that is refused gets above what is held, without moving its payload
// where it was taken already.
func TestConflictAndRetag(t *testing.T) {
	c := newTestCluster(t, "ec:2+2", 4)
	rng := rand.New(rand.NewPCG(3, 4))
	model := c.model()
	slow := c.partial(one, seg(0, 0, 5000), random(rng, 5000))
	if rep := slow.prepare(0); rep.Status != wire.StatusOK {
		t.Fatal(rep.Status)
	}
	fast := c.partial(one, seg(0, 3000, 5000), random(rng, 5000)).send()
	fast.apply(model)
	var highest rfs.Tag
	for _, pos := range []int{2, 3} {
		rep := slow.prepare(pos)
		if rep.Status != wire.StatusStaleTag {
			t.Fatalf("prepare below what is held: %v", rep.Status)
		}
		tag, err := wire.DecodeTagReply(rep.Header)
		if err != nil || tag != fast.tag {
			t.Fatalf("highest tag %v, %v; want %v", tag, err, fast.tag)
		}
		highest = tag
	}
	old := slow.tag
	slow.tag = rfs.Tag{HLC: highest.HLC + 1, Session: c.session, Seq: 1 << 20}
	retag := func(pos int, old rfs.Tag) wire.Status {
		r := wire.Retag{Common: c.common(one, pos), Old: old, New: slow.tag}
		r.Flags = wire.FlagRetagPartial
		return c.call(r.Target, wire.OpRetag, wire.AppendRetag(nil, &r), nil, nil).Status
	}
	if st := retag(0, old); st != wire.StatusOK {
		t.Fatal(st)
	}
	if st := retag(0, old); st != wire.StatusOK { // again: it has it already
		t.Fatal(st)
	}
	for _, pos := range []int{2, 3} {
		if st := retag(pos, old); st != wire.StatusGone {
			t.Fatalf("retag of what is not held: %v", st)
		}
		if rep := slow.prepare(pos); rep.Status != wire.StatusOK {
			t.Fatal(rep.Status)
		}
	}
	slow.apply(model)
	c.check(one, model)
}

// The writer dies after each of its PREPAREs, in any order of members. What it
// wrote is there whole or not at all, the same for all readers and for good,
// and what arrives late is refused or is there.
func TestWriterDies(t *testing.T) {
	c := newTestCluster(t, "ec:2+2", 4)
	rng := rand.New(rand.NewPCG(5, 6))
	for n, kind := range []string{"full", "partial", "partial of two"} {
		for j := range 5 {
			for _, order := range [][]int{{0, 1, 2, 3}, {3, 2, 1, 0}, {2, 0, 3, 1}} {
				x := stripe.Stripe{Inode: rfs.InodeID(200 + n), Stripe: uint32(j*10 + order[0])}
				before, after := c.model(), c.model()
				w := c.full(x, [][]byte{random(rng, unit), random(rng, unit)}).send().commit()
				w.apply(before)
				w.apply(after)
				switch kind {
				case "full":
					w = c.full(x, [][]byte{random(rng, unit), random(rng, 100)})
				case "partial":
					w = c.partial(x, seg(1, 777, 9999), random(rng, 9999))
				default:
					w = c.partial(x, []wire.Segment{{Shard: 0, Off: 5, Len: 50}, {Shard: 1, Zero: true, Off: 0, Len: unit}}, random(rng, 50))
				}
				w.apply(after)
				var rest []int
				took := 0
				for i, pos := range order {
					switch {
					case !w.w.Has(uint8(pos)):
					case i < j:
						took++
						if rep := w.prepare(pos); rep.Status != wire.StatusOK {
							t.Fatal(rep.Status)
						}
					default:
						rest = append(rest, pos)
					}
				}
				if rep := c.resolve(x, w.tag); rep.Status != wire.StatusOK {
					t.Fatalf("%s, %d of %v: %v", kind, j, order, rep.Status)
				}
				want := before
				if bytes.Equal(c.read(x, 0), after[0]) && bytes.Equal(c.read(x, 1), after[1]) {
					want = after
				}
				if len(rest) == 0 && want[0] != nil && &want[0] == &before[0] {
					t.Fatalf("%s, %v: a write that returned is lost", kind, order)
				}
				c.check(x, want)
				for _, pos := range rest {
					if rep := w.prepare(pos); (rep.Status == wire.StatusOK) != (&want[0] == &after[0]) {
						t.Fatalf("%s, %d of %v: late PREPARE at %d: %v", kind, j, order, pos, rep.Status)
					}
				}
				c.check(x, want)
			}
		}
	}
}

// While a session has the turn the leader refuses all others.
func TestOrder(t *testing.T) {
	c := newTestCluster(t, "ec:2+1", 3)
	other := c.partial(one, seg(0, 0, 10), make([]byte, 10)).send()
	order := func() (wire.OrderReply, wire.Status) {
		r := wire.TagRequest{Common: c.common(one, c.leader()), Tag: c.nextTag()}
		rep := c.call(r.Target, wire.OpOrder, wire.AppendTagRequest(nil, &r), nil, nil)
		if rep.Status != wire.StatusOK {
			return wire.OrderReply{}, rep.Status
		}
		o, err := wire.DecodeOrderReply(rep.Header)
		if err != nil {
			t.Fatal(err)
		}
		return o, rep.Status
	}
	c.session = 8
	o, st := order()
	if st != wire.StatusOK || o.Highest.Less(other.tag) {
		t.Fatalf("%v, highest %v", st, o.Highest)
	}
	c.session = 9
	late := c.partial(one, seg(0, 0, 10), make([]byte, 10))
	if rep := late.prepare(c.leader()); rep.Status != wire.StatusUnavailable {
		t.Fatalf("prepare in another's turn: %v", rep.Status)
	}
	if _, st := order(); st != wire.StatusUnavailable {
		t.Fatalf("a second turn: %v", st)
	}
	c.session = 8
	mine := c.partial(one, seg(0, 0, 10), make([]byte, 10)).send().commit() // ends the turn
	c.session = 9
	after := c.partial(one, seg(0, 0, 10), make([]byte, 10))
	if rep := after.prepare(c.leader()); rep.Status != wire.StatusOK {
		t.Fatalf("prepare after the turn: %v", rep.Status)
	}
	_ = mine
}

// Overlays are folded, in the background, and reading goes on.
func TestFold(t *testing.T) {
	for _, away := range []bool{false, true} {
		c := newTestCluster(t, "ec:2+2", 4, func(o *Options) { o.Fold = stripe.FoldPolicy{Overlays: 4, Idle: time.Hour} })
		rng := rand.New(rand.NewPCG(7, 8))
		model := c.model()
		c.full(one, [][]byte{random(rng, 30000), random(rng, 20000)}).send().commit().apply(model)
		if away {
			d := c.member(0)
			c.stop(d)
			c.down(d)
		}
		leader := c.member(c.leader())
		for i := range 9 {
			off, n := uint32(rng.IntN(unit-9000)), uint32(1+rng.IntN(9000))
			segs := seg(uint8(rng.IntN(2)), off, n)
			if i%3 == 0 {
				segs = append(segs, wire.Segment{Shard: segs[0].Shard ^ 1, Zero: true, Off: off, Len: n})
			}
			c.partial(one, segs, random(rng, int(n))).send().commit().apply(model)
		}
		c.until("the stripe is folded", func() bool { return leader.s.Stats().Folds > 0 })
		c.check(one, model)
		for _, i := range []int{1, 2, 3} {
			vs, err := c.member(i).s.targets[c.slot().Members[i]].versions(c.common(one, i).Key)
			if err != nil || len(vs) == 0 || vs[0].Kind != wire.Full || !vs[0].Fold || vs[0].State != wire.Complete {
				t.Fatalf("position %d after the fold: %v, %+v", i, err, vs)
			}
		}
		w := c.partial(one, seg(1, 1, 2), []byte{1, 2}).send()
		w.apply(model)
		c.check(one, model)
	}
}

// With m members away everything is read, and written by those that are left.
func TestDegraded(t *testing.T) {
	for _, away := range [][]int{{0}, {2}, {0, 1}, {1, 3}, {2, 3}} {
		c := newTestCluster(t, "ec:2+2", 4)
		rng := rand.New(rand.NewPCG(9, 10))
		model := c.model()
		c.full(one, [][]byte{random(rng, unit), random(rng, unit)}).send().commit().apply(model)
		c.partial(one, seg(0, 10, 5000), random(rng, 5000)).send().apply(model)
		var ds []*daemon
		for _, i := range away {
			ds = append(ds, c.member(i))
		}
		for _, d := range ds {
			c.stop(d)
			c.down(d)
		}
		c.check(one, model)
		c.partial(one, seg(1, 10, 5000), random(rng, 5000)).send().apply(model)
		c.check(one, model)
		c.full(one, [][]byte{random(rng, unit), random(rng, unit)}).send().apply(model)
		c.check(one, model)
		for _, d := range ds { // and they come back, with what they missed
			c.start(d)
		}
		c.synced()
		c.check(one, model)
	}
}

// What a member missed while it was away it gets when it comes back; what was
// trimmed, deleted or dropped without it goes.
func TestResync(t *testing.T) {
	c := newTestCluster(t, "ec:2+2", 4)
	rng := rand.New(rand.NewPCG(11, 12))
	for pos := range 4 {
		models := map[stripe.Stripe][][]byte{}
		d := c.member(pos)
		inode := rfs.InodeID(1000 + pos)
		x := func(i uint32) stripe.Stripe { return stripe.Stripe{Inode: inode, Stripe: i} }
		write := func(i uint32, kind int) {
			if models[x(i)] == nil {
				models[x(i)] = c.model()
			}
			var w *write
			if kind == 0 {
				w = c.full(x(i), [][]byte{random(rng, 1+rng.IntN(unit)), random(rng, 1+rng.IntN(unit))})
			} else {
				n := 1 + rng.IntN(9000)
				w = c.partial(x(i), seg(uint8(rng.IntN(2)), uint32(rng.IntN(unit-n)), uint32(n)), random(rng, n))
			}
			w.sendEventually().apply(models[x(i)])
			if rng.IntN(2) == 0 {
				w.commit()
			}
		}
		for i := range uint32(8) {
			write(i, int(i%2))
			write(i, 1)
		}
		dead := c.full(x(50), [][]byte{random(rng, 10), random(rng, 10)}) // its writer dies
		dead.prepare(pos)
		c.full(stripe.Stripe{Inode: inode + 100, Stripe: 0}, [][]byte{random(rng, 10), random(rng, 10)}).send().commit()
		if pos%2 == 0 {
			c.kill(d)
		} else {
			c.stop(d)
		}
		c.down(d)
		for i := range uint32(4) { // missed: overwritten, changed, new
			write(2*i, 0)
			write(2*i+1, 1)
			write(20+i, int(i%2))
		}
		for i := range 4 {
			if i == pos {
				continue
			}
			trim := wire.TagRequest{Common: c.common(x(7), i), Tag: rfs.Tag{HLC: ^uint64(0)}}
			if rep := c.call(trim.Target, wire.OpDelete, wire.AppendCommon(nil, &wire.Common{Target: trim.Target, Key: rfs.ShardKey{Inode: inode + 100}}), nil, nil); rep.Status != wire.StatusOK {
				t.Fatal(rep.Status)
			}
		}
		c.start(d)
		write(30, 0) // while it is being synced, maybe
		write(1, 1)
		c.synced()
		for x, model := range models {
			c.check(x, model)
		}
		c.check(x(50), c.model())
		vs, err := d.s.targets[d.id].versions(rfs.ShardKey{Inode: inode + 100, Shard: uint8(pos)})
		if err != nil || len(vs) > 0 {
			t.Fatalf("position %d has still what was deleted without it: %v, %+v", pos, err, vs)
		}
	}
}

// The whole cluster loses its processes at once and comes back by itself.
func TestColdRestart(t *testing.T) {
	c := newTestCluster(t, "ec:2+2", 4)
	rng := rand.New(rand.NewPCG(13, 14))
	models := map[stripe.Stripe][][]byte{}
	for i := range uint32(6) {
		x := stripe.Stripe{Inode: 5, Stripe: i}
		models[x] = c.model()
		c.full(x, [][]byte{random(rng, unit), random(rng, 1+rng.IntN(unit))}).send().apply(models[x])
		w := c.partial(x, seg(uint8(i%2), 9, 3000), random(rng, 3000)).send()
		w.apply(models[x])
		if i%2 == 0 {
			w.commit(2)
		}
	}
	for _, d := range c.daemons {
		c.kill(d)
	}
	for _, d := range c.daemons {
		c.down(d)
	}
	for _, d := range c.daemons {
		c.start(d)
		c.spread()
	}
	c.synced()
	for x, model := range models {
		c.check(x, model)
	}
}

// Clean restarts that the metadata service never noticed need no sync, and keep what was promised.
func TestCleanRestart(t *testing.T) {
	c := newTestCluster(t, "ec:2+2", 4)
	rng := rand.New(rand.NewPCG(15, 16))
	model := c.model()
	late := c.full(one, [][]byte{random(rng, unit), random(rng, unit)})
	late.prepare(0)
	if rep := c.resolve(one, late.tag); rep.Status != wire.StatusOK {
		t.Fatal(rep.Status)
	}
	for _, d := range c.daemons {
		c.stop(d)
		c.start(d)
	}
	if !c.slot().Syncing.IsEmpty() {
		t.Fatal("a clean restart needs no sync")
	}
	for i := range 4 {
		if rep := late.prepare(i); rep.Status != wire.StatusStaleTag {
			t.Fatalf("a dropped version came back at %d after a restart: %v", i, rep.Status)
		}
	}
	c.check(one, model)
}

// A drained target's shards move while the stripe is read and written; a target
// that is lost for good is rebuilt the same way.
func TestDrain(t *testing.T) {
	for _, lost := range []bool{false, true} {
		c := newTestCluster(t, "ec:2+2", 5)
		rng := rand.New(rand.NewPCG(17, 18))
		models := map[stripe.Stripe][][]byte{}
		for i := range uint32(5) {
			x := stripe.Stripe{Inode: 6, Stripe: i}
			models[x] = c.model()
			c.full(x, [][]byte{random(rng, unit), random(rng, unit)}).send().commit().apply(models[x])
			c.partial(x, seg(uint8(i%2), 70, 3000), random(rng, 3000)).send().apply(models[x])
		}
		for pos := range 2 {
			old := c.member(pos * 2)
			if lost {
				c.kill(old)
				c.down(old)
			}
			c.meta.change(t, func(m *placement.Map) (*placement.Map, error) { return placement.StartDrain(m, old.id) })
			x := stripe.Stripe{Inode: 6, Stripe: 2}
			c.partial(x, seg(1, 5, 30), random(rng, 30)).sendEventually().apply(models[x])
			c.spread()
			c.synced()
			if c.slot().Names(old.id) {
				t.Fatal("the slot still names the drained target")
			}
			for x, model := range models {
				c.check(x, model)
			}
			if !lost {
				c.until("the drained target is empty", func() bool {
					for range old.s.targets[old.id].store.Scan(0, 0, rfs.ShardKey{}) {
						return false
					}
					return true
				})
			} else {
				c.start(old)
			}
			c.meta.change(t, func(m *placement.Map) (*placement.Map, error) { return placement.CancelDrain(m, old.id) })
			c.spread()
		}
	}
}

// Requests of another epoch are refused with the news; a target that the
// metadata service has not heard of, or a client that it gave up, is out.
func TestFencing(t *testing.T) {
	c := newTestCluster(t, "ec:2+1", 3)
	w := c.full(one, [][]byte{{1}, {2}})
	hdr, payload := w.at(1)
	gone := c.member(0)
	c.down(gone)
	src := c.buf(payload)
	defer src.Release()
	rep := c.call(c.slot().Members[1], wire.OpPrepare, hdr, src, nil)
	slot, m, err := wire.DecodeStaleEpoch(rep.Header)
	if rep.Status != wire.StatusStaleEpoch || err != nil || slot != c.slot().Epoch || m != c.meta.get().Epoch {
		t.Fatalf("%v, slot epoch %d, map epoch %d, %v", rep.Status, slot, m, err)
	}
	if rep := w.prepare(0); rep.Status == wire.StatusOK {
		t.Fatal("a target that was declared down took a write")
	}
	signal(gone.s.agent.beat)
	c.until("it is registered again", func() bool { return c.meta.get().IsUp(gone.id) })
	c.synced()
	if rep := w.prepare(0); rep.Status != wire.StatusOK {
		t.Fatalf("after it came back: %v", rep.Status)
	}

	d := c.member(1)
	tg := d.s.targets[d.id]
	c.meta.mu.Lock()
	c.meta.silent = true
	c.meta.mu.Unlock()
	until := started.Add(time.Duration(tg.serveUntil.Load()))
	if tg.outOfService(until.Add(-1)) != "" || tg.outOfService(until) == "" {
		t.Fatal("fenced at another time than half a lease after the last acknowledged heartbeat")
	}
	tg.serveUntil.Store(1)
	if rep := w.prepare(1); rep.Status != wire.StatusUnavailable {
		t.Fatalf("a fenced target: %v", rep.Status)
	}
	c.meta.mu.Lock()
	c.meta.silent = false
	c.meta.ended = append(c.meta.ended, c.session)
	c.meta.mu.Unlock()
	signal(d.s.agent.beat)
	c.until("the target serves again", func() bool { return w.prepare(1).Status != wire.StatusUnavailable })
	if rep := w.prepare(1); rep.Status != wire.StatusSessionLost {
		t.Fatalf("a session that ended: %v", rep.Status)
	}
}

// Damage on the wire and on disk is found, and mended from the others.
func TestCorruption(t *testing.T) {
	c := newTestCluster(t, "ec:2+2", 4)
	rng := rand.New(rand.NewPCG(19, 20))
	model := c.model()
	w := c.full(one, [][]byte{random(rng, unit), random(rng, unit)})
	hdr, payload := w.at(0)
	payload = append([]byte(nil), payload...)
	payload[5000] ^= 1
	src := c.buf(payload)
	defer src.Release()
	if rep := c.call(c.slot().Members[0], wire.OpPrepare, hdr, src, nil); rep.Status != wire.StatusBadPayload {
		t.Fatalf("a damaged payload: %v", rep.Status)
	}
	w.send().commit().apply(model)
	p := c.partial(one, seg(0, 20000, 5000), random(rng, 5000)).send().commit()
	p.apply(model)
	for pos := range 4 {
		for _, mark := range [][]byte{w.shards[pos][12288:12300], p.bytes[0][100:112]} {
			if pos != 0 && pos < 2 && bytes.Equal(mark, p.bytes[0][100:112]) {
				continue // the overlay is not on this one
			}
			damage(t, c.member(pos).dir, mark)
		}
		if pos < 2 {
			if _, _, _, st := c.readAt(one, pos, 0, 0, rfs.Tag{}); st != wire.StatusCorrupt {
				t.Fatalf("a read of a damaged shard: %v", st)
			}
		} else {
			c.readAt(one, pos, wire.FlagOverlays, 0, rfs.Tag{})
			c.readAt(one, pos, wire.FlagExact, 0, w.tag)
		}
		d := c.member(pos)
		key := c.common(one, pos).Key
		buf := make([]byte, chunkstore.MaxPayload)
		c.until("it is mended", func() bool {
			_, _, err := d.s.targets[d.id].store.ReadVersion(key, w.tag, chunkstore.Full, buf)
			if err == nil && pos != 1 {
				_, _, err = d.s.targets[d.id].store.ReadVersion(key, p.tag, chunkstore.Partial, buf)
			}
			if err != nil && pos < 2 {
				c.readAt(one, pos, 0, 0, rfs.Tag{}) // finds the next
			} else if err != nil {
				c.readAt(one, pos, wire.FlagOverlays, 0, rfs.Tag{})
				c.readAt(one, pos, wire.FlagExact, 0, w.tag)
			}
			return err == nil
		})
		c.check(one, model)
	}
}

// damage flips a bit of what stands behind mark in the target's segments.
func damage(t *testing.T, dir string, mark []byte) {
	t.Helper()
	hit := false
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.Contains(path, "segments") {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		i := bytes.Index(b, mark)
		if i < 0 {
			return nil
		}
		hit = true
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte{mark[0] ^ 1}, int64(i))
		return err
	})
	if err != nil || !hit {
		t.Fatalf("nothing to damage in %s: %v", dir, err)
	}
}

// Versions that a dead writer left are settled without a reader.
func TestJanitorSettles(t *testing.T) {
	c := newTestCluster(t, "ec:2+2", 4, func(o *Options) { o.ResolveAfter = 20 * time.Millisecond })
	rng := rand.New(rand.NewPCG(21, 22))
	w := c.full(one, [][]byte{random(rng, unit), random(rng, unit)}).sendEventually() // the janitor may be faster
	dead := c.partial(one, seg(0, 0, 100), random(rng, 100))
	dead.prepare(0) // all data positions of its W: enough to complete it
	model := c.model()
	w.apply(model)
	dead.apply(model)
	for pos := range 4 {
		d := c.member(pos)
		c.until("nothing is prepared", func() bool {
			vs, err := d.s.targets[d.id].versions(c.common(one, pos).Key)
			return err == nil && len(vs) > 0 && highestPrepared(vs).IsZero()
		})
	}
	c.check(one, model)
}

// sendEventually is send by a client that takes a newer map when it is told to.
func (w *write) sendEventually() *write {
	w.c.t.Helper()
	for range 1000 {
		w.c.spread()
		m, ok := w.c.meta.get(), true
		w.tag = w.c.nextTag()
		for _, i := range w.live() {
			ok = ok && w.prepare(i).Status == wire.StatusOK
			if in := w.c.slot().IncomingAt(i); ok && !in.IsZero() && m.IsUp(in) {
				ok = w.prepareAt(in, i).Status == wire.StatusOK
			}
		}
		if ok && w.c.meta.get() == m {
			return w
		}
	}
	w.c.t.Fatal("a thousand tries to write")
	return w
}

// A full target says so; reading and deleting go on.
func TestFullTarget(t *testing.T) {
	c := newTestCluster(t, "ec:2+1", 3)
	var last stripe.Stripe
	var st wire.Status
	for i := range uint32(4000) {
		x := stripe.Stripe{Inode: 9, Stripe: i}
		w := c.full(x, [][]byte{make([]byte, unit), make([]byte, unit)})
		if st = w.prepare(2).Status; st != wire.StatusOK {
			break
		}
		last = x
	}
	if st != wire.StatusNoSpace {
		t.Fatalf("a full target: %v", st)
	}
	if _, _, _, st := c.readAt(last, 2, 0, 0, rfs.Tag{}); st != wire.StatusUnresolved {
		t.Fatalf("a read of a full target: %v", st)
	}
	if rep := c.call(c.slot().Members[2], wire.OpDelete, wire.AppendCommon(nil, &wire.Common{Target: c.slot().Members[2], Key: rfs.ShardKey{Inode: 9}}), nil, nil); rep.Status != wire.StatusOK {
		t.Fatalf("a delete on a full target: %v", rep.Status)
	}
	if st := c.full(last, [][]byte{make([]byte, unit), make([]byte, unit)}).prepare(2).Status; st != wire.StatusOK {
		t.Fatalf("after the delete: %v", st)
	}
}

// A disk that fails again and again takes its target out of service, and the cluster hears of it.
func TestFailingDisk(t *testing.T) {
	c := newTestCluster(t, "ec:2+1", 3)
	d := c.member(1)
	tg := d.s.targets[d.id]
	for i := range d.s.opts.MaxErrors {
		if why := tg.outOfService(time.Now()); why != "" {
			t.Fatalf("out of service after %d errors: %s", i, why)
		}
		if st := tg.statusOf(d.s, errors.New("input/output error")); st != wire.StatusIO {
			t.Fatal(st)
		}
	}
	if st := c.full(one, [][]byte{{1}, {2}}).prepare(1).Status; st != wire.StatusUnavailable {
		t.Fatalf("a failed target: %v", st)
	}
	c.until("the target is down", func() bool { return !c.meta.get().IsUp(d.id) })
	c.spread()
	model := c.model()
	c.full(one, [][]byte{{1}, {2}}).send().apply(model)
	c.check(one, model)
}

// The rest of a node's daily bad input.
func TestRefusals(t *testing.T) {
	c := newTestCluster(t, "ec:2+1", 3)
	w := c.full(one, [][]byte{{1}, {2}})
	good, payload := w.at(1)
	id := c.slot().Members[1]
	src := c.buf(payload)
	defer src.Release()
	change := func(f func(h []byte)) []byte {
		h := append([]byte(nil), good...)
		f(h)
		return h
	}
	for _, x := range []struct {
		name string
		op   wire.Op
		hdr  []byte
		want wire.Status
	}{
		{"no header", wire.OpPrepare, nil, wire.StatusBadRequest},
		{"half a header", wire.OpPrepare, good[:100], wire.StatusBadRequest},
		{"another node's target", wire.OpPrepare, change(func(h []byte) { h[32]++ }), wire.StatusNotFound},
		{"another position", wire.OpPrepare, change(func(h []byte) { h[60] = 2 }), wire.StatusBadRequest},
		{"a pool that is not there", wire.OpPrepare, change(func(h []byte) { h[62] = 9 }), wire.StatusUnavailable},
		{"a slot that is not there", wire.OpPrepare, change(func(h []byte) { h[64] = 9 }), wire.StatusUnavailable},
		{"an epoch yet to come", wire.OpPrepare, change(func(h []byte) { h[68] = 99 }), wire.StatusUnavailable},
		{"an unknown operation", wire.OpTest, good, wire.StatusUnknownOp},
		{"resolve at who does not lead", wire.OpResolve, change(func(h []byte) {})[:96], wire.StatusNotLeader},
		{"a read into nothing", wire.OpRead, wire.AppendRead(nil, &wire.Read{Common: c.common(one, 1), N: 4096}), wire.StatusBadRequest},
	} {
		if rep := c.call(id, x.op, x.hdr, part{src, len(payload)}, nil); rep.Status != x.want {
			t.Errorf("%s: %v, want %v", x.name, rep.Status, x.want)
		}
	}
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "no target") || !strings.Contains(err.Error(), "no arena") {
		t.Errorf("options without anything: %v", err)
	}
}
