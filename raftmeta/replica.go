package raftmeta

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// Options are what a Replica needs.
type Options struct {
	// Dir holds the replica's log and state. It is made if it is missing.
	Dir string
	// FS is where Dir is. Default: the operating system's.
	FS vfs.FS
	// Addr is where clients and other replicas reach this one.
	Addr      transport.Addr
	Transport transport.Transport
	Arena     Arena
	Logger    *slog.Logger // default: none
	// Join says that the replica, if Dir is empty, waits to be added to a
	// cluster that exists, rather than for ClusterInit.
	Join bool
	// SessionLease is how long a client may be silent before its session ends. Default 30 s.
	SessionLease time.Duration
	// TargetLease is how long a storage daemon may be silent before its targets are declared down. Default 6 s.
	TargetLease time.Duration
	// Tick is the unit of Raft's time: a leader speaks each tick, and one that
	// was not heard of for 10 to 20 ticks is replaced. Default 100 ms.
	Tick time.Duration
	// LogEntries is how many applied entries the log keeps for replicas that
	// were away; one that was away for longer gets a snapshot. Default 50 000.
	LogEntries uint64
	// CleanRate is how many deletions per second the leader sends to each target. Default 1000.
	CleanRate int
	// OnFsync, if set, is told how long each sync of the log took.
	OnFsync func(time.Duration)
}

