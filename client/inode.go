package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/raftmeta"
)

// inode is what all opens of a file in one FS share.
type inode struct {
	fs     *FS
	id     rfs.InodeID
	layout rfs.Layout

	// io is held shared by writes, and alone by who changes what the targets hold
	// otherwise (truncate, punch): their tags must not cross. Taken before the others.
	io sync.RWMutex
	// telling is held while the metadata service is told the size, so that what it
	// hears last is what was true last. Taken before mu.
	telling sync.Mutex
	syncing chan struct{} // capacity 1: who holds it syncs

	mu     sync.Mutex // guards all below; never held while waiting for anybody
	change sync.Cond  // a write landed, or gone was set

	opens, writers int
	cache          raftmeta.CacheMode
	grant          uint64 // the order of cache among grants and recalls

	size    int64
	mtime   int64  // ns; of the last write here
	edits   uint64 // changes of size and mtime
	commits uint64 // edits that the metadata service knows
	told    uint64 // Attr.Change of the newest attributes that size takes account of
	// reserving is how many appends wait to be told their offset: until then size does not count them.
	reserving int

	dirty  map[uint32]*stripeBuf // bytes that no write carries yet
	flying map[uint32]*stripeBuf // on their way; one a stripe at a time
	serial uint64                // of the last stripeBuf

	// At base and above all bytes on the targets read as zeros; at fresh and above
	// no version was ever stored. Both hold only while nobody else can write, so
	// they count with CacheReadWrite only.
	base, fresh int64

	werr     error                 // the last error of write-back
	nerr     uint64                // how many there were
	noSpace  bool                  // the last write-back found no space: writes wait for their own until one finds some
	gone     error                 // the session ended or the FS was closed
	touched  map[rfs.SlotID]*touch // slots that took bytes since the last SYNC
	readGens uint64                // raised when what was read ahead is void
}

// touch is what a slot's targets took of an inode since its last SYNC.
type touch struct {
	epoch rfs.Epoch
	// away is the most members that were down or syncing at one time since. If it is
	// more than m, nobody may have what they acknowledged and lost.
	away int
}

func newInode(fs *FS, a *raftmeta.Attr) *inode {
	ino := &inode{
		fs: fs, id: a.Inode, layout: a.Layout, size: a.Size, told: a.Change, base: a.Size, fresh: math.MaxInt64,
		dirty: map[uint32]*stripeBuf{}, flying: map[uint32]*stripeBuf{}, touched: map[rfs.SlotID]*touch{},
		syncing: make(chan struct{}, 1),
	}
	ino.change.L = &ino.mu
	return ino
}

// leaseHolds says whether the session is known to be alive, so that what it may cache counts.
func (fs *FS) leaseHolds() bool { return time.Now().Before(fs.meta.LeaseUntil()) }

// openInodes returns the inodes that are open now.
func (fs *FS) openInodes() []*inode {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	all := make([]*inode, 0, len(fs.inodes))
	for _, ino := range fs.inodes {
		all = append(all, ino)
	}
	return all
}

func (fs *FS) lookupOpen(id rfs.InodeID) *inode {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.inodes[id]
}

// Open opens a regular file.
func (fs *FS) Open(ctx context.Context, id rfs.InodeID, flags OpenFlags) (*File, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	defer fs.beginOpen()()
	res, err := fs.meta.Open(ctx, id, openMode(flags))
	if err != nil {
		return nil, err
	}
	return fs.opened(ctx, res, flags)
}

// Create makes the file name in the directory, or opens the one that is there
// unless spec.Excl. Its session's handle counts as opened with flags.
func (fs *FS) Create(ctx context.Context, parent rfs.InodeID, name string, spec raftmeta.CreateSpec, flags OpenFlags) (*File, raftmeta.Attr, error) {
	ctx, done := fs.patience(ctx)
	defer done()
	spec.Open = openMode(flags)
	defer fs.beginOpen()()
	res, err := fs.meta.Create(ctx, parent, name, spec)
	if err != nil {
		return nil, raftmeta.Attr{}, err
	}
	f, err := fs.opened(ctx, res, flags)
	if err != nil {
		return nil, raftmeta.Attr{}, err
	}
	attr := res.Attr
	f.ino.overlayAttr(&attr)
	return f, attr, nil
}

// beginOpen has recalls kept that overtake the answer to an open, until the function that it returns is called.
func (fs *FS) beginOpen() (end func()) {
	fs.mu.Lock()
	fs.opening++
	fs.mu.Unlock()
	return func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		if fs.opening--; fs.opening == 0 {
			clear(fs.early)
		}
	}
}

