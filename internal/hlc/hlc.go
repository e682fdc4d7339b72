// Package hlc is a hybrid logical clock (Kulkarni et al., "Logical Physical
// Clocks", 2014): it never goes back, follows the wall clock while that is
// ahead, and runs above every reading that it has observed from others.
//
//	63                      12 11         0
//	[ microseconds since 1970 | counter    ]
package hlc

import (
	"fmt"
	"sync"
	"time"
)

const counterBits = 12

// MaxAhead is how far ahead of the wall clock an observed reading may be.
// A reading further off is one of a broken clock: to follow it would put all
// later tags of the cluster into the future for good.
const MaxAhead = time.Hour

// Clock is a hybrid logical clock. Its methods may be called from any goroutine.
type Clock struct {
	wall func() time.Time

	mu   sync.Mutex
	last uint64
}

// New returns a clock over the given wall clock; nil is time.Now.
func New(wall func() time.Time) *Clock {
	if wall == nil {
		wall = time.Now
	}
	return &Clock{wall: wall}
}

func (c *Clock) physical() uint64 { return FromTime(c.wall()) }

// Now returns a reading above all that it returned or observed before.
func (c *Clock) Now() uint64 {
	p := c.physical()
	c.mu.Lock()
	defer c.mu.Unlock()
	// A full counter runs over into the microseconds: still monotonic.
	c.last = max(p, c.last+1)
	return c.last
}

// Observe takes in another's reading, so that the next Now is above it. It
// refuses one more than MaxAhead ahead of the wall clock, and is unchanged by it.
func (c *Clock) Observe(t uint64) error {
	p := c.physical()
	if ahead := int64(t>>counterBits) - int64(p>>counterBits); ahead > MaxAhead.Microseconds() {
		return fmt.Errorf("hlc: a reading of %v is more than %v ahead of this node's clock %v: set the clocks (chrony, NTP) of both",
			Time(t).Format(time.RFC3339), MaxAhead, Time(p).Format(time.RFC3339))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = max(c.last, t)
	return nil
}

// Time returns the wall clock part of a reading.
func Time(t uint64) time.Time { return time.UnixMicro(int64(t >> counterBits)).UTC() }

// FromTime returns the lowest reading at t.
func FromTime(t time.Time) uint64 { return uint64(max(t.UnixMicro(), 0)) << counterBits }