func (o *Options) setDefaults() error {
	var errs []error
	if o.Dir == "" {
		errs = append(errs, errors.New("no directory"))
	}
	if o.Addr.Address == "" {
		errs = append(errs, errors.New("no address"))
	}
	if o.Transport == nil || o.Arena == nil {
		errs = append(errs, errors.New("no transport or no arena"))
	}
	for _, d := range []struct {
		name string
		v    *time.Duration
		def  time.Duration
		min  time.Duration
	}{
		{"session lease", &o.SessionLease, 30 * time.Second, 100 * time.Millisecond},
		{"target lease", &o.TargetLease, 6 * time.Second, 100 * time.Millisecond},
		{"tick", &o.Tick, 100 * time.Millisecond, time.Millisecond},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
		if *d.v < d.min {
			errs = append(errs, fmt.Errorf("%s of %v: want at least %v", d.name, *d.v, d.min))
		}
	}
	if o.LogEntries == 0 {
		o.LogEntries = 50_000
	}
	if o.CleanRate == 0 {
		o.CleanRate = 1000
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	o.Logger = orDiscard(o.Logger)
	if len(errs) > 0 {
		return fmt.Errorf("metadata replica: %w", errors.Join(errs...))
	}
	return nil
}

const electionTicks = 10

// identity is who a replica is. It is zero until ClusterInit, or until the
// leader of a cluster that it was added to speaks to it.
type identity struct {
	cluster rfs.UUID
	id      uint64
}

// Replica is one server of the metadata service: a transport.Handler for
// OpMeta, OpEvents, OpRaft, OpSnapshot and OpAdmin.
//
// One goroutine, the loop, owns the Raft node and the log, and applies. It is
// the only writer of the store. Per turn it takes in what has come (messages,
// proposals, reads), and then, for what Raft makes of it:
//
//  1. sends appends and heartbeats (a leader may before its own disk has them:
//     Raft thesis, 10.2.1)
//  2. writes entries and hard state, and syncs them, all in one Pebble batch
//  3. sends what promises that they are durable: append and vote responses
//  4. applies what is committed, in one batch that has the applied index in
//     it, not synced: the log is, and a crash finds a state that is a prefix
//  5. answers those who proposed, and those whose reads it now covers
type Replica struct {
	opts Options
	log  *slog.Logger
	db   *pebble.DB
	st   *state

	self      atomic.Pointer[identity]
	soft      atomic.Pointer[softState]
	gone      atomic.Bool // removed from the cluster
	lead      atomic.Pointer[lead]
	nonce     uint64 // of the leader's own commands
	seqs      seqs
	stats     counts
	adminOnce chan struct{} // capacity 1: one change of membership at a time

	inbox     chan *raftpb.Message
	proposals chan *proposal
	reads     chan *readRequest
	calls     chan func()

	// Owned by the loop.
	raft     *raft.RawNode
	rlog     *raftLog
	waiting  map[waitKey][]*proposal // proposed, not applied
	confs    map[uint64]chan error   // changes of membership under way
	toRead   []*readRequest          // to be confirmed by the next ReadIndex
	confirm  map[uint64][]*readRequest
	confirms uint64
	covered  []*readRequest // confirmed, waiting for their index to be applied
	leading  bool
	takes    map[uint64]*pebble.Snapshot // snapshots made by Raft in this turn

	// serving is held shared by each request, so that the store outlives them.
	serving sync.RWMutex
	closed  bool

	links    links
	incoming incoming
	ctx      context.Context
	stop     context.CancelFunc
	wg       sync.WaitGroup
	done     chan struct{} // closed when the loop has ended
	err      error         // why, once done is closed
}

// softState is what others than the loop may know of Raft.
type softState struct {
	role   raft.StateType
	leader uint64
	term   uint64
	commit uint64
}

// proposal is a command on its way through the log.
type proposal struct {
	key  waitKey
	data []byte
	done chan *metapb.Response // capacity 1
}

// readRequest waits until the state is as new as when it was asked.
type readRequest struct {
	index uint64
	done  chan wire.Status // capacity 1
}

// Open opens the replica in opts.Dir and starts it. It then answers as a
// Handler, also while it does not belong to a cluster yet.
func Open(opts Options) (*Replica, error) {
	if err := opts.setDefaults(); err != nil {
		return nil, err
	}
	db, err := pebble.Open(opts.Dir, storeOptions(&opts))
	if err != nil {
		return nil, openError(opts.Dir, err)
	}
	r := &Replica{
		opts: opts, log: opts.Logger, db: db, st: &state{db: db, half: halfA}, nonce: rand.Uint64() | 1,
		adminOnce: make(chan struct{}, 1),
		inbox:     make(chan *raftpb.Message, 1024), proposals: make(chan *proposal, 1024),
		reads: make(chan *readRequest, 1024), calls: make(chan func(), 64),
		waiting: map[waitKey][]*proposal{}, confs: map[uint64]chan error{}, confirm: map[uint64][]*readRequest{},
		takes: map[uint64]*pebble.Snapshot{}, done: make(chan struct{}),
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.soft.Store(&softState{})
	r.links.init(r)
	r.seqs.init()
	if err := r.recover(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	r.wg.Go(r.loop)
	return r, nil
}

func storeOptions(o *Options) *pebble.Options {
	return &pebble.Options{
		FS: o.FS, Logger: quiet{o.Logger}, FormatMajorVersion: pebble.FormatNewest,
		MemTableSize: 16 << 20, CacheSize: 64 << 20,
	}
}

// openError says what can be done when a store does not open.
func openError(dir string, err error) error {
	switch {
	case pebble.IsCorruptionError(err):
		return fmt.Errorf("metadata store in %s is damaged: %w: %w; remove this replica from the cluster (rfs meta remove), empty the directory, and add it again (rfs meta add)", dir, rfs.ErrCorrupt, err)
	default:
		return fmt.Errorf("metadata store in %s: %w (is another rfsd using it? is the disk writable?)", dir, err)
	}
}

// quiet is Pebble's logger: only what is wrong is passed on.
type quiet struct{ log *slog.Logger }

func (q quiet) Infof(string, ...any)         {}
func (q quiet) Errorf(f string, args ...any) { q.log.Error("pebble: " + fmt.Sprintf(f, args...)) }
func (q quiet) Fatalf(f string, args ...any) { panic("pebble: " + fmt.Sprintf(f, args...)) }
func (q quiet) Debug(...any)                 {}
func (q quiet) Debugf(string, ...any)        {}
func (q quiet) Error(v ...any)               { q.log.Error("raft: " + fmt.Sprint(v...)) }
func (q quiet) Info(...any)                  {}
func (q quiet) Warning(v ...any)             { q.log.Debug("raft: " + fmt.Sprint(v...)) }
func (q quiet) Warningf(f string, v ...any)  { q.log.Debug("raft: " + fmt.Sprintf(f, v...)) }
func (q quiet) Fatal(v ...any)               { panic("raft: " + fmt.Sprint(v...)) }
func (q quiet) Panic(v ...any)               { panic("raft: " + fmt.Sprint(v...)) }
func (q quiet) Panicf(f string, args ...any) { panic("raft: " + fmt.Sprintf(f, args...)) }

// recover finds out who this replica is, and brings state and log up.
func (r *Replica) recover() error {
	rd := reader{r: r.db}
	b, err := rd.get(key{lIdentity})
	if err != nil {
		return openError(r.opts.Dir, err)
	}
	if b == nil {
		return nil // waits to be told
	}
	if len(b) != 24 {
		return fmt.Errorf("metadata store in %s: its identity does not decode: %w", r.opts.Dir, rfs.ErrCorrupt)
	}
	half, err := rd.get(key{lHalf})
	if err != nil || len(half) != 1 {
		return fmt.Errorf("metadata store in %s: it does not say which half is the state: %w", r.opts.Dir, errors.Join(rfs.ErrCorrupt, err))
	}
	r.st.half = half[0]
	return r.start(identity{uuidFrom(b[:16]), binary.BigEndian.Uint64(b[16:])})
}

// start begins Raft with what the store has.
func (r *Replica) start(self identity) error {
	if err := r.dropOther(); err != nil {
		return err
	}
	rlog, err := openLog(r.db, r.opts.Dir)
	if err != nil {
		return err
	}
	if err := r.st.load(); err != nil {
		return fmt.Errorf("metadata state in %s: %w; remove this replica from the cluster (rfs meta remove), empty the directory, and add it again (rfs meta add)", r.opts.Dir, err)
	}
	rlog.conf = r.st.confState
	rlog.snapshot = r.takeSnapshot
	if first, last := rlog.span(); r.st.index+1 < first || r.st.index > last {
		return rlog.corrupt("it has entries %d to %d, the state is at %d", first, last, r.st.index)
	}
	r.rlog = rlog
	r.raft, err = raft.NewRawNode(&raft.Config{
		ID: self.id, Storage: rlog, Applied: r.st.index, ElectionTick: electionTicks, HeartbeatTick: 1,
		PreVote: true, CheckQuorum: true, ReadOnlyOption: raft.ReadOnlySafe, DisableProposalForwarding: true, StepDownOnRemoval: true,
		MaxSizePerMsg: 512 << 10, MaxInflightMsgs: 256, MaxCommittedSizePerReady: 4 << 20, MaxUncommittedEntriesSize: 64 << 20,
		Logger: raftLogger{quiet{r.log}},
	})
	if err != nil {
		return err
	}
	r.self.Store(&self)
	if r.st.index > 0 && r.st.members.member(self.id) == nil {
		r.removed()
	}
	r.links.update(r.st.members.Members)
	return nil
}

// raftLogger is quiet with the Infof and Errorf of Raft's interface.
type raftLogger struct{ quiet }

// dropOther empties the half that is not the state: a snapshot was not received to its end.
func (r *Replica) dropOther() error {
	other := key{otherHalf(r.st.half)}
	return r.db.DeleteRange(other, other.after(), pebble.NoSync)
}

func (s *state) confState() *raftpb.ConfState {
	m := &s.members
	return &raftpb.ConfState{
		Voters: slices.Clone(m.Voters), Learners: slices.Clone(m.Learners), VotersOutgoing: slices.Clone(m.Outgoing),
		LearnersNext: slices.Clone(m.Next), AutoLeave: new(m.AutoLeave),
	}
}

// ID returns the replica's id, 0 while it belongs to no cluster.
func (r *Replica) ID() uint64 {
	if s := r.self.Load(); s != nil {
		return s.id
	}
	return 0
}

// Done is closed when the replica has stopped, by Close or because its disk failed: see Err.
func (r *Replica) Done() <-chan struct{} { return r.done }

// Err returns why the replica stopped by itself, or nil.
func (r *Replica) Err() error {
	select {
	case <-r.done:
		return r.err
	default:
		return nil
	}
}

// Close hands leadership over, if the replica has it, stops it and closes its store.
func (r *Replica) Close() error {
	r.handOver()
	r.stop()
	r.wg.Wait()
	r.serving.Lock()
	defer r.serving.Unlock()
	if r.closed {
		return r.err
	}
	r.closed = true
	err := r.db.Close()
	return errors.Join(r.err, err)
}

// handOver asks the follower that is furthest to take over, and waits until it has, or for an election's time.
func (r *Replica) handOver() {
	ctx, cancel := context.WithTimeout(r.ctx, electionTicks*r.opts.Tick)
	defer cancel()
	var l *lead
	if !r.call(ctx, func() {
		if l = r.lead.Load(); l == nil || r.raft == nil {
			return
		}
		best, match := uint64(0), uint64(0)
		for id, p := range r.raft.Status().Progress {
			if id != r.ID() && !p.IsLearner && p.RecentActive && p.Match > match {
				best, match = id, p.Match
			}
		}
		if best == 0 {
			l = nil
			return
		}
		r.raft.TransferLeader(best)
	}) || l == nil {
		return
	}
	select {
	case <-l.done:
	case <-ctx.Done():
	}
}

// call runs f in the loop and waits for it. It reports false if ctx or the replica ended before.
func (r *Replica) call(ctx context.Context, f func()) bool {
	ran := make(chan struct{})
	select {
	case r.calls <- func() { f(); close(ran) }:
	case <-ctx.Done():
		return false
	case <-r.done:
		return false
	}
	select {
	case <-ran:
		return true
	case <-r.done:
		return false
	}
}

// tell runs f in the loop some time, or never if the replica ends.
func (r *Replica) tell(f func()) {
	select {
	case r.calls <- f:
	case <-r.ctx.Done():
	}
}

// loop owns Raft until the replica is closed or the disk fails.
func (r *Replica) loop() {
	ticker := time.NewTicker(r.opts.Tick)
	defer ticker.Stop()
	defer r.ended()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-ticker.C:
			if r.raft != nil && !r.gone.Load() {
				r.raft.Tick()
			}
		case m := <-r.inbox:
			r.step(m)
		case p := <-r.proposals:
			r.propose(p)
		case q := <-r.reads:
			r.toRead = append(r.toRead, q)
		case f := <-r.calls:
			f()
		}
		if r.raft == nil {
			continue
		}
		r.takeIn()
		r.askReads()
		r.turn()
		if r.err != nil {
			r.log.Error("metadata replica stopped", "replica", r.ID(), "dir", r.opts.Dir, "err", r.err)
			return
		}
	}
}

// turn carries out all that Raft has made ready.
func (r *Replica) turn() {
	for r.err == nil && r.raft.HasReady() {
		if err := r.ready(); err != nil {
			r.err = fmt.Errorf("metadata replica %d in %s stopped: %w", r.ID(), r.opts.Dir, err)
		}
	}
}

// takeIn takes messages and reads that have come meanwhile, so that a turn serves them all.
func (r *Replica) takeIn() {
	for range 256 {
		select {
		case m := <-r.inbox:
			r.step(m)
		case q := <-r.reads:
			r.toRead = append(r.toRead, q)
		default:
			return
		}
	}
}

func (r *Replica) step(m *raftpb.Message) {
	if r.raft == nil {
		return
	}
	if err := r.raft.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
		r.log.Debug("raft message not taken", "type", m.GetType(), "from", m.GetFrom(), "err", err)
	}
}

