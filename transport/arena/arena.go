// Package arena owns the memory that payload lives in: mapped, pre-faulted, on
// huge pages where the system has them, and never on the Go heap. A process has
// one arena, so that a device registers all of it once, by chunks.
//
//	arena  = chunks, mapped one at a time up to Config.Bytes
//	chunk  = 16 MiB: blocks of 4 MiB
//	block  = free, or cut into buffers of one size class (4 KiB, 8 KiB ... 4 MiB);
//	         it is free again when its last buffer is
//
// Users that must not starve each other (a client's write-back, a server's
// pulls) take from budgets, whose sum stays within the arena.
package arena

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"rfs/internal/invariants"
	"rfs/transport"
)

// Size classes in bytes.
const (
	MinClass = 4 << 10
	MaxClass = 4 << 20

	blockSize = MaxClass
	chunkSize = 4 * blockSize
	classes   = 11 // 4 KiB << 10 = 4 MiB
	poison    = 0xdb
)

// ErrTooBig is returned for a buffer that no arena or no budget can ever hold.
var ErrTooBig = errors.New("arena: buffer larger than its limit")

// Config is how an arena is made.
type Config struct {
	// Bytes is the most that the arena maps; rounded up to 4 MiB, at least 4 MiB.
	// Default: 256 MiB.
	Bytes int64
	// NoHugePages keeps the arena on base pages.
	NoHugePages bool
}

// Arena is a process's payload memory. Its methods may be called from any goroutine.
type Arena struct {
	huge bool
	root *Budget

	mu      sync.Mutex // guards all below, and the fields of blocks and budgets
	limit   int64
	mapped  int64
	chunks  []chunk
	empty   []*block                 // blocks of no class
	partial [classes]map[*block]bool // blocks with a free buffer
	hot     [classes]*block          // the one of partial to take from, if any
	waiting map[*Budget]struct{}     // budgets with waiters
	order   []*Budget                // all budgets, served in turn
	turn    int
	free    *waiter
	stats   Stats
}

type chunk struct {
	mem  []byte
	huge bool
}

// block is 4 MiB of a chunk.
type block struct {
	mem   []byte
	class int
	bufs  []buf // one a buffer of the class; kept when the block changes to the same class again
	free  []uint16
}

// buf is a transport.Buf.
type buf struct {
	a      *Arena
	blk    *block
	budget *Budget
	mem    []byte // of the whole class
	idx    uint16
	n      int
	refs   atomic.Int32
}

// Stats is what an arena holds.
type Stats struct {
	Limit, Mapped, HugeBytes int64
	Used                     int64 // bytes of the classes of buffers in use
	Buffers                  int64 // in use
	Waits                    int64 // Gets that had to wait
}

// New returns an arena and maps its first chunk.
func New(cfg Config) (*Arena, error) {
	if cfg.Bytes < 0 {
		return nil, fmt.Errorf("arena: a limit of %d bytes: want 0 (the default) or more", cfg.Bytes)
	}
	if cfg.Bytes == 0 {
		cfg.Bytes = 256 << 20
	}
	a := &Arena{
		huge:    !cfg.NoHugePages,
		limit:   (cfg.Bytes + blockSize - 1) / blockSize * blockSize,
		waiting: map[*Budget]struct{}{},
	}
	for i := range a.partial {
		a.partial[i] = map[*block]bool{}
	}
	a.root = a.Budget(a.limit)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.grow(); err != nil {
		return nil, err
	}
	return a, nil
}

// Get returns a buffer of n bytes (not zeroed) with one owner. It waits, first
// come first served, until memory is free or ctx ends.
func (a *Arena) Get(ctx context.Context, n int) (transport.Buf, error) { return a.root.Get(ctx, n) }

// TryGet is Get that does not wait: it reports false when no memory is free.
func (a *Arena) TryGet(n int) (transport.Buf, bool) { return a.root.TryGet(n) }

// Budget returns a share of at most bytes of the arena. Budgets whose sum is
// within Config.Bytes never wait for each other's memory, but for the rounding
// of a size class to blocks of 4 MiB.
func (a *Arena) Budget(bytes int64) *Budget {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := &Budget{a: a, limit: bytes}
	a.order = append(a.order, b)
	return b
}

// Stats returns what a holds.
func (a *Arena) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.stats
	s.Limit, s.Mapped = a.limit, a.mapped
	return s
}

// Chunks calls f with each mapped chunk, for a device to register.
func (a *Arena) Chunks(f func(mem []byte)) {
	a.mu.Lock()
	chunks := a.chunks[:len(a.chunks):len(a.chunks)]
	a.mu.Unlock()
	for _, c := range chunks {
		f(c.mem)
	}
}

