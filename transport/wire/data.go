package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"rfs"
)

// The headers of the data operations are structs of fixed offsets, little-endian,
// read in place. Fields are appended, never reordered: a decoder takes a longer
// header than it knows where no list follows. Reserved bytes are zero when sent
// and ignored when received.
//
// Every request begins with the common part:
//
//	 0  capability 32       zero until capabilities are issued
//	32  target 16           who is asked: a node serves several
//	48  inode 8
//	56  stripe 4
//	60  shard 1             position in the slot: 0..k-1 data, k..k+m-1 parity
//	61  flags 1             of the operation
//	62  pool 2
//	64  slot 4
//	68  slot epoch 4
//	72  session 4           zero: a server, not a client
//	76  reserved 4
//	80
//
// and goes on with
//
//	PREPARE   80 tag 16 | W 32 | length 4 | nseg 2 | ncrc 2 | 136 segment 12 x nseg | CRC 4 x ncrc
//	COMMIT    80 n 2 | reserved 6 | 88 entry 32 x n             (ABORT: the same; of a server with the slot's epoch)
//	RETAG     80 old tag 16 | new tag 16 | 112
//	READ      80 tag 16 | off 4 | n 4 | want 1 | reserved 7 | 112
//	RESOLVE   80 tag 16 | 96                                    (ORDER: the same)
//	QUERY     80 floor 16 | 96
//	TRIM      80 tag 16 | 96                                    stripe: the first to drop
//	LIST      80 max 4 | reserved 4 | 88                        inode, stripe: where to go on
//	EXTENT    80 k 1 | m 1 | reserved 2 | unit 4 | cell 4 | reserved 4 | 96
//	SYNC, DELETE, TARGET-STAT   the common part alone
//
//	segment   shard 1 | flags 1 (1: zeros, without payload) | reserved 2 | off 4 | len 4
//	entry     inode 8 | stripe 4 | shard 1 | kind 1 | reserved 2 | tag 16
//
// Replies with StatusOK carry
//
//	READ        tag 16 | base tag 16 | unresolved tag 16 | base W 32 | length 4 | nseg 2 | ncrc 2 | 88 segments | CRCs
//	COMMIT      n 2 | reserved 2 | 4 index 2 x n                entries whose version is not there (ABORT: the same)
//	RESOLVE     newest complete tag 16 | forward 2 | back 2 | reserved 4 | 24
//	ORDER       highest tag 16 | turn ms 4 | reserved 4 | 24
//	QUERY       floor 16 | highest tag 16 | slot epoch 4 | count 4 | bytes 4 | reserved 4 | trimmed tag 16 | 64   payload: versions
//	LIST        next inode 8 | next stripe 4 | more 1 | reserved 3 | count 4 | bytes 4 | 24       payload: entries
//	EXTENT      extent 8
//	TARGET-STAT capacity 8 | used 8 | shards 8 | state 1 | reserved 3 | map epoch 4 | 32
//
//	version   tag 16 | W 32 | length 4 | kind 1 | state 1 | flags 1 (1: fold) | reserved 1 | nseg 2 | reserved 6 | 64 segments
//	listed    inode 8 | stripe 4 | shard 1 | reserved 1 | count 2 | 16 versions
//
// and these carry, with their status,
//
//	STALE-EPOCH slot epoch 4 | map epoch 4
//	STALE-TAG   highest tag held or promised 16
//	NOT-LEADER  target 16 (zero: not known)
//	UNRESOLVED  as READ's, nothing pushed
const (
	CommonSize     = 80
	prepareSize    = 136
	commitSize     = 88
	retagSize      = 112
	readSize       = 112
	tagReqSize     = 96
	listSize       = 88
	extentSize     = 96
	readReplySize  = 88
	resolveRepSize = 24
	queryReplySize = 64
	listReplySize  = 24
	statReplySize  = 32

	// SegmentSize and EntrySize are the encoded lengths of a Segment and a CommitEntry in bytes.
	SegmentSize = 12
	EntrySize   = 32
	versionSize = 64
	listedSize  = 16

	// MaxShardSize bounds every offset in a shard, in bytes.
	MaxShardSize = 64 << 20
	// MaxEntries is how many CommitEntries one COMMIT or ABORT may carry.
	MaxEntries = 128
)