// proposeBytes bounds what is proposed at once.
const proposeBytes = 1 << 20

// propose proposes p and what else waits, together. A command that is under way
// already, for it was asked twice, is waited for.
func (r *Replica) propose(p *proposal) {
	m := &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(r.ID())}
	var batch []*proposal
	for size := 0; p != nil; {
		if _, under := r.waiting[p.key]; under {
			r.waiting[p.key] = append(r.waiting[p.key], p)
		} else {
			r.waiting[p.key] = []*proposal{p}
			m.Entries = append(m.Entries, &raftpb.Entry{Data: p.data})
			batch = append(batch, p)
			size += len(p.data)
		}
		p = nil
		if size < proposeBytes && len(batch) < cap(r.proposals) {
			select {
			case p = <-r.proposals:
			default:
			}
		}
	}
	r.stats.proposals.Add(uint64(len(batch)))
	if len(batch) == 0 {
		return
	}
	err := raft.ErrProposalDropped
	if r.raft != nil && r.leading {
		err = r.raft.Step(m)
	}
	if err == nil {
		return
	}
	for _, p := range batch {
		for _, w := range r.waiting[p.key] {
			w.done <- r.notLeader()
		}
		delete(r.waiting, p.key)
	}
}

// maxConfirms bounds the ReadIndex requests under way; reads that come meanwhile share the next.
const maxConfirms = 4

