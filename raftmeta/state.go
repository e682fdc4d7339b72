package raftmeta

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// state is the state machine. apply is a pure step: what it changes and answers
// follows from the state and the command alone; it has no clock, no randomness
// and no goroutine. Replicas that applied the same commands hold the same bytes.
//
// Inodes, entries, attributes and queues are read from Pebble. What is small
// and asked for all the time (sessions, opens, locks, answers, the map) is also
// held in memory, as a mirror of its keys.
//
// mu: apply holds it while it changes the mirror and commits; readers of the
// mirror hold it shared. A reader of keys takes a view, which needs it only for
// as long as it takes to make a Pebble snapshot.
type state struct {
	db   *pebble.DB
	half byte

	mu       sync.RWMutex
	index    uint64 // applied
	term     uint64 // of index
	members  membership
	counters counters
	cmap     *placement.Map
	mapBytes []byte
	mapSum   uint32 // CRC32C of mapBytes
	sessions map[rfs.SessionID]*live
	opens    map[rfs.InodeID]map[rfs.SessionID]*open
	locks    map[rfs.InodeID]*lockTable
	waits    map[waitKey]rfs.InodeID // where each wait is
	askers   map[uint64]*asker
	ended    map[uint32]rfs.SessionID // by number, the last maxEnded
	cursors  map[rfs.TargetID]uint64
	recover  map[rfs.InodeID]rfs.Layout
	purges   uint64 // how many are queued
}

const (
	// maxEnded is of how many ended sessions the daemons are told when they start.
	maxEnded = 4096
	// maxIdleAskers is of how many askers without a session the answers are kept.
	maxIdleAskers = 4096
)

// membership is the cluster's name and who its replicas are.
type membership struct {
	Cluster rfs.UUID `json:"cluster"`
	Members []Member `json:"members"`
	// The Raft configuration; see raftpb.ConfState.
	Voters    []uint64 `json:"voters"`
	Learners  []uint64 `json:"learners,omitempty"`
	Outgoing  []uint64 `json:"outgoing,omitempty"`
	Next      []uint64 `json:"next,omitempty"`
	AutoLeave bool     `json:"auto_leave,omitempty"`
}

func (m *membership) member(id uint64) *Member {
	if i := slices.IndexFunc(m.Members, func(m Member) bool { return m.ID == id }); i >= 0 {
		return &m.Members[i]
	}
	return nil
}

// initialState writes what a new cluster begins with, the same on all of its replicas.
func initialState(b *pebble.Batch, half byte, cluster rfs.UUID, members []Member, made int64) error {
	ms := membership{Cluster: cluster, Members: members}
	for _, m := range members {
		ms.Voters = append(ms.Voters, m.ID)
	}
	t := &tx{reader: reader{b, half}, b: b}
	root := &node{Attr: Attr{
		Inode: rfs.RootInode, Mode: TypeDir | 0o755, Nlink: 2, Parent: rfs.RootInode,
		Atime: made, Mtime: made, Ctime: made, Btime: made, Change: initIndex,
	}}
	t.putNode(root)
	c := counters{nextInode: uint64(rfs.RootInode) + 1, nextSession: 1, nextPurge: 1, nextEnded: 1, inodes: 1, nextMember: 1, made: made}
	for _, m := range members {
		c.nextMember = max(c.nextMember, m.ID+1)
	}
	t.set(keyOf(half, kCounter), c.encode())
	cm := &placement.Map{ClusterID: cluster, Epoch: 1}
	body, err := encodeMap(cm)
	if err != nil {
		return err
	}
	t.set(keyOf(half, kMap), body)
	t.putMembers(&ms)
	t.putApplied(initIndex, initTerm)
	return t.err
}

// initIndex and initTerm are where the log of a new cluster begins: as if a
// snapshot of that index had been received.
const (
	initIndex = 1
	initTerm  = 1
)

// reader reads keys of one half: of the database, a snapshot or a batch.
type reader struct {
	r    pebble.Reader
	half byte
}

