// Package storetest tests a chunkstore on whatever file system it is given: a
// suite of stories (Run), and a Model, which is what a store should hold, kept
// in maps, for random histories to be held against.
package storetest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"rfs"
	"rfs/chunkstore"
	"rfs/internal/crc"
)

// A Stored is one version with its payload. It is never changed.
type Stored struct {
	chunkstore.Version
	Payload []byte
	// At is the step of the history at which the payload was written.
	At int
}

// Shards is the state of a store: of each shard all versions that were neither
// aborted nor trimmed nor deleted, the superseded ones included, in order. It is never changed.
type Shards map[rfs.ShardKey][]Stored

// A Model is a store's history: States[i] is the state after step i.
type Model struct {
	States []Shards
}

// NewModel returns the history of an empty store.
func NewModel() *Model { return &Model{States: []Shards{{}}} }

// Now is the last state.
func (m *Model) Now() Shards { return m.States[len(m.States)-1] }

// step adds a state in which a shard has other versions.
func (m *Model) step(key rfs.ShardKey, vs []Stored) {
	next := maps.Clone(m.Now())
	slices.SortFunc(vs, func(a, b Stored) int { return cmp.Or(a.Tag.Compare(b.Tag), cmp.Compare(a.Kind, b.Kind)) })
	next[key] = vs
	if len(vs) == 0 {
		delete(next, key)
	}
	m.States = append(m.States, next)
}

func (m *Model) index(key rfs.ShardKey, tag rfs.Tag, kind chunkstore.Kind) int {
	return slices.IndexFunc(m.Now()[key], func(v Stored) bool { return v.Tag == tag && v.Kind == kind })
}

// Put is as Store.Put, of a version that the store will take.
func (m *Model) Put(key rfs.ShardKey, v chunkstore.Version, payload []byte) {
	if v.State == 0 {
		v.State = chunkstore.Prepared
	}
	vs := slices.Clone(m.Now()[key])
	if i := m.index(key, v.Tag, v.Kind); i >= 0 {
		if !v.Repair {
			return
		}
		// A repair is not lost where its first copy was not.
		vs[i].Payload = payload
		m.step(key, vs)
		return
	}
	m.step(key, append(vs, Stored{Version: v, Payload: payload, At: len(m.States)}))
}

// Commit is as Store.Commit, of a version that is there.
func (m *Model) Commit(key rfs.ShardKey, tag rfs.Tag, kind chunkstore.Kind) {
	vs := slices.Clone(m.Now()[key])
	if i := m.index(key, tag, kind); i >= 0 {
		vs[i].State = chunkstore.Complete
		m.step(key, vs)
	}
}

// Retag is as Store.Retag, of versions that the store will retag.
func (m *Model) Retag(key rfs.ShardKey, old, tag rfs.Tag) {
	vs := slices.Clone(m.Now()[key])
	for i := range vs {
		if vs[i].Tag == old && vs[i].State == chunkstore.Prepared {
			vs[i].Tag = tag
		}
	}
	m.step(key, vs)
}

// DropWhere drops versions of a shard: Abort, and one shard's part of Trim and Delete.
func (m *Model) DropWhere(key rfs.ShardKey, gone func(Stored) bool) {
	m.step(key, slices.DeleteFunc(slices.Clone(m.Now()[key]), gone))
}

// Keys are the shards of an inode, from a stripe on, in order.
func (m *Model) Keys(inode rfs.InodeID, from uint32) []rfs.ShardKey {
	return slices.SortedFunc(func(yield func(rfs.ShardKey) bool) {
		for k := range m.Now() {
			if k.Inode == inode && k.Stripe >= from && !yield(k) {
				return
			}
		}
	}, rfs.ShardKey.Compare)
}

// Visible returns the versions that no complete Full one supersedes.
func Visible(vs []Stored) []Stored {
	for i := len(vs) - 1; i >= 0; i-- {
		if base := vs[i]; base.Kind == chunkstore.Full && base.State == chunkstore.Complete {
			return slices.DeleteFunc(slices.Clone(vs), func(v Stored) bool {
				return v.Tag.Less(base.Tag) || v.Tag == base.Tag && v.Kind == chunkstore.Partial
			})
		}
	}
	return vs
}