func (r *Replica) askReads() {
	if len(r.toRead) == 0 {
		return
	}
	if !r.leading {
		answerReads(r.toRead, wire.StatusNotLeader)
		r.toRead = nil
		return
	}
	if len(r.confirm) >= maxConfirms {
		return
	}
	r.confirms++
	r.confirm[r.confirms] = r.toRead
	r.toRead = nil
	r.raft.ReadIndex(binary.BigEndian.AppendUint64(nil, r.confirms))
}

func answerReads(qs []*readRequest, st wire.Status) {
	for _, q := range qs {
		q.done <- st
	}
}

// early says which messages may leave before the disk has what Raft wrote.
func early(m *raftpb.Message) bool {
	switch m.GetType() {
	case raftpb.MsgAppResp, raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
		return false
	}
	return true
}

// ready carries out one Ready: see Replica for the order.
func (r *Replica) ready() error {
	rd := r.raft.Ready()
	r.follow(rd.SoftState)
	for _, m := range rd.Messages {
		if early(m) {
			r.send(m)
		}
	}
	if err := r.persist(&rd); err != nil {
		return err
	}
	for _, m := range rd.Messages {
		if !early(m) {
			r.send(m)
		}
	}
	r.dropTakes()
	if err := r.apply(rd.CommittedEntries); err != nil {
		return err
	}
	for _, rs := range rd.ReadStates {
		id := binary.BigEndian.Uint64(rs.RequestCtx)
		for _, q := range r.confirm[id] {
			q.index = rs.Index
			r.covered = append(r.covered, q)
		}
		delete(r.confirm, id)
	}
	r.releaseReads()
	r.raft.Advance(rd)
	r.publish()
	return r.compact()
}

