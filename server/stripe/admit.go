package stripe

import (
	"time"

	"rfs"
	"rfs/transport/wire"
)

// A Verdict is what a member says to a PREPARE or a RETAG.
type Verdict uint8

const (
	Accept     Verdict = iota
	Held               // it has it already: the answer is OK
	Superseded         // a repair of what a complete Full version has overtaken: OK, nothing to store
	Stale              // it holds or promised a higher tag
	Busy               // another session has the turn
	Gone               // RETAG of a version that it does not hold as prepared
)

// An Ask is a PREPARE as far as its admission goes.
type Ask struct {
	ID
	Session rfs.SessionID
	Repair  bool // of a version that is, or is being made, complete: passes floors and higher tags
}

// Admit decides about a PREPARE, given the versions that the member holds of the
// shard, the floor that it promised, and whose turn it is. highest is the tag to get above.
func Admit(a Ask, held []Version, floor rfs.Tag, turn Turn, now time.Time) (v Verdict, highest rfs.Tag) {
	highest = maxTag(Highest(held), floor)
	switch {
	case find(held, a.ID) != nil:
		return Held, highest
	case a.Repair && superseded(held, a.ID):
		return Superseded, highest
	case a.Repair:
		return Accept, highest
	case turn.Excludes(a.Session, now):
		return Busy, highest
	case !highest.Less(a.Tag):
		return Stale, highest
	}
	return Accept, highest
}

// AdmitRetag decides about giving the version old the tag next.
func AdmitRetag(old ID, next rfs.Tag, session rfs.SessionID, held []Version, floor rfs.Tag, turn Turn, now time.Time) (v Verdict, highest rfs.Tag) {
	highest = floor
	for i := range held {
		if held[i].ID != old {
			highest = maxTag(highest, held[i].Tag)
		}
	}
	o := find(held, old)
	switch {
	case find(held, ID{next, old.Kind}) != nil:
		return Held, highest
	case o == nil || o.State == wire.Complete:
		return Gone, highest
	case turn.Excludes(session, now):
		return Busy, highest
	case !highest.Less(next):
		return Stale, highest
	}
	return Accept, highest
}

// TurnTime is how long a turn lasts that is not used.
const TurnTime = time.Second

// A Turn lets only one session write a stripe, until it passes. The zero Turn is nobody's.
type Turn struct {
	Session rfs.SessionID
	Until   time.Time
}

// Excludes reports whether the session has to wait.
func (t Turn) Excludes(s rfs.SessionID, now time.Time) bool {
	return t.Session != 0 && t.Session != s && now.Before(t.Until)
}

// A Stripe names a stripe of a file.
type Stripe struct {
	Inode  rfs.InodeID
	Stripe uint32
}

// Floors are a member's promises: the tags up to which it takes no PREPARE of a
// stripe. They are kept in memory: a target that restarts begins with a floor
// of its clock under everything (Raise), above all that it can have promised.
type Floors struct {
	max   int
	under rfs.Tag // of all stripes
	of    map[Stripe]rfs.Tag
	order []Stripe // oldest promise first
}

// NewFloors returns Floors that remember max stripes one by one. Older promises are
// kept by raising the floor of all: that refuses more than it must, never less.
func NewFloors(max int) *Floors {
	return &Floors{max: max, of: make(map[Stripe]rfs.Tag)}
}

// Of returns the stripe's floor.
func (f *Floors) Of(s Stripe) rfs.Tag { return maxTag(f.under, f.of[s]) }

// Raise raises the floor of all stripes.
func (f *Floors) Raise(t rfs.Tag) { f.under = maxTag(f.under, t) }

// Promise raises the stripe's floor.
func (f *Floors) Promise(s Stripe, t rfs.Tag) {
	if !f.Of(s).Less(t) {
		return
	}
	if _, ok := f.of[s]; !ok {
		f.order = append(f.order, s)
	}
	f.of[s] = t
	for len(f.order) > f.max {
		f.Raise(f.of[f.order[0]])
		delete(f.of, f.order[0])
		f.order = f.order[1:]
	}
}