// Close unmaps the arena. It fails, and unmaps nothing, while a buffer is in use.
func (a *Arena) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stats.Buffers != 0 {
		return fmt.Errorf("arena: close with %d buffers in use", a.stats.Buffers)
	}
	var errs []error
	for _, c := range a.chunks {
		errs = append(errs, unmap(c.mem))
	}
	a.chunks, a.empty, a.mapped, a.limit = nil, nil, 0, 0
	for i := range a.partial {
		clear(a.partial[i])
		a.hot[i] = nil
	}
	return errors.Join(errs...)
}

// classOf returns the class that holds n bytes, and its size.
func classOf(n int) (class, size int) {
	if n <= MinClass {
		return 0, MinClass
	}
	class = bits.Len(uint(n-1)) - 12
	return class, MinClass << class
}

// take returns a buffer of the class, or nil if memory is short. a.mu is held.
func (a *Arena) take(b *Budget, class, n int) (*buf, error) {
	size := MinClass << class
	if b.used+int64(size) > b.limit {
		return nil, nil
	}
	blk := a.hot[class]
	if blk == nil {
		for blk = range a.partial[class] {
			break
		}
	}
	if blk == nil {
		if len(a.empty) == 0 {
			if a.mapped >= a.limit {
				return nil, nil
			}
			if err := a.grow(); err != nil {
				return nil, err
			}
		}
		blk = a.empty[len(a.empty)-1]
		a.empty = a.empty[:len(a.empty)-1]
		blk.cut(a, class)
		a.partial[class][blk] = true
	}
	a.hot[class] = blk
	last := len(blk.free) - 1
	x := &blk.bufs[blk.free[last]]
	blk.free = blk.free[:last]
	if last == 0 {
		delete(a.partial[class], blk)
		a.hot[class] = nil
	}
	x.budget, x.n = b, n
	x.refs.Store(1)
	b.used += int64(size)
	a.stats.Used += int64(size)
	a.stats.Buffers++
	return x, nil
}

// give takes x back and serves who waits. a.mu is held.
func (a *Arena) give(x *buf) {
	blk, size := x.blk, int64(len(x.mem))
	x.budget.used -= size
	a.stats.Used -= size
	a.stats.Buffers--
	blk.free = append(blk.free, x.idx)
	switch {
	case len(blk.free) == len(blk.bufs):
		delete(a.partial[blk.class], blk)
		if a.hot[blk.class] == blk {
			a.hot[blk.class] = nil
		}
		a.empty = append(a.empty, blk)
	default:
		a.partial[blk.class][blk] = true
		a.hot[blk.class] = blk
	}
	a.serve()
}

// grow maps the next chunk. a.mu is held: who else asks would have to wait for it too.
func (a *Arena) grow() error {
	n := min(chunkSize, a.limit-a.mapped)
	mem, huge, err := mapMemory(int(n), a.huge)
	if err != nil {
		return fmt.Errorf("arena: map %d bytes beyond %d: %w: lower the arena's limit (%d) or give the process more memory", n, a.mapped, err, a.limit)
	}
	a.chunks = append(a.chunks, chunk{mem, huge})
	a.mapped += n
	if huge {
		a.stats.HugeBytes += n
	}
	for off := n - blockSize; off >= 0; off -= blockSize {
		a.empty = append(a.empty, &block{mem: mem[off : off+blockSize : off+blockSize], class: -1})
	}
	return nil
}

// cut divides a free block into buffers of the class.
func (blk *block) cut(a *Arena, class int) {
	if blk.class == class {
		return // as it was before: all its buffers are free
	}
	size := MinClass << class
	n := blockSize / size
	blk.class, blk.bufs, blk.free = class, make([]buf, n), make([]uint16, 0, n)
	for i := n - 1; i >= 0; i-- {
		x := &blk.bufs[i]
		x.a, x.blk, x.idx = a, blk, uint16(i)
		x.mem = blk.mem[i*size : (i+1)*size : (i+1)*size]
		blk.free = append(blk.free, uint16(i))
		if invariants.Enabled {
			fill(x.mem, poison)
		}
	}
}

func (x *buf) Bytes() []byte { return x.mem[:x.n:x.n] }

func (x *buf) Retain() {
	if x.refs.Add(1) <= 1 {
		panic("arena: retain of a released buffer")
	}
}

// Release drops an owner; the last returns the memory.
func (x *buf) Release() {
	switch refs := x.refs.Add(-1); {
	case refs > 0:
		return
	case refs < 0:
		panic("arena: buffer released twice")
	}
	if invariants.Enabled {
		fill(x.mem, poison)
	}
	x.a.mu.Lock()
	x.a.give(x)
	x.a.mu.Unlock()
}

var poisoned = bytes.Repeat([]byte{poison}, MinClass)

func fill(b []byte, v byte) {
	b[0] = v
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}

// checkPoison panics if a buffer was written after it was released.
func (x *buf) checkPoison() {
	for off := 0; off < len(x.mem); off += MinClass {
		if !bytes.Equal(x.mem[off:off+MinClass], poisoned) {
			panic(fmt.Sprintf("arena: a free buffer of %d bytes was written after its release, near byte %d", len(x.mem), off))
		}
	}
}