// Flags of PREPARE. Without FlagPartial the version is Full.
const (
	FlagPartial  = 1 << iota // an overlay: segments say which bytes
	FlagRepair               // of a leader or a reader that mends: passes floors and held tags
	FlagComplete             // known complete: stored so
	FlagFold                 // the content of base and overlays up to the tag, which is an overlay's
	FlagLocal                // with Fold: no payload, the target merges what it holds
	FlagOrdered              // the sender has the turn that ORDER gave
)

// Flags of READ. Without any, the newest complete content is read.
const (
	FlagExact    = 1 << iota // the Full version of just this tag, without overlays, whatever its state
	FlagOverlays             // the complete overlays above the base that touch shard Want's range, merged
	FlagVersion              // the Partial version of just this tag, whatever its state: its segments of shard Want
)

// FlagSync of RESOLVE also brings members up that are being synced.
const FlagSync = 1

// FlagRetagPartial says that RETAG means a Partial version.
const FlagRetagPartial = FlagPartial

// AllShards as READ's Want means every shard that has segments.
const AllShards = 0xff

// Kind and State of a version, as on the wire.
type (
	Kind  uint8
	State uint8
)

const (
	Full     Kind  = 0
	Partial  Kind  = 1
	Prepared State = 0
	Complete State = 1
)

func (k Kind) String() string  { return [...]string{"full", "partial"}[k&1] }
func (s State) String() string { return [...]string{"prepared", "complete"}[s&1] }

// ErrHeader is wrapped by every error of a decoder: the peer sent what it must not.
var ErrHeader = errors.New("malformed data header")

func short(what string, n, want int) error {
	return fmt.Errorf("%w: %s of %d bytes: want %d", ErrHeader, what, n, want)
}

var le = binary.LittleEndian

// Common is the first part of every request.
type Common struct {
	Target  rfs.TargetID
	Key     rfs.ShardKey
	Flags   uint8
	Pool    rfs.PoolID
	Slot    rfs.SlotID
	Epoch   rfs.Epoch // of the slot
	Session rfs.SessionID
}

func (c *Common) append(b []byte) []byte {
	var h [CommonSize]byte
	copy(h[32:], c.Target[:])
	le.PutUint64(h[48:], uint64(c.Key.Inode))
	le.PutUint32(h[56:], c.Key.Stripe)
	h[60], h[61] = c.Key.Shard, c.Flags
	le.PutUint16(h[62:], uint16(c.Pool))
	le.PutUint32(h[64:], uint32(c.Slot))
	le.PutUint32(h[68:], uint32(c.Epoch))
	le.PutUint32(h[72:], uint32(c.Session))
	return append(b, h[:]...)
}

// AppendCommon encodes a request that has no more than the common part: SYNC, DELETE, TARGET-STAT.
func AppendCommon(b []byte, c *Common) []byte { return c.append(b) }

// DecodeCommon decodes the common part of any data request.
func DecodeCommon(b []byte) (c Common, err error) {
	if len(b) < CommonSize {
		return c, short("request", len(b), CommonSize)
	}
	c.Target = rfs.TargetID(b[32:48])
	c.Key = rfs.ShardKey{Inode: rfs.InodeID(le.Uint64(b[48:])), Stripe: le.Uint32(b[56:]), Shard: b[60]}
	c.Flags = b[61]
	c.Pool = rfs.PoolID(le.Uint16(b[62:]))
	c.Slot = rfs.SlotID(le.Uint32(b[64:]))
	c.Epoch = rfs.Epoch(le.Uint32(b[68:]))
	c.Session = rfs.SessionID(le.Uint32(b[72:]))
	return c, nil
}

// A Segment is a range of a data shard that a Partial version overwrites with
// bytes of its payload, or with zeros.
type Segment struct {
	Shard    uint8
	Zero     bool
	Off, Len uint32
}

// Blocks returns how many blocks of shard space the n bytes from off touch: as many CRCs they have.
func Blocks(off, n uint32) int {
	if n == 0 {
		return 0
	}
	return int((off+n-1)/rfs.BlockSize-off/rfs.BlockSize) + 1
}

