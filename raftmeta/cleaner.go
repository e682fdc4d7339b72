package raftmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// The cleaner works on the leader: it has the targets drop what metadata no
// longer names. Its queues are in the state, so that the next leader goes on.
//
//   - removed inodes: each target has a cursor into the queue and gets a DELETE
//     for what follows it. An entry goes when all targets of the map have passed
//     it; one that is down holds it until it is back, or is removed.
//   - truncations of sessions that ended: TRIM to the targets of the pool.
//   - files whose writer died: EXTENT from the targets tells their size.

const (
	// cleanBatch is how many inodes a target is sent before its cursor is stored.
	cleanBatch = 256
	// cleanParallel is how many requests are under way to a target.
	cleanParallel = 8
	// cleanTime is how long a target may take for one.
	cleanTime = 5 * time.Second
	// cleanPause is how long the cleaner rests when it could do nothing.
	cleanPause = 2 * time.Second
	// recoverTime is how long an open of a file waits for its size to be recovered.
	recoverTime = 10 * time.Second
)

// clean runs until the leadership ends.
func (l *lead) clean() {
	c := &cleaner{l: l, conns: map[transport.Addr]transport.Conn{}}
	defer c.close()
	for l.ctx.Err() == nil {
		more := l.queue.on(struct{}{})
		if c.pass() {
			continue
		}
		idle := time.NewTimer(cleanPause)
		select {
		case <-more:
		case <-idle.C:
		case <-l.ctx.Done():
		}
		idle.Stop()
	}
}

type cleaner struct {
	l     *lead
	mu    sync.Mutex
	conns map[transport.Addr]transport.Conn
}

func (c *cleaner) close() {
	for _, conn := range c.conns {
		conn.Close()
	}
}

// pass does a share of all that waits, and reports whether there is more that can be done now.
func (c *cleaner) pass() bool {
	c.sweepTrims()
	c.recoverSizes()
	return c.purge()
}

