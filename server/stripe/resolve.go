package stripe

import (
	"slices"

	"rfs"
	"rfs/transport/wire"
)

// A Member is one target that takes part in a stripe's writes. While a position
// moves, two members have it.
type Member struct {
	Pos      uint8
	Readable bool // false: it is being synced, and may have missed or lost something
}

// A View is the stripe's slot at one epoch, as its leader sees it.
type View struct {
	K, M    int
	Members []Member // the live ones
	// Absent are the positions of which no target is live, but one that may come
	// back. (A target that its operator gave up is neither live nor absent.)
	Absent rfs.ShardSet
	// Sync asks to bring members up that are not readable: give them what
	// they lack, take from them what is not there any more.
	Sync bool
}

// Cold reports whether the readable members alone cannot give the data: after a
// restart of the whole cluster, say. Then what is complete on any member is
// believed, and what enough of them hold is kept.
func (v *View) Cold() bool {
	var readable rfs.ShardSet
	n := 0
	for _, m := range v.Members {
		if m.Readable && !readable.Has(m.Pos) {
			readable.Add(m.Pos)
			n++
		}
	}
	return n < v.K
}

// Quorate reports whether a cold slot may be brought up with the members that are
// live: every write that returned reached one of them at least. The smallest W is
// a data position and all m of parity; a write needs k+1 live members (k when
// m is 1), so that at most m-1 (or 1) of W missed it.
func (v *View) Quorate() bool {
	absent := 0
	for i := range v.K + v.M {
		if v.Absent.Has(uint8(i)) {
			absent++
		}
	}
	return absent < min(v.M, 2)
}

// Do is what an Action asks for, and an Event reports on.
type Do uint8

const (
	Query  Do = iota // learn what Member holds; it promises Floor
	Drop             // Member drops ID (which may be complete there)
	Repair           // build Version of Member's position from the members From, and store it as prepared
	Commit           // Member marks ID complete
	Answer           // the end: Result
)

// An Action is to be carried out; for each but Answer an Event is due.
type Action struct {
	Do      Do
	Member  int // index in View.Members
	Floor   rfs.Tag
	ID      ID
	Version Version // Repair
	From    []int   // Repair: members that hold the version
	Blank   bool    // Repair: the position has no part in the version: nothing, of length 0
	Result  Result
}

// An Event says how an Action ended.
type Event struct {
	Do      Do
	Member  int
	OK      bool
	Held    []Version // Query
	Trimmed rfs.Tag   // Query: below it a TRIM killed all versions
	Missing bool      // Commit: the member does not hold the version (any more)
}

// A Result is what came out. Settled: nothing up to the floor is left undecided.
type Result struct {
	Settled       bool
	Newest        rfs.Tag // highest complete version
	Highest       rfs.Tag // highest tag seen
	Forward, Back int     // versions made complete, versions dropped
	Lost          int     // of those dropped, complete ones of which too little came back
}

// A Plan is what is to be done about one stripe, in this order: all Drops, all
// Repairs, and only then (I1) all Commits.
type Plan struct {
	Drops, Repairs, Commits []Action
	Blocked                 bool // some version can neither be completed nor dropped now
	Result                  Result
}

// Empty reports whether there is nothing to do and nothing undecided.
func (p *Plan) Empty() bool {
	return len(p.Drops)+len(p.Repairs)+len(p.Commits) == 0 && !p.Blocked
}

// Decide says what to do about the versions up to floor, which every member has
// promised; held has what each member of v holds. Those below trimmed are dead,
// whoever still has them.
//
// It goes downward from the newest version. The first Full that is or becomes
// complete ends it, even one above the floor: all below is superseded.
func Decide(v *View, floor, trimmed rfs.Tag, held [][]Version) (p Plan) {
	for _, id := range slices.Backward(ids(held)) {
		s := survey(v, id, held)
		p.Result.Highest = maxTag(p.Result.Highest, id.Tag)
		if id.Tag.Less(trimmed) {
			p.drop(s)
			continue
		}
		if floor.Less(id.Tag) && !(s.complete && id.Kind == wire.Full) {
			continue // no one has promised anything: members were asked at different moments
		}
		switch {
		case s.complete && s.buildable:
			p.forward(v, s, held)
		case s.complete && !(v.Cold() && s.hopeless):
			p.Blocked = true
			continue
		case s.complete:
			p.Result.Lost++
			p.drop(s)
			continue
		case s.witness && !s.onReadable: // on members being synced alone: it was dropped, or trimmed, without them
			p.drop(s)
			continue
		case s.buildable:
			p.forward(v, s, held)
		case s.witness, v.Cold() && s.hopeless:
			p.drop(s)
			continue
		default:
			p.Blocked = true
			continue
		}
		p.Result.Newest = maxTag(p.Result.Newest, id.Tag)
		if id.Kind == wire.Full {
			break
		}
	}
	p.Result.Settled = !p.Blocked
	return p
}

