package raftmeta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"rfs"
)

// Keys of the log, drawn in the package doc.
const (
	lEntry    = 'l'
	lHard     = 'h'
	lBase     = 'b'
	lHalf     = 'H'
	lIdentity = 'I'
)

func entryKey(i uint64) key { return key{lEntry}.u64(i) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sealed(m proto.Message) ([]byte, error) {
	b, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 4, 4+proto.Size(m)), m)
	if err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b, nil
}

func unseal(b []byte, m proto.Message) error {
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != crc32.Checksum(b[4:], castagnoli) {
		return rfs.ErrCorrupt
	}
	return proto.Unmarshal(b[4:], m)
}

// cacheBytes bounds the newest entries that are kept in memory, whence followers are fed.
const cacheBytes = 16 << 20

// raftLog is the Raft log in Pebble. It implements raft.Storage; the replica's
// loop is its only user, but for status. Entries [first, last] are there; base
// is the index before the first, whose term is known.
type raftLog struct {
	db  *pebble.DB
	dir string // for messages

	mu       sync.Mutex // guards first and last for readers outside of the loop
	base     uint64
	baseTerm uint64
	last     uint64
	hard     *raftpb.HardState
	conf     func() *raftpb.ConfState
	// snapshot makes a Raft snapshot of what is applied; see sender.
	snapshot func() (*raftpb.Snapshot, error)

	cache []*raftpb.Entry // the newest, up to last
	size  int             // of cache, bytes
}

// corrupt is an error that names the store and the remedy.
func (l *raftLog) corrupt(format string, args ...any) error {
	return fmt.Errorf("raft log in %s: %s: %w; remove this replica from the cluster (rfs meta remove), empty the directory, and add it again (rfs meta add)",
		l.dir, fmt.Sprintf(format, args...), rfs.ErrCorrupt)
}

// openLog reads what is stored and checks every entry.
func openLog(db *pebble.DB, dir string) (*raftLog, error) {
	l := &raftLog{db: db, dir: dir, hard: &raftpb.HardState{}}
	r := reader{r: db}
	base, err := r.get(key{lBase})
	if err != nil {
		return nil, err
	}
	if len(base) != 16 {
		return nil, l.corrupt("its beginning is not recorded")
	}
	l.base, l.baseTerm = binary.BigEndian.Uint64(base), binary.BigEndian.Uint64(base[8:])
	hard, err := r.get(key{lHard})
	if err != nil {
		return nil, err
	}
	if hard != nil {
		if err := unseal(hard, l.hard); err != nil {
			return nil, l.corrupt("the hard state does not check")
		}
	}
	l.last = l.base
	prefix := key{lEntry}
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefix.after()})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		e := new(raftpb.Entry)
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, l.corrupt("%v", err)
		}
		if err := unseal(v, e); err != nil || len(it.Key()) != 9 || e.GetIndex() != binary.BigEndian.Uint64(it.Key()[1:]) {
			return nil, l.corrupt("entry %x does not check", it.Key()[1:])
		}
		if e.GetIndex() != l.last+1 {
			return nil, l.corrupt("entry %d follows %d", e.GetIndex(), l.last)
		}
		l.remember(e)
	}
	if err := it.Error(); err != nil {
		return nil, l.corrupt("%v", err)
	}
	if l.hard.GetCommit() > l.last {
		return nil, l.corrupt("committed up to %d, but it ends at %d", l.hard.GetCommit(), l.last)
	}
	return l, nil
}

// remember adds e to the cache.
func (l *raftLog) remember(e *raftpb.Entry) {
	l.cache = append(l.cache, e)
	l.size += len(e.GetData()) + 64
	l.last = e.GetIndex()
	if l.size <= cacheBytes {
		return
	}
	n := 0
	for ; l.size > cacheBytes/2 && n < len(l.cache)-1; n++ {
		l.size -= len(l.cache[n].GetData()) + 64
	}
	l.cache = append([]*raftpb.Entry(nil), l.cache[n:]...)
}

// append puts entries into the batch, in place of any with their indexes or higher ones.
func (l *raftLog) append(b *pebble.Batch, ents []*raftpb.Entry) error {
	if len(ents) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	first := ents[0].GetIndex()
	if first <= l.last {
		if err := b.DeleteRange(entryKey(first), entryKey(l.last+1), nil); err != nil {
			return err
		}
		l.forget(first)
	}
	for _, e := range ents {
		v, err := sealed(e)
		if err != nil {
			return err
		}
		if err := b.Set(entryKey(e.GetIndex()), v, nil); err != nil {
			return err
		}
		l.remember(e)
	}
	return nil
}

