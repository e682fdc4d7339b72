package raftmeta

import (
	"fmt"
	"log/slog"
	"time"

	"rfs"
	"rfs/placement"
	"rfs/transport"
)

// File types, as in st_mode.
const (
	TypeMask   = 0o170000
	TypeSocket = 0o140000
	TypeLink   = 0o120000
	TypeFile   = 0o100000
	TypeBlock  = 0o060000
	TypeDir    = 0o040000
	TypeChar   = 0o020000
	TypeFIFO   = 0o010000
)

const (
	// MaxLinks is how many names an inode may have.
	MaxLinks = 1<<31 - 1
	// MaxTarget is the longest target of a symbolic link in bytes.
	MaxTarget = 4095
	// MaxXattr is the largest value of an extended attribute in bytes.
	MaxXattr = 64 << 10
	// MaxFileSize is the largest size of a file in bytes.
	MaxFileSize = 1<<63 - 1
)

// Attr is what stat says of an inode, and the layout of its bytes. Times are
// nanoseconds since 1970.
type Attr struct {
	Inode    rfs.InodeID
	Mode     uint32 // type and permission bits, as st_mode
	Nlink    uint32
	UID, GID uint32
	Rdev     uint32
	Size     int64 // of a directory: how many entries it has
	Atime    int64
	Mtime    int64
	Ctime    int64
	Btime    int64
	// Parent is set for directories.
	Parent rfs.InodeID
	// Layout is of a regular file; of a directory, Layout.Pool is where its new files go (0: the first pool).
	Layout rfs.Layout
	// Change is the Raft index of the last change of the inode.
	Change uint64
	// Trims are the truncations whose bytes are still on the targets. Whoever
	// makes the file longer must finish them first, lest old bytes come back.
	Trims []Trim
	// Writers says that another session has the file open for writing: Size and
	// Mtime may lag (an Attr from Getattr does not: the writers were asked).
	Writers bool
}

func (a *Attr) Type() uint32    { return a.Mode & TypeMask }
func (a *Attr) IsDir() bool     { return a.Type() == TypeDir }
func (a *Attr) IsRegular() bool { return a.Type() == TypeFile }

// A Trim is a truncation to Size, of which what the targets hold with a lower
// tag is to be dropped: stripes past it by TRIM, the rest of the stripe at Size
// by a punch.
type Trim struct {
	Size int64
	Tag  rfs.Tag
	// Swept says that the TRIM was sent (by the cleaner, for a session that
	// ended): only the punch remains.
	Swept bool
}

// SetAttr says which attributes to change; nil is none. Who changes Size must
// hold the file open for writing, so that others' caches were recalled.
type SetAttr struct {
	Mode, UID, GID      *uint32 // Mode without the type
	Size                *int64
	Atime, Mtime, Ctime *int64 // Ctime nil means now
	// Tag is above all that the client wrote to the file; set with Size when the
	// file becomes shorter. It is recorded as a Trim until TrimDone.
	Tag rfs.Tag
}

// OpenMode is what a file is opened for.
type OpenMode uint32

const (
	OpenRead  OpenMode = 1
	OpenWrite OpenMode = 2
)

// CacheMode is what a session may do with a file that it has open.
type CacheMode uint32

const (
	// CacheNone: every read asks the targets, every write returns when they have it, and its size is committed.
	CacheNone CacheMode = iota
	// CacheRead: what was read may be kept. No session has the file open for writing.
	CacheRead
	// CacheReadWrite: writes may be kept too. No other session has the file open.
	CacheReadWrite
)

func (m CacheMode) String() string {
	switch m {
	case CacheNone:
		return "none"
	case CacheRead:
		return "read"
	case CacheReadWrite:
		return "read-write"
	}
	return fmt.Sprintf("CacheMode(%d)", uint32(m))
}

// OpenResult is the answer to Open and Create.
type OpenResult struct {
	Attr Attr
	// Cache is for all of the session's handles of the file.
	Cache CacheMode
	// Grant orders Cache against recalls: a Recall with a lower At is older and must be ignored.
	Grant uint64
	// Created says that Create made the file.
	Created bool
}

// DirEntry is one name in a directory.
type DirEntry struct {
	Name  string
	Inode rfs.InodeID
	Type  uint32 // as in st_mode
	// Cookie goes on after this entry. It is at least 16, fits an int64, and
	// stays good however the directory changes.
	Cookie uint64
	// Attr is set when asked for. Its Size lags if Writers is set.
	Attr *Attr
}

// CreateSpec says what Create makes.
type CreateSpec struct {
	Mode     uint32 // permission bits
	UID, GID uint32
	Excl     bool // fail if the name exists, else open what it names
	Open     OpenMode
}

// MknodSpec says what Mknod makes.
type MknodSpec struct {
	Mode     uint32 // type and permission bits
	UID, GID uint32
	Rdev     uint32
	Target   string // of a symbolic link
}

// RenameFlags are those of renameat2.
type RenameFlags uint32

const (
	RenameNoReplace RenameFlags = 1
	RenameExchange  RenameFlags = 2
	// renameHold is RenameHold's.
	renameHold RenameFlags = 1 << 31
)