// get returns a copy of the value, or nil if there is none.
func (r reader) get(k key) ([]byte, error) {
	v, closer, err := r.r.Get(k)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("metadata state: %w", err)
	}
	defer closer.Close()
	return append(make([]byte, 0, len(v)), v...), nil
}

// scan calls f with each key under the prefix, from the one at start on, until
// f returns false. The slices are valid during the call; k is without half and kind.
func (r reader) scan(prefix, start key, f func(k, v []byte) (bool, error)) error {
	it, err := r.r.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: prefix.after()})
	if err != nil {
		return fmt.Errorf("metadata state: %w", err)
	}
	defer it.Close()
	if start == nil {
		start = prefix
	}
	for ok := it.SeekGE(start); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("metadata state: %w", err)
		}
		if more, err := f(it.Key()[2:], v); err != nil || !more {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("metadata state: %w", err)
	}
	return nil
}

// node returns an inode, or nil if there is none.
func (r reader) node(ino rfs.InodeID) (*node, error) {
	v, err := r.get(keyOf(r.half, kInode).ino(ino))
	if v == nil || err != nil {
		return nil, err
	}
	return decodeNode(ino, v)
}

// place is where a name is in a directory, or would be.
type place struct {
	cookie uint64
	held   uint64 // the first held place before, where a new entry may go; 0: none
	ent    dirent // typ 0: the name is not there
}

// find looks a name up: it goes through the places of the name's hash.
func (r reader) find(dir rfs.InodeID, name []byte) (place, error) {
	var p place
	base := cookieOf(name)
	for n := range uint64(cookieNumbers) {
		p.cookie = base + n
		v, err := r.get(keyOf(r.half, kEntry).ino(dir).u64(p.cookie))
		if v == nil || err != nil {
			return p, err
		}
		x, err := decodeDirent(v)
		if err != nil {
			return p, err
		}
		if x.typ == 0 && p.held == 0 {
			p.held = p.cookie
		}
		if x.typ != 0 && string(x.name) == string(name) {
			p.ent = x
			return p, nil
		}
	}
	p.cookie = 0
	return p, nil
}

// A tx is a batch of commands being applied, and what the leader must know of them.
// After an error of the disk it does nothing more.
type tx struct {
	reader
	b   *pebble.Batch
	err error

	index   uint64 // of the command
	now     int64
	dirty   map[uint64]struct{} // askers to write
	remap   bool                // the map is to be written
	effects effects
}

// effects are what those who wait on the leader may wait for.
type effects struct {
	opens  []rfs.InodeID // opens or caches changed
	waits  []waitKey     // lock waits granted or gone
	ended  []rfs.SessionID
	mapped bool // the cluster map changed
	queued bool // something for the cleaner
}

func (t *tx) fail(err error) {
	if t.err == nil {
		t.err = err
	}
}

func (t *tx) set(k key, v []byte) {
	if t.err == nil {
		t.fail(t.b.Set(k, v, nil))
	}
}

func (t *tx) del(k key) {
	if t.err == nil {
		t.fail(t.b.Delete(k, nil))
	}
}

func (t *tx) read(k key) []byte {
	v, err := t.get(k)
	t.fail(err)
	return v
}

func (t *tx) readNode(ino rfs.InodeID) *node {
	n, err := t.node(ino)
	t.fail(err)
	return n
}

func (t *tx) findEntry(dir rfs.InodeID, name []byte) place {
	p, err := t.find(dir, name)
	t.fail(err)
	return p
}

// putNode stores n as changed by this command.
func (t *tx) putNode(n *node) {
	if t.index > 0 {
		n.Change = t.index
	}
	t.set(keyOf(t.half, kInode).ino(n.Inode), n.encode())
}

func (t *tx) putMembers(m *membership) {
	b, err := json.Marshal(m)
	t.fail(err)
	t.set(keyOf(t.half, kMembers), b)
}

