package chunkstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"

	"rfs"
)

var le = binary.LittleEndian

const (
	blockSize = rfs.BlockSize
	maxOrder  = 10 // extents of up to 4 MiB
	// MaxPayload is the most bytes that one version holds.
	MaxPayload = blockSize << maxOrder
	// maxShard bounds offsets in a shard, so that sums of two do not wrap.
	maxShard    = 1 << 30
	maxSegments = 4096
)

// An extent is 4096<<order bytes of a segment's data file, from block*4096. It
// is aligned to its size.
type extent struct {
	seg   uint32
	block uint32
	order uint8
}

func (e extent) blocks() uint32 { return 1 << e.order }
func (e extent) size() int64    { return blockSize << e.order }
func (e extent) offset() int64  { return int64(e.block) * blockSize }

// orderOf returns the order of the smallest extent of at least n bytes.
func orderOf(n int) uint8 {
	if n <= blockSize {
		return 0
	}
	return uint8(bits.Len(uint((n - 1) / blockSize)))
}

// extentOrder returns the order of the extent for a payload and its header:
// each block of the extent brings slotSize bytes for the header.
func extentOrder(payload, recLen int) uint8 {
	slots := (headerPrefix + recLen + slotSize - 1) / slotSize
	return max(orderOf(payload), orderOf(slots*blockSize))
}

// A record is a version as the index and the extent header hold it, read in
// place. The layout is drawn in the package's doc.
type record []byte

const (
	recFormat  = 1
	recFixed   = 88
	segmentLen = 12

	flagFold = 1
)

// appendRecord appends v, with CRCs crcs, to b.
func appendRecord(b []byte, v *Version, crcs []uint32) []byte {
	i := len(b)
	b = append(b, make([]byte, recFixed)...) // does not allocate
	r := b[i:]
	r[0], r[1], r[2] = recFormat, byte(v.Kind), byte(v.State)
	if v.Fold {
		r[3] = flagFold
	}
	le.PutUint32(r[4:], v.Length)
	rfs.PutTag(r[8:], v.Tag)
	le.PutUint64(r[24:], v.seq)
	for i, w := range v.W {
		le.PutUint64(r[32+8*i:], w)
	}
	le.PutUint32(r[64:], uint32(v.Slot))
	le.PutUint16(r[68:], uint16(v.Pool))
	r[70] = v.ext.order
	le.PutUint32(r[72:], v.ext.seg)
	le.PutUint32(r[76:], v.ext.block)
	le.PutUint32(r[80:], v.payload)
	le.PutUint16(r[84:], uint16(len(v.Segments)))
	for _, g := range v.Segments {
		b = le.AppendUint32(b, g.Off)
		b = le.AppendUint32(b, g.Len)
		b = append(b, g.Shard, 0, 0, 0)
		if g.Zero {
			b[len(b)-3] = 1
		}
	}
	for _, c := range crcs {
		b = le.AppendUint32(b, c)
	}
	return b
}

func recordLen(segments, crcs int) int { return recFixed + segmentLen*segments + 4*crcs }

func (r record) kind() Kind       { return Kind(r[1]) }
func (r record) state() State     { return State(r[2]) }
func (r record) fold() bool       { return r[3]&flagFold != 0 }
func (r record) length() uint32   { return le.Uint32(r[4:]) }
func (r record) tag() rfs.Tag     { return rfs.GetTag(r[8:]) }
func (r record) seq() uint64      { return le.Uint64(r[24:]) }
func (r record) slot() rfs.SlotID { return rfs.SlotID(le.Uint32(r[64:])) }
func (r record) pool() rfs.PoolID { return rfs.PoolID(le.Uint16(r[68:])) }
func (r record) payload() uint32  { return le.Uint32(r[80:]) }
func (r record) segments() int    { return int(le.Uint16(r[84:])) }
func (r record) extent() extent {
	return extent{seg: le.Uint32(r[72:]), block: le.Uint32(r[76:]), order: r[70]}
}

func (r record) w() (w rfs.ShardSet) {
	for i := range w {
		w[i] = le.Uint64(r[32+8*i:])
	}
	return w
}

func (r record) segment(i int) Segment {
	b := r[recFixed+segmentLen*i:]
	return Segment{Off: le.Uint32(b), Len: le.Uint32(b[4:]), Shard: b[8], Zero: b[9] != 0}
}

func (r record) crc(i int) uint32 { return le.Uint32(r[recFixed+segmentLen*r.segments()+4*i:]) }
func (r record) crcs() int        { return (len(r) - recFixed - segmentLen*r.segments()) / 4 }

func (r record) setState(s State)  { r[2] = byte(s) }
func (r record) setTag(t rfs.Tag)  { rfs.PutTag(r[8:], t) }
func (r record) setSeq(seq uint64) { le.PutUint64(r[24:], seq) }
func (r record) complete() bool    { return r.state() == Complete }

// version returns r as a Version that shares nothing with r.
func (r record) version() Version {
	v := Version{
		Tag: r.tag(), Kind: r.kind(), State: r.state(), W: r.w(), Length: r.length(),
		Slot: r.slot(), Pool: r.pool(), Fold: r.fold(),
		ext: r.extent(), payload: r.payload(), seq: r.seq(),
	}
	for i := range r.segments() {
		v.Segments = append(v.Segments, r.segment(i))
	}
	v.crcs = make([]uint32, r.crcs())
	for i := range v.crcs {
		v.crcs[i] = r.crc(i)
	}
	return v
}