func openMode(flags OpenFlags) (m raftmeta.OpenMode) {
	if flags&OpenRead != 0 {
		m |= raftmeta.OpenRead
	}
	if flags&(OpenWrite|OpenAppend|OpenTruncate) != 0 {
		m |= raftmeta.OpenWrite
	}
	return m
}

// opened makes the handle of what the metadata service opened.
func (fs *FS) opened(ctx context.Context, res raftmeta.OpenResult, flags OpenFlags) (*File, error) {
	if err := fs.canUse(res.Attr.Layout); err != nil {
		return nil, errors.Join(fmt.Errorf("open %v: %w", res.Attr.Inode, err), fs.meta.CloseFile(ctx, res.Attr.Inode, openMode(flags)))
	}
	fs.mu.Lock()
	ino := fs.inodes[res.Attr.Inode]
	if ino == nil {
		ino = newInode(fs, &res.Attr)
		fs.inodes[ino.id] = ino
	}
	ino.mu.Lock()
	ino.opens++
	if openMode(flags)&raftmeta.OpenWrite != 0 {
		ino.writers++
	}
	if ino.cache != raftmeta.CacheReadWrite { // before setCache, which may make size the one that counts
		ino.adopt(&res.Attr)
	}
	flush := ino.setCache(res.Cache, res.Grant)
	if r, ok := fs.early[ino.id]; ok {
		flush = ino.setCache(r.Mode, r.At) || flush
	}
	if res.Created {
		ino.fresh = 0
	}
	f := &File{ino: ino, flags: flags, seen: ino.nerr}
	ino.mu.Unlock()
	fs.mu.Unlock()

	if err := f.prepare(ctx, &res.Attr, flush); err != nil {
		return nil, errors.Join(err, f.Close(context.WithoutCancel(ctx)))
	}
	return f, nil
}

// canUse says whether files of the layout fit the client's memory.
func (fs *FS) canUse(l rfs.Layout) error {
	if err := l.Validate(); err != nil {
		return err
	}
	if need := 8 * int64(max(l.K+1, l.M)) * classSize(l.Unit); need > fs.cfg.Memory {
		return fmt.Errorf("layout of %d+%d shards of %d bytes: the client's memory of %d bytes is too small: raise it to %d: %w",
			l.K, l.M, l.Unit, fs.cfg.Memory, need, rfs.ErrUnsupported)
	}
	return nil
}

// prepare does what must be done before the first read or write of a new handle.
func (f *File) prepare(ctx context.Context, attr *raftmeta.Attr, flush bool) error {
	ino := f.ino
	if flush {
		if err := ino.flush(ctx); err != nil {
			return err
		}
	}
	if f.flags&(OpenWrite|OpenAppend|OpenTruncate) == 0 {
		return nil
	}
	f.flags |= OpenWrite
	if err := ino.finishTrims(ctx, attr.Trims); err != nil {
		return err
	}
	if f.flags&OpenTruncate != 0 {
		zero := int64(0)
		_, err := ino.truncate(ctx, raftmeta.SetAttr{Size: &zero})
		return err
	}
	return nil
}

// setCache takes over the cache mode of a grant or recall unless it is older
// than the one in force, and says whether dirty bytes must be written now.
func (ino *inode) setCache(m raftmeta.CacheMode, order uint64) (flush bool) {
	if order < ino.grant {
		return false
	}
	ino.grant = order
	if ino.fs.cfg.NoCache {
		m = raftmeta.CacheNone
	}
	if m < ino.cache {
		ino.readGens++
		flush = ino.cache == raftmeta.CacheReadWrite
	}
	if m == raftmeta.CacheReadWrite && ino.cache != m {
		// Others may have written up to the size, which is exact now, and further before they truncated.
		ino.base, ino.fresh = max(ino.base, ino.size), math.MaxInt64
	}
	ino.cache = m
	return flush
}

// release ends one open of the inode; the last ends the inode.
func (fs *FS) release(ctx context.Context, ino *inode, flags OpenFlags) error {
	errs := []error{ino.commitAttr(ctx)}
	fs.mu.Lock()
	ino.mu.Lock()
	ino.opens--
	if openMode(flags)&raftmeta.OpenWrite != 0 {
		ino.writers--
	}
	if ino.opens == 0 {
		ino.discard()
		delete(fs.inodes, ino.id)
	}
	gone := ino.gone
	ino.mu.Unlock()
	fs.mu.Unlock()
	if gone == nil {
		fs.meta.Release(ino.id, openMode(flags))
	}
	return errors.Join(errs...)
}

// dropAll makes every open file fail with err.
func (fs *FS) dropAll(err error) {
	for _, ino := range fs.openInodes() {
		ino.mu.Lock()
		if ino.gone == nil {
			ino.gone = fmt.Errorf("file %v: %w", ino.id, err)
		}
		ino.discard()
		ino.change.Broadcast()
		ino.mu.Unlock()
	}
}