// ids returns the versions that any member holds, lowest first.
func ids(held [][]Version) (all []ID) {
	for _, vs := range held {
		for i := range vs {
			all = append(all, vs[i].ID)
		}
	}
	slices.SortFunc(all, ID.Compare)
	return slices.Compact(all)
}

// A state is how one version stands among the members.
type state struct {
	version    Version
	holders    []int
	complete   bool // where that is believed
	onReadable bool // a readable member holds it
	witness    bool // a readable member of W does not
	buildable  bool // every part that W says is there, or can be computed
	hopeless   bool // not even with the absent members
}

func survey(v *View, id ID, held [][]Version) (s state) {
	var at rfs.ShardSet
	for i, m := range v.Members {
		x := find(held[i], id)
		if x == nil {
			continue
		}
		s.version = *x
		s.version.State = wire.Prepared
		s.holders = append(s.holders, i)
		s.onReadable = s.onReadable || m.Readable
		s.complete = s.complete || x.State == wire.Complete && (m.Readable || v.Cold())
		at.Add(m.Pos)
	}
	for i, m := range v.Members {
		if m.Readable && s.version.W.Has(m.Pos) && !slices.Contains(s.holders, i) {
			s.witness = true
		}
	}
	if id.Kind == wire.Full {
		s.full(v, at)
	} else {
		s.partial(v, at)
	}
	return s
}

// full: any k parts give the others; a position outside of W is a part: zeros.
func (s *state) full(v *View, at rfs.ShardSet) {
	have, might := 0, 0
	for i := range v.K + v.M {
		switch pos := uint8(i); {
		case at.Has(pos) || !s.version.W.Has(pos):
			have++
		case v.Absent.Has(pos):
			might++
		}
	}
	s.buildable, s.hopeless = have >= v.K, have+might < v.K
}

// partial: a parity position has the bytes of all data positions, each of them its own.
func (s *state) partial(v *View, at rfs.ShardSet) {
	parity, mightParity, all, might := false, false, true, true
	for i := range v.K + v.M {
		pos := uint8(i)
		if !s.version.W.Has(pos) {
			continue
		}
		has, absent := at.Has(pos), v.Absent.Has(pos)
		if i >= v.K {
			parity, mightParity = parity || has, mightParity || absent
			continue
		}
		all, might = all && has, might && (has || absent)
	}
	s.buildable = parity || all
	s.hopeless = !s.buildable && !mightParity && !might
}

// forward completes the version on every live member of W, and blanks members
// outside of a Full's W that hold something below it.
func (p *Plan) forward(v *View, s state, held [][]Version) {
	before := len(p.Repairs) + len(p.Commits)
	for i, m := range v.Members {
		x := find(held[i], s.version.ID)
		in := s.version.W.Has(m.Pos)
		blank := !in && s.version.Kind == wire.Full && holdsBelow(held[i], s.version.ID)
		switch {
		case x != nil && x.State == wire.Complete:
			continue
		case x == nil && !in && !blank:
			continue
		case x == nil && s.complete && !m.Readable && !v.Sync:
			continue // it gets it when it is synced
		case x == nil:
			p.Repairs = append(p.Repairs, Action{Do: Repair, Member: i, ID: s.version.ID, Version: s.version, From: s.holders, Blank: !in})
		}
		p.Commits = append(p.Commits, Action{Do: Commit, Member: i, ID: s.version.ID})
	}
	if len(p.Repairs)+len(p.Commits) > before {
		p.Result.Forward++
	}
}