// parseRecord checks that b is a record all of whose numbers fit each other,
// so that who reads it in place needs no more checks.
func parseRecord(b []byte) (record, error) {
	r := record(b)
	if len(b) < recFixed {
		return nil, fmt.Errorf("record of %d bytes: want %d or more", len(b), recFixed)
	}
	if r[0] != recFormat {
		return nil, fmt.Errorf("record format %d: this rfs knows %d: upgrade it", r[0], recFormat)
	}
	n := r.segments()
	if n > maxSegments || len(b) < recordLen(n, 0) {
		return nil, fmt.Errorf("record of %d bytes has %d segments", len(b), n)
	}
	if s := r.state(); s != Prepared && s != Complete {
		return nil, fmt.Errorf("record with state %d", s)
	}
	payload, crcs := uint64(0), 0
	switch r.kind() {
	case Full:
		if n != 0 || r.length() > MaxPayload {
			return nil, fmt.Errorf("full record of %d bytes with %d segments", r.length(), n)
		}
		payload, crcs = uint64(r.length()), Segment{Len: r.length()}.blocks()
	case Partial:
		if n == 0 {
			return nil, errors.New("partial record without segments")
		}
		for i := range n {
			g := r.segment(i)
			if g.Len == 0 || g.Len > maxShard || g.Off > maxShard-g.Len {
				return nil, fmt.Errorf("segment of %d bytes at %d", g.Len, g.Off)
			}
			if !g.Zero {
				payload += uint64(g.Len)
				crcs += g.blocks()
			}
		}
	default:
		return nil, fmt.Errorf("record of kind %d", r.kind())
	}
	e := r.extent()
	switch {
	case payload != uint64(r.payload()) || payload > MaxPayload:
		return nil, fmt.Errorf("record with %d bytes of payload for %d", r.payload(), payload)
	case len(b) != recordLen(n, crcs):
		return nil, fmt.Errorf("record of %d bytes: want %d", len(b), recordLen(n, crcs))
	case e.order > maxOrder || e.order < extentOrder(int(payload), len(b)) || e.block%e.blocks() != 0:
		return nil, fmt.Errorf("record with extent of order %d at block %d", e.order, e.block)
	}
	return r, nil
}

// The header of an extent: a prefix, then the record.
const (
	slotSize     = 256
	headerPrefix = 48
	headerMagic  = 0x58736672 // "rfsX"
	// markComplete stands outside what the header's CRC covers, so that COMMIT
	// writes four bytes.
	markComplete = 0x454e4f44 // "DONE"
	maxHeader    = slotSize << maxOrder
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendHeader appends the header of record r of the shard to b.
func appendHeader(b []byte, target rfs.TargetID, key rfs.ShardKey, r record) []byte {
	i := len(b)
	b = append(b, make([]byte, headerPrefix)...)
	h := b[i:]
	le.PutUint32(h, headerMagic)
	if r.complete() {
		le.PutUint32(h[4:], markComplete)
	}
	le.PutUint32(h[12:], uint32(len(r)))
	le.PutUint64(h[16:], uint64(key.Inode))
	le.PutUint32(h[24:], key.Stripe)
	h[28] = key.Shard
	copy(h[32:], target[:])
	b = append(b, r...)
	b[i+headerPrefix+2] = byte(Prepared) // the mark says the rest
	le.PutUint32(b[i+8:], crc32.Checksum(b[i+12:], castagnoli))
	return b
}

var errNoHeader = errors.New("no extent header")

// headerLen returns the length of the header that starts with the bytes p, of
// which there are at least headerPrefix, or errNoHeader.
func headerLen(p []byte) (int, error) {
	if le.Uint32(p) != headerMagic {
		return 0, errNoHeader
	}
	n := le.Uint32(p[12:])
	if n < recFixed || n > maxHeader-headerPrefix {
		return 0, fmt.Errorf("header with a record of %d bytes", n)
	}
	return headerPrefix + int(n), nil
}

// parseHeader checks the header b, whose length is exact, and returns what it
// says, with the record's state as the mark has it. It changes b.
func parseHeader(b []byte) (target rfs.TargetID, key rfs.ShardKey, r record, err error) {
	if len(b) < headerPrefix+recFixed {
		return target, key, nil, errNoHeader
	}
	n, err := headerLen(b)
	if err != nil {
		return target, key, nil, err
	}
	if n != len(b) {
		return target, key, nil, fmt.Errorf("header of %d bytes: want %d", len(b), n)
	}
	if c := crc32.Checksum(b[12:], castagnoli); c != le.Uint32(b[8:]) {
		return target, key, nil, fmt.Errorf("header's checksum is %08x, want %08x", c, le.Uint32(b[8:]))
	}
	copy(target[:], b[32:])
	key = rfs.ShardKey{Inode: rfs.InodeID(le.Uint64(b[16:])), Stripe: le.Uint32(b[24:]), Shard: b[28]}
	if r, err = parseRecord(b[headerPrefix:]); err != nil {
		return target, key, nil, err
	}
	if le.Uint32(b[4:]) == markComplete {
		r.setState(Complete)
	}
	return target, key, r, nil
}