// discard forgets what is dirty and read ahead. mu is held.
func (ino *inode) discard() {
	ino.readGens++
	for _, b := range ino.dirty {
		ino.unlink(b)
	}
}

// recall is the metadata service's: another client opens the file.
func (fs *FS) recall(r raftmeta.Recall) {
	fs.mu.Lock()
	ino := fs.inodes[r.Inode]
	if fs.opening > 0 && fs.early[r.Inode].At <= r.At {
		fs.early[r.Inode] = r
	}
	fs.mu.Unlock()
	if ino == nil {
		return
	}
	ino.mu.Lock()
	flush := ino.setCache(r.Mode, r.At)
	ino.mu.Unlock()
	if !flush {
		return
	}
	fs.stats.recalls.inc()
	if err := errors.Join(ino.flush(fs.ctx), ino.commitAttr(fs.ctx)); err != nil {
		fs.log.Error("recall of a lease: write what is dirty", "inode", r.Inode, "err", err)
	}
	fs.commits.push(fs.ctx)
}

// sizeWanted is the metadata service's: another client asks for the file's attributes.
func (fs *FS) sizeWanted(id rfs.InodeID) {
	if ino := fs.lookupOpen(id); ino != nil {
		if err := ino.commitAttr(fs.ctx); err != nil {
			fs.log.Error("commit of a size that is wanted", "inode", id, "err", err)
		}
	}
}

// commitAttr tells the metadata service the size and mtime, if they changed.
func (ino *inode) commitAttr(ctx context.Context) error {
	ino.telling.Lock()
	defer ino.telling.Unlock()
	return ino.tell(ctx)
}

// tell is commitAttr with telling held.
func (ino *inode) tell(ctx context.Context) error {
	ino.mu.Lock()
	size, mtime, edits := ino.size, ino.mtime, ino.edits
	done := edits == ino.commits || ino.gone != nil
	ino.mu.Unlock()
	if done {
		return nil
	}
	a, err := ino.fs.meta.Commit(ctx, ino.id, raftmeta.CommitSpec{Size: size, Mtime: mtime})
	if err != nil {
		return fmt.Errorf("commit the size of %v: %w", ino.id, err)
	}
	ino.mu.Lock()
	ino.commits, ino.told = max(ino.commits, edits), max(ino.told, a.Change)
	ino.mu.Unlock()
	return nil
}

// grow notes a write that ended at end. mu is held.
func (ino *inode) grow(end int64) {
	ino.size = max(ino.size, end)
	ino.mtime = time.Now().UnixNano()
	ino.edits++
}

// overlayAttr puts the size and mtime that only this client knows over a.
func (ino *inode) overlayAttr(a *raftmeta.Attr) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.edits == ino.commits && ino.cache != raftmeta.CacheReadWrite {
		return
	}
	a.Size = max(a.Size, ino.size)
	if ino.edits != ino.commits {
		a.Mtime = max(a.Mtime, ino.mtime)
	}
}

// learn takes over what the metadata service says of the size, unless this client knows better.
func (ino *inode) learn(a *raftmeta.Attr) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.cache != raftmeta.CacheReadWrite {
		ino.adopt(a)
	}
}

// adopt takes over the size that the metadata service gave, which others may have
// changed, unless the answer is older than what is known here. mu is held.
func (ino *inode) adopt(a *raftmeta.Attr) {
	switch {
	case a.Change < ino.told:
		return
	case ino.edits == ino.commits:
		ino.size = a.Size
	default: // a write of this client is on its way there
		ino.size = max(ino.size, a.Size)
	}
	ino.told = a.Change
}

// suspect notes how many members of the slots that took unsynced bytes are not readable in a new map.
func (ino *inode) suspect(m *placement.Map) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	pool := m.Pool(ino.layout.Pool)
	if pool == nil {
		return
	}
	for id, t := range ino.touched {
		s := &pool.Slots[id]
		if s.Epoch == t.epoch {
			continue
		}
		t.epoch = s.Epoch
		away := 0
		for i := range s.Members {
			if !m.Readable(s, i) {
				away++
			}
		}
		t.away = max(t.away, away)
	}
}

// wait waits on change until ok, which is called with mu held, or the end of ctx.
func (ino *inode) wait(ctx context.Context, ok func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		ino.mu.Lock()
		ino.change.Broadcast()
		ino.mu.Unlock()
	})
	defer stop()
	for !ok() {
		if ctx.Err() != nil {
			return ended(ctx)
		}
		ino.change.Wait()
	}
	return nil
}
