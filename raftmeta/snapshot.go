package raftmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// A snapshot of the state goes to a replica as all its keys and values, in
// chunks, each the payload of an OpSnapshot request:
//
//	key length 2 | value length 4 | key (without its half) | value ...
//
// The receiver writes them into the half that is not its state. With the last
// chunk comes Raft's message; when Raft takes it, one synced batch makes the
// half the state, empties the other, and begins the log anew after the
// snapshot's index. A crash before that batch leaves the old state as it was,
// and what was received is dropped when the replica starts.

// snapshotChunk is the size of a chunk's payload in bytes, but for a single longer pair.
const snapshotChunk = 1 << 20

// takeSnapshot implements raft.Storage.Snapshot: it fixes the state as it is
// now, at the applied index, for the message that Raft is about to make.
func (r *Replica) takeSnapshot() (*raftpb.Snapshot, error) {
	if r.takes[r.st.index] == nil {
		r.takes[r.st.index] = r.db.NewSnapshot()
	}
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		ConfState: r.st.confState(), Index: new(r.st.index), Term: new(r.st.term),
	}}, nil
}

// dropTakes closes the snapshots that no message of this turn took.
func (r *Replica) dropTakes() {
	for i, s := range r.takes {
		s.Close()
		delete(r.takes, i)
	}
}

// sendSnapshot sends the state that m is about, in the background, and tells Raft how it went.
func (r *Replica) sendSnapshot(l *link, m *raftpb.Message) {
	index := m.GetSnapshot().GetMetadata().GetIndex()
	snap := r.takes[index]
	delete(r.takes, index)
	if snap == nil { // taken by another message of this turn
		if index != r.st.index {
			r.tellLater(func() { r.raft.ReportSnapshot(l.id, raft.SnapshotFailure) })
			return
		}
		snap = r.db.NewSnapshot()
	}
	half := r.st.half
	r.wg.Go(func() {
		defer snap.Close()
		began := time.Now()
		err := r.stream(l, reader{snap, half}, m)
		st := raft.SnapshotFinish
		if err != nil {
			st = raft.SnapshotFailure
			r.log.Warn("snapshot not sent", "to", l.id, "err", err)
			sleep(r.ctx, linkPause)
		} else {
			r.log.Info("snapshot sent", "to", l.id, "index", index, "took", time.Since(began))
		}
		r.tell(func() { r.raft.ReportSnapshot(l.id, st) })
	})
}

// tellLater is tell from within the loop.
func (r *Replica) tellLater(f func()) { r.wg.Go(func() { r.tell(f) }) }

// stream sends all keys of the half, then m.
func (r *Replica) stream(l *link, rd reader, m *raftpb.Message) error {
	conn, err := l.dial(r.ctx, r)
	if err != nil {
		return err
	}
	msg, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	self := r.self.Load()
	c := &metapb.SnapshotChunk{Cluster: self.cluster[:], From: self.id, To: l.id, Id: rand.Uint64() | 1, FromAddr: addrToPB(r.opts.Addr)}
	body := make([]byte, 0, snapshotChunk)
	flush := func() error {
		err := r.sendChunk(conn, c, body)
		c.Seq++
		body = body[:0]
		return err
	}
	prefix := key{rd.half}
	err = rd.scanAll(prefix, func(k, v []byte) error {
		if n := 6 + len(k) + len(v); len(body) > 0 && len(body)+n > snapshotChunk {
			if err := flush(); err != nil {
				return err
			}
		}
		body = binary.LittleEndian.AppendUint16(body, uint16(len(k)))
		body = binary.LittleEndian.AppendUint32(body, uint32(len(v)))
		body = append(append(body, k...), v...)
		c.Keys++
		return nil
	})
	if err != nil {
		return err
	}
	c.Message = msg
	return flush()
}

// scanAll calls f with each key of a half, without the half, and its value.
func (r reader) scanAll(prefix key, f func(k, v []byte) error) error {
	it, err := r.r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefix.after()})
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := f(it.Key()[1:], v); err != nil {
			return err
		}
	}
	return it.Error()
}

// chunkTime is how long a receiver may take for a chunk.
const chunkTime = 30 * time.Second

