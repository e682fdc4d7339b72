package raftmeta

import (
	"crypto/sha256"
	"encoding/binary"

	"rfs"
)

// Kinds of keys of the state machine, drawn in the package doc.
const (
	kInode   = 'i'
	kEntry   = 'd'
	kXattr   = 'x'
	kSession = 's'
	kOpen    = 'o'
	kLocks   = 'l'
	kAsker   = 'a'
	kResult  = 'r'
	kPurge   = 'q'
	kCursor  = 'c'
	kTrim    = 't'
	kRecover = 'v'
	kEnded   = 'e'
	kMap     = 'M'
	kCounter = 'C'
	kApplied = 'F'
	kMembers = 'G'
)

// The two halves of the key space: one is the state, into the other a snapshot is received.
const (
	halfA = 'A'
	halfB = 'B'
)

func otherHalf(h byte) byte { return halfA + halfB - h }

// A key is begun by keyOf and goes on with the appending methods.
type key []byte

func keyOf(half, kind byte) key { return append(make(key, 0, 32), half, kind) }

func (k key) u32(v uint32) key      { return binary.BigEndian.AppendUint32(k, v) }
func (k key) u64(v uint64) key      { return binary.BigEndian.AppendUint64(k, v) }
func (k key) bytes(b []byte) key    { return append(k, b...) }
func (k key) ino(i rfs.InodeID) key { return k.u64(uint64(i)) }
func (k key) tag(t rfs.Tag) key {
	return k.u64(t.HLC).u32(uint32(t.Session)).u32(t.Seq)
}

// after returns the first key that does not have the prefix k.
func (k key) after() key {
	end := append(key(nil), k...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// The cookie of an entry is 0 1 | hash of the name 55 | number 8. Names of one
// hash are numbered from 0; while one with a higher number is there the place
// of a removed one is held, so that a lookup may stop at the first free place.
//
// The hash is cut from SHA-256: who chooses names cannot make 256 of them collide.
const (
	cookieNumbers = 256
	firstCookie   = 16
)

func cookieOf(name []byte) uint64 {
	h := sha256.Sum256(name)
	return max(binary.LittleEndian.Uint64(h[:])>>9, 1) << 8
}
