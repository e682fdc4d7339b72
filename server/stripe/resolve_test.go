package stripe

import (
	"math/rand/v2"
	"slices"
	"testing"

	"rfs/transport/wire"
)

// A write that returned is never lost, one that did not is whole or nothing.
func TestResolveEverySubset(t *testing.T) {
	eachCase(t, func(t *testing.T, c *cluster, v Version, _ []*node, acked bool) {
		before := c.dump()
		res, _ := c.resolve(v.Tag, false, nil)
		complete, err := c.agree(v)
		if err != nil || !res.Settled {
			t.Fatalf("%v, %+v\n%s->\n%s", err, res, before, c.dump())
		}
		if acked && !complete {
			t.Fatalf("lost a committed write\n%s->\n%s", before, c.dump())
		}
	})
}

// The leader dies before any of its actions; the next one, with one more member
// gone or none, comes to what a reader may have seen already.
func TestResolveAfterLeaderDied(t *testing.T) {
	eachCase(t, func(t *testing.T, c0 *cluster, v Version, _ []*node, acked bool) {
		for stop := 0; ; stop++ {
			c := c0.clone()
			_, died := c.resolve(v.Tag, false, func(i int) bool { return i < stop })
			if !died {
				return
			}
			seen := slices.ContainsFunc(c.nodes, func(n *node) bool {
				x := find(n.held, v.ID)
				return x != nil && x.State == wire.Complete
			})
			absent := 0
			for _, n := range c.nodes {
				if n.absent {
					absent++
				}
			}
			for gone := -1; gone < len(c.nodes); gone++ {
				d := c.clone()
				if gone >= 0 {
					if d.nodes[gone].absent || absent == d.m {
						continue
					}
					d.nodes[gone].absent = true
				}
				before := d.dump()
				res, _ := d.resolve(v.Tag, false, nil)
				complete, err := d.agree(v)
				if err != nil || !res.Settled {
					t.Fatalf("after %d actions: %v, %+v\n%s->\n%s", stop, err, res, before, d.dump())
				}
				anyLive := slices.ContainsFunc(d.members(v.W), func(n *node) bool { return !n.absent })
				if (acked || seen) && !complete && anyLive {
					t.Fatalf("after %d actions: lost what a reader saw or a writer knows\n%s->\n%s", stop, before, d.dump())
				}
			}
		}
	})
}

// The rest of the PREPAREs arrive between the leader's actions, in any place:
// if all of them are accepted the write has returned, and must be there.
func TestResolveAgainstItsWriter(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	eachCase(t, func(t *testing.T, c0 *cluster, v Version, rest0 []*node, _ bool) {
		for range 8 {
			c := c0.clone()
			var rest []*node
			for _, n := range rest0 {
				rest = append(rest, c.nodes[n.pos])
			}
			rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
			acked := true
			deliver := func(int) bool {
				for len(rest) > 0 && rng.IntN(3) == 0 {
					acked = rest[0].prepare(v, false) && acked
					rest = rest[1:]
				}
				return true
			}
			res, _ := c.resolve(v.Tag, false, deliver)
			for len(rest) > 0 {
				deliver(0)
			}
			if !res.Settled {
				t.Fatalf("seed %d: unsettled\n%s", seed, c.dump())
			}
			c.resolve(v.Tag, false, nil)
			complete, err := c.agree(v)
			if err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, c.dump())
			}
			if acked && !complete {
				t.Fatalf("seed %d: lost a committed write\n%s", seed, c.dump())
			}
		}
	})
}

// A member comes back without what was written while it was away, and with what
// was dropped or trimmed: after a sync it holds what the others say.
func TestSyncOfOneMember(t *testing.T) {
	for _, sh := range shapes {
		k, m := sh[0], sh[1]
		for back := range k + m {
			c := newCluster(k, m)
			c.write(full(1, writes(k, m)["full"].W))
			c.nodes[back].put(partial(2, writes(k, m)["full"].W)) // a writer died here
			c.nodes[back].absent = true
			w := writes(k, m)["full"]
			w.Tag = tagOf(3)
			c.write(w)
			o := writes(k, m)["partial of two"]
			o.Tag = tagOf(4)
			c.write(o)
			n := c.nodes[back]
			n.absent, n.readable = false, false
			before := c.dump()
			res, _ := c.resolve(tagOf(0), true, nil)
			n.readable = true
			for _, v := range []Version{w, o} {
				complete, err := c.agree(v)
				if err != nil || !complete || !res.Settled {
					t.Fatalf("member %d: %v, %+v\n%s->\n%s", back, err, res, before, c.dump())
				}
			}
			if find(n.held, ID{tagOf(2), wire.Partial}) != nil {
				t.Fatalf("member %d kept what no one else has\n%s", back, c.dump())
			}
			v, live := c.view(true)
			var held [][]Version
			for _, n := range live {
				held = append(held, n.held)
			}
			if p := Decide(v, tagOf(9), tagOf(0), held); !p.Empty() {
				t.Fatalf("member %d: still to do: %+v", back, p)
			}
		}
	}
}