func (t *tx) putApplied(index, term uint64) {
	v := binary.BigEndian.AppendUint64(nil, index)
	t.set(keyOf(t.half, kApplied), binary.BigEndian.AppendUint64(v, term))
}

// begin opens a batch. commit, with mu held throughout, makes its changes the state.
func (s *state) begin() *tx {
	b := s.db.NewIndexedBatch()
	return &tx{reader: reader{b, s.half}, b: b, dirty: map[uint64]struct{}{}}
}

// commit writes the batch with the applied index in it. It is not synced: the
// log is, and is applied again from the index that is found after a crash.
func (s *state) commit(t *tx, index, term uint64) error {
	defer t.b.Close()
	for _, nonce := range slices.Sorted(maps.Keys(t.dirty)) {
		if a := s.askers[nonce]; a != nil {
			t.set(keyOf(s.half, kAsker).u64(nonce), a.encode())
		}
	}
	if t.remap {
		var err error
		s.mapBytes, err = encodeMap(s.cmap)
		s.mapSum = crc32.Checksum(s.mapBytes, castagnoli)
		t.fail(err)
		t.set(keyOf(s.half, kMap), s.mapBytes)
	}
	t.set(keyOf(s.half, kCounter), s.counters.encode())
	t.putApplied(index, term)
	if t.err == nil {
		t.fail(t.b.Commit(pebble.NoSync))
	}
	s.index, s.term = index, term
	return t.err
}

// refuse is the answer of a command that changed nothing.
func refuse(st wire.Status, format string, args ...any) *metapb.Response {
	return &metapb.Response{Status: uint32(st), Detail: fmt.Sprintf(format, args...)}
}

func no(st wire.Status) *metapb.Response { return &metapb.Response{Status: uint32(st)} }

// apply applies the command of the log entry index, once: if it has been
// applied before under its (nonce, seq), the answer is what it was then.
func (s *state) apply(t *tx, index uint64, cmd *metapb.Command) *metapb.Response {
	t.index, t.now = index, cmd.GetTime()
	if cmd.GetNonce() == 0 {
		return s.step(t, cmd)
	}
	if rep := s.answered(cmd); rep != nil {
		return rep
	}
	if id := rfs.SessionID(cmd.GetSession()); id != 0 && s.sessions[id] == nil {
		return refuse(wire.StatusSessionLost, "session %d ended", id)
	}
	rep := s.step(t, cmd)
	s.remember(t, cmd, rep)
	return rep
}

// answered returns the answer that the command got before, or nil.
func (s *state) answered(cmd *metapb.Command) *metapb.Response {
	a := s.askers[cmd.GetNonce()]
	if a == nil {
		return nil
	}
	if b, ok := a.results[cmd.GetSeq()]; ok {
		rep := new(metapb.Response)
		if err := proto.Unmarshal(b, rep); err != nil {
			return refuse(wire.StatusInternal, "the stored answer does not decode: %v", err)
		}
		return rep
	}
	if cmd.GetSeq() < a.low {
		return refuse(wire.StatusInvalid, "command %d of %x was answered, and the answer acknowledged", cmd.GetSeq(), cmd.GetNonce())
	}
	return nil
}

