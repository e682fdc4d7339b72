package client

import (
	"errors"
	"fmt"

	"rfs"
	"rfs/transport/wire"
)

// writeCore is the protocol of one stripe write as a step function: it has no
// clock, no goroutine and no connection. Its driver (stripeWrite) begins a round,
// carries out the actions, brings the answers back, and asks for what is next
// when no action is outstanding:
//
//	begin(legs, tag) -> PREPARE to each leg
//	  every leg Prepared at the tag      -> stepDone
//	  some refused: they hold a newer    -> stepRetag: begin a tag above Held();
//	                                        who took the old tag gets RETAG, who refused PREPARE
//	  refused in three rounds            -> stepOrder: ask the slot's leader for a turn first
//	  an old epoch, or a member is lost  -> stepRemap: report the lost, take a newer map,
//	                                        begin with new legs and a new tag
//	  not now (fenced, another's turn)   -> stepWait, then resume: PREPARE to those legs again
//	  the payload did not arrive intact  -> resume: the same, a few times
//	  no space, session lost, bad input  -> stepFail: ABORT to who took it
//
// A round that is redone is harmless: the bytes are the same, and whoever finds
// the old version rolls it forward below the new one, or back.
type writeCore struct {
	legs  []leg
	tag   rfs.Tag // of this round
	held  rfs.Tag // the highest tag that refused us
	open  int     // actions whose answer is outstanding
	turns int     // rounds refused since the last turn
	bad   int     // payloads that did not check
	err   error   // why the write fails
	remap bool
}

// A leg is one target of the write set.
type leg struct {
	shard  uint8
	target rfs.TargetID
	state  legState
	tag    rfs.Tag // what it took, when taken
}

type legState uint8

const (
	legIdle    legState = iota // to be sent a PREPARE
	legSent                    // PREPARE or RETAG is outstanding
	legTaken                   // holds the version at leg.tag
	legRefused                 // holds a newer tag
	legWaiting                 // could not now: fenced, starting, another's turn
	legLost                    // gave no answer
)

type legAction uint8

const (
	actNone legAction = iota
	actPrepare
	actRetag
)

type writeStep uint8

const (
	stepBusy  writeStep = iota // answers are outstanding
	stepSend                   // call next for each leg
	stepDone                   // committed
	stepRetag                  // retag(a tag above Held)
	stepOrder                  // ORDER at the leader, then retag
	stepRemap                  // take a newer map, then begin
	stepWait                   // back off, then resume
	stepFail                   // err says why
)

const (
	roundsPerTurn = 3 // refusals before the leader is asked to put the writers in order
	badPayloads   = 8 // payloads that arrive damaged before the write fails
)

// begin starts a write, or starts it again with the members of a newer map.
func (c *writeCore) begin(legs []leg, tag rfs.Tag) {
	c.legs, c.tag, c.open, c.remap = legs, tag, 0, false
}

// retag starts a round with a tag above all that were seen.
func (c *writeCore) retag(tag rfs.Tag) {
	c.tag = tag
	for i := range c.legs {
		if c.legs[i].state == legRefused {
			c.legs[i].state = legIdle
		}
	}
}

// resume sends again to the legs that could not answer.
func (c *writeCore) resume() {
	for i := range c.legs {
		if c.legs[i].state == legWaiting {
			c.legs[i].state = legIdle
		}
	}
}

// next says what to send to leg i now, and counts it as outstanding.
func (c *writeCore) next(i int) legAction {
	l := &c.legs[i]
	switch {
	case l.state == legIdle:
		l.state = legSent
		c.open++
		return actPrepare
	case l.state == legTaken && l.tag != c.tag:
		l.state = legSent
		c.open++
		return actRetag
	}
	return actNone
}

// answered takes the status with which leg i answered act; held is the tag of a StaleTag.
func (c *writeCore) answered(i int, act legAction, st wire.Status, held rfs.Tag) {
	c.open--
	l := &c.legs[i]
	switch st {
	case wire.StatusOK:
		l.state, l.tag = legTaken, c.tag
	case wire.StatusStaleTag:
		l.state = legRefused
		if c.held.Less(held) {
			c.held = held
		}
	case wire.StatusGone:
		// A RETAG of what a leader has rolled back meanwhile: the bytes go again.
		l.state = legIdle
		if act != actRetag {
			c.fail(fmt.Errorf("prepare on target %v: %v", l.target, st))
		}
	case wire.StatusStaleEpoch:
		l.state, c.remap = legWaiting, true
	case wire.StatusUnavailable, wire.StatusNotLeader, wire.StatusCancelled, wire.StatusUnresolved:
		l.state = legWaiting
	case wire.StatusBadPayload:
		l.state = legIdle
		if c.bad++; c.bad > badPayloads {
			c.fail(fmt.Errorf("target %v: payload arrived damaged %d times: %w", l.target, c.bad, rfs.ErrCorrupt))
		}
	case wire.StatusIO, wire.StatusReadOnly, wire.StatusCorrupt, wire.StatusInternal, wire.StatusNotFound:
		l.state, c.remap = legLost, true // the target's disk is gone, or the target moved, not its node
	case wire.StatusNoSpace:
		c.fail(fmt.Errorf("target %v: %w", l.target, rfs.ErrNoSpace))
	case wire.StatusSessionLost:
		c.fail(rfs.ErrSessionLost)
	default:
		err := st.Err()
		if err == nil {
			err = errors.New(st.String())
		}
		c.fail(fmt.Errorf("prepare on target %v: %w", l.target, err))
	}
}

// lost says that leg i gave no answer: it may have applied the request or not.
func (c *writeCore) lost(i int) {
	c.open--
	c.legs[i].state, c.remap = legLost, true
}

func (c *writeCore) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// step says what the driver does now. Answers that are outstanding are waited for
// first: a leg is never sent two requests at a time.
func (c *writeCore) step() writeStep {
	if c.open > 0 {
		return stepBusy
	}
	if c.err != nil {
		return stepFail
	}
	if c.remap {
		return stepRemap
	}
	var idle, refused, waiting bool
	for _, l := range c.legs {
		idle = idle || l.state == legIdle || l.state == legTaken && l.tag != c.tag
		refused = refused || l.state == legRefused
		waiting = waiting || l.state == legWaiting
	}
	switch {
	case refused:
		if c.turns++; c.turns%roundsPerTurn == 0 {
			return stepOrder
		}
		return stepRetag
	case idle:
		return stepSend
	case waiting:
		return stepWait
	}
	return stepDone
}
