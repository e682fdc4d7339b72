package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"rfs"
	"rfs/internal/hlc"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/transport"
	"rfs/transport/arena"
)

// Meta is what a client needs of the metadata service; *raftmeta.Client is one, and documents it.
type Meta interface {
	OpenSession(ctx context.Context, name string, ev raftmeta.Events) (rfs.SessionID, error)
	CloseSession(ctx context.Context) error
	LeaseUntil() time.Time

	CachedMap() *placement.Map
	Map(ctx context.Context, min rfs.Epoch) (*placement.Map, error)
	RefreshMap(ctx context.Context) (*placement.Map, error)
	ReportTarget(ctx context.Context, t rfs.TargetID, detail string) error

	Lookup(ctx context.Context, dir rfs.InodeID, name string) (raftmeta.Attr, error)
	Getattr(ctx context.Context, ino rfs.InodeID) (raftmeta.Attr, error)
	GetattrLazy(ctx context.Context, ino rfs.InodeID) (raftmeta.Attr, error)
	Setattr(ctx context.Context, ino rfs.InodeID, set raftmeta.SetAttr) (raftmeta.Attr, error)
	Mkdir(ctx context.Context, dir rfs.InodeID, name string, mode, uid, gid uint32) (raftmeta.Attr, error)
	Mknod(ctx context.Context, dir rfs.InodeID, name string, spec raftmeta.MknodSpec) (raftmeta.Attr, error)
	Symlink(ctx context.Context, dir rfs.InodeID, name, target string, uid, gid uint32) (raftmeta.Attr, error)
	Readlink(ctx context.Context, ino rfs.InodeID) (string, error)
	Link(ctx context.Context, ino, dir rfs.InodeID, name string) (raftmeta.Attr, error)
	Unlink(ctx context.Context, dir rfs.InodeID, name string) (raftmeta.Attr, error)
	Rmdir(ctx context.Context, dir rfs.InodeID, name string) error
	RenameHold(ctx context.Context, dir rfs.InodeID, name string, newDir rfs.InodeID, newName string, flags raftmeta.RenameFlags) (rfs.InodeID, error)
	Readdir(ctx context.Context, dir rfs.InodeID, cookie uint64, limit int, plus bool) ([]raftmeta.DirEntry, bool, error)
	Getxattr(ctx context.Context, ino rfs.InodeID, name string) ([]byte, error)
	Setxattr(ctx context.Context, ino rfs.InodeID, name string, value []byte, flags raftmeta.XattrFlags) error
	Listxattr(ctx context.Context, ino rfs.InodeID) ([]string, error)
	Removexattr(ctx context.Context, ino rfs.InodeID, name string) error
	Statfs(ctx context.Context) (raftmeta.Statfs, error)

	Create(ctx context.Context, dir rfs.InodeID, name string, spec raftmeta.CreateSpec) (raftmeta.OpenResult, error)
	Open(ctx context.Context, ino rfs.InodeID, mode raftmeta.OpenMode) (raftmeta.OpenResult, error)
	CloseFile(ctx context.Context, ino rfs.InodeID, mode raftmeta.OpenMode) error
	Release(ino rfs.InodeID, mode raftmeta.OpenMode)
	Commit(ctx context.Context, ino rfs.InodeID, spec raftmeta.CommitSpec) (raftmeta.Attr, error)
	ReserveAppend(ctx context.Context, ino rfs.InodeID, n int64) (int64, error)
	TrimDone(ctx context.Context, ino rfs.InodeID, tag rfs.Tag) error
	Lock(ctx context.Context, ino rfs.InodeID, spec raftmeta.LockSpec, wait bool) error
	TestLock(ctx context.Context, ino rfs.InodeID, spec raftmeta.LockSpec) (*raftmeta.LockSpec, error)
}

var _ Meta = (*raftmeta.Client)(nil)

// Config is how an FS is made. Meta, Transport and Arena are the caller's: Close leaves them open.
type Config struct {
	Meta      Meta
	Transport transport.Transport
	Arena     *arena.Arena

	// Memory is what the client takes of the arena at most, in bytes: a half for
	// bytes not yet written, a quarter for read-ahead, an eighth each for parity
	// on its way and for reads. Default: 128 MiB; at least 8 stripes' data.
	Memory int64
	// Soft, if not 0, is how long a request may wait for targets or metadata
	// before it fails with rfs.ErrUnavailable. 0 (hard) waits as long as it takes.
	Soft time.Duration
	// CallTimeout is how long a target may take for one answer before it is
	// reported and done without. Default: 10 s.
	CallTimeout time.Duration
	// SlowRead is the least time that a READ gets before its target counts as slow,
	// and the bytes are rebuilt from others: when it takes four times as long as usual, and longer than this. Default: 250 ms.
	SlowRead time.Duration
	// WriteBehind is how old dirty bytes get before they are written without
	// being asked for. Default: 5 s.
	WriteBehind time.Duration
	// NoCache makes every file write-through and reads unbuffered.
	NoCache bool
	// ReadAhead is how many stripes are read ahead of a sequential reader. 0 is 2; -1 is none.
	ReadAhead int
	// Name is the session's, for people. Default: the host's name and the process id.
	Name   string
	Logger *slog.Logger // default: none
}

