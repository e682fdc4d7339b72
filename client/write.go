package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rfs"
	"rfs/raftmeta"
	"rfs/transport"
)

// The way of a write, and the lock of each step:
//
//	write        io shared                 cut at stripes
//	fill         mu                        copy into the stripe's buffer
//	launch       mu                        a full stripe (or what flush, age, memory ask for) leaves the dirty set
//	writeStripe  none, a goroutine         plan, encode, send; the buffer does not change any more
//	land         mu                        give the memory back, note the error, launch what waited behind
//
// Of one stripe a single write flies at a time; bytes that arrive meanwhile
// gather in a new buffer and follow it.

// streamMin is how long a write is that makes its stripes' buffers whole at once, in bytes.
const streamMin = 512 << 10

// write puts p into the stripe buffers, and waits for the targets if nothing may be kept here.
func (ino *inode) write(ctx context.Context, f *File, p []byte, off int64) (n int, err error) {
	if err := ino.fits(off, len(p)); err != nil {
		return 0, err
	}
	ino.io.RLock()
	defer ino.io.RUnlock()
	size := ino.layout.StripeSize()
	for n < len(p) {
		stripe, in := ino.layout.Stripe(off + int64(n))
		m := int(min(int64(len(p)-n), size-in))
		if err := ino.fill(ctx, stripe, in, p[n:n+m], len(p) >= streamMin); err != nil {
			return n, err
		}
		n += m
	}
	ino.fs.stats.written.add(int64(n))
	return n, ino.writeThrough(ctx, f, off, n)
}

// fits says whether n bytes at off are within what a file can have.
func (ino *inode) fits(off int64, n int) error {
	limit := int64(raftmeta.MaxFileSize)
	if size := ino.layout.StripeSize(); size < limit>>32 {
		limit = size << 32
	}
	if off > limit-int64(n) {
		return fmt.Errorf("write %d bytes at %d of %v, whose limit is %d: %w", n, off, ino.id, limit, rfs.ErrFileTooBig)
	}
	return nil
}

// writeThrough waits until what was just written is committed, if the file is
// shared with other clients or was opened so, and durable with OpenSync.
func (ino *inode) writeThrough(ctx context.Context, f *File, off int64, n int) error {
	ino.mu.Lock()
	shared := ino.cache != raftmeta.CacheReadWrite
	through := shared || ino.noSpace || f.flags&(OpenSync) != 0
	ino.mu.Unlock()
	if !through || n == 0 {
		return nil
	}
	ctx, done := ino.fs.patience(ctx)
	defer done()
	first, _ := ino.layout.Stripe(off)
	last, _ := ino.layout.Stripe(off + int64(n) - 1)
	if err := ino.flushStripes(ctx, first, last); err != nil {
		return err
	}
	if err := f.report(nil); err != nil {
		return err
	}
	if f.flags&OpenSync != 0 {
		return ino.sync(ctx)
	}
	if shared {
		return ino.commitAttr(ctx)
	}
	return nil
}

// append writes p at the end. While the file is cached here the end is known;
// else the metadata service reserves the bytes.
func (ino *inode) append(ctx context.Context, f *File, p []byte) (off int64, n int, err error) {
	if off, err = ino.end(ctx, int64(len(p))); err != nil {
		return 0, 0, err
	}
	n, err = ino.write(ctx, f, p, off)
	return off, n, err
}

// end makes the file n bytes longer and returns where they begin: at the size known here while no other client has the
// file open, else where the metadata service says.
func (ino *inode) end(ctx context.Context, n int64) (off int64, err error) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	for ino.cache == raftmeta.CacheReadWrite {
		if ino.reserving == 0 {
			off = ino.size
			ino.grow(off + n)
			return off, nil
		}
		ino.change.Wait() // the lease came while appends were on their way: their answers are
	}
	ino.reserving++
	ino.mu.Unlock()
	off, err = ino.fs.meta.ReserveAppend(ctx, ino.id, n)
	ino.mu.Lock()
	if ino.reserving--; ino.reserving == 0 {
		ino.change.Broadcast()
	}
	if err == nil {
		ino.grow(off + n)
	}
	return off, err
}

