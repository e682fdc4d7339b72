package chunkstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rfs"
	"rfs/internal/vfs"
)

const (
	minSegment = MaxPayload
	maxSegment = 1 << 30
	// MinCapacity is the least capacity of a target in bytes.
	MinCapacity = 8 * minSegment
)

// Options say how to format or open a target. Only Dir, ClusterID and TargetID
// have no default.
type Options struct {
	Dir string
	// FS is where Dir is; nil is the operating system's.
	FS vfs.FS
	// ClusterID and TargetID are who the caller takes the directory to be of.
	// Zero, to Open, means whoever's.
	ClusterID rfs.UUID
	TargetID  rfs.TargetID
	// Capacity is how much shards may take, in bytes, rounded down to whole
	// segments. 0: to Format, what the disk has available, less 5%; to Open,
	// what it was before.
	Capacity int64
	// SegmentSize, to Format, is a multiple of 4 MiB up to 1 GiB. 0: 1 GiB, or an eighth of a small Capacity.
	SegmentSize int64
	// Reserve is the part of Capacity that only repair, folding and deletion
	// may use, in bytes. 0: 2% but at least 64 MiB, and at most an eighth.
	Reserve int64
	// MinAvail is how much the disk must have available, in bytes, for Put to
	// succeed: the index grows on it. 0: 1% of the disk, at most 256 MiB. Negative: no such check.
	MinAvail int64
	// NoDirect keeps O_DIRECT off where the file system has it.
	NoDirect bool
	// FlushInterval is how often what nobody asked to Sync is flushed, so that
	// freed space returns and a crash leaves little to verify. 0: 5 s. Negative: never.
	FlushInterval time.Duration
	// IndexCache is the block cache of the index; nil is one of 64 MiB for all stores of the process.
	IndexCache *pebble.Cache
	Log        *slog.Logger // nil: slog.Default()
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.FlushInterval == 0 {
		o.FlushInterval = 5 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return o
}

// Format makes Dir, which must be empty or missing, the directory of a target.
func Format(o Options) error {
	o = o.withDefaults()
	if o.ClusterID.IsZero() || o.TargetID.IsZero() {
		return fmt.Errorf("format %s: no cluster or target id: %w", o.Dir, rfs.ErrInvalid)
	}
	if err := o.FS.Mkdir(o.Dir); err != nil {
		return diskError("format "+o.Dir, err)
	}
	names, err := o.FS.List(o.Dir)
	if err != nil {
		return diskError("format "+o.Dir, err)
	}
	if names = slices.DeleteFunc(names, func(n string) bool { return n == "lost+found" }); len(names) > 0 {
		return fmt.Errorf("format %s: has %q: %w: give an empty directory, or empty this one if nothing in it is needed",
			o.Dir, names[0], ErrNotEmpty)
	}
	usage, err := o.FS.Usage(o.Dir)
	if err != nil {
		return diskError("format "+o.Dir, err)
	}
	id := Identity{Format: FormatVersion, Cluster: o.ClusterID, Target: o.TargetID, Capacity: o.Capacity, SegmentSize: o.SegmentSize}
	if id.Capacity == 0 {
		id.Capacity = usage.Avail / 20 * 19
	}
	if id.SegmentSize == 0 {
		for id.SegmentSize = maxSegment; id.SegmentSize > minSegment && id.SegmentSize*8 > id.Capacity; id.SegmentSize /= 2 {
		}
	}
	if id.SegmentSize%minSegment != 0 || id.SegmentSize < minSegment || id.SegmentSize > maxSegment {
		return fmt.Errorf("format %s: segments of %d bytes: want a multiple of %d up to %d: %w", o.Dir, id.SegmentSize, minSegment, maxSegment, rfs.ErrInvalid)
	}
	id.Capacity -= id.Capacity % id.SegmentSize
	if id.Capacity < MinCapacity {
		return fmt.Errorf("format %s: capacity of %d bytes: want %d or more: %w", o.Dir, id.Capacity, int64(MinCapacity), rfs.ErrInvalid)
	}
	return diskError("format "+o.Dir, format(o, id))
}

// format writes the identity last: a directory without it is no target, and
// can be formatted again once emptied.
func format(o Options, id Identity) error {
	if err := o.FS.Mkdir(o.Dir + "/" + segmentsDir); err != nil {
		return err
	}
	if err := o.FS.Mkdir(o.Dir + "/" + indexDir); err != nil {
		return err
	}
	db, err := openIndex(o.FS, o.Dir+"/"+indexDir, o.IndexCache, indexLog{o.Log, func(error) {}}, true)
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return vfs.WriteFile(o.FS, o.Dir, identityName, append(b, '\n'))
}

// A Store is an open target directory. Its methods may be called from any goroutine.
//
// Locks, in the order in which they may be taken: keys[...], barrier, then any one of allocMu, dropMu, floorMu.
type Store struct {
	o    Options
	id   Identity
	log  *slog.Logger
	lock io.Closer
	db   *pebble.DB

	recovery Recovery
	failed   atomic.Pointer[error] // the first error after which the disk cannot be trusted
	closed   atomic.Bool
	sparse   bool // segments are not preallocated

	// keys serialize changes of a shard; a shard's lock is keys[hash]. It is
	// held while a Put writes.
	keys [1024]sync.Mutex

	// barrier is held shared by whoever changes the index, from before the
	// change gets its seq until the index and the dirty marks have it, and
	// exclusively by Sync, for the moment in which it takes note of both.
	barrier sync.RWMutex
	seq     atomic.Uint64 // of the last change
	changes atomic.Uint64 // how many changes there were

	allocMu  sync.Mutex
	alloc    allocator
	capacity int64
	reserve  int64
	unprobed int64 // bytes handed out since the disk's free space was last looked at
	diskFull bool  // what was seen then
	// segs is replaced when a segment is added, under allocMu.
	segs atomic.Pointer[[]*segment]

	// dropMu guards what is gone and waits for a Sync to be gone for good.
	dropMu    sync.Mutex
	drops     []drop
	condemned map[[versionKeyLen]byte]struct{} // the keys of drops, and of the Sync under way
	pending   int64                            // bytes of the extents of drops

	floorMu sync.RWMutex
	floors  map[rfs.InodeID][]floor

	group   syncGroup
	flushed uint64        // changes that the last flush saw; of flush alone
	kick    chan struct{} // tells flusher that much waits to be freed
	stop    chan struct{}
	stopped sync.WaitGroup

	stats counters
}

// A drop is an extent to free once the index is durable. With a key it is
// condemned: its version is still in the index, because what superseded it is
// not known to be durable; the Sync that makes it so deletes the key.
type drop struct {
	ext extent
	key [versionKeyLen]byte // key[0] is 0: the index has forgotten it already
}

// Recovery says in what state Open found the store.
type Recovery struct {
	// Clean is whether the last user closed it; SameBoot whether the machine has run on since.
	Clean    bool `json:"clean"`
	SameBoot bool `json:"same_boot"`
	// Verified versions were not known to be durable, and were read; Lost of them did not check, and are gone.
	Verified int `json:"verified"`
	Lost     int `json:"lost"`
}

// Open opens a target's directory for this process alone.
func Open(o Options) (_ *Store, err error) {
	o = o.withDefaults()
	s := newStore(o)
	defer func() {
		if err != nil {
			_ = s.closeFiles() // err says more
			if s.lock != nil {
				_ = s.lock.Close()
			}
		}
	}()
	if err = s.openDir(); err != nil {
		return nil, err
	}
	if err = s.openSegments(false); err != nil {
		return nil, err
	}
	s.db, err = openIndex(o.FS, s.path(indexDir), o.IndexCache, indexLog{s.log, s.fail}, false)
	if err != nil {
		return nil, badIndex(o.Dir, err)
	}
	if err = s.recover(); err != nil {
		return nil, err
	}
	if err = s.claim(); err != nil {
		return nil, err
	}
	if o.FlushInterval > 0 {
		s.stopped.Go(s.flusher)
	}
	s.log.Info("target opened", "id", s.id.Target, "clean", s.recovery.Clean, "same_boot", s.recovery.SameBoot,
		"used", s.alloc.used, "capacity", s.capacity, "verified", s.recovery.Verified, "lost", s.recovery.Lost)
	return s, nil
}

func newStore(o Options) *Store {
	s := &Store{
		o: o, log: o.Log.With("target", o.Dir),
		condemned: map[[versionKeyLen]byte]struct{}{}, floors: map[rfs.InodeID][]floor{},
		kick: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	s.segs.Store(new([]*segment))
	return s
}

// openDir makes sure whose directory it is, locks it, and finds out how the last user left.
func (s *Store) openDir() (err error) {
	if s.id, err = ReadIdentity(s.o.FS, s.o.Dir); err != nil {
		return err
	}
	if err = s.id.check(s.o.Dir, s.o.ClusterID, s.o.TargetID); err != nil {
		return err
	}
	if s.lock, err = takeLock(s.o); err != nil {
		return err
	}
	return s.readMarks()
}

func takeLock(o Options) (io.Closer, error) {
	l, err := o.FS.Lock(o.Dir + "/" + lockName)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fmt.Errorf("target %s: %w: stop the other rfsd or rfs first", o.Dir, ErrLocked)
	}
	return l, diskError("lock target "+o.Dir, err)
}

// badIndex says what to do about an index that Pebble or recovery refused.
func badIndex(dir string, err error) error {
	if errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOSPC) {
		return diskError("open index of target "+dir, err)
	}
	return fmt.Errorf("target %s: %w: %w: rebuild it with: rfs target check --rebuild %s", dir, ErrBadIndex, err, dir)
}