// Segments is an encoded list of segments; CRCs of checksums. They are views of a header.
type (
	Segments []byte
	CRCs     []byte
)

func (s Segments) Len() int { return len(s) / SegmentSize }

// At returns segment i.
func (s Segments) At(i int) Segment {
	b := s[i*SegmentSize:][:SegmentSize]
	return Segment{Shard: b[0], Zero: b[1]&1 != 0, Off: le.Uint32(b[4:]), Len: le.Uint32(b[8:])}
}

// Totals returns the payload bytes of the segments and how many CRCs they have.
func (s Segments) Totals() (payload, crcs int) {
	for i := range s.Len() {
		if g := s.At(i); !g.Zero {
			payload += int(g.Len)
			crcs += Blocks(g.Off, g.Len)
		}
	}
	return payload, crcs
}

func (s Segments) validate() error {
	for i := range s.Len() {
		if g := s.At(i); g.Len == 0 || g.Len > MaxShardSize || g.Off > MaxShardSize-g.Len {
			return fmt.Errorf("%w: segment %d: %d bytes from %d", ErrHeader, i, g.Len, g.Off)
		}
	}
	return nil
}

func (c CRCs) Len() int        { return len(c) / 4 }
func (c CRCs) At(i int) uint32 { return le.Uint32(c[4*i:]) }

// Append appends the checksums to dst.
func (c CRCs) Append(dst []uint32) []uint32 {
	for i := range c.Len() {
		dst = append(dst, c.At(i))
	}
	return dst
}

func appendSegments(b []byte, segs []Segment) []byte {
	for _, g := range segs {
		z := uint8(0)
		if g.Zero {
			z = 1
		}
		b = append(b, g.Shard, z, 0, 0)
		b = le.AppendUint32(b, g.Off)
		b = le.AppendUint32(b, g.Len)
	}
	return b
}

func appendCRCs(b []byte, crcs []uint32) []byte {
	for _, c := range crcs {
		b = le.AppendUint32(b, c)
	}
	return b
}

// lists cuts nseg segments and ncrc checksums off b.
func lists(what string, b []byte, nseg, ncrc int) (Segments, CRCs, error) {
	n := nseg*SegmentSize + 4*ncrc
	if len(b) < n {
		return nil, nil, short(what+"'s lists", len(b), n)
	}
	s := Segments(b[:nseg*SegmentSize])
	return s, CRCs(b[nseg*SegmentSize : n]), s.validate()
}

func appendTag(b []byte, t rfs.Tag) []byte {
	b = le.AppendUint64(b, t.HLC)
	b = le.AppendUint32(b, uint32(t.Session))
	return le.AppendUint32(b, t.Seq)
}

func appendSet(b []byte, s *rfs.ShardSet) []byte {
	for _, w := range s {
		b = le.AppendUint64(b, w)
	}
	return b
}

func getSet(b []byte) (s rfs.ShardSet) {
	for i := range s {
		s[i] = le.Uint64(b[8*i:])
	}
	return s
}

// Prepare stores a version of a shard.
type Prepare struct {
	Common
	Tag    rfs.Tag
	W      rfs.ShardSet // every position that has or would have a part, live or not
	Length uint32       // Full: bytes of the shard; Partial: of the payload
}

func (p *Prepare) Kind() Kind { return Kind(p.Flags & FlagPartial) }

// AppendPrepare encodes p with its segments (Partial) and checksums.
func AppendPrepare(b []byte, p *Prepare, segs []Segment, crcs []uint32) []byte {
	b = appendTag(p.append(b), p.Tag)
	b = appendSet(b, &p.W)
	b = le.AppendUint32(b, p.Length)
	b = le.AppendUint16(b, uint16(len(segs)))
	b = le.AppendUint16(b, uint16(len(crcs)))
	return appendCRCs(appendSegments(b, segs), crcs)
}

