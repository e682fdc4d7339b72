package wire

import (
	"fmt"

	"rfs"
)

// Status is how a server answered. The numbers are part of the protocol: they
// are never changed or used again.
type Status uint16

// Status values.
const (
	StatusOK Status = iota
	StatusInternal
	StatusUnknownOp
	StatusBadRequest // the header does not parse or contradicts itself
	StatusNotFound
	StatusExist
	StatusNotDir
	StatusIsDir
	StatusNotEmpty
	StatusInvalid
	StatusPermission
	StatusAccess
	StatusNameTooLong
	StatusNoSpace
	StatusNoAttr
	StatusCrossDevice
	StatusTooManyLinks
	StatusFileTooBig
	StatusWouldBlock
	StatusDeadlock
	StatusReadOnly
	StatusStale
	StatusSessionLost
	StatusUnavailable // may pass: not the leader, no quorum, fenced, starting
	StatusCorrupt     // what is stored does not check
	StatusStaleEpoch  // the header has the slot's epoch and the map's epoch
	StatusStaleTag    // the header has the highest tag held
	StatusUnsupported
	StatusBadPayload // the payload does not match its CRCs: send it again
	StatusNotLeader  // the header names the leader, if known
	StatusGone       // the exact version asked for is no longer stored
	StatusUnresolved // the newest version is not known complete: ask the slot's leader
	StatusCancelled
	StatusIO // the disk failed
)

var statuses = [...]struct {
	name string
	err  error
}{
	StatusOK:           {"ok", nil},
	StatusInternal:     {"internal error", nil},
	StatusUnknownOp:    {"unknown operation", rfs.ErrUnsupported},
	StatusBadRequest:   {"malformed request", rfs.ErrInvalid},
	StatusNotFound:     {"not found", rfs.ErrNotFound},
	StatusExist:        {"exists", rfs.ErrExist},
	StatusNotDir:       {"not a directory", rfs.ErrNotDir},
	StatusIsDir:        {"is a directory", rfs.ErrIsDir},
	StatusNotEmpty:     {"not empty", rfs.ErrNotEmpty},
	StatusInvalid:      {"invalid", rfs.ErrInvalid},
	StatusPermission:   {"not permitted", rfs.ErrPermission},
	StatusAccess:       {"access denied", rfs.ErrAccess},
	StatusNameTooLong:  {"name too long", rfs.ErrNameTooLong},
	StatusNoSpace:      {"no space", rfs.ErrNoSpace},
	StatusNoAttr:       {"no such attribute", rfs.ErrNoAttr},
	StatusCrossDevice:  {"cross-device link", rfs.ErrCrossDevice},
	StatusTooManyLinks: {"too many links", rfs.ErrTooManyLinks},
	StatusFileTooBig:   {"file too big", rfs.ErrFileTooBig},
	StatusWouldBlock:   {"would block", rfs.ErrWouldBlock},
	StatusDeadlock:     {"deadlock", rfs.ErrDeadlock},
	StatusReadOnly:     {"read-only", rfs.ErrReadOnly},
	StatusStale:        {"stale inode", rfs.ErrStale},
	StatusSessionLost:  {"session lost", rfs.ErrSessionLost},
	StatusUnavailable:  {"unavailable", rfs.ErrUnavailable},
	StatusCorrupt:      {"corrupt", rfs.ErrCorrupt},
	StatusStaleEpoch:   {"stale epoch", rfs.ErrStaleEpoch},
	StatusStaleTag:     {"stale tag", rfs.ErrStaleTag},
	StatusUnsupported:  {"unsupported", rfs.ErrUnsupported},
	StatusBadPayload:   {"payload does not match its checksum", rfs.ErrCorrupt},
	StatusNotLeader:    {"not the leader", rfs.ErrUnavailable},
	StatusGone:         {"version gone", rfs.ErrStaleTag},
	StatusUnresolved:   {"version not known complete", rfs.ErrUnavailable},
	StatusCancelled:    {"cancelled", rfs.ErrUnavailable},
	StatusIO:           {"disk error", rfs.ErrUnavailable},
}

func (s Status) String() string {
	if int(s) < len(statuses) {
		return statuses[s].name
	}
	return fmt.Sprintf("status %d", uint16(s))
}

// Err returns the root package's error that s stands for, or nil.
func (s Status) Err() error {
	if int(s) < len(statuses) {
		return statuses[s].err
	}
	return nil
}

// Op is the operation of a request. The numbers are part of the protocol.
type Op uint16

// Data operations, served by a storage target; see data.go for their headers.
const (
	OpPrepare    Op = 1 + iota // store a version of a shard, not yet known complete
	OpCommit                   // hint: versions are complete (batched)
	OpRetag                    // give a prepared version a higher tag
	OpAbort                    // drop a prepared version
	OpRead                     // read a range of a shard
	OpResolve                  // ask the slot's leader whether a version is complete
	OpQuery                    // a leader asks a member what it holds of a stripe
	OpOrder                    // ask the slot's leader for a turn after three refusals
	OpSync                     // make all that was acknowledged durable
	OpTrim                     // drop the stripes of an inode from one on, below a tag
	OpDelete                   // drop all of an inode
	OpList                     // list what a target holds of a slot
	OpExtent                   // how far an inode's bytes reach on this target
	OpTargetStat               // space and health
)

// Metadata operations carry protobuf messages (raftmeta/metapb).
const (
	OpMeta     Op = 64 + iota // a metadata call; the message says which
	OpEvents                  // long poll of a session's events
	OpRaft                    // Raft messages between replicas
	OpSnapshot                // a chunk of a Raft snapshot
	OpAdmin                   // cluster administration
)

// OpTest is the first of 16 operations that tests may use.
const OpTest Op = 240

var opNames = map[Op]string{
	OpPrepare: "prepare", OpCommit: "commit", OpRetag: "retag", OpAbort: "abort", OpRead: "read",
	OpResolve: "resolve", OpQuery: "query", OpOrder: "order", OpSync: "sync", OpTrim: "trim",
	OpDelete: "delete", OpList: "list", OpExtent: "extent", OpTargetStat: "target-stat",
	OpMeta: "meta", OpEvents: "events", OpRaft: "raft", OpSnapshot: "snapshot", OpAdmin: "admin",
}

func (o Op) String() string {
	if n, ok := opNames[o]; ok {
		return n
	}
	return fmt.Sprintf("op %d", uint16(o))
}