// readMarks finds out how the last user left. Close leaves the mark clean; the
// file boot names the boot in which the store was last opened: if that still
// runs, then at worst the process died, and what it had written is in the page cache.
func (s *Store) readMarks() error {
	boot, err := vfs.ReadFile(s.o.FS, s.path(bootName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return diskError("open target "+s.o.Dir, err)
	}
	s.recovery.SameBoot = string(boot) == s.o.FS.BootID()
	_, err = s.o.FS.Stat(s.path(cleanName))
	s.recovery.Clean = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return diskError("open target "+s.o.Dir, err)
}

// claim makes the store count as in use, in this boot, until it is closed. It
// comes after recovery: one that was cut short is done again.
func (s *Store) claim() error {
	err := vfs.WriteFile(s.o.FS, s.o.Dir, bootName, []byte(s.o.FS.BootID()))
	if err == nil && s.recovery.Clean {
		if err = s.o.FS.Remove(s.path(cleanName)); err == nil {
			err = s.o.FS.SyncDir(s.o.Dir)
		}
	}
	return diskError("open target "+s.o.Dir, err)
}

// openSegments opens the segments that there are, in order. One whose data file
// is missing is an error, or, with refill, made anew, empty.
func (s *Store) openSegments(refill bool) error {
	u, err := s.o.FS.Usage(s.o.Dir)
	if err != nil {
		return diskError("open target "+s.o.Dir, err)
	}
	s.sparse = u.Sparse
	s.capacity = s.id.Capacity
	if s.o.Capacity > 0 {
		s.capacity = s.o.Capacity - s.o.Capacity%s.id.SegmentSize
	}
	if s.reserve = s.o.Reserve; s.reserve == 0 {
		s.reserve = min(max(s.capacity/50, 64<<20), s.capacity/8)
	}
	if s.o.MinAvail == 0 {
		s.o.MinAvail = min(u.Total/100, 256<<20)
	}
	s.alloc.blocks = uint32(s.id.SegmentSize / blockSize)
	names, err := s.o.FS.List(s.path(segmentsDir))
	if err != nil {
		return diskError("open target "+s.o.Dir, err)
	}
	n := uint32(0)
	for _, name := range names {
		if !strings.HasSuffix(name, ".data") {
			continue
		}
		for refill && segmentsDir+"/"+name > dataName(n) {
			if err := s.o.FS.Remove(s.path(headName(n))); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return diskError("rebuild", err)
			}
			if err := s.addSegment(); err != nil {
				return err
			}
			n++
		}
		if segmentsDir+"/"+name != dataName(n) {
			return fmt.Errorf("target %s: file %s is missing: %w: put it back, or give up what was in it with: rfs target check --rebuild %s",
				s.o.Dir, dataName(n), rfs.ErrCorrupt, s.o.Dir)
		}
		if err := s.addSegment(); err != nil {
			return err
		}
		n++
	}
	return nil
}