// Merged returns the bytes of a shard that the complete ones of vs add up to,
// of shard own or, at a parity, of a data shard without its base.
func Merged(vs []Stored, own, shard uint8) (data []byte, written []bool) {
	grow := func(n int) {
		for len(data) < n {
			data, written = append(data, 0), append(written, false)
		}
	}
	for _, v := range Visible(vs) {
		if v.State != chunkstore.Complete {
			continue
		}
		if v.Kind == chunkstore.Full {
			if own == shard {
				data, written = slices.Clone(v.Payload), slices.Repeat([]bool{true}, len(v.Payload))
			}
			continue
		}
		p := v.Payload
		for _, g := range v.Segments {
			if g.Shard == shard && (!g.Zero || own != shard) {
				grow(int(g.Off + g.Len))
			}
			for i := g.Off; i < g.Off+g.Len; i++ {
				if g.Shard == shard && int(i) < len(data) {
					written[i] = true
					data[i] = 0
					if !g.Zero {
						data[i] = p[i-g.Off]
					}
				}
			}
			if !g.Zero {
				p = p[g.Len:]
			}
		}
	}
	return data, written
}

// CRCs returns the checksums that go with a version's payload.
func CRCs(key rfs.ShardKey, v chunkstore.Version, payload []byte) (crcs []uint32) {
	segs := v.Segments
	if v.Kind == chunkstore.Full {
		segs = []chunkstore.Segment{{Shard: key.Shard, Len: v.Length, Zero: v.Length == 0}}
	}
	for _, g := range segs {
		if g.Zero {
			continue
		}
		crcs = append(crcs, RangeCRCs(key, g.Shard, g.Off, payload[:g.Len])...)
		payload = payload[g.Len:]
	}
	return crcs
}

// RangeCRCs returns the checksums of the blocks that p, from off of a shard on, touches.
func RangeCRCs(key rfs.ShardKey, shard uint8, off uint32, p []byte) (crcs []uint32) {
	for len(p) > 0 {
		n := min(rfs.BlockSize-off%rfs.BlockSize, uint32(len(p)))
		crcs = append(crcs, crc.Block(key.Inode, key.Stripe, shard, off/rfs.BlockSize, p[:n]))
		p, off = p[n:], off+n
	}
	return crcs
}

// Bytes returns n bytes that look random and differ from all others.
func Bytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		x := rng.Uint64()
		for j := i; j < min(i+8, n); j++ {
			b[j] = byte(x >> (8 * (j - i)))
		}
	}
	return b
}

// RandomVersion returns a version of a shard of up to size bytes and its payload.
func RandomVersion(rng *rand.Rand, key rfs.ShardKey, tag rfs.Tag, size, k int) (chunkstore.Version, []byte) {
	v := chunkstore.Version{Tag: tag, Kind: chunkstore.Full, Pool: 1, Slot: rfs.SlotID(key.Stripe % 3)}
	v.W.Add(key.Shard)
	if rng.IntN(3) == 0 {
		v.Length = uint32(rng.IntN(size + 1))
		if rng.IntN(2) == 0 {
			v.Length &^= rfs.BlockSize - 1
		}
		return v, Bytes(rng, int(v.Length))
	}
	v.Kind = chunkstore.Partial
	for range 1 + rng.IntN(3) {
		g := chunkstore.Segment{Shard: key.Shard, Zero: rng.IntN(5) == 0, Off: uint32(rng.IntN(size - 1))}
		if int(key.Shard) >= k {
			g.Shard = uint8(rng.IntN(k))
		}
		g.Len = 1 + uint32(rng.IntN(min(size-int(g.Off), size/4)))
		if rng.IntN(2) == 0 && g.Off+g.Len > rfs.BlockSize {
			g.Off &^= rfs.BlockSize - 1
			g.Len = max(g.Len&^(rfs.BlockSize-1), rfs.BlockSize)
		}
		v.Segments = append(v.Segments, g)
	}
	return v, Bytes(rng, v.PayloadLen())
}

