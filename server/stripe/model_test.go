package stripe

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"rfs"
	"rfs/transport/wire"
)

// A node is a member in a model: what chunkstore and server do with a verdict, in a few lines.
type node struct {
	pos      uint8
	readable bool
	absent   bool
	floor    rfs.Tag
	held     []Version
}

func (n *node) clone() *node {
	c := *n
	c.held = slices.Clone(n.held)
	return &c
}

func (n *node) put(v Version) {
	n.held = append(n.held, v)
	slices.SortFunc(n.held, func(a, b Version) int { return a.Compare(b.ID) })
}

func (n *node) prepare(v Version, repair bool) bool {
	verdict, _ := Admit(Ask{ID: v.ID, Session: 1, Repair: repair}, n.held, n.floor, Turn{}, time.Time{})
	if verdict == Accept {
		v.State = wire.Prepared
		n.put(v)
	}
	return verdict == Accept || verdict == Held || verdict == Superseded
}

func (n *node) commit(id ID) (missing bool) {
	v := find(n.held, id)
	if v == nil {
		return !superseded(n.held, id)
	}
	v.State = wire.Complete
	if id.Kind == wire.Full {
		n.held = slices.DeleteFunc(n.held, func(o Version) bool { return o.Less(id) })
	}
	return false
}

func (n *node) drop(id ID) {
	n.floor = maxTag(n.floor, id.Tag)
	n.held = slices.DeleteFunc(n.held, func(o Version) bool { return o.ID == id })
}

// A cluster is the members of one stripe.
type cluster struct {
	k, m  int
	nodes []*node
}

func newCluster(k, m int) *cluster {
	c := &cluster{k: k, m: m}
	for i := range k + m {
		c.nodes = append(c.nodes, &node{pos: uint8(i), readable: true})
	}
	return c
}

func (c *cluster) clone() *cluster {
	d := &cluster{k: c.k, m: c.m}
	for _, n := range c.nodes {
		d.nodes = append(d.nodes, n.clone())
	}
	return d
}

func (c *cluster) view(sync bool) (v *View, live []*node) {
	v = &View{K: c.k, M: c.m, Sync: sync}
	for _, n := range c.nodes {
		if n.absent {
			v.Absent.Add(n.pos)
			continue
		}
		v.Members = append(v.Members, Member{Pos: n.pos, Readable: n.readable})
		live = append(live, n)
	}
	return v, live
}

// act carries out one action.
func act(live []*node, a Action) Event {
	e := Event{Do: a.Do, Member: a.Member, OK: true}
	n := live[a.Member]
	switch a.Do {
	case Query:
		n.floor = maxTag(n.floor, a.Floor)
		e.Held = slices.Clone(n.held)
	case Drop:
		n.drop(a.ID)
	case Repair:
		e.OK = n.prepare(a.Version, true)
	case Commit:
		e.Missing = n.commit(a.ID)
	}
	return e
}

// resolve runs a Resolver. Before action i, between(i) may change the cluster; if it says false the leader dies.
func (c *cluster) resolve(floor rfs.Tag, sync bool, between func(i int) bool) (res Result, died bool) {
	v, live := c.view(sync)
	r, todo := NewResolver(v, floor)
	for i := 0; len(todo) > 0; i++ {
		a := todo[0]
		todo = todo[1:]
		if a.Do == Answer {
			return a.Result, false
		}
		if between != nil && !between(i) {
			return res, true
		}
		todo = append(todo, r.Step(act(live, a))...)
	}
	panic("no answer")
}

func (c *cluster) dump() (s string) {
	for _, n := range c.nodes {
		s += fmt.Sprintf("  %d readable=%v absent=%v floor=%v:", n.pos, n.readable, n.absent, n.floor)
		for _, v := range n.held {
			s += fmt.Sprintf(" %v@%d/%v", v.Kind, v.Tag.HLC, v.State)
		}
		s += "\n"
	}
	return s
}

func set(pos ...int) (s rfs.ShardSet) {
	for _, p := range pos {
		s.Add(uint8(p))
	}
	return s
}