// addSegment opens the files of the next segment, and makes what is missing of
// them: all, or what a crash did not keep of files that were not in use yet.
func (s *Store) addSegment() (err error) {
	g := &segment{id: uint32(len(*s.segs.Load()))}
	defer func() {
		if err != nil {
			err = errors.Join(diskError(fmt.Sprintf("segment %d of target %s", g.id, s.o.Dir), err), g.close())
		}
	}()
	var madeHead, madeData bool
	if g.head, madeHead, err = s.openSized(headName(g.id), s.id.SegmentSize/blockSize*slotSize, true); err != nil {
		return err
	}
	if g.data, madeData, err = s.openSized(dataName(g.id), s.id.SegmentSize, s.sparse); err != nil {
		return err
	}
	if madeHead || madeData {
		if err := s.o.FS.SyncDir(s.path(segmentsDir)); err != nil {
			return err
		}
	}
	if !s.o.NoDirect {
		if g.direct, err = s.o.FS.Open(s.path(dataName(g.id)), vfs.Direct); err != nil {
			g.direct = nil // a file system without O_DIRECT
		}
	}
	segs := append(slices.Clip(*s.segs.Load()), g)
	s.segs.Store(&segs)
	s.alloc.grow()
	return nil
}

// openSized opens a file of the given size, and makes or lengthens it if need be.
func (s *Store) openSized(name string, size int64, sparse bool) (f vfs.File, made bool, err error) {
	f, err = s.o.FS.Open(s.path(name), vfs.ReadWrite)
	if errors.Is(err, fs.ErrNotExist) {
		made = true
		f, err = s.o.FS.Create(s.path(name))
	}
	if err != nil {
		return nil, false, err
	}
	has, err := f.Size()
	if err == nil && has < size {
		if sparse {
			err = f.Truncate(size)
		} else {
			err = f.Allocate(0, size)
		}
		if err == nil {
			err = f.Sync()
		}
	}
	if err != nil {
		f.Close()
		if made {
			_ = s.o.FS.Remove(s.path(name))
		}
		return nil, false, err
	}
	return f, made, nil
}