// forget drops the entries from first on from the cache.
func (l *raftLog) forget(first uint64) {
	l.last = first - 1
	n := len(l.cache)
	for n > 0 && l.cache[n-1].GetIndex() >= first {
		n--
		l.size -= len(l.cache[n].GetData()) + 64
	}
	l.cache = append([]*raftpb.Entry(nil), l.cache[:n]...)
}

func (l *raftLog) putHard(b *pebble.Batch, h *raftpb.HardState) error {
	l.hard = h
	v, err := sealed(h)
	if err != nil {
		return err
	}
	return b.Set(key{lHard}, v, nil)
}

func putBase(b *pebble.Batch, index, term uint64) error {
	v := binary.BigEndian.AppendUint64(nil, index)
	return b.Set(key{lBase}, binary.BigEndian.AppendUint64(v, term), nil)
}

// compact drops the entries up to index, which are applied.
func (l *raftLog) compact(index uint64) error {
	term, err := l.Term(index)
	if err != nil || index <= l.base {
		return err
	}
	b := l.db.NewBatch()
	defer b.Close()
	err = errors.Join(b.DeleteRange(entryKey(l.base), entryKey(index+1), nil), putBase(b, index, term), b.Commit(pebble.NoSync))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base, l.baseTerm = index, term
	n := 0
	for n < len(l.cache) && l.cache[n].GetIndex() <= index {
		l.size -= len(l.cache[n].GetData()) + 64
		n++
	}
	l.cache = append([]*raftpb.Entry(nil), l.cache[n:]...)
	return nil
}

// restart puts a log into the batch that begins after index: a snapshot was installed.
func (l *raftLog) restart(b *pebble.Batch, index, term uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	prefix := key{lEntry}
	l.base, l.baseTerm, l.last = index, term, index
	l.cache, l.size = nil, 0
	return errors.Join(b.DeleteRange(prefix, prefix.after(), nil), putBase(b, index, term))
}

// span returns the first and last index.
func (l *raftLog) span() (first, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.base + 1, l.last
}

// InitialState implements raft.Storage.
func (l *raftLog) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	return l.hard, l.conf(), nil
}

// FirstIndex implements raft.Storage.
func (l *raftLog) FirstIndex() (uint64, error) { return l.base + 1, nil }

// LastIndex implements raft.Storage.
func (l *raftLog) LastIndex() (uint64, error) { return l.last, nil }

// Snapshot implements raft.Storage.
func (l *raftLog) Snapshot() (*raftpb.Snapshot, error) { return l.snapshot() }

// Term implements raft.Storage.
func (l *raftLog) Term(i uint64) (uint64, error) {
	switch {
	case i == l.base:
		return l.baseTerm, nil
	case i < l.base:
		return 0, raft.ErrCompacted
	case i > l.last:
		return 0, raft.ErrUnavailable
	}
	e, err := l.entry(i)
	return e.GetTerm(), err
}

func (l *raftLog) entry(i uint64) (*raftpb.Entry, error) {
	if n := len(l.cache); n > 0 && i >= l.cache[0].GetIndex() {
		return l.cache[i-l.cache[0].GetIndex()], nil
	}
	v, err := reader{r: l.db}.get(entryKey(i))
	if err != nil {
		return nil, err
	}
	e := new(raftpb.Entry)
	if err := unseal(v, e); err != nil {
		return nil, l.corrupt("entry %d does not check", i)
	}
	return e, nil
}

// Entries implements raft.Storage.
func (l *raftLog) Entries(lo, hi, maxSize uint64) (ents []*raftpb.Entry, err error) {
	switch {
	case lo <= l.base:
		return nil, raft.ErrCompacted
	case hi > l.last+1:
		return nil, raft.ErrUnavailable
	}
	size := uint64(0)
	for i := lo; i < hi; i++ {
		e, err := l.entry(i)
		if err != nil {
			return nil, err
		}
		if size += uint64(proto.Size(e)); size > maxSize && len(ents) > 0 {
			break
		}
		ents = append(ents, e)
	}
	return ents, nil
}