func (c *Config) defaults() error {
	var errs []error
	if c.Meta == nil || c.Transport == nil || c.Arena == nil {
		errs = append(errs, errors.New("client: Meta, Transport and Arena must be set"))
	}
	if c.Memory == 0 {
		c.Memory = 128 << 20
	}
	if c.Memory < 8<<20 {
		errs = append(errs, fmt.Errorf("client: memory of %d bytes: want at least %d", c.Memory, 8<<20))
	}
	if c.Soft < 0 || c.CallTimeout < 0 || c.WriteBehind < 0 || c.SlowRead < 0 {
		errs = append(errs, errors.New("client: a timeout is negative"))
	}
	if c.CallTimeout == 0 {
		c.CallTimeout = 10 * time.Second
	}
	if c.SlowRead == 0 {
		c.SlowRead = 250 * time.Millisecond
	}
	if c.WriteBehind == 0 {
		c.WriteBehind = 5 * time.Second
	}
	if c.ReadAhead == 0 {
		c.ReadAhead = 2
	}
	if c.Name == "" {
		host, _ := os.Hostname()
		c.Name = fmt.Sprintf("%s:%d", host, os.Getpid())
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return errors.Join(errs...)
}

// FS is a client of one cluster. Its methods may be called from any goroutine.
type FS struct {
	cfg     Config
	meta    Meta
	log     *slog.Logger
	clock   *hlc.Clock
	seq     atomic.Uint32
	session atomic.Uint32
	stats   *stats

	ctx  context.Context // ends with Close, or with the session
	stop context.CancelCauseFunc
	work sync.WaitGroup // everything that runs in the background

	targets targets
	commits commits

	dirtyMem  *arena.Budget // stripe buffers
	flightMem *arena.Budget // parity and gathered segments
	readMem   *arena.Budget
	flights   *semaphore.Weighted // bytes of flightMem promised to stripes on their way, and to rebuilds
	reads     *semaphore.Weighted // bytes of readMem promised to reads
	aheads    *semaphore.Weighted // bytes of readMem promised to what is read ahead
	starved   atomic.Int32        // writers that wait for dirtyMem

	mapMu    sync.Mutex
	mapEpoch rfs.Epoch     // that was made known
	mapNews  chan struct{} // closed when the map rises

	mu      sync.Mutex // guards the next three; taken before an inode's mu, never inside it
	inodes  map[rfs.InodeID]*inode
	opening int                             // opens on their way
	early   map[rfs.InodeID]raftmeta.Recall // recalls that overtook the answer to an open

	dirty dirtyList
	idle  aheadList

	repairs   sync.Mutex // guards repairing
	repairing map[rfs.ShardKey]bool
}

// New opens a session with the metadata service and returns a client of its
// cluster. ctx bounds the opening only.
func New(ctx context.Context, cfg Config) (*FS, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	fs := &FS{
		cfg: cfg, meta: cfg.Meta, log: cfg.Logger, clock: hlc.New(nil),
		dirtyMem:  cfg.Arena.Budget(cfg.Memory / 2),
		flightMem: cfg.Arena.Budget(cfg.Memory / 8),
		readMem:   cfg.Arena.Budget(cfg.Memory / 8 * 3),
		flights:   semaphore.NewWeighted(cfg.Memory / 8),
		reads:     semaphore.NewWeighted(cfg.Memory / 8),
		aheads:    semaphore.NewWeighted(cfg.Memory / 4),
		inodes:    map[rfs.InodeID]*inode{},
		early:     map[rfs.InodeID]raftmeta.Recall{},
		repairing: map[rfs.ShardKey]bool{},
		mapNews:   make(chan struct{}),
	}
	fs.ctx, fs.stop = context.WithCancelCause(context.Background())
	fs.stats = newStats()
	fs.targets.init(fs)
	fs.commits.init(fs)
	session, err := fs.meta.OpenSession(ctx, cfg.Name, raftmeta.Events{
		MapChanged: fs.mapChanged,
		Recall:     fs.recall,
		SizeWanted: fs.sizeWanted,
		Lost:       fs.lost,
	})
	if err != nil {
		fs.stop(ErrClosed)
		return nil, fmt.Errorf("client: open a session: %w", err)
	}
	fs.session.Store(uint32(session))
	if _, err := fs.meta.Map(ctx, 0); err != nil {
		fs.stop(ErrClosed)
		return nil, errors.Join(fmt.Errorf("client: the cluster map: %w", err), fs.meta.CloseSession(ctx))
	}
	fs.work.Go(fs.writeBehind)
	fs.work.Go(fs.commits.run)
	return fs, nil
}

// Close writes what is dirty, ends the session and all that runs in the
// background. Files still open are closed; their later calls fail with ErrClosed.
func (fs *FS) Close(ctx context.Context) error {
	var errs []error
	for _, ino := range fs.openInodes() {
		if err := ino.flush(ctx); err != nil {
			errs = append(errs, err)
		}
		if err := ino.commitAttr(ctx); err != nil {
			errs = append(errs, err)
		}
	}
	fs.commits.push(ctx)
	fs.dropAll(ErrClosed)
	fs.stop(ErrClosed)
	fs.work.Wait()
	fs.dropAhead()
	if err := fs.meta.CloseSession(ctx); err != nil {
		errs = append(errs, err)
	}
	fs.targets.close()
	return errors.Join(errs...)
}

// Session returns the id of the client's session.
func (fs *FS) Session() rfs.SessionID { return rfs.SessionID(fs.session.Load()) }

// Map returns the newest cluster map that is known.
func (fs *FS) Map() *placement.Map { return fs.meta.CachedMap() }

// tag returns a tag above all that this client used or saw.
func (fs *FS) tag() rfs.Tag {
	return rfs.Tag{HLC: fs.clock.Now(), Session: fs.Session(), Seq: fs.seq.Add(1)}
}

// tagAbove returns a tag above held, too.
func (fs *FS) tagAbove(held rfs.Tag) (rfs.Tag, error) {
	if err := fs.clock.Observe(held.HLC); err != nil {
		return rfs.Tag{}, err
	}
	return fs.tag(), nil
}

// mapChanged wakes who waits for a newer map.
func (fs *FS) mapChanged(m *placement.Map) {
	fs.mapMu.Lock()
	if m.Epoch <= fs.mapEpoch {
		fs.mapMu.Unlock()
		return
	}
	fs.mapEpoch = m.Epoch
	close(fs.mapNews)
	fs.mapNews = make(chan struct{})
	fs.mapMu.Unlock()
	for _, ino := range fs.openInodes() {
		ino.suspect(m)
	}
}

// refresh asks for the newest map. Without an answer the one that is known has to do, until ctx ends.
func (fs *FS) refresh(ctx context.Context) error {
	_, err := fs.refreshed(ctx)
	return err
}

// refreshed is refresh that says whether the service answered.
func (fs *FS) refreshed(ctx context.Context) (bool, error) {
	attempt, cancel := context.WithTimeout(ctx, fs.cfg.CallTimeout)
	defer cancel()
	m, err := fs.meta.RefreshMap(attempt)
	if err == nil {
		fs.mapChanged(m)
	}
	if ctx.Err() != nil {
		return false, ended(ctx)
	}
	return err == nil, nil
}

// newMap returns a channel that is closed when the map changes after the call.
func (fs *FS) newMap() <-chan struct{} {
	fs.mapMu.Lock()
	defer fs.mapMu.Unlock()
	return fs.mapNews
}

// lost ends everything: what is dirty is void, since others may hold its leases by now.
func (fs *FS) lost(err error) {
	err = fmt.Errorf("%w: %w: unmount and mount again", rfs.ErrSessionLost, err)
	fs.log.Error("session lost: unwritten bytes of open files are gone", "err", err)
	fs.stop(err)
	fs.dropAll(err)
}

// patience returns a context for work that a caller waits for: it ends with
// ctx, with the client, and on a soft client after its timeout.
func (fs *FS) patience(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(fs.ctx, func() { cancel(context.Cause(fs.ctx)) })
	var timer *time.Timer
	if fs.cfg.Soft > 0 {
		timer = time.AfterFunc(fs.cfg.Soft, func() { cancel(errSoft) })
	}
	return ctx, func() {
		stop()
		if timer != nil {
			timer.Stop()
		}
		cancel(nil)
	}
}

var errSoft = fmt.Errorf("no answer within the soft timeout: %w", rfs.ErrUnavailable)

// ended returns why ctx ended, for a caller.
func ended(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return ctx.Err()
}

// pause waits for d, a newer map or the end of ctx, whichever is first.
func (fs *FS) pause(ctx context.Context, d time.Duration, news <-chan struct{}) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-news:
	case <-ctx.Done():
		return ended(ctx)
	}
	return nil
}