// DecodePrepare checks that segments, checksums and length agree.
func DecodePrepare(b []byte) (p Prepare, s Segments, c CRCs, err error) {
	if len(b) < prepareSize {
		return p, nil, nil, short("PREPARE", len(b), prepareSize)
	}
	p.Common, _ = DecodeCommon(b)
	p.Tag, p.W, p.Length = rfs.GetTag(b[80:]), getSet(b[96:]), le.Uint32(b[128:])
	s, c, err = lists("PREPARE", b[prepareSize:], int(le.Uint16(b[132:])), int(le.Uint16(b[134:])))
	if err != nil {
		return p, nil, nil, err
	}
	payload, ncrc := s.Totals()
	switch {
	case p.Tag.IsZero():
		err = fmt.Errorf("%w: PREPARE with the zero tag", ErrHeader)
	case p.Length > MaxShardSize:
		err = fmt.Errorf("%w: PREPARE of %d bytes: at most %d", ErrHeader, p.Length, MaxShardSize)
	case p.Flags&FlagLocal != 0 && (p.Flags&FlagFold == 0 || p.Kind() != Full || s.Len()+c.Len() > 0):
		err = fmt.Errorf("%w: local PREPARE that is no fold or has lists", ErrHeader)
	case p.Flags&FlagLocal != 0:
	case p.Kind() == Full && (s.Len() != 0 || c.Len() != Blocks(0, p.Length)):
		err = fmt.Errorf("%w: full PREPARE of %d bytes with %d segments and %d checksums", ErrHeader, p.Length, s.Len(), c.Len())
	case p.Kind() == Partial && (s.Len() == 0 || payload != int(p.Length) || ncrc != c.Len()):
		err = fmt.Errorf("%w: partial PREPARE of %d bytes and %d checksums, its %d segments of %d and %d", ErrHeader, p.Length, c.Len(), s.Len(), payload, ncrc)
	}
	return p, s, c, err
}

// CommitEntry names a version in a COMMIT or an ABORT.
type CommitEntry struct {
	Key  rfs.ShardKey
	Kind Kind
	Tag  rfs.Tag
}

// Entries is an encoded list of CommitEntries.
type Entries []byte

func (e Entries) Len() int { return len(e) / EntrySize }

// At returns entry i.
func (e Entries) At(i int) CommitEntry {
	b := e[i*EntrySize:][:EntrySize]
	return CommitEntry{
		Key:  rfs.ShardKey{Inode: rfs.InodeID(le.Uint64(b)), Stripe: le.Uint32(b[8:]), Shard: b[12]},
		Kind: Kind(b[13] & 1),
		Tag:  rfs.GetTag(b[16:]),
	}
}

// AppendCommit encodes a COMMIT or an ABORT of versions on one target; the
// common part's key, slot and epoch are not looked at.
func AppendCommit(b []byte, c *Common, entries []CommitEntry) []byte {
	b = le.AppendUint16(c.append(b), uint16(len(entries)))
	b = append(b, 0, 0, 0, 0, 0, 0)
	for i := range entries {
		e := &entries[i]
		b = le.AppendUint64(b, uint64(e.Key.Inode))
		b = le.AppendUint32(b, e.Key.Stripe)
		b = append(b, e.Key.Shard, uint8(e.Kind), 0, 0)
		b = appendTag(b, e.Tag)
	}
	return b
}

// DecodeCommit decodes a COMMIT or an ABORT.
func DecodeCommit(b []byte) (c Common, e Entries, err error) {
	if len(b) < commitSize {
		return c, nil, short("COMMIT", len(b), commitSize)
	}
	c, _ = DecodeCommon(b)
	n := int(le.Uint16(b[80:]))
	if n > MaxEntries || len(b) < commitSize+n*EntrySize {
		return c, nil, short("COMMIT's entries", len(b)-commitSize, n*EntrySize)
	}
	return c, Entries(b[commitSize : commitSize+n*EntrySize]), nil
}

// AppendCommitReply encodes the indexes of the entries whose version is not stored.
func AppendCommitReply(b []byte, missing []uint16) []byte {
	b = append(le.AppendUint16(b, uint16(len(missing))), 0, 0)
	for _, i := range missing {
		b = le.AppendUint16(b, i)
	}
	return b
}

// DecodeCommitReply appends the indexes to dst.
func DecodeCommitReply(b []byte, dst []uint16) ([]uint16, error) {
	if len(b) < 4 || len(b) < 4+2*int(le.Uint16(b)) {
		return dst, short("COMMIT's reply", len(b), 4)
	}
	for i := range int(le.Uint16(b)) {
		dst = append(dst, le.Uint16(b[4+2*i:]))
	}
	return dst, nil
}

