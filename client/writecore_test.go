package client

import (
	"errors"
	"testing"

	"rfs"
	"rfs/transport/wire"
)

func tagAt(n uint64) rfs.Tag { return rfs.Tag{HLC: n, Session: 1} }

// run sends every leg what is next for it and answers with what say returns.
func run(c *writeCore, say func(i int, act legAction) (wire.Status, rfs.Tag)) writeStep {
	for i := range c.legs {
		if act := c.next(i); act != actNone {
			st, held := say(i, act)
			c.answered(i, act, st, held)
		}
	}
	return c.step()
}

func threeLegs() []leg {
	return []leg{{shard: 0}, {shard: 4}, {shard: 5}}
}

func ok(int, legAction) (wire.Status, rfs.Tag) { return wire.StatusOK, rfs.Tag{} }

func TestWriteCoreCommitsWhenAllTook(t *testing.T) {
	var c writeCore
	c.begin(threeLegs(), tagAt(1))
	if got := run(&c, ok); got != stepDone {
		t.Fatalf("step %d, want done", got)
	}
}

// A refused leg gets the bytes again under a higher tag; the others only the tag.
func TestWriteCoreRetags(t *testing.T) {
	var c writeCore
	c.begin(threeLegs(), tagAt(1))
	got := run(&c, func(i int, _ legAction) (wire.Status, rfs.Tag) {
		if i == 1 {
			return wire.StatusStaleTag, tagAt(7)
		}
		return wire.StatusOK, rfs.Tag{}
	})
	if got != stepRetag || c.held != tagAt(7) {
		t.Fatalf("step %d, held %v", got, c.held)
	}
	c.retag(tagAt(8))
	var acts [3]legAction
	got = run(&c, func(i int, act legAction) (wire.Status, rfs.Tag) {
		acts[i] = act
		return wire.StatusOK, rfs.Tag{}
	})
	if want := [3]legAction{actRetag, actPrepare, actRetag}; acts != want {
		t.Errorf("sent %v, want %v", acts, want)
	}
	if got != stepDone {
		t.Errorf("step %d, want done", got)
	}
}

// What a leader rolled back between two rounds is prepared again.
func TestWriteCoreRetagOfDropped(t *testing.T) {
	var c writeCore
	c.begin(threeLegs(), tagAt(1))
	run(&c, func(i int, _ legAction) (wire.Status, rfs.Tag) {
		if i == 2 {
			return wire.StatusStaleTag, tagAt(5)
		}
		return wire.StatusOK, rfs.Tag{}
	})
	c.retag(tagAt(6))
	got := run(&c, func(i int, act legAction) (wire.Status, rfs.Tag) {
		if act == actRetag && i == 0 {
			return wire.StatusGone, rfs.Tag{}
		}
		return wire.StatusOK, rfs.Tag{}
	})
	if got != stepSend {
		t.Fatalf("step %d, want send", got)
	}
	if act := c.next(0); act != actPrepare {
		t.Errorf("leg 0 is sent %d, want a prepare", act)
	}
}

func TestWriteCoreAsksForATurn(t *testing.T) {
	var c writeCore
	c.begin(threeLegs(), tagAt(1))
	refuse := func(i int, _ legAction) (wire.Status, rfs.Tag) { return wire.StatusStaleTag, tagAt(c.tag.HLC + 1) }
	for round := 1; ; round++ {
		step := run(&c, refuse)
		if step == stepOrder {
			if round != roundsPerTurn {
				t.Errorf("asked for a turn after %d rounds, want %d", round, roundsPerTurn)
			}
			break
		}
		if step != stepRetag || round > 10 {
			t.Fatalf("round %d: step %d", round, step)
		}
		c.retag(tagAt(c.held.HLC + 1))
	}
	c.retag(tagAt(c.held.HLC + 1))
	if got := run(&c, ok); got != stepDone {
		t.Errorf("step %d, want done", got)
	}
}

// A lost member or an old epoch starts the write again; nothing is sent before the other answers are in.
func TestWriteCoreRemaps(t *testing.T) {
	var c writeCore
	c.begin(threeLegs(), tagAt(1))
	for i := range c.legs {
		c.next(i)
	}
	c.lost(0)
	if got := c.step(); got != stepBusy {
		t.Fatalf("step %d while two are outstanding, want busy", got)
	}
	c.answered(1, actPrepare, wire.StatusOK, rfs.Tag{})
	c.answered(2, actPrepare, wire.StatusStaleEpoch, rfs.Tag{})
	if got := c.step(); got != stepRemap {
		t.Fatalf("step %d, want remap", got)
	}
	c.begin(threeLegs()[1:], tagAt(9))
	if got := run(&c, ok); got != stepDone {
		t.Errorf("step %d, want done", got)
	}
}

func TestWriteCoreWaitsAndFails(t *testing.T) {
	var c writeCore
	c.begin(threeLegs(), tagAt(1))
	got := run(&c, func(i int, _ legAction) (wire.Status, rfs.Tag) {
		if i == 0 {
			return wire.StatusUnavailable, rfs.Tag{}
		}
		return wire.StatusOK, rfs.Tag{}
	})
	if got != stepWait {
		t.Fatalf("step %d, want wait", got)
	}
	c.resume()
	sent := 0
	got = run(&c, func(int, legAction) (wire.Status, rfs.Tag) {
		sent++
		return wire.StatusNoSpace, rfs.Tag{}
	})
	if sent != 1 || got != stepFail || !errors.Is(c.err, rfs.ErrNoSpace) {
		t.Errorf("%d sent, step %d, err %v", sent, got, c.err)
	}
}

func TestWriteCoreBadPayload(t *testing.T) {
	var c writeCore
	c.begin(threeLegs(), tagAt(1))
	for n := 1; ; n++ {
		switch run(&c, func(i int, _ legAction) (wire.Status, rfs.Tag) { return wire.StatusBadPayload, rfs.Tag{} }) {
		case stepSend:
			continue
		case stepFail:
			if !errors.Is(c.err, rfs.ErrCorrupt) || n < 2 {
				t.Errorf("after %d rounds: %v", n, c.err)
			}
		default:
			t.Fatal("neither sent again nor failed")
		}
		return
	}
}
