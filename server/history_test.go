package server

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/server/stripe"
	"rfs/transport/wire"
)

var seed = flag.Uint64("seed", 1, "of the random history; 0: a new one")

// A random history: writers that finish, writers that die, targets that go,
// crash and come back, folds and the janitor in the background. After each step
// every stripe is what its model says, from every side.
func TestRandomHistory(t *testing.T) {
	steps := 60
	if testing.Short() {
		steps = 20
	}
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("-seed %d", s)
	rng := rand.New(rand.NewPCG(s, 1))
	c := newTestCluster(t, "ec:2+2", 5, func(o *Options) {
		o.Fold = stripe.FoldPolicy{Overlays: 3, Idle: 30 * time.Millisecond}
		o.ResolveAfter = 50 * time.Millisecond
	})
	models := map[stripe.Stripe][][]byte{}
	stripeAt := func() stripe.Stripe {
		x := stripe.Stripe{Inode: rfs.InodeID(1 + rng.IntN(2)), Stripe: uint32(rng.IntN(3))}
		if models[x] == nil {
			models[x] = c.model()
		}
		return x
	}
	var away []*daemon
	for step := range steps {
		x := stripeAt()
		var w *write
		if rng.IntN(3) == 0 {
			w = c.full(x, [][]byte{random(rng, 1+rng.IntN(unit)), random(rng, 1+rng.IntN(unit))})
		} else {
			n := 1 + rng.IntN(20000)
			w = c.partial(x, seg(uint8(rng.IntN(2)), uint32(rng.IntN(unit-n)), uint32(n)), random(rng, n))
		}
		what := ""
		switch op := rng.IntN(12); {
		case op < 5:
			what = "write"
			w.sendEventually().apply(models[x])
			if rng.IntN(2) == 0 {
				w.commit()
			}
		case op < 7:
			what = "a writer dies"
			c.spread()
			w.tag = c.nextTag()
			for _, i := range w.live() {
				if rng.IntN(3) > 0 {
					w.prepare(i)
				}
			}
			c.quiet()
			after := c.model()
			for i := range after {
				copy(after[i], models[x][i])
			}
			w.apply(after)
			// Until it is settled a reader of a member that does not have it sees
			// what was before: the write may yet happen.
			if rep := c.resolve(x, w.tag); rep.Status != wire.StatusOK {
				t.Fatalf("step %d: resolve: %v", step, rep.Status)
			}
			if c.looksLike(x, after) {
				models[x] = after
			}
		case op < 9 && len(away) < 2:
			what = "a target goes"
			d := c.daemons[rng.IntN(len(c.daemons))]
			if d.s == nil || !c.meta.get().IsUp(d.id) {
				continue
			}
			if rng.IntN(2) == 0 {
				c.kill(d)
			} else {
				c.stop(d)
			}
			c.down(d)
			away = append(away, d)
		case op == 10 && len(away) < 2:
			what = "all crash at once, and come back"
			for _, d := range c.daemons {
				if d.s != nil {
					c.kill(d)
				}
			}
			for _, d := range c.daemons {
				c.start(d)
				c.spread()
			}
			away = nil
		case op == 11 && len(away) == 0:
			what = "a target is drained"
			d := c.member(rng.IntN(4))
			c.meta.change(t, func(m *placement.Map) (*placement.Map, error) { return placement.StartDrain(m, d.id) })
			w.sendEventually().apply(models[x])
			c.synced()
			c.meta.change(t, func(m *placement.Map) (*placement.Map, error) { return placement.CancelDrain(m, d.id) })
			c.spread()
		case len(away) > 0:
			what = "a target comes back"
			c.start(away[0])
			away = away[1:]
		}
		c.quiet()
		t.Logf("step %d: %s, stripe %v, kind %v, tag %v, away %d", step, what, x, w.kind, w.tag, len(away))
		for x, model := range models {
			c.check(x, model)
		}
	}
}

// quiet waits until no live member is being synced.
func (c *cluster) quiet() {
	c.t.Helper()
	c.until("the live members are synced", func() bool {
		m := c.meta.get()
		sl := &m.Pools[0].Slots[c.slotIn]
		for i := range sl.Members {
			if m.IsUp(sl.Members[i]) && !m.Readable(sl, i) {
				return false
			}
		}
		return true
	})
	c.spread()
}

// looksLike reads the data shards, as far as they are live, or else rebuilt.
func (c *cluster) looksLike(x stripe.Stripe, model [][]byte) bool {
	c.t.Helper()
	m := c.meta.get()
	for i := range int(c.scheme.K) {
		var got []byte
		if m.Readable(c.slot(), i) {
			got = c.read(x, i)
		} else {
			got = c.rebuilt(x, i, c.leader())
		}
		if !bytes.Equal(got, model[i]) {
			return false
		}
	}
	return true
}