// purge moves each live target's cursor through the queue of removed inodes, by a batch.
func (c *cleaner) purge() (more bool) {
	s := c.l.r.st
	s.mu.RLock()
	m, last := s.cmap, s.counters.nextPurge-1
	cursors := map[rfs.TargetID]uint64{}
	for i := range m.Targets {
		cursors[m.Targets[i].ID] = s.cursors[m.Targets[i].ID]
	}
	empty := s.purges == 0
	s.mu.RUnlock()
	if empty {
		return false
	}
	pools := poolTargets(m)
	op := &metapb.Purged{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for id, at := range cursors {
		if !m.IsUp(id) || at >= last {
			continue
		}
		wg.Go(func() {
			to, err := c.purgeTarget(m, pools, id, at)
			if err != nil {
				c.l.r.log.Debug("shards not deleted yet", "target", id, "err", err)
			}
			if to > at {
				mu.Lock()
				defer mu.Unlock()
				op.Cursors = append(op.Cursors, &metapb.Cursor{Target: id[:], Seq: to})
				more = more || to < last
			}
		})
	}
	wg.Wait()
	if len(op.Cursors) > 0 {
		c.l.r.order(c.l.ctx, &metapb.Command{Op: &metapb.Command_Purged{Purged: op}})
	}
	return more
}

// poolTargets returns which targets the slots of each pool name.
func poolTargets(m *placement.Map) map[rfs.PoolID]map[rfs.TargetID]bool {
	out := map[rfs.PoolID]map[rfs.TargetID]bool{}
	for i := range m.Pools {
		ts := map[rfs.TargetID]bool{}
		for j := range m.Pools[i].Slots {
			for _, t := range m.Pools[i].Slots[j].Members {
				ts[t] = true
			}
			for _, t := range m.Pools[i].Slots[j].Incoming {
				ts[t] = true
			}
		}
		out[m.Pools[i].ID] = ts
	}
	return out
}

// purgeTarget deletes the inodes after cursor at on one target, in order, and
// returns how far it came.
func (c *cleaner) purgeTarget(m *placement.Map, pools map[rfs.PoolID]map[rfs.TargetID]bool, id rfs.TargetID, at uint64) (uint64, error) {
	began := time.Now()
	batch, to, err := c.queued(at)
	if err != nil {
		return at, err
	}
	var mine []purge
	for _, p := range batch {
		if pools[p.layout.Pool][id] {
			mine = append(mine, p)
		}
	}
	for chunk := range slices.Chunk(mine, cleanParallel) {
		if err := c.deleteAll(m, id, chunk); err != nil {
			return at, err
		}
	}
	pace := time.Duration(len(mine)) * time.Second / time.Duration(c.l.r.opts.CleanRate)
	sleep(c.l.ctx, pace-time.Since(began))
	return to, nil
}

// queued returns the next removed inodes after number at, and the number of the last of them.
func (c *cleaner) queued(at uint64) (out []purge, last uint64, err error) {
	v := c.l.r.st.view()
	defer v.close()
	last = at
	prefix := keyOf(v.half, kPurge)
	err = v.scan(prefix, keyOf(v.half, kPurge).u64(at+1), func(k, val []byte) (bool, error) {
		p, err := decodePurge(val)
		if err != nil {
			return false, err
		}
		out, last = append(out, p), binary.BigEndian.Uint64(k)
		return len(out) < cleanBatch, nil
	})
	return out, last, err
}

func (c *cleaner) deleteAll(m *placement.Map, id rfs.TargetID, ps []purge) error {
	errs := make([]error, len(ps))
	var wg sync.WaitGroup
	for i, p := range ps {
		wg.Go(func() {
			hdr := wire.AppendCommon(nil, &wire.Common{Target: id, Key: rfs.ShardKey{Inode: p.inode}, Pool: p.layout.Pool})
			_, errs[i] = c.call(m, id, wire.OpDelete, hdr)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// call sends a data request to a target.
func (c *cleaner) call(m *placement.Map, id rfs.TargetID, op wire.Op, hdr []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(c.l.ctx, cleanTime)
	defer cancel()
	n := m.NodeOf(id)
	if n == nil {
		return nil, fmt.Errorf("target %v is on no node", id)
	}
	conn, err := c.dial(ctx, transport.Addr(n.Addr))
	if err != nil {
		return nil, err
	}
	rep, err := conn.Call(ctx, op, hdr, nil, nil)
	if err != nil {
		return nil, err
	}
	if rep.Status != wire.StatusOK && rep.Status != wire.StatusNotFound {
		return nil, &transport.StatusError{Op: op, Status: rep.Status}
	}
	return rep.Header, nil
}

func (c *cleaner) dial(ctx context.Context, a transport.Addr) (transport.Conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[a]; conn != nil {
		select {
		case <-conn.Done():
			conn.Close()
			delete(c.conns, a)
		default:
			return conn, nil
		}
	}
	conn, err := c.l.r.opts.Transport.Dial(ctx, a)
	if err == nil {
		c.conns[a] = conn
	}
	return conn, err
}

// orphanTrim is a truncation whose session ended.
type orphanTrim struct {
	inode rfs.InodeID
	tag   rfs.Tag
	trimming
}

// sweepTrims sends the TRIMs of truncations whose sessions ended. The rest of
// the stripe is punched by whoever makes the file longer: see Attr.Trims.
func (c *cleaner) sweepTrims() {
	trims, err := c.orphanTrims()
	if err != nil {
		c.l.r.log.Error("truncations not read", "err", err)
	}
	for _, t := range trims {
		if err := c.sweep(t); err != nil {
			c.l.r.log.Debug("truncation not swept yet", "inode", t.inode, "err", err)
		}
	}
}

func (c *cleaner) orphanTrims() (out []orphanTrim, err error) {
	s := c.l.r.st
	v := s.view()
	defer v.close()
	err = v.scan(keyOf(v.half, kTrim), nil, func(k, val []byte) (bool, error) {
		t, err := decodeTrimming(val)
		if err != nil {
			return false, err
		}
		s.mu.RLock()
		alive := s.sessions[t.session] != nil
		s.mu.RUnlock()
		if !alive {
			out = append(out, orphanTrim{
				inode: rfs.InodeID(binary.BigEndian.Uint64(k)), trimming: t,
				tag: rfs.Tag{HLC: binary.BigEndian.Uint64(k[8:]), Session: rfs.SessionID(binary.BigEndian.Uint32(k[16:])), Seq: binary.BigEndian.Uint32(k[20:])},
			})
		}
		return len(out) < cleanBatch, nil
	})
	return out, err
}

func (c *cleaner) sweep(t orphanTrim) error {
	from, in := t.layout.Stripe(t.size)
	if in > 0 {
		from++
	}
	err := c.each(t.layout.Pool, func(m *placement.Map, id rfs.TargetID) error {
		hdr := wire.AppendTagRequest(nil, &wire.TagRequest{
			Common: wire.Common{Target: id, Key: rfs.ShardKey{Inode: t.inode, Stripe: from}, Pool: t.layout.Pool}, Tag: t.tag,
		})
		_, err := c.call(m, id, wire.OpTrim, hdr)
		return err
	})
	if err != nil {
		return err
	}
	c.l.r.order(c.l.ctx, &metapb.Command{Op: &metapb.Command_TrimSwept{TrimSwept: &metapb.TrimSwept{Inode: uint64(t.inode), Tag: tagToPB(t.tag)}}})
	return nil
}

// each calls f for every live target of the pool, one after the other.
func (c *cleaner) each(pool rfs.PoolID, f func(*placement.Map, rfs.TargetID) error) error {
	s := c.l.r.st
	s.mu.RLock()
	m := s.cmap
	s.mu.RUnlock()
	live := 0
	for id := range poolTargets(m)[pool] {
		if !m.IsUp(id) {
			continue
		}
		if err := f(m, id); err != nil {
			return err
		}
		live++
	}
	if live == 0 {
		return fmt.Errorf("pool %d has no live target: %w", pool, rfs.ErrUnavailable)
	}
	return nil
}

// recoverSizes asks the targets for the size of files whose writers died.
func (c *cleaner) recoverSizes() {
	s := c.l.r.st
	s.mu.RLock()
	files := make(map[rfs.InodeID]rfs.Layout, len(s.recover))
	for ino, l := range s.recover {
		files[ino] = l
	}
	s.mu.RUnlock()
	for ino, layout := range files {
		size, err := c.extent(ino, layout)
		if err != nil {
			c.l.r.log.Debug("size not recovered yet", "inode", ino, "err", err)
			continue
		}
		c.l.r.order(c.l.ctx, &metapb.Command{Op: &metapb.Command_Recovered{Recovered: &metapb.Recovered{Inode: uint64(ino), Size: size}}})
	}
}

// extent returns how far the bytes of a file reach. While a truncation of it is
// not done there may be bytes beyond its size that do not count.
func (c *cleaner) extent(ino rfs.InodeID, layout rfs.Layout) (end int64, err error) {
	v := c.l.r.st.view()
	n, err := v.node(ino)
	v.close()
	if n == nil || err != nil || len(n.Trims) > 0 {
		return 0, err
	}
	err = c.each(layout.Pool, func(m *placement.Map, id rfs.TargetID) error {
		hdr := wire.AppendExtent(nil, &wire.Extent{
			Common: wire.Common{Target: id, Key: rfs.ShardKey{Inode: ino}, Pool: layout.Pool},
			K:      layout.K, M: layout.M, Unit: layout.Unit, Cell: layout.Cell,
		})
		b, err := c.call(m, id, wire.OpExtent, hdr)
		if err != nil || len(b) == 0 {
			return err
		}
		e, err := wire.DecodeExtentReply(b)
		end = max(end, e)
		return err
	})
	return end, err
}

// mayRecover reports whether an open should wait for the file's size to be recovered.
func (l *lead) mayRecover(ino rfs.InodeID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	began, ok := l.recovering[ino]
	if !ok {
		began = time.Now()
		l.recovering[ino] = began
	}
	return time.Since(began) < recoverTime
}