// Retag gives a prepared version a higher tag.
type Retag struct {
	Common
	Old, New rfs.Tag
}

func (r *Retag) Kind() Kind { return Kind(r.Flags & FlagRetagPartial) }

// AppendRetag encodes r.
func AppendRetag(b []byte, r *Retag) []byte {
	return appendTag(appendTag(r.append(b), r.Old), r.New)
}

// DecodeRetag decodes a RETAG.
func DecodeRetag(b []byte) (r Retag, err error) {
	if len(b) < retagSize {
		return r, short("RETAG", len(b), retagSize)
	}
	r.Common, _ = DecodeCommon(b)
	r.Old, r.New = rfs.GetTag(b[80:]), rfs.GetTag(b[96:])
	if !r.Old.Less(r.New) {
		return r, fmt.Errorf("%w: RETAG from %v down to %v", ErrHeader, r.Old, r.New)
	}
	return r, nil
}

// Read asks for N bytes from Off of a shard. Want is the data shard whose bytes
// are wanted of a parity target (FlagOverlays, FlagVersion).
type Read struct {
	Common
	Tag    rfs.Tag
	Off, N uint32
	Want   uint8
}

// AppendRead encodes r.
func AppendRead(b []byte, r *Read) []byte {
	b = appendTag(r.append(b), r.Tag)
	b = le.AppendUint32(b, r.Off)
	b = le.AppendUint32(b, r.N)
	return append(b, r.Want, 0, 0, 0, 0, 0, 0, 0)
}

// DecodeRead decodes a READ.
func DecodeRead(b []byte) (r Read, err error) {
	if len(b) < readSize {
		return r, short("READ", len(b), readSize)
	}
	r.Common, _ = DecodeCommon(b)
	r.Tag, r.Off, r.N, r.Want = rfs.GetTag(b[80:]), le.Uint32(b[96:]), le.Uint32(b[100:]), b[104]
	if r.N > MaxShardSize || r.Off > MaxShardSize-r.N {
		return r, fmt.Errorf("%w: READ of %d bytes from %d", ErrHeader, r.N, r.Off)
	}
	return r, nil
}

// ReadReply says what was read.
//
// Without flags: the bytes pushed are those from Off on, as far as the shard's
// Length reaches; beyond are zeros. Tag is the newest version in them, Base the
// Full version below the overlays. A CRC covers what was read of each block.
//
// With FlagExact: the same of the Full version alone.
//
// With FlagOverlays: segments, disjoint and clipped to the range, and their
// payload. Base, BaseW (the positions it has: the others are zeros) and Length
// (the parity's) are those of the version over which they lie.
//
// With FlagVersion: the overlay's segments and payload as they were put, all of
// shard Want; BaseW is its own W.
//
// With StatusUnresolved, Unresolved is the highest tag of a version in the way that is not known complete.
type ReadReply struct {
	Tag, Base, Unresolved rfs.Tag
	BaseW                 rfs.ShardSet
	Length                uint32
}

// AppendReadReply encodes r.
func AppendReadReply(b []byte, r *ReadReply, segs []Segment, crcs []uint32) []byte {
	b = appendTag(appendTag(appendTag(b, r.Tag), r.Base), r.Unresolved)
	b = appendSet(b, &r.BaseW)
	b = le.AppendUint32(b, r.Length)
	b = le.AppendUint16(b, uint16(len(segs)))
	b = le.AppendUint16(b, uint16(len(crcs)))
	return appendCRCs(appendSegments(b, segs), crcs)
}

// DecodeReadReply decodes the reply of a READ.
func DecodeReadReply(b []byte) (r ReadReply, s Segments, c CRCs, err error) {
	if len(b) < readReplySize {
		return r, nil, nil, short("READ's reply", len(b), readReplySize)
	}
	r.Tag, r.Base, r.Unresolved = rfs.GetTag(b), rfs.GetTag(b[16:]), rfs.GetTag(b[32:])
	r.BaseW, r.Length = getSet(b[48:]), le.Uint32(b[80:])
	s, c, err = lists("READ's reply", b[readReplySize:], int(le.Uint16(b[84:])), int(le.Uint16(b[86:])))
	if err == nil && r.Length > MaxShardSize {
		err = fmt.Errorf("%w: READ's reply of a shard of %d bytes", ErrHeader, r.Length)
	}
	return r, s, c, err
}