func (r *Replica) sendChunk(conn transport.Conn, c *metapb.SnapshotChunk, body []byte) error {
	ctx, cancel := context.WithTimeout(r.ctx, chunkTime)
	defer cancel()
	c.Crc = crc32.Checksum(body, castagnoli)
	hdr, err := proto.Marshal(c)
	if err != nil {
		return err
	}
	buf, err := r.opts.Arena.Get(ctx, max(len(body), 1))
	if err != nil {
		return err
	}
	defer buf.Release()
	copy(buf.Bytes(), body)
	rep, err := conn.Call(ctx, wire.OpSnapshot, hdr, buf, nil)
	if err != nil {
		return err
	}
	said := new(metapb.Response)
	if err := proto.Unmarshal(rep.Header, said); err != nil {
		return err
	}
	return status(wire.OpSnapshot, rep.Status, said)
}

// incoming is the snapshot that is being received. Once it is complete it is
// held until Raft has taken it or not; another may not begin before.
type incoming struct {
	mu       sync.Mutex
	id       uint64
	next     uint64 // chunk
	keys     uint64
	complete bool
	index    uint64 // when complete
}

var errBusy = errors.New("another snapshot is being installed")

// receive takes one chunk, whose payload is in body. With the last it returns
// Raft's message: see hold.
func (r *Replica) receive(c *metapb.SnapshotChunk, body []byte) (*raftpb.Message, error) {
	in := &r.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.complete:
		return nil, errBusy
	case c.GetSeq() == 0:
		if err := r.dropOther(); err != nil {
			return nil, err
		}
		in.id, in.next, in.keys = c.GetId(), 0, 0
	case c.GetId() != in.id || c.GetSeq() != in.next:
		return nil, fmt.Errorf("chunk %d of snapshot %x: want %d of %x", c.GetSeq(), c.GetId(), in.next, in.id)
	}
	if crc32.Checksum(body, castagnoli) != c.GetCrc() {
		return nil, fmt.Errorf("chunk %d of snapshot %x does not check", c.GetSeq(), c.GetId())
	}
	n, err := r.writeChunk(body)
	if err != nil {
		return nil, err
	}
	in.next++
	in.keys += n
	if len(c.GetMessage()) == 0 {
		return nil, nil
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(c.GetMessage(), m); err != nil {
		return nil, err
	}
	if in.keys != c.GetKeys() || m.GetType() != raftpb.MsgSnap {
		return nil, fmt.Errorf("snapshot %x has %d keys: want %d", in.id, in.keys, c.GetKeys())
	}
	in.complete, in.index = true, m.GetSnapshot().GetMetadata().GetIndex()
	return m, nil
}

// writeChunk writes the pairs of a chunk into the half that is not the state.
func (r *Replica) writeChunk(body []byte) (n uint64, err error) {
	b := r.db.NewBatch()
	defer b.Close()
	r.st.mu.RLock()
	half := otherHalf(r.st.half)
	r.st.mu.RUnlock()
	for len(body) > 0 {
		if len(body) < 6 {
			return n, errValue
		}
		kl, vl := int(binary.LittleEndian.Uint16(body)), int(binary.LittleEndian.Uint32(body[2:]))
		if body = body[6:]; len(body) < kl+vl {
			return n, errValue
		}
		if err := b.Set(append(key{half}, body[:kl]...), body[kl:kl+vl], nil); err != nil {
			return n, err
		}
		body = body[kl+vl:]
		n++
	}
	return n, b.Commit(pebble.NoSync)
}

// takeReceived hands Raft the message of a complete snapshot, in the loop, and
// afterwards makes room for another.
func (r *Replica) takeReceived(m *raftpb.Message) error {
	defer r.incoming.abandon()
	r.step(m)
	r.turn()
	return r.err
}

func (in *incoming) abandon() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.complete, in.id = false, 0
}

// install puts into the batch what makes the received half the state.
func (r *Replica) install(b *pebble.Batch, s *raftpb.Snapshot) error {
	in := &r.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	index := s.GetMetadata().GetIndex()
	if !in.complete || in.index != index {
		return fmt.Errorf("raft took a snapshot of index %d that was not received", index)
	}
	old := key{r.st.half}
	return errors.Join(
		b.Set(key{lHalf}, []byte{otherHalf(r.st.half)}, nil),
		b.DeleteRange(old, old.after(), nil),
		r.rlog.restart(b, index, s.GetMetadata().GetTerm()),
	)
}

// installed goes on with the state that was received.
func (r *Replica) installed() error {
	r.st.mu.Lock()
	r.st.half = otherHalf(r.st.half)
	err := r.st.load()
	r.st.mu.Unlock()
	if err != nil {
		return err
	}
	r.log.Info("snapshot installed", "replica", r.ID(), "index", r.st.index)
	r.links.update(r.st.members.Members)
	return nil
}
