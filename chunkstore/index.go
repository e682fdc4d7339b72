package chunkstore

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"

	"rfs"
	"rfs/internal/vfs"
)

var be = binary.BigEndian

// Keys of the index; numbers are big-endian so that they sort. The first byte
// says what a key is of.
const (
	keyVersion = 'v' // inode 8 | stripe 4 | shard 1 | tag 16 | kind 1 -> record
	keySlot    = 's' // pool 2 | slot 4 | inode 8 | stripe 4 | shard 1 -> nothing
	keyFloor   = 'f' // inode 8 | stripe 4                             -> tag 16
	keySynced  = 'm' // "synced"                                       -> seq 8

	shardPrefixLen = 14 // of a version's key: 'v', inode, stripe, shard
	versionKeyLen  = shardPrefixLen + 17
	slotKeyLen     = 20
)

var syncedKey = []byte("msynced")

func appendShardPrefix(b []byte, k rfs.ShardKey) []byte {
	b = append(b, keyVersion)
	b = be.AppendUint64(b, uint64(k.Inode))
	b = be.AppendUint32(b, k.Stripe)
	return append(b, k.Shard)
}

func appendVersionKey(b []byte, k rfs.ShardKey, t rfs.Tag, kind Kind) []byte {
	b = appendShardPrefix(b, k)
	b = be.AppendUint64(b, t.HLC)
	b = be.AppendUint32(b, uint32(t.Session))
	b = be.AppendUint32(b, t.Seq)
	return append(b, byte(kind))
}

// parseVersionKey is the inverse of appendVersionKey.
func parseVersionKey(b []byte) (k rfs.ShardKey, t rfs.Tag, kind Kind, err error) {
	if len(b) != versionKeyLen || b[0] != keyVersion {
		return k, t, 0, fmt.Errorf("index key %x is not of a version", b)
	}
	k = rfs.ShardKey{Inode: rfs.InodeID(be.Uint64(b[1:])), Stripe: be.Uint32(b[9:]), Shard: b[13]}
	t = rfs.Tag{HLC: be.Uint64(b[14:]), Session: rfs.SessionID(be.Uint32(b[22:])), Seq: be.Uint32(b[26:])}
	return k, t, Kind(b[30]), nil
}

// parseEntry checks a key and a value of the index against each other.
func parseEntry(key, value []byte) (rfs.ShardKey, record, error) {
	k, t, kind, err := parseVersionKey(key)
	if err != nil {
		return k, nil, err
	}
	r, err := parseRecord(value)
	if err != nil {
		return k, nil, fmt.Errorf("index entry of %v: %w", k, err)
	}
	if r.tag() != t || r.kind() != kind {
		return k, nil, fmt.Errorf("index entry of %v: record of %v %v under key of %v %v", k, r.tag(), r.kind(), t, kind)
	}
	return k, r, nil
}

func appendSlotKey(b []byte, pool rfs.PoolID, slot rfs.SlotID, k rfs.ShardKey) []byte {
	b = append(b, keySlot)
	b = be.AppendUint16(b, uint16(pool))
	b = be.AppendUint32(b, uint32(slot))
	b = be.AppendUint64(b, uint64(k.Inode))
	b = be.AppendUint32(b, k.Stripe)
	return append(b, k.Shard)
}

func parseSlotKey(b []byte) (k rfs.ShardKey, err error) {
	if len(b) != slotKeyLen || b[0] != keySlot {
		return k, fmt.Errorf("index key %x is not of a slot", b)
	}
	return rfs.ShardKey{Inode: rfs.InodeID(be.Uint64(b[7:])), Stripe: be.Uint32(b[15:]), Shard: b[19]}, nil
}

func appendFloorKey(b []byte, inode rfs.InodeID, stripe uint32) []byte {
	b = append(b, keyFloor)
	b = be.AppendUint64(b, uint64(inode))
	return be.AppendUint32(b, stripe)
}

// comparer is Pebble's own with prefixes: a filter answers for all versions of
// a shard at once.
var comparer = func() *pebble.Comparer {
	c := *pebble.DefaultComparer
	c.Name = "rfs.chunkstore.1"
	c.Split = func(k []byte) int {
		if len(k) > shardPrefixLen && k[0] == keyVersion {
			return shardPrefixLen
		}
		return len(k)
	}
	// The prefix after that of a shard is the next number of as many bytes: one
	// with a byte more would be a version of the same shard.
	c.ImmediateSuccessor = func(dst, prefix []byte) []byte {
		if len(prefix) != shardPrefixLen || prefix[0] != keyVersion {
			return pebble.DefaultComparer.ImmediateSuccessor(dst, prefix)
		}
		n := len(dst)
		dst = append(dst, prefix...)
		for i := len(dst) - 1; i >= n; i-- {
			if dst[i]++; dst[i] != 0 {
				break
			}
		}
		return dst
	}
	return &c
}()

// sharedCache is the block cache of all indexes of the process: `rfs dev` has
// seven stores in one.
var sharedCache = sync.OnceValue(func() *pebble.Cache { return pebble.NewCache(64 << 20) })

// openIndex opens the Pebble of a store, small: the records of a terabyte of
// 1 MiB shards are a gigabyte. Only create makes one that is not there: an empty
// index in the place of one that was lost would have all extents be free.
func openIndex(fs vfs.FS, dir string, cache *pebble.Cache, logger pebble.Logger, create bool) (*pebble.DB, error) {
	if cache == nil {
		cache = sharedCache()
	}
	o := &pebble.Options{
		FS:                         fs.Pebble(),
		Cache:                      cache,
		Comparer:                   comparer,
		FormatMajorVersion:         pebble.FormatColumnarBlocks,
		MemTableSize:               8 << 20,
		MaxOpenFiles:               128,
		L0CompactionThreshold:      4,
		L0StopWritesThreshold:      24,
		LBaseMaxBytes:              32 << 20,
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
		ErrorIfNotExists:           !create,
		Logger:                     logger,
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	return pebble.Open(dir, o)
}

// indexLog is Pebble's log. What Pebble holds to be fatal (it cannot write its
// log or manifest) fails the store, not the process, which may have others.
type indexLog struct {
	log  *slog.Logger
	fail func(error)
}

func (l indexLog) Infof(format string, args ...any) {
	l.log.Debug("index: " + fmt.Sprintf(format, args...))
}

func (l indexLog) Errorf(format string, args ...any) {
	l.log.Error("index: " + fmt.Sprintf(format, args...))
}

func (l indexLog) Fatalf(format string, args ...any) {
	err := fmt.Errorf("index: "+format, args...)
	l.log.Error(err.Error())
	l.fail(err)
}