// TagRequest is the form of RESOLVE, ORDER, QUERY and TRIM: one tag.
type TagRequest struct {
	Common
	Tag rfs.Tag
}

// AppendTagRequest encodes r.
func AppendTagRequest(b []byte, r *TagRequest) []byte { return appendTag(r.append(b), r.Tag) }

// DecodeTagRequest decodes a RESOLVE, an ORDER, a QUERY or a TRIM.
func DecodeTagRequest(b []byte) (r TagRequest, err error) {
	if len(b) < tagReqSize {
		return r, short("request", len(b), tagReqSize)
	}
	r.Common, _ = DecodeCommon(b)
	r.Tag = rfs.GetTag(b[80:])
	return r, nil
}

// ResolveReply says how a stripe stands: the newest complete version, and how many were rolled forward and back.
type ResolveReply struct {
	Newest        rfs.Tag
	Forward, Back uint16
}

// AppendResolveReply encodes r.
func AppendResolveReply(b []byte, r *ResolveReply) []byte {
	b = le.AppendUint16(appendTag(b, r.Newest), r.Forward)
	return append(le.AppendUint16(b, r.Back), 0, 0, 0, 0)
}

// DecodeResolveReply decodes the reply of a RESOLVE.
func DecodeResolveReply(b []byte) (r ResolveReply, err error) {
	if len(b) < resolveRepSize {
		return r, short("RESOLVE's reply", len(b), resolveRepSize)
	}
	return ResolveReply{Newest: rfs.GetTag(b), Forward: le.Uint16(b[16:]), Back: le.Uint16(b[18:])}, nil
}

// OrderReply gives the session a turn of Millis: tag above Highest.
type OrderReply struct {
	Highest rfs.Tag
	Millis  uint32
}

// AppendOrderReply encodes r.
func AppendOrderReply(b []byte, r *OrderReply) []byte {
	return append(le.AppendUint32(appendTag(b, r.Highest), r.Millis), 0, 0, 0, 0)
}

// DecodeOrderReply decodes the reply of an ORDER.
func DecodeOrderReply(b []byte) (r OrderReply, err error) {
	if len(b) < resolveRepSize {
		return r, short("ORDER's reply", len(b), resolveRepSize)
	}
	return OrderReply{Highest: rfs.GetTag(b), Millis: le.Uint32(b[16:])}, nil
}

// Version is what a member says of a version it holds.
type Version struct {
	Tag      rfs.Tag
	W        rfs.ShardSet
	Length   uint32
	Kind     Kind
	State    State
	Fold     bool
	Segments Segments // a view
}

// AppendVersion encodes v (its Segments are not looked at) with segs.
func AppendVersion(b []byte, v *Version, segs []Segment) []byte {
	b = appendSet(appendTag(b, v.Tag), &v.W)
	b = le.AppendUint32(b, v.Length)
	fold := uint8(0)
	if v.Fold {
		fold = 1
	}
	b = append(b, uint8(v.Kind), uint8(v.State), fold, 0)
	b = append(le.AppendUint16(b, uint16(len(segs))), 0, 0, 0, 0, 0, 0)
	return appendSegments(b, segs)
}

// DecodeVersion cuts a version off b.
func DecodeVersion(b []byte) (v Version, rest []byte, err error) {
	if len(b) < versionSize {
		return v, nil, short("version", len(b), versionSize)
	}
	v.Tag, v.W, v.Length = rfs.GetTag(b), getSet(b[16:]), le.Uint32(b[48:])
	v.Kind, v.State, v.Fold = Kind(b[52]&1), State(b[53]&1), b[54]&1 != 0
	n := int(le.Uint16(b[56:])) * SegmentSize
	if len(b) < versionSize+n {
		return v, nil, short("version's segments", len(b)-versionSize, n)
	}
	v.Segments = Segments(b[versionSize : versionSize+n])
	return v, b[versionSize+n:], v.Segments.validate()
}