// Compare holds a store against a state, and returns the first difference. Of
// shards that the state does not have it looks at those of which names has keys.
func Compare(s *chunkstore.Store, want Shards, names []rfs.ShardKey) error {
	buf := make([]byte, 256<<10)
	for _, key := range names {
		if err := compareShard(s, key, Visible(want[key]), buf); err != nil {
			return fmt.Errorf("shard %v: %w", key, err)
		}
	}
	return nil
}

func compareShard(s *chunkstore.Store, key rfs.ShardKey, want []Stored, buf []byte) error {
	got, err := s.Versions(key)
	if err != nil {
		return err
	}
	if d := diffVersions(got, want); d != nil {
		return d
	}
	for _, v := range want {
		_, n, err := s.ReadVersion(key, v.Tag, v.Kind, buf)
		if err != nil {
			return err
		}
		if !bytes.Equal(buf[:n], v.Payload) {
			return fmt.Errorf("%v %v: other bytes than were put", v.Tag, v.Kind)
		}
	}
	data, _ := Merged(want, key.Shard, key.Shard)
	res, err := s.Read(key, chunkstore.ReadAt{N: uint32(len(buf))}, buf)
	if err != nil || !res.Unresolved.IsZero() {
		return err
	}
	if !bytes.Equal(buf[:res.N], data) {
		return errors.New("merged bytes differ")
	}
	return nil
}

func diffVersions(got []chunkstore.Version, want []Stored) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d versions, want %d", len(got), len(want))
	}
	for i, g := range got {
		w := want[i]
		if g.Tag != w.Tag || g.Kind != w.Kind || g.State != w.State || g.Length != w.Length || g.W != w.W ||
			g.Slot != w.Slot || g.Pool != w.Pool || !slices.Equal(g.Segments, w.Segments) {
			return fmt.Errorf("version %d is %v %v %v, want %v %v %v", i, g.Tag, g.Kind, g.State, w.Tag, w.Kind, w.State)
		}
	}
	return nil
}

// CompareCrashed holds a store that was opened after a crash against the
// history: there must be a step, from synced (the last whose Sync was
// acknowledged) to the last begun, such that the store has exactly what was
// there after it, but for versions whose payload was written after synced, any of
// which may be lost whole.
func (m *Model) CompareCrashed(s *chunkstore.Store, synced, last int, names []rfs.ShardKey) error {
	have := map[rfs.ShardKey][]chunkstore.Version{}
	for _, key := range names {
		vs, err := s.Versions(key)
		if err != nil {
			return err
		}
		have[key] = vs
	}
	var why error
	for i := last; i >= synced; i-- {
		want := m.survivors(i, synced, have)
		if err := sameVersions(have, want, names); err != nil {
			why = fmt.Errorf("step %d: %w", i, err)
			continue
		}
		return Compare(s, want, names)
	}
	return fmt.Errorf("no step from %d to %d matches; the last tried: %w", synced, last, why)
}

// survivors is state i without those versions, put after synced, that the store does not have.
func (m *Model) survivors(i, synced int, have map[rfs.ShardKey][]chunkstore.Version) Shards {
	out := Shards{}
	for key, vs := range m.States[i] {
		out[key] = slices.DeleteFunc(slices.Clone(vs), func(v Stored) bool {
			return v.At > synced && !slices.ContainsFunc(have[key], func(h chunkstore.Version) bool { return h.Tag == v.Tag && h.Kind == v.Kind })
		})
	}
	return out
}

func sameVersions(have map[rfs.ShardKey][]chunkstore.Version, want Shards, names []rfs.ShardKey) error {
	for _, key := range names {
		if err := diffVersions(have[key], Visible(want[key])); err != nil {
			return fmt.Errorf("shard %v: %w", key, err)
		}
	}
	return nil
}
