// Package rfs names the nouns that all of rfs shares: inodes, stripes, shards,
// slots, tags and epochs. It does no I/O and imports nothing of rfs.
//
// A file is cut into stripes. A stripe has k data shards and m parity shards,
// each of up to Unit bytes, filled in rows of Cell bytes:
//
//	file offset        0      Cell    2*Cell  ...    k*Cell  ...
//	row 0          [ data 0 | data 1 | ... | data k-1 ] parity k .. k+m-1
//	row 1          [ data 0 | data 1 | ... | data k-1 ] parity k .. k+m-1
//	...
//
// so that byte o of a stripe lies on data shard (o/Cell)%k, at offset
// (o/(k*Cell))*Cell + o%Cell of that shard.
//
// A shard lives on one target and exists there in versions that a Tag orders.
// A slot is the ordered list of k+m targets that hold the shards of a stripe.
package rfs

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

const (
	// DefaultUnit is the default size of a full shard in bytes.
	DefaultUnit = 1 << 20
	// DefaultCell is the default width of a row on one shard in bytes.
	DefaultCell = 128 << 10
	// BlockSize is what one CRC32C covers, in bytes. Units and cells are multiples of it.
	BlockSize = 4096
	// MaxShards is the largest k+m.
	MaxShards = 255
	// MaxName is the longest name of a directory entry in bytes.
	MaxName = 255
)

// InodeID names a file, directory or symlink for ever: it is never used
// again. The upper 16 bits are the metadata shard, the lower 48 a counter.
type InodeID uint64

// RootInode is the root directory.
const RootInode InodeID = 1

func (i InodeID) Shard() uint16  { return uint16(i >> 48) }
func (i InodeID) String() string { return fmt.Sprintf("%x", uint64(i)) }

// Epoch counts changes of the cluster map or of a slot.
type Epoch uint32

// SessionID names a client's session with the metadata service. It stands in
// Tags, and is never used again. Zero is the cluster itself (leaders, repair).
type SessionID uint32

// PoolID names a pool; SlotID one of the pool's slots, from 0.
type (
	PoolID uint16
	SlotID uint32
)

// NodeID and TargetID are random UUIDs.
type (
	NodeID   = UUID
	TargetID = UUID
)

// UUID is a random 128-bit name.
type UUID [16]byte

// NewUUID returns a random (version 4) UUID.
func NewUUID() UUID {
	var u UUID
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	return u
}

func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func (u UUID) IsZero() bool { return u == UUID{} }

// Compare orders UUIDs by their bytes.
func (u UUID) Compare(v UUID) int { return strings.Compare(string(u[:]), string(v[:])) }

// ParseUUID is the inverse of String.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) {
		return u, fmt.Errorf("uuid %q: want 32 hexadecimal digits", s)
	}
	copy(u[:], b)
	return u, nil
}

func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

func (u *UUID) UnmarshalText(b []byte) (err error) {
	*u, err = ParseUUID(string(b))
	return err
}

// ShardKey names one target's part of a stripe; it is the key on disk.
type ShardKey struct {
	Inode  InodeID
	Stripe uint32
	Shard  uint8 // 0..k-1 data, k..k+m-1 parity
}

func (k ShardKey) String() string {
	return fmt.Sprintf("%v/%d/%d", k.Inode, k.Stripe, k.Shard)
}

// Compare orders keys by inode, stripe, shard.
func (k ShardKey) Compare(o ShardKey) int {
	return cmp.Or(cmp.Compare(k.Inode, o.Inode), cmp.Compare(k.Stripe, o.Stripe), cmp.Compare(k.Shard, o.Shard))
}

// A Tag orders the versions of a shard. Tags are unique: a session never uses
// one twice. The zero Tag is the version of what was never written.
type Tag struct {
	HLC     uint64 // hybrid logical clock: microseconds since 1970 << 12 | counter
	Session SessionID
	Seq     uint32
}

// TagSize is the length of an encoded Tag in bytes.
const TagSize = 16

func (t Tag) Compare(o Tag) int {
	return cmp.Or(cmp.Compare(t.HLC, o.HLC), cmp.Compare(t.Session, o.Session), cmp.Compare(t.Seq, o.Seq))
}
func (t Tag) Less(o Tag) bool { return t.Compare(o) < 0 }
func (t Tag) IsZero() bool    { return t == Tag{} }
func (t Tag) String() string  { return fmt.Sprintf("%x.%d.%d", t.HLC, t.Session, t.Seq) }

// PutTag writes t into the first TagSize bytes of b, little-endian.
func PutTag(b []byte, t Tag) {
	binary.LittleEndian.PutUint64(b, t.HLC)
	binary.LittleEndian.PutUint32(b[8:], uint32(t.Session))
	binary.LittleEndian.PutUint32(b[12:], t.Seq)
}

// GetTag is the inverse of PutTag.
func GetTag(b []byte) Tag {
	return Tag{
		HLC:     binary.LittleEndian.Uint64(b),
		Session: SessionID(binary.LittleEndian.Uint32(b[8:])),
		Seq:     binary.LittleEndian.Uint32(b[12:]),
	}
}