// QueryReply is what a member holds of a stripe: Count versions in Bytes of
// payload, in the order of their tags; Floor is what it promised, Highest the
// highest tag it holds, Trimmed the tag below which a TRIM killed all versions.
type QueryReply struct {
	Floor, Highest rfs.Tag
	Trimmed        rfs.Tag
	Epoch          rfs.Epoch // of the slot
	Count, Bytes   uint32
}

// AppendQueryReply encodes r.
func AppendQueryReply(b []byte, r *QueryReply) []byte {
	b = le.AppendUint32(appendTag(appendTag(b, r.Floor), r.Highest), uint32(r.Epoch))
	b = append(le.AppendUint32(le.AppendUint32(b, r.Count), r.Bytes), 0, 0, 0, 0)
	return appendTag(b, r.Trimmed)
}

// DecodeQueryReply decodes the reply of a QUERY.
func DecodeQueryReply(b []byte) (r QueryReply, err error) {
	if len(b) < queryReplySize {
		return r, short("QUERY's reply", len(b), queryReplySize)
	}
	r.Floor, r.Highest = rfs.GetTag(b), rfs.GetTag(b[16:])
	r.Epoch, r.Count, r.Bytes = rfs.Epoch(le.Uint32(b[32:])), le.Uint32(b[36:]), le.Uint32(b[40:])
	r.Trimmed = rfs.GetTag(b[48:])
	return r, nil
}

// List asks for at most Max stripes of (Pool, Slot), from (Inode, Stripe) on.
type List struct {
	Common
	Max uint32
}

// AppendList encodes l.
func AppendList(b []byte, l *List) []byte {
	return append(le.AppendUint32(l.append(b), l.Max), 0, 0, 0, 0)
}

// DecodeList decodes a LIST.
func DecodeList(b []byte) (l List, err error) {
	if len(b) < listSize {
		return l, short("LIST", len(b), listSize)
	}
	l.Common, _ = DecodeCommon(b)
	l.Max = le.Uint32(b[80:])
	return l, nil
}

// ListReply has Count entries in Bytes of payload. With More, the next LIST goes on from (NextInode, NextStripe).
type ListReply struct {
	NextInode    rfs.InodeID
	NextStripe   uint32
	More         bool
	Count, Bytes uint32
}

// AppendListReply encodes r.
func AppendListReply(b []byte, r *ListReply) []byte {
	b = le.AppendUint32(le.AppendUint64(b, uint64(r.NextInode)), r.NextStripe)
	more := uint8(0)
	if r.More {
		more = 1
	}
	b = append(b, more, 0, 0, 0)
	return le.AppendUint32(le.AppendUint32(b, r.Count), r.Bytes)
}

// DecodeListReply decodes the reply of a LIST.
func DecodeListReply(b []byte) (r ListReply, err error) {
	if len(b) < listReplySize {
		return r, short("LIST's reply", len(b), listReplySize)
	}
	r.NextInode, r.NextStripe, r.More = rfs.InodeID(le.Uint64(b)), le.Uint32(b[8:]), b[12]&1 != 0
	r.Count, r.Bytes = le.Uint32(b[16:]), le.Uint32(b[20:])
	return r, nil
}

// AppendListed begins an entry of LIST's payload; n versions follow it.
func AppendListed(b []byte, key rfs.ShardKey, n int) []byte {
	b = le.AppendUint32(le.AppendUint64(b, uint64(key.Inode)), key.Stripe)
	return le.AppendUint16(append(b, key.Shard, 0), uint16(n))
}

// DecodeListed cuts the beginning of an entry off b: n versions follow in rest.
func DecodeListed(b []byte) (key rfs.ShardKey, n int, rest []byte, err error) {
	if len(b) < listedSize {
		return key, 0, nil, short("LIST's entry", len(b), listedSize)
	}
	key = rfs.ShardKey{Inode: rfs.InodeID(le.Uint64(b)), Stripe: le.Uint32(b[8:]), Shard: b[12]}
	return key, int(le.Uint16(b[14:])), b[listedSize:], nil
}

// Extent asks how far the inode's bytes reach on a target, in file offsets of the layout.
type Extent struct {
	Common
	K, M       uint8
	Unit, Cell uint32
}