func tagOf(n int) rfs.Tag { return rfs.Tag{HLC: uint64(n)} }

func full(tag int, w rfs.ShardSet) Version {
	return Version{ID: ID{tagOf(tag), wire.Full}, W: w, Length: 4096}
}

func partial(tag int, w rfs.ShardSet) Version {
	return Version{ID: ID{tagOf(tag), wire.Partial}, W: w, Length: 10}
}

func (c *cluster) members(w rfs.ShardSet) (ns []*node) {
	for _, n := range c.nodes {
		if w.Has(n.pos) {
			ns = append(ns, n)
		}
	}
	return ns
}

// write stores v on all live members of its W, and commits it.
func (c *cluster) write(v Version) {
	for _, n := range c.members(v.W) {
		if !n.absent && !n.prepare(v, false) {
			panic("refused")
		}
	}
	for _, n := range c.members(v.W) {
		if !n.absent {
			n.commit(v.ID)
		}
	}
}

// agree checks that all readable live members of W see the version alike, and reports how.
func (c *cluster) agree(v Version) (complete bool, err error) {
	seen := map[string][]uint8{}
	for _, n := range c.members(v.W) {
		if n.absent || !n.readable {
			continue
		}
		how := "none"
		if x := find(n.held, v.ID); x != nil {
			how = x.State.String()
		} else if superseded(n.held, v.ID) {
			how = wire.Complete.String()
		}
		seen[how] = append(seen[how], n.pos)
	}
	if len(seen) > 1 || len(seen["prepared"]) > 0 {
		return false, fmt.Errorf("version %d: %v", v.Tag.HLC, seen)
	}
	return len(seen["complete"]) > 0, nil
}

func subsets(n int) (all [][]int) {
	for bits := range 1 << n {
		var s []int
		for i := range n {
			if bits>>i&1 == 1 {
				s = append(s, i)
			}
		}
		all = append(all, s)
	}
	return all
}

// writes are the kinds of write that the model tries on a k+m stripe.
func writes(k, m int) map[string]Version {
	all := set()
	for i := range k + m {
		all.Add(uint8(i))
	}
	short, one := set(0), set(0)
	for i := k; i < k+m; i++ {
		short.Add(uint8(i))
		one.Add(uint8(i))
	}
	two := one
	two.Add(uint8(k - 1))
	return map[string]Version{
		"full": full(2, all), "short full": full(2, short),
		"partial": partial(2, one), "partial of two": partial(2, two),
	}
}

var shapes = [][2]int{{1, 1}, {1, 2}, {2, 1}, {2, 2}, {3, 2}}

// eachCase calls f with a cluster in which a subset of W, all live with up to m
// members absent, took the PREPARE of v. acked: all live members did.
func eachCase(t *testing.T, f func(t *testing.T, c *cluster, v Version, rest []*node, acked bool)) {
	for _, sh := range shapes {
		k, m := sh[0], sh[1]
		for _, name := range slices.Sorted(maps.Keys(writes(k, m))) {
			v := writes(k, m)[name]
			t.Run(fmt.Sprintf("%d+%d %s", k, m, name), func(t *testing.T) {
				for _, absent := range subsets(k + m) {
					if len(absent) > m {
						continue
					}
					base := newCluster(k, m)
					base.write(full(1, writes(k, m)["full"].W))
					for _, a := range absent {
						base.nodes[a].absent = true
					}
					var live []int
					for i, n := range base.nodes {
						if !n.absent && v.W.Has(n.pos) {
							live = append(live, i)
						}
					}
					for _, took := range subsets(len(live)) {
						c := base.clone()
						var rest []*node
						for j, i := range live {
							if slices.Contains(took, j) {
								c.nodes[i].prepare(v, false)
							} else {
								rest = append(rest, c.nodes[i])
							}
						}
						f(t, c, v, rest, len(rest) == 0)
					}
				}
			})
		}
	}
}

func leader(c *cluster) bool {
	return slices.ContainsFunc(c.nodes, func(n *node) bool { return !n.absent && n.readable })
}