// remember keeps the answer, and drops those that the asker acknowledged.
func (s *state) remember(t *tx, cmd *metapb.Command, rep *metapb.Response) {
	nonce := cmd.GetNonce()
	a := s.askers[nonce]
	if a == nil {
		a = &asker{results: map[uint64][]byte{}}
		s.askers[nonce] = a
		s.dropIdleAskers(t)
	}
	if cmd.GetSession() != 0 {
		a.session = rfs.SessionID(cmd.GetSession())
	}
	if ack := min(cmd.GetAck(), cmd.GetSeq()); ack > a.low {
		for _, seq := range slices.Sorted(maps.Keys(a.results)) {
			if seq < ack {
				delete(a.results, seq)
				t.del(keyOf(s.half, kResult).u64(nonce).u64(seq))
				s.acknowledged(t, waitKey{nonce, seq})
			}
		}
		a.low = ack
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(rep)
	t.fail(err)
	a.results[cmd.GetSeq()] = b
	a.last = t.index
	t.set(keyOf(s.half, kResult).u64(nonce).u64(cmd.GetSeq()), b)
	t.dirty[nonce] = struct{}{}
}

// dropIdleAskers forgets the askers without a session that were silent the
// longest, a quarter of them at a time, when there are too many.
func (s *state) dropIdleAskers(t *tx) {
	if len(s.askers) < maxIdleAskers+len(s.sessions) {
		return
	}
	var idle []uint64
	for nonce, a := range s.askers {
		if s.sessions[a.session] == nil {
			idle = append(idle, nonce)
		}
	}
	slices.SortFunc(idle, func(x, y uint64) int {
		return cmp.Or(cmp.Compare(s.askers[x].last, s.askers[y].last), cmp.Compare(x, y))
	})
	for _, nonce := range idle[:max(len(idle)-maxIdleAskers*3/4, 0)] {
		if s.askers[nonce].last == 0 {
			continue // the one that is asking
		}
		for seq := range s.askers[nonce].results {
			t.del(keyOf(s.half, kResult).u64(nonce).u64(seq))
		}
		t.del(keyOf(s.half, kAsker).u64(nonce))
		delete(s.askers, nonce)
		delete(t.dirty, nonce)
	}
}

// step carries a command out.
func (s *state) step(t *tx, cmd *metapb.Command) *metapb.Response {
	id := rfs.SessionID(cmd.GetSession())
	switch op := cmd.GetOp().(type) {
	case *metapb.Command_OpenSession:
		return s.openSession(t, cmd.GetNonce(), op.OpenSession)
	case *metapb.Command_EndSession:
		return s.endSessions(t, op.EndSession)
	case *metapb.Command_Create:
		return s.create(t, id, op.Create, cmd.GetPick())
	case *metapb.Command_Mknod:
		return s.mknod(t, op.Mknod, cmd.GetPick())
	case *metapb.Command_Link:
		return s.link(t, op.Link)
	case *metapb.Command_Unlink:
		return s.unlink(t, op.Unlink)
	case *metapb.Command_Rename:
		return s.rename(t, id, op.Rename)
	case *metapb.Command_Setattr:
		return s.setattr(t, id, op.Setattr)
	case *metapb.Command_Open:
		return s.open(t, id, op.Open)
	case *metapb.Command_Close:
		return s.close(t, id, op.Close)
	case *metapb.Command_Commit:
		return s.commitSize(t, op.Commit)
	case *metapb.Command_ReserveAppend:
		return s.reserveAppend(t, op.ReserveAppend)
	case *metapb.Command_TrimDone:
		return s.trimDone(t, op.TrimDone)
	case *metapb.Command_TrimSwept:
		return s.trimSwept(t, op.TrimSwept)
	case *metapb.Command_Setxattr:
		return s.setxattr(t, op.Setxattr)
	case *metapb.Command_Removexattr:
		return s.removexattr(t, op.Removexattr)
	case *metapb.Command_SetLayout:
		return s.setLayout(t, op.SetLayout)
	case *metapb.Command_RecallDone:
		return s.recallDone(t, id, op.RecallDone)
	case *metapb.Command_Lock:
		return s.lock(t, waitKey{cmd.GetNonce(), cmd.GetSeq()}, id, op.Lock)
	case *metapb.Command_Settle:
		return s.settle(t, waitKey{cmd.GetNonce(), op.Settle.GetWaitSeq()}, id, op.Settle)
	case *metapb.Command_Purged:
		return s.purged(t, op.Purged)
	case *metapb.Command_Recovered:
		return s.recovered(t, op.Recovered)
	}
	return s.stepMap(t, cmd)
}

// view is a consistent state to read: one applied index for all keys.
type view struct {
	reader
	snap *pebble.Snapshot
}

func (s *state) view() view {
	s.mu.RLock()
	defer s.mu.RUnlock()
	snap := s.db.NewSnapshot()
	return view{reader{snap, s.half}, snap}
}

func (v view) close() { v.snap.Close() }

// load reads the mirror from the keys of the half.
func (s *state) load() error {
	s.sessions = map[rfs.SessionID]*live{}
	s.opens = map[rfs.InodeID]map[rfs.SessionID]*open{}
	s.locks = map[rfs.InodeID]*lockTable{}
	s.waits = map[waitKey]rfs.InodeID{}
	s.askers = map[uint64]*asker{}
	s.ended = map[uint32]rfs.SessionID{}
	s.cursors = map[rfs.TargetID]uint64{}
	s.recover = map[rfs.InodeID]rfs.Layout{}
	s.purges = 0
	r := reader{s.db, s.half}
	if err := s.loadSingles(r); err != nil {
		return err
	}
	for _, k := range []struct {
		kind byte
		f    func(k, v []byte) error
	}{
		{kSession, s.loadSession}, {kOpen, s.loadOpen}, {kLocks, s.loadLocks}, {kAsker, s.loadAsker}, {kResult, s.loadResult},
		{kEnded, s.loadEnded}, {kCursor, s.loadCursor}, {kRecover, s.loadRecover},
		{kPurge, func(_, _ []byte) error { s.purges++; return nil }},
	} {
		err := r.scan(keyOf(s.half, k.kind), nil, func(key, v []byte) (bool, error) { return true, k.f(key, v) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *state) loadSingles(r reader) error {
	applied, err1 := r.get(keyOf(s.half, kApplied))
	members, err2 := r.get(keyOf(s.half, kMembers))
	count, err3 := r.get(keyOf(s.half, kCounter))
	body, err4 := r.get(keyOf(s.half, kMap))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	if len(applied) != 16 {
		return fmt.Errorf("%w: applied index", errValue)
	}
	s.index, s.term = binary.BigEndian.Uint64(applied), binary.BigEndian.Uint64(applied[8:])
	s.members = membership{}
	if err := json.Unmarshal(members, &s.members); err != nil {
		return fmt.Errorf("%w: membership: %w", errValue, err)
	}
	if s.counters, err1 = decodeCounters(count); err1 != nil {
		return err1
	}
	s.mapBytes, s.mapSum = body, crc32.Checksum(body, castagnoli)
	s.cmap, err1 = decodeMap(body)
	return err1
}

func (s *state) loadSession(k, v []byte) (err error) {
	s.sessions[rfs.SessionID(binary.BigEndian.Uint32(k))], err = decodeLive(v)
	return err
}

func (s *state) loadOpen(k, v []byte) error {
	o, err := decodeOpen(v)
	s.addOpen(rfs.InodeID(binary.BigEndian.Uint64(k)), rfs.SessionID(binary.BigEndian.Uint32(k[8:])), o)
	return err
}

func (s *state) loadAsker(k, v []byte) (err error) {
	s.askers[binary.BigEndian.Uint64(k)], err = decodeAsker(v)
	return err
}

func (s *state) loadResult(k, v []byte) error {
	a := s.askers[binary.BigEndian.Uint64(k)]
	if a == nil {
		return fmt.Errorf("%w: the answer %x has no asker", errValue, k)
	}
	a.results[binary.BigEndian.Uint64(k[8:])] = slices.Clone(v)
	return nil
}

func (s *state) loadEnded(k, v []byte) error {
	s.ended[binary.BigEndian.Uint32(k)] = rfs.SessionID(binary.BigEndian.Uint32(v))
	return nil
}

func (s *state) loadCursor(k, v []byte) error {
	s.cursors[uuidFrom(k)] = binary.BigEndian.Uint64(v)
	return nil
}

func (s *state) loadRecover(k, v []byte) error {
	d := &dec{b: v}
	s.recover[rfs.InodeID(binary.BigEndian.Uint64(k))] = d.layout()
	return d.end("file to recover")
}