func holdsBelow(vs []Version, id ID) bool {
	return slices.ContainsFunc(vs, func(v Version) bool { return v.Less(id) })
}

func (p *Plan) drop(s state) {
	p.Result.Back++
	for _, i := range s.holders {
		p.Drops = append(p.Drops, Action{Do: Drop, Member: i, ID: s.version.ID})
	}
}

// maxRounds is how often a Resolver starts again when members changed under it.
const maxRounds = 4

// A Resolver settles the versions of one stripe up to a floor:
//
//	Query all -> Decide -> Drop -> Repair -> Commit -> Answer
//
// Each arrow waits for all events of the step before. Any failure ends it
// unsettled: who asked tries again, maybe under a newer map.
type Resolver struct {
	view    *View
	floor   rfs.Tag
	trimmed rfs.Tag
	held    [][]Version

	plan    Plan
	step    Do
	due     int
	failed  bool
	missing bool
	round   int
	sum     Result // of earlier rounds
}

// NewResolver returns a Resolver and its first actions. With v.Sync the floor is
// raised to the highest tag that any member holds.
func NewResolver(v *View, floor rfs.Tag) (*Resolver, []Action) {
	r := &Resolver{view: v, floor: floor}
	return r, r.query()
}

func (r *Resolver) query() (as []Action) {
	r.step, r.held = Query, make([][]Version, len(r.view.Members))
	for i := range r.view.Members {
		as = append(as, Action{Do: Query, Member: i, Floor: r.floor})
	}
	return r.await(as)
}

// await returns as, or what follows if there is nothing to wait for.
func (r *Resolver) await(as []Action) []Action {
	r.due, r.missing = len(as), false
	if r.due == 0 {
		return r.next()
	}
	return as
}

// Step takes an event, and returns what to do now: nothing, while others are due.
func (r *Resolver) Step(e Event) []Action {
	if e.Do != r.step || r.due == 0 {
		return nil // of a step that is over
	}
	r.due--
	r.failed = r.failed || !e.OK
	r.missing = r.missing || e.Missing
	if e.Do == Query {
		r.held[e.Member] = e.Held
		r.trimmed = maxTag(r.trimmed, e.Trimmed)
	}
	if r.due > 0 {
		return nil
	}
	return r.next()
}

func (r *Resolver) next() []Action {
	if r.failed {
		return r.answer(false)
	}
	switch r.step {
	case Query:
		return r.decide()
	case Drop:
		r.step = Repair
		return r.await(r.plan.Repairs)
	case Repair:
		r.step = Commit
		return r.await(r.plan.Commits)
	case Commit:
		if r.missing { // retagged meanwhile, say
			return r.again()
		}
		return r.answer(r.plan.Result.Settled)
	}
	return nil
}

func (r *Resolver) decide() []Action {
	if r.view.Sync {
		highest := rfs.Tag{}
		for _, vs := range r.held {
			highest = maxTag(highest, Highest(vs))
		}
		if r.floor.Less(highest) {
			r.floor = highest
			return r.again()
		}
	}
	if r.view.Cold() && !r.view.Quorate() {
		return r.answer(false)
	}
	r.plan = Decide(r.view, r.floor, r.trimmed, r.held)
	if r.plan.Blocked && r.round+1 < maxRounds {
		return r.again() // what blocks may have changed while the members were asked
	}
	r.sum.Forward += r.plan.Result.Forward
	r.sum.Back += r.plan.Result.Back
	r.sum.Lost += r.plan.Result.Lost
	r.step = Drop
	return r.await(r.plan.Drops)
}

func (r *Resolver) again() []Action {
	if r.round++; r.round == maxRounds {
		return r.answer(false)
	}
	return r.query()
}

func (r *Resolver) answer(settled bool) []Action {
	r.step, r.due = Answer, 0
	res := r.sum
	res.Settled, res.Newest, res.Highest = settled, r.plan.Result.Newest, r.plan.Result.Highest
	return []Action{{Do: Answer, Result: res}}
}

// Held returns what each member said it holds, when the Resolver last asked.
func (r *Resolver) Held() [][]Version { return r.held }