// fill copies p to offset in of a stripe's buffer, one shard after the other.
func (ino *inode) fill(ctx context.Context, stripe uint32, in int64, p []byte, stream bool) error {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	for i := range ino.layout.K {
		off, end := shardRange(ino.layout, in, len(p), i)
		if off == end {
			continue
		}
		b, err := ino.room(ctx, stripe, i, off, end, stream)
		if err != nil {
			return err
		}
		s := &b.shards[i]
		for at := off; at < end; {
			n := min(end-at, ino.layout.Cell-at%ino.layout.Cell)
			from := ino.layout.StripeOffset(i, at) - in
			copy(s.bytes(at, at+n), p[from:from+int64(n)])
			at += n
		}
		s.dirty.add(off, end)
		ino.link(b)
	}
	ino.grow(int64(stripe)*ino.layout.StripeSize() + in + int64(len(p)))
	if b := ino.dirty[stripe]; b != nil && b.full() {
		ino.launch(b)
	}
	return nil
}

// room returns the stripe's buffer with memory for [off, end) of shard i. It may
// let mu go to wait for memory; what is dirty by then can be written to make some.
func (ino *inode) room(ctx context.Context, stripe uint32, i uint8, off, end uint32, stream bool) (*stripeBuf, error) {
	for {
		if ino.gone != nil {
			return nil, ino.gone
		}
		b := ino.dirty[stripe]
		if b == nil {
			b = newStripeBuf(ino, stripe)
			ino.dirty[stripe] = b
		}
		s := &b.shards[i]
		base, size := s.window(off, end, ino.layout.Unit, stream)
		if s.buf != nil && s.base <= off && end <= s.end() {
			return b, nil
		}
		buf, ok := ino.fs.dirtyMem.TryGet(int(size))
		if ok {
			s.move(buf, base)
			return b, nil
		}
		ino.mu.Unlock()
		buf, err := ino.fs.dirtyMemory(ctx, int(size))
		ino.mu.Lock()
		if err != nil {
			return nil, err
		}
		// Meanwhile the buffer may have left, or grown.
		if ino.dirty[stripe] == b && ino.gone == nil {
			if base2, size2 := s.window(off, end, ino.layout.Unit, stream); base2 == base && size2 == size {
				s.move(buf, base)
				return b, nil
			}
		}
		buf.Release()
	}
}

// dirtyMemory waits for memory of stripe buffers, and has the oldest written to make some.
func (fs *FS) dirtyMemory(ctx context.Context, n int) (transport.Buf, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	fs.starved.Add(1)
	defer fs.starved.Add(-1)
	fs.launchOldest()
	buf, err := fs.dirtyMem.Get(ctx, n)
	if err != nil && ctx.Err() != nil {
		return nil, ended(ctx)
	}
	return buf, err
}

var stripeBufs = sync.Pool{New: func() any { return new(stripeBuf) }}

func newStripeBuf(ino *inode, stripe uint32) *stripeBuf {
	b := stripeBufs.Get().(*stripeBuf)
	shards := b.shards
	if cap(shards) < int(ino.layout.K) {
		shards = make([]shardBuf, ino.layout.K)
	}
	ino.serial++
	*b = stripeBuf{ino: ino, stripe: stripe, serial: ino.serial, shards: shards[:ino.layout.K]}
	return b
}

// unpin drops one hold of b; the last gives the memory back. mu is held.
func (b *stripeBuf) unpin() {
	if b.pins--; b.pins > 0 {
		return
	}
	for i := range b.shards {
		s := &b.shards[i]
		if s.buf != nil {
			s.buf.Release()
		}
		*s = shardBuf{dirty: s.dirty[:0]}
	}
	b.ino = nil
	stripeBufs.Put(b)
}

// A dirtyList has the stripes with dirty bytes that no write carries, oldest first.
type dirtyList struct {
	mu             sync.Mutex // may be taken inside an inode's mu
	oldest, newest *stripeBuf
}

// link notes that b has dirty bytes. mu is held.
func (ino *inode) link(b *stripeBuf) {
	if b.listed {
		return
	}
	b.listed, b.pins, b.since = true, 1, time.Now()
	d := &ino.fs.dirty
	d.mu.Lock()
	defer d.mu.Unlock()
	b.older = d.newest
	if b.older != nil {
		b.older.newer = b
	} else {
		d.oldest = b
	}
	d.newest = b
}

