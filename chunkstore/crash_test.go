package chunkstore_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"rfs"
	"rfs/chunkstore"
	"rfs/chunkstore/storetest"
	"rfs/internal/vfs"
)

var seedFlag = flag.Uint64("seed", 0, "run only this seed of the random crash tests")

// crashOptions are those of a store so small that its history has many
// segments, and reuses extents.
func crashOptions(d *vfs.Disk) chunkstore.Options {
	o := storetest.Options(d, "/target")
	o.Capacity = chunkstore.MinCapacity
	return o
}

// A crashRun is a store on a simulated disk with its model. mu guards what the
// disk's hook, on any goroutine, needs to know of the history.
type crashRun struct {
	disk  *vfs.Disk
	o     chunkstore.Options
	store *chunkstore.Store
	keys  []rfs.ShardKey
	rng   *rand.Rand
	tag   int

	mu     sync.Mutex
	model  *storetest.Model
	synced int // the last step whose Sync was acknowledged
}

func newCrashRun(t *testing.T, seed uint64) *crashRun {
	d := vfs.NewDisk(0)
	r := &crashRun{
		disk: d, o: crashOptions(d), keys: storetest.Keys()[:5], model: storetest.NewModel(),
		rng: rand.New(rand.NewPCG(seed, 99)),
	}
	r.store = storetest.Open(t, r.o)
	return r
}

// step does one thing to the store, or syncs it. The model takes the step
// first, under mu; the store after, so that the hook sees it as begun.
func (r *crashRun) step(t *testing.T) {
	t.Helper()
	switch r.rng.IntN(12) {
	case 0:
		if err := r.store.FlushIndex(); err != nil {
			t.Fatal(err)
		}
		return
	case 1:
		last := len(r.model.States) - 1
		if err := r.store.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.mu.Lock()
		r.synced = last
		r.mu.Unlock()
		return
	}
	r.mu.Lock()
	op := storetest.RandomStep(r.rng, r.model, r.keys, &r.tag, 12000)
	r.mu.Unlock()
	if err := op(r.store); err != nil {
		t.Fatal(err)
	}
}

// A crashPoint is a disk after a crash, with what is known to be on it.
type crashPoint struct {
	disk         *vfs.Disk
	synced, last int
	at           string
	closed       bool
}

func (r *crashRun) crash(c vfs.Crash, rng *rand.Rand, at string) crashPoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	return crashPoint{disk: r.disk.CrashClone(c, rng), synced: r.synced, last: len(r.model.States) - 1, at: at}
}

// verify opens the crashed disk and holds it against the history; then uses it
// on, so that what recovery believes to be free is written over, and does so again.
func (r *crashRun) verify(p crashPoint) error {
	o := r.o
	o.FS = p.disk
	s, err := chunkstore.Open(o)
	if err != nil {
		return err
	}
	if s.Clean() || s.Recovery().Clean && !p.closed {
		return errors.New("clean after a crash")
	}
	err = r.model.CompareCrashed(s, p.synced, p.last, r.keys)
	if err == nil {
		err = r.goOn(s, p)
	}
	return errors.Join(err, s.Close())
}

func (r *crashRun) goOn(s *chunkstore.Store, p crashPoint) error {
	for i := range 12 {
		key := rfs.ShardKey{Inode: 77, Stripe: uint32(i)}
		v, payload := storetest.RandomVersion(rand.New(rand.NewPCG(1, uint64(i))), key, storetest.Tag(1), 30000, 4)
		if err := s.Put(key, v, payload, storetest.CRCs(key, v, payload)); err != nil {
			return err
		}
	}
	return r.model.CompareCrashed(s, p.synced, p.last, r.keys)
}

