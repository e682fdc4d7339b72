package hlc

import (
	"sync"
	"testing"
	"time"
)

func TestNowNeverGoesBack(t *testing.T) {
	wall := time.UnixMicro(1_000_000)
	c := New(func() time.Time { return wall })
	last := c.Now()
	if got, want := last, FromTime(wall); got != want {
		t.Fatalf("first reading %x, want the wall clock's %x", got, want)
	}
	for _, step := range []time.Duration{0, time.Microsecond, -time.Hour, 0, 2 * time.Hour, -time.Second} {
		wall = wall.Add(step)
		for range 5000 { // more than the counter holds
			now := c.Now()
			if now <= last {
				t.Fatalf("after a step of %v: %x is not above %x", step, now, last)
			}
			last = now
		}
	}
}

func TestObserve(t *testing.T) {
	wall := time.UnixMicro(1 << 40)
	c := New(func() time.Time { return wall })
	ahead := FromTime(wall.Add(59*time.Minute)) | 7
	if err := c.Observe(ahead); err != nil {
		t.Fatal(err)
	}
	if now := c.Now(); now <= ahead {
		t.Fatalf("now %x is not above the observed %x", now, ahead)
	}
	for _, absurd := range []uint64{FromTime(wall.Add(61 * time.Minute)), ^uint64(0)} {
		before := c.Now()
		if err := c.Observe(absurd); err == nil {
			t.Fatalf("a reading of %v was taken", Time(absurd))
		}
		if now := c.Now(); now != before+1 {
			t.Fatalf("a refused reading moved the clock from %x to %x", before, now)
		}
	}
	if err := c.Observe(0); err != nil {
		t.Fatalf("an old reading: %v", err)
	}
}

func TestConcurrentReadingsAreUnique(t *testing.T) {
	c := New(nil)
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				now := c.Now()
				mu.Lock()
				if seen[now] {
					t.Errorf("%x twice", now)
				}
				seen[now] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