func (r *Replica) releaseReads() {
	r.covered = slices.DeleteFunc(r.covered, func(q *readRequest) bool {
		if q.index > r.st.index {
			return false
		}
		q.done <- wire.StatusOK
		return true
	})
}

// publish tells the others what they may know.
func (r *Replica) publish() {
	b := r.raft.BasicStatus()
	r.soft.Store(&softState{role: b.RaftState, leader: b.Lead, term: b.HardState.GetTerm(), commit: b.HardState.GetCommit()})
}

// follow notes changes of leadership. A leader begins to serve when it has
// applied the first entry of its term: see apply.
func (r *Replica) follow(s *raft.SoftState) {
	if s == nil {
		return
	}
	leads := s.RaftState == raft.StateLeader
	if leads != r.leading {
		r.leading = leads
		r.stats.elections.Add(1)
		if !leads {
			r.resign()
		}
	}
	b := r.raft.BasicStatus()
	r.log.Info("metadata leader", "replica", r.ID(), "leader", s.Lead, "term", b.HardState.GetTerm())
}

// resign lets go of all that waits for this replica to lead.
func (r *Replica) resign() {
	if l := r.lead.Swap(nil); l != nil {
		l.end()
	}
	for k, ps := range r.waiting {
		for _, p := range ps {
			p.done <- r.notLeader()
		}
		delete(r.waiting, k)
	}
	for k, qs := range r.confirm {
		answerReads(qs, wire.StatusNotLeader)
		delete(r.confirm, k)
	}
	answerReads(r.covered, wire.StatusNotLeader)
	r.covered = nil
	for k, c := range r.confs {
		c <- errNotLeader
		delete(r.confs, k)
	}
}

var errNotLeader = errors.New("this replica does not lead any more")

// ended is the loop's last act.
func (r *Replica) ended() {
	r.leading = false
	r.resign()
	answerReads(r.toRead, wire.StatusNotLeader)
	r.soft.Store(&softState{})
	for _, s := range r.takes {
		s.Close()
	}
	r.stop()
	close(r.done)
}

// persist writes the log and the hard state, or installs a snapshot, durably.
func (r *Replica) persist(rd *raft.Ready) error {
	if len(rd.Entries) == 0 && rd.HardState == nil && raft.IsEmptySnap(rd.Snapshot) {
		return nil
	}
	b := r.db.NewBatch()
	defer b.Close()
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := r.install(b, rd.Snapshot); err != nil {
			return err
		}
	}
	if err := r.rlog.append(b, rd.Entries); err != nil {
		return err
	}
	if rd.HardState != nil {
		if err := r.rlog.putHard(b, rd.HardState); err != nil {
			return err
		}
	}
	if !rd.MustSync && raft.IsEmptySnap(rd.Snapshot) {
		return b.Commit(pebble.NoSync)
	}
	began := time.Now()
	if err := b.Commit(pebble.Sync); err != nil {
		return err
	}
	took := time.Since(began)
	r.stats.synced(took)
	if r.opts.OnFsync != nil {
		r.opts.OnFsync(took)
	}
	if !raft.IsEmptySnap(rd.Snapshot) {
		return r.installed()
	}
	return nil
}

// answered is a command that was applied, and its answer.
type answered struct {
	key waitKey
	rep *metapb.Response
}