func (s *Store) path(name string) string { return s.o.Dir + "/" + name }

func (s *Store) segment(id uint32) *segment { return (*s.segs.Load())[id] }

// fail puts the store out of service: it answers everything with err from now on.
func (s *Store) fail(err error) {
	if s.failed.CompareAndSwap(nil, &err) {
		s.log.Error("target out of service until it is opened again", "err", err)
	}
}

// usable returns the error that put the store out of service, or nil.
func (s *Store) usable() error {
	if e := s.failed.Load(); e != nil {
		return fmt.Errorf("target %s is out of service: %w", s.o.Dir, *e)
	}
	return nil
}

var errClosed = errors.New("target is closed")

// Close makes everything durable, marks the directory as cleanly closed and
// lets go of it. No other method may be running, or be called after; Close may.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	close(s.stop)
	s.stopped.Wait()
	err := s.Sync(context.Background())
	s.group.wait()
	s.failed.CompareAndSwap(nil, &errClosed)
	err = errors.Join(err, s.closeFiles())
	if err == nil {
		err = diskError("close target "+s.o.Dir, vfs.WriteFile(s.o.FS, s.o.Dir, cleanName, []byte(s.o.FS.BootID())))
	}
	return errors.Join(err, s.lock.Close())
}

// closeFiles closes what is open, but for the lock.
func (s *Store) closeFiles() (err error) {
	if s.db != nil {
		err = s.db.Close()
	}
	for _, g := range *s.segs.Load() {
		err = errors.Join(err, g.close())
	}
	return err
}

// Clean reports whether the store was closed by its last user, and the machine
// has not been restarted since: whether nothing acknowledged can be missing.
func (s *Store) Clean() bool { return s.recovery.Clean && s.recovery.SameBoot }

// Recovery says in what state Open found the store.
func (s *Store) Recovery() Recovery { return s.recovery }

// Identity says whose the store is.
func (s *Store) Identity() Identity { return s.id }