// crashAgain has recovery crash too, before one of its operations.
func (r *crashRun) crashAgain(p crashPoint, c vfs.Crash) crashPoint {
	var mu sync.Mutex
	first, n, at := p.disk, 0, 1+r.rng.IntN(40)
	first.OnOp(func(vfs.Op, string) {
		mu.Lock()
		defer mu.Unlock()
		if n++; n == at {
			p.disk = first.CrashClone(c, r.rng)
		}
	})
	o := r.o
	o.FS = first
	if s, err := chunkstore.Open(o); err == nil {
		_ = s.Close()
	}
	first.OnOp(nil)
	if n < at {
		// It got through, and closed.
		p.disk = first.CrashClone(c, r.rng)
		p.closed = true
	}
	return p
}

// A crash at any moment of a random history, losing and tearing any subset of
// what was not flushed, leaves everything that a Sync was acknowledged for, and
// of everything else the old or the new.
func TestCrashRandom(t *testing.T) {
	seeds := uint64(25)
	if testing.Short() {
		seeds = 5
	}
	crashes := 0
	for seed := uint64(1); seed <= seeds; seed++ {
		if *seedFlag != 0 {
			seed, seeds = *seedFlag, *seedFlag
		}
		r := newCrashRun(t, seed)
		for range 100 {
			r.step(t)
			if r.rng.IntN(25) > 0 {
				continue
			}
			crashes++
			c := vfs.Crash{Keep: []int{0, 10, 50, 90, 100}[r.rng.IntN(5)], Tear: []int{0, 20}[r.rng.IntN(2)]}
			p := r.crash(c, r.rng, "")
			if r.rng.IntN(2) == 0 {
				p = r.crashAgain(p, c)
			}
			if err := r.verify(p); err != nil {
				t.Fatalf("-seed=%d: %+v: %v", seed, c, err)
			}
		}
		if err := r.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d crashes", crashes)
}

// A full version whose index entry is durable and whose data is not does not
// take with it the one that it superseded, however often the store is opened.
func TestCrashKeepsBase(t *testing.T) {
	d := vfs.NewDisk(0)
	o := crashOptions(d)
	s := storetest.Open(t, o)
	put := func(tag int, payload []byte) {
		t.Helper()
		v := chunkstore.Version{Tag: storetest.Tag(tag), Kind: chunkstore.Full, Length: uint32(len(payload))}
		if err := errors.Join(s.Put(faultKey, v, payload, storetest.CRCs(faultKey, v, payload)), s.Commit(faultKey, v.Tag, v.Kind)); err != nil {
			t.Fatal(err)
		}
	}
	put(1, []byte("old"))
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(2, []byte("new"))
	if err := s.FlushIndex(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		d = d.CrashClone(vfs.Crash{}, nil)
		o.FS = d
		s = storetest.Reopen(t, o)
		buf := make([]byte, 10)
		res, err := s.Read(faultKey, chunkstore.ReadAt{N: 10}, buf)
		if err != nil || string(buf[:res.N]) != "old" || res.Tag != storetest.Tag(1) {
			t.Fatal(res, err)
		}
	}
	if s.Recovery().Lost != 0 {
		t.Error("lost again:", s.Recovery())
	}
}

// A crash before each write, flush and change of a name of one history, all of them.
func TestCrashEverywhere(t *testing.T) {
	r := newCrashRun(t, 4242)
	var points []crashPoint
	rng := rand.New(rand.NewPCG(5, 5))
	var mu sync.Mutex
	n := 0
	r.disk.OnOp(func(op vfs.Op, name string) {
		mu.Lock()
		defer mu.Unlock()
		n++
		points = append(points, r.crash(vfs.Crash{Keep: []int{0, 50, 100}[n%3], Tear: n % 2 * 30}, rng, fmt.Sprintf("operation %d, %v %s", n, op, name)))
	})
	for range 150 {
		r.step(t)
	}
	r.disk.OnOp(nil)
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		if err := r.verify(p); err != nil {
			t.Fatalf("crash before %s: %v", p.at, err)
		}
	}
	t.Logf("%d crash points", len(points))
	if len(points) < 100 {
		t.Errorf("only %d crash points", len(points))
	}
}