// apply applies committed entries in one batch, then answers.
func (r *Replica) apply(ents []*raftpb.Entry) error {
	if len(ents) == 0 {
		return nil
	}
	last := ents[len(ents)-1]
	done := make([]answered, 0, len(ents))
	r.st.mu.Lock()
	t := r.st.begin()
	for _, e := range ents {
		switch {
		case e.GetType() == raftpb.EntryConfChangeV2 || e.GetType() == raftpb.EntryConfChange:
			r.applyConf(t, e)
		case len(e.GetData()) == 0: // a leader's first
		default:
			cmd := new(metapb.Command)
			if err := proto.Unmarshal(e.GetData(), cmd); err != nil {
				r.st.mu.Unlock()
				return r.rlog.corrupt("entry %d is not a command: %v", e.GetIndex(), err)
			}
			done = append(done, answered{waitKey{cmd.GetNonce(), cmd.GetSeq()}, r.st.apply(t, e.GetIndex(), cmd)})
		}
		if t.err != nil {
			break
		}
	}
	err := r.st.commit(t, last.GetIndex(), last.GetTerm())
	r.st.mu.Unlock()
	if err != nil {
		return err
	}
	r.stats.applied.Add(uint64(len(ents)))
	r.stats.batches.Add(1)
	if r.leading && r.lead.Load() == nil && last.GetTerm() == r.raft.BasicStatus().HardState.GetTerm() {
		r.lead.Store(r.newLead(last.GetTerm()))
	}
	if l := r.lead.Load(); l != nil {
		l.changed(&t.effects)
	}
	for _, a := range done {
		for _, p := range r.waiting[a.key] {
			p.done <- a.rep
		}
		delete(r.waiting, a.key)
	}
	return nil
}

// compact drops the log's old end, half of it at a time.
func (r *Replica) compact() error {
	if r.st.index-r.rlog.base < 2*r.opts.LogEntries {
		return nil
	}
	return r.rlog.compact(r.st.index - r.opts.LogEntries)
}

// notLeader is the answer of a replica that does not lead: with who does, if it knows.
func (r *Replica) notLeader() *metapb.Response {
	rep := &metapb.Response{Status: uint32(wire.StatusNotLeader)}
	switch s := r.soft.Load(); {
	case r.self.Load() == nil:
		rep.Detail = "it belongs to no cluster yet (rfsd cluster init, or rfs meta add)"
	case r.gone.Load():
		rep.Detail = "it was removed from the cluster"
	case s.leader == 0 || s.leader == r.ID():
		rep.Detail = "it knows no leader: is a majority of the replicas running?"
	default:
		rep.Leader = s.leader
		rep.Detail = fmt.Sprintf("replica %d leads", s.leader)
		if a, ok := r.links.addr(s.leader); ok {
			rep.LeaderAddr = addrToPB(a)
		}
	}
	return rep
}

// execute has a command applied and returns its answer.
func (r *Replica) execute(ctx context.Context, cmd *metapb.Command) *metapb.Response {
	data, err := proto.Marshal(cmd)
	if err != nil {
		return refuse(wire.StatusInvalid, "%v", err)
	}
	p := &proposal{key: waitKey{cmd.GetNonce(), cmd.GetSeq()}, data: data, done: make(chan *metapb.Response, 1)}
	select {
	case r.proposals <- p:
	case <-ctx.Done():
		return no(wire.StatusCancelled)
	case <-r.done:
		return r.notLeader()
	}
	select {
	case rep := <-p.done:
		return rep
	case <-ctx.Done():
		return no(wire.StatusCancelled)
	case <-r.done:
		return r.notLeader()
	}
}

// order is execute for the leader's own commands.
func (r *Replica) order(ctx context.Context, cmd *metapb.Command) *metapb.Response {
	seq := r.seqs.begin()
	defer r.seqs.end(seq)
	cmd.Nonce, cmd.Seq, cmd.Ack, cmd.Time = r.nonce, seq, r.seqs.ack(), time.Now().UnixNano()
	return r.execute(ctx, cmd)
}

// confirmRead returns StatusOK when the applied state is as new as any that was
// acknowledged to anyone before the call.
func (r *Replica) confirmRead(ctx context.Context) wire.Status {
	q := &readRequest{done: make(chan wire.Status, 1)}
	select {
	case r.reads <- q:
	case <-ctx.Done():
		return wire.StatusCancelled
	case <-r.done:
		return wire.StatusNotLeader
	}
	select {
	case st := <-q.done:
		return st
	case <-ctx.Done():
		return wire.StatusCancelled
	case <-r.done:
		return wire.StatusNotLeader
	}
}