// AppendExtent encodes e.
func AppendExtent(b []byte, e *Extent) []byte {
	b = append(e.append(b), e.K, e.M, 0, 0)
	return append(le.AppendUint32(le.AppendUint32(b, e.Unit), e.Cell), 0, 0, 0, 0)
}

// DecodeExtent decodes an EXTENT.
func DecodeExtent(b []byte) (e Extent, err error) {
	if len(b) < extentSize {
		return e, short("EXTENT", len(b), extentSize)
	}
	e.Common, _ = DecodeCommon(b)
	e.K, e.M, e.Unit, e.Cell = b[80], b[81], le.Uint32(b[84:]), le.Uint32(b[88:])
	l := rfs.Layout{K: e.K, M: e.M, Unit: e.Unit, Cell: e.Cell}
	if err := l.Validate(); err != nil {
		return e, fmt.Errorf("%w: %w", ErrHeader, err)
	}
	return e, nil
}

// AppendExtentReply encodes the end of the inode's bytes on the target, 0 if it has none.
func AppendExtentReply(b []byte, end int64) []byte { return le.AppendUint64(b, uint64(end)) }

// DecodeExtentReply decodes the reply of an EXTENT.
func DecodeExtentReply(b []byte) (end int64, err error) {
	if len(b) < 8 {
		return 0, short("EXTENT's reply", len(b), 8)
	}
	if end = int64(le.Uint64(b)); end < 0 {
		return 0, fmt.Errorf("%w: EXTENT's reply is %d", ErrHeader, end)
	}
	return end, nil
}

// TargetStat is a target's space in bytes, its count of shards, its state
// (placement.TargetState), and the epoch of the map that it acts by. A request
// whose Epoch is a later one's has that map fetched first.
type TargetStat struct {
	Capacity, Used, Shards uint64
	State                  uint8
	MapEpoch               rfs.Epoch
}

// AppendTargetStat encodes s.
func AppendTargetStat(b []byte, s *TargetStat) []byte {
	b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, s.Capacity), s.Used), s.Shards)
	return le.AppendUint32(append(b, s.State, 0, 0, 0), uint32(s.MapEpoch))
}

// DecodeTargetStat decodes the reply of a TARGET-STAT.
func DecodeTargetStat(b []byte) (s TargetStat, err error) {
	if len(b) < statReplySize {
		return s, short("TARGET-STAT's reply", len(b), statReplySize)
	}
	return TargetStat{Capacity: le.Uint64(b), Used: le.Uint64(b[8:]), Shards: le.Uint64(b[16:]), State: b[24], MapEpoch: rfs.Epoch(le.Uint32(b[28:]))}, nil
}

// AppendStaleEpoch encodes the header of StatusStaleEpoch.
func AppendStaleEpoch(b []byte, slot, clusterMap rfs.Epoch) []byte {
	return le.AppendUint32(le.AppendUint32(b, uint32(slot)), uint32(clusterMap))
}

// DecodeStaleEpoch decodes the header of StatusStaleEpoch.
func DecodeStaleEpoch(b []byte) (slot, clusterMap rfs.Epoch, err error) {
	if len(b) < 8 {
		return 0, 0, short("STALE-EPOCH", len(b), 8)
	}
	return rfs.Epoch(le.Uint32(b)), rfs.Epoch(le.Uint32(b[4:])), nil
}

// AppendTagReply encodes the header of StatusStaleTag.
func AppendTagReply(b []byte, t rfs.Tag) []byte { return appendTag(b, t) }

// DecodeTagReply decodes the header of StatusStaleTag.
func DecodeTagReply(b []byte) (rfs.Tag, error) {
	if len(b) < rfs.TagSize {
		return rfs.Tag{}, short("STALE-TAG", len(b), rfs.TagSize)
	}
	return rfs.GetTag(b), nil
}

// AppendNotLeader encodes the header of StatusNotLeader.
func AppendNotLeader(b []byte, t rfs.TargetID) []byte { return append(b, t[:]...) }

// DecodeNotLeader decodes the header of StatusNotLeader.
func DecodeNotLeader(b []byte) (t rfs.TargetID, err error) {
	if len(b) < len(t) {
		return t, short("NOT-LEADER", len(b), len(t))
	}
	return rfs.TargetID(b[:16]), nil
}