// XattrFlags are those of setxattr.
type XattrFlags uint32

const (
	XattrCreate  XattrFlags = 1
	XattrReplace XattrFlags = 2
)

// LockType is what a lock shuts out.
type LockType uint32

const (
	Unlock LockType = iota
	ReadLock
	WriteLock
)

// LockSpec is a lock of bytes Start to End (inclusive; ^0 is the end of any
// file). POSIX locks and flock locks (which are of the whole file) do not see
// each other, as on Linux.
type LockSpec struct {
	Owner      uint64 // the kernel's lock owner, unique in the session
	Flock      bool
	Type       LockType
	Start, End uint64
	PID        uint32        // for people
	Session    rfs.SessionID // in answers
}

// CommitSpec is what a writer knows of a file.
type CommitSpec struct {
	Size  int64
	Exact bool  // else the size only grows
	Mtime int64 // 0: unchanged
	Atime int64 // 0: unchanged
}

// Recall asks a session to lower the cache mode of a file.
type Recall struct {
	Inode rfs.InodeID
	Mode  CacheMode
	// At orders it against OpenResult.Grant: ignore one that is lower than the file's latest Grant.
	At uint64
}

// Events are called by a Client that has a session, each on a goroutine of its
// own; nil is allowed.
type Events struct {
	// MapChanged: the map has a higher epoch than this was called with before; Client.Map has it.
	MapChanged func(*placement.Map)
	// Recall: flush and Commit what is dirty, use r.Mode from now on, return.
	// The client library acknowledges when it returns.
	Recall func(r Recall)
	// SizeWanted: Commit the size and mtime of the file if they are not, return.
	SizeWanted func(rfs.InodeID)
	// Lost: the session ended; caches, locks and unsynced writes are void. A new
	// session may be opened with Client.OpenSession.
	Lost func(error)
}

// Statfs is the space of the cluster. Usable counts the pool's overhead in.
type Statfs struct {
	Capacity, Used int64 // of the targets, bytes
	Usable, Free   int64 // of file bytes in the first pool
	Inodes         uint64
}

// Opener is a session that has a file open.
type Opener struct {
	Session          rfs.SessionID
	Readers, Writers uint32
	Cache            CacheMode
	Grant            uint64
}

// TargetReport is what a daemon says of a target in a heartbeat.
type TargetReport struct {
	Target         rfs.TargetID
	Capacity, Used int64
	// Failed says that the target cannot serve (Detail says why): it is declared down at once.
	Failed bool
	Detail string
}

// HeartbeatReply is the answer to a daemon's heartbeat.
type HeartbeatReply struct {
	MapEpoch rfs.Epoch
	// Ended are the sessions that ended since Cursor of the last reply was
	// given: their PREPAREs must be refused. Cursor 0 gives all that are kept.
	Ended  []rfs.SessionID
	Cursor uint32
	// Lease is how long the daemon may serve after it sent the heartbeat.
	Lease time.Duration
	// Down are the node's targets that the map has as down, or does not have:
	// register them again (RegisterTarget) to come back.
	Down []rfs.TargetID
}

// PoolSpec is what CreatePool makes. Zero fields take the defaults.
type PoolSpec struct {
	Name   string
	Scheme placement.Scheme
	Slots  int // default DefaultSlots
	Unit   uint32
	Cell   uint32
}

// DefaultSlots is how many slots a pool gets.
const DefaultSlots = 256

// Member is a replica of the metadata service.
type Member struct {
	ID      uint64         `json:"id"`
	Addr    transport.Addr `json:"addr"`
	Learner bool           `json:"learner,omitempty"`
}

// ReplicaStatus is what a replica says of itself.
type ReplicaStatus struct {
	Addr       transport.Addr `json:"addr"` // as it was asked
	Cluster    rfs.UUID       `json:"cluster"`
	ID         uint64         `json:"id"`
	Role       string         `json:"role"` // uninitialized, follower, learner, candidate, leader, removed
	Leader     uint64         `json:"leader"`
	Term       uint64         `json:"term"`
	Commit     uint64         `json:"commit"`
	Applied    uint64         `json:"applied"`
	First      uint64         `json:"first"` // of the log
	Last       uint64         `json:"last"`
	Members    []Member       `json:"members"`
	Progress   []Progress     `json:"progress,omitempty"` // as the leader sees the others
	MapEpoch   rfs.Epoch      `json:"map_epoch"`
	Sessions   uint64         `json:"sessions"`
	Inodes     uint64         `json:"inodes"`
	PurgeQueue uint64         `json:"purge_queue"` // inodes whose shards are still to be deleted
	Made       int64          `json:"made"`        // when the cluster was, ns since 1970
	Err        error          `json:"-"`           // it did not answer
	Error      string         `json:"error,omitempty"`
}

// Lag is how many committed entries the replica has not applied.
func (s *ReplicaStatus) Lag() uint64 { return s.Commit - min(s.Commit, s.Applied) }

// Progress is how far a replica's log is.
type Progress struct {
	ID     uint64 `json:"id"`
	Match  uint64 `json:"match"`
	State  string `json:"state"`
	Active bool   `json:"active"`
}

func orDiscard(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