// A Layout says where a file's bytes are. It is frozen when the file is created.
type Layout struct {
	Pool  PoolID
	Start SlotID // slot of stripe 0; see placement.Pool.SlotOf for the others
	K, M  uint8
	Unit  uint32 // bytes of a full shard, a multiple of Cell
	Cell  uint32 // bytes of a row on one shard, a multiple of BlockSize
}

// Width returns k+m.
func (l Layout) Width() int { return int(l.K) + int(l.M) }

// StripeSize returns the file bytes of a full stripe.
func (l Layout) StripeSize() int64 { return int64(l.K) * int64(l.Unit) }

// Stripe returns the stripe of file offset off, and the offset in it.
func (l Layout) Stripe(off int64) (stripe uint32, in int64) {
	return uint32(off / l.StripeSize()), off % l.StripeSize()
}

// Locate returns the data shard that holds offset in of a stripe, the offset
// in that shard, and how many bytes from there are contiguous (to the cell's end).
func (l Layout) Locate(in int64) (shard uint8, off uint32, n uint32) {
	cell := int64(l.Cell)
	row, col := in/(cell*int64(l.K)), in/cell%int64(l.K)
	return uint8(col), uint32(row*cell + in%cell), uint32(cell - in%cell)
}

// StripeOffset is the inverse of Locate: the offset in the stripe of byte off of a data shard.
func (l Layout) StripeOffset(shard uint8, off uint32) int64 {
	cell := int64(l.Cell)
	row := int64(off) / cell
	return (row*int64(l.K)+int64(shard))*cell + int64(off)%cell
}

// ShardLen returns how many bytes of the given shard a stripe has whose first
// n bytes are present: for a parity shard, as many as the longest data shard.
func (l Layout) ShardLen(shard uint8, n int64) uint32 {
	if n <= 0 {
		return 0
	}
	if shard >= l.K {
		shard = 0
	}
	cell, row := int64(l.Cell), int64(l.Cell)*int64(l.K)
	rest := n%row - int64(shard)*cell
	return uint32(n/row*cell + min(max(rest, 0), cell))
}

// Validate reports the first thing wrong with l.
func (l Layout) Validate() error {
	switch {
	case l.K == 0:
		return errors.New("layout: k is 0: a stripe needs a data shard")
	case int(l.K)+int(l.M) > MaxShards:
		return fmt.Errorf("layout: k+m is %d: at most %d", int(l.K)+int(l.M), MaxShards)
	case l.Cell == 0 || l.Cell%BlockSize != 0:
		return fmt.Errorf("layout: cell of %d bytes: want a multiple of %d", l.Cell, BlockSize)
	case l.Unit == 0 || l.Unit%l.Cell != 0:
		return fmt.Errorf("layout: unit of %d bytes: want a multiple of the cell, %d", l.Unit, l.Cell)
	}
	return nil
}

// A ShardSet is a set of shard numbers 0..255.
type ShardSet [4]uint64

func (s *ShardSet) Add(i uint8)     { s[i/64] |= 1 << (i % 64) }
func (s *ShardSet) Remove(i uint8)  { s[i/64] &^= 1 << (i % 64) }
func (s ShardSet) Has(i uint8) bool { return s[i/64]&(1<<(i%64)) != 0 }
func (s ShardSet) IsEmpty() bool    { return s == ShardSet{} }

// The errors that cross layers. Each layer wraps them with the operation and
// the object; mount has the one table from these to errno.
var (
	ErrNotFound     = errors.New("no such file or directory")
	ErrExist        = errors.New("file exists")
	ErrNotDir       = errors.New("not a directory")
	ErrIsDir        = errors.New("is a directory")
	ErrNotEmpty     = errors.New("directory not empty")
	ErrInvalid      = errors.New("invalid argument")
	ErrPermission   = errors.New("operation not permitted")
	ErrAccess       = errors.New("permission denied")
	ErrNameTooLong  = errors.New("name longer than 255 bytes")
	ErrNoSpace      = errors.New("no space left on the storage targets")
	ErrNoAttr       = errors.New("no such extended attribute")
	ErrCrossDevice  = errors.New("invalid cross-device link")
	ErrTooManyLinks = errors.New("too many links")
	ErrFileTooBig   = errors.New("file too large")
	ErrWouldBlock   = errors.New("resource temporarily unavailable") // a lock is held by another
	ErrDeadlock     = errors.New("resource deadlock avoided")
	ErrReadOnly     = errors.New("read-only file system")
	ErrStale        = errors.New("stale file handle")                       // the inode is gone
	ErrSessionLost  = errors.New("session with the metadata service ended") // its leases and unsynced writes are lost
	ErrUnavailable  = errors.New("service unavailable")                     // no quorum, or too few live targets; may pass
	ErrCorrupt      = errors.New("checksum does not match")                 // and could not be rebuilt
	ErrStaleEpoch   = errors.New("epoch is out of date")                    // fetch the map and try again
	ErrStaleTag     = errors.New("a newer version is stored")               // tag above it and try again
	ErrUnsupported  = errors.ErrUnsupported
)