// take takes b off the dirty set and the list. mu is held.
func (ino *inode) take(b *stripeBuf) {
	delete(ino.dirty, b.stripe)
	if !b.listed {
		b.pins = 1 // never had a byte
		return
	}
	d := &ino.fs.dirty
	d.mu.Lock()
	defer d.mu.Unlock()
	if b.older != nil {
		b.older.newer = b.newer
	} else {
		d.oldest = b.newer
	}
	if b.newer != nil {
		b.newer.older = b.older
	} else {
		d.newest = b.older
	}
	b.older, b.newer = nil, nil
}

// unlink drops b with its bytes. mu is held.
func (ino *inode) unlink(b *stripeBuf) {
	ino.take(b)
	b.unpin()
}

// launchOldest begins the write of the stripe that has been dirty longest.
func (fs *FS) launchOldest() { fs.launchOlder(time.Now().Add(time.Hour), 1) }

// launchOlder begins the writes of at most n stripes that became dirty before t, and returns how many it did.
func (fs *FS) launchOlder(t time.Time, n int) (done int) {
	for done < n {
		fs.dirty.mu.Lock()
		b := fs.dirty.oldest
		// A stripe whose predecessor still flies is passed over: it follows by itself.
		for b != nil && b.due {
			b = b.newer
		}
		var ino *inode
		var stripe uint32
		if b != nil && b.since.Before(t) {
			ino, stripe = b.ino, b.stripe
		}
		fs.dirty.mu.Unlock()
		if ino == nil {
			return done
		}
		ino.mu.Lock()
		if b := ino.dirty[stripe]; b != nil && b.listed {
			ino.launch(b)
		}
		ino.mu.Unlock()
		done++
	}
	return done
}

// writeBehind writes what has been dirty for long.
func (fs *FS) writeBehind() {
	for fs.pause(fs.ctx, fs.cfg.WriteBehind/2, nil) == nil {
		fs.launchOlder(time.Now().Add(-fs.cfg.WriteBehind), 1<<20)
	}
}

// launch begins the write of b, or has it follow the one of the stripe that flies. mu is held.
func (ino *inode) launch(b *stripeBuf) {
	if ino.flying[b.stripe] != nil {
		ino.fs.dirty.mu.Lock()
		b.due = true
		ino.fs.dirty.mu.Unlock()
		return
	}
	ino.take(b)
	ino.flying[b.stripe] = b
	p := ino.plan(b)
	ino.fs.work.Go(func() { ino.land(b, ino.writeStripe(b, p)) })
}

// land ends the write of b.
func (ino *inode) land(b *stripeBuf, err error) {
	ino.mu.Lock()
	stripe := b.stripe
	delete(ino.flying, stripe)
	b.unpin()
	ino.readGens++ // what was read ahead before does not have these bytes
	ino.noSpace = errors.Is(err, rfs.ErrNoSpace)
	if err != nil && ino.gone == nil {
		ino.werr = fmt.Errorf("write stripe %d of %v: %w", stripe, ino.id, err)
		ino.nerr++
		ino.fs.stats.lost.inc()
		ino.fs.log.Error("write-back failed: the bytes are lost", "inode", ino.id, "stripe", stripe, "err", err)
	}
	if next := ino.dirty[stripe]; next != nil && next.due {
		ino.launch(next)
	}
	ino.change.Broadcast()
	ino.mu.Unlock()
	if ino.fs.starved.Load() > 0 {
		ino.fs.launchOldest()
	}
}

// flush writes all that is dirty now and waits for it. Errors of the writes are for File.report.
func (ino *inode) flush(ctx context.Context) error { return ino.flushStripes(ctx, 0, ^uint32(0)) }

// flushStripes is flush for stripes first to last.
func (ino *inode) flushStripes(ctx context.Context, first, last uint32) error {
	ctx, done := ino.fs.patience(ctx)
	defer done()
	ino.mu.Lock()
	defer ino.mu.Unlock()
	upTo := ino.serial
	for stripe, b := range ino.dirty {
		if first <= stripe && stripe <= last && b.listed {
			ino.launch(b)
		}
	}
	old := func(m map[uint32]*stripeBuf) bool {
		for stripe, b := range m {
			if first <= stripe && stripe <= last && b.listed && b.serial <= upTo {
				return true
			}
		}
		return false
	}
	err := ino.wait(ctx, func() bool { return ino.gone != nil || !old(ino.dirty) && !old(ino.flying) })
	if err == nil {
		err = ino.gone
	}
	return err
}