// What the others trimmed while a member was away goes from it too.
func TestSyncDropsWhatWasTrimmed(t *testing.T) {
	for back := range 4 {
		c := newCluster(2, 2)
		c.write(full(1, set(0, 1, 2, 3)))
		c.write(partial(2, set(0, 2, 3)))
		for i, n := range c.nodes {
			if i != back {
				n.held = nil
			}
		}
		c.nodes[back].readable = false
		res, _ := c.resolve(tagOf(0), true, nil)
		if !res.Settled || len(c.nodes[back].held) > 0 {
			t.Fatalf("member %d: %+v\n%s", back, res, c.dump())
		}
	}
}

// All members restart at once. What was complete on enough of them comes back,
// whoever comes back first, as long as no write can have missed all who are back.
func TestColdRestart(t *testing.T) {
	for _, sh := range shapes {
		k, m := sh[0], sh[1]
		for name, v := range writes(k, m) {
			for _, away := range subsets(k + m) { // members that were away for the last write, and stayed behind
				if len(away) > 0 && (m == 1 && len(away) > 1 || m > 1 && len(away) > m-1) {
					continue // fewer than the write quorum: there was no write
				}
				for _, late := range subsets(k + m) {
					c := newCluster(k, m)
					c.write(full(1, writes(k, m)["full"].W))
					for _, a := range away {
						c.nodes[a].absent = true
					}
					c.write(v)
					for i, n := range c.nodes {
						n.readable, n.absent = false, slices.Contains(late, i)
					}
					before := c.dump()
					res, _ := c.resolve(tagOf(0), true, nil)
					if len(late) > 0 && !res.Settled { // it waits; the others come
						for _, n := range c.nodes {
							n.absent = false
						}
						res, _ = c.resolve(tagOf(0), true, nil)
					}
					for _, n := range c.nodes {
						n.readable = true
					}
					complete, err := c.agree(v)
					if err != nil || !complete || !res.Settled || res.Lost > 0 {
						t.Fatalf("%d+%d %s, away %v, late %v: %v, complete %v, %+v\n%s->\n%s", k, m, name, away, late, err, complete, res, before, c.dump())
					}
				}
			}
		}
	}
}

// A version that survived on too few members is dropped when all are back, and the one below serves.
func TestColdRestartDropsTheUnrecoverable(t *testing.T) {
	c := newCluster(4, 2)
	all := set(0, 1, 2, 3, 4, 5)
	for i, n := range c.nodes {
		if i < 2 {
			n.put(full(2, all))
			n.commit(ID{tagOf(2), wire.Full})
		} else {
			n.put(full(1, all))
			n.commit(ID{tagOf(1), wire.Full})
		}
		n.readable = false
	}
	res, _ := c.resolve(tagOf(0), true, nil)
	if !res.Settled || res.Lost != 1 || res.Newest != tagOf(1) {
		t.Fatalf("%+v\n%s", res, c.dump())
	}
	for _, n := range c.nodes {
		if b := Base(n.held); b == nil || b.Tag != tagOf(1) {
			t.Fatal(c.dump())
		}
	}
}

// A fold that was prepared on any subset is completed or dropped: the overlays serve till then.
func TestResolveFold(t *testing.T) {
	for _, took := range subsets(4) {
		for committed := range len(took) + 1 {
			if committed > 0 && len(took) < 4 {
				continue // I1
			}
			c := newCluster(2, 2)
			all := set(0, 1, 2, 3)
			c.write(full(1, all))
			c.write(partial(2, set(0, 2, 3)))
			fold := full(2, all)
			fold.Fold = true
			for _, i := range took {
				c.nodes[i].prepare(fold, true)
			}
			for _, i := range took[:committed] {
				c.nodes[i].commit(fold.ID)
			}
			res, _ := c.resolve(tagOf(2), false, nil)
			complete, err := c.agree(fold)
			if err != nil || !res.Settled || complete != (len(took) >= 2) {
				t.Fatalf("took %v, committed %d: %v, complete %v, %+v\n%s", took, committed, err, complete, res, c.dump())
			}
		}
	}
}

// While members are away that may hold the version, nothing is decided.
func TestUndecidableWaits(t *testing.T) {
	c := newCluster(4, 2)
	v := full(2, set(0, 1, 2, 3, 4, 5))
	c.nodes[0].prepare(v, false)
	c.nodes[0].readable = false
	for i := 1; i < 4; i++ {
		c.nodes[i].absent = true
	}
	if res, _ := c.resolve(v.Tag, false, nil); res.Settled || res.Back > 0 {
		t.Fatalf("%+v\n%s", res, c.dump())
	}
	if !leader(c) {
		t.Fatal("two members are live")
	}
}

// Failures and strays never make an answer that is not true.
func TestResolverStopsAtAFailure(t *testing.T) {
	v := full(2, set(0, 1, 2, 3))
	for fail := 0; ; fail++ {
		c := newCluster(2, 2)
		c.nodes[0].prepare(v, false)
		c.nodes[1].prepare(v, false)
		view, live := c.view(false)
		r, todo := NewResolver(view, v.Tag)
		failed := false
		var res Result
		for i := 0; len(todo) > 0; i++ {
			a := todo[0]
			todo = todo[1:]
			if a.Do == Answer {
				res = a.Result
				break
			}
			e := act(live, a)
			if i == fail {
				e.OK, failed = false, true
			}
			todo = append(todo, r.Step(e)...)
			if r.step != Query {
				r.Step(Event{Do: Query, OK: true}) // a stray of a step that is over
			}
		}
		if res.Settled == failed {
			t.Fatalf("failed %v: %+v", failed, res)
		}
		if !failed {
			return
		}
	}
}
