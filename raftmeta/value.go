package raftmeta

import (
	"encoding/binary"
	"errors"
	"fmt"

	"rfs"
)

// Values of the state machine: the package doc draws them. A decoder refuses a
// version that it does not know, and bytes left over.
const valueVersion = 1

var errValue = errors.New("malformed value")

// enc appends integers; dec takes them off, and remembers when there were too few bytes.
type enc []byte

func (e *enc) u8(v uint8)   { *e = append(*e, v) }
func (e *enc) u16(v uint16) { *e = binary.LittleEndian.AppendUint16(*e, v) }
func (e *enc) u32(v uint32) { *e = binary.LittleEndian.AppendUint32(*e, v) }
func (e *enc) u64(v uint64) { *e = binary.LittleEndian.AppendUint64(*e, v) }
func (e *enc) i64(v int64)  { e.u64(uint64(v)) }
func (e *enc) tag(t rfs.Tag) {
	*e = append(*e, make([]byte, rfs.TagSize)...)
	rfs.PutTag((*e)[len(*e)-rfs.TagSize:], t)
}

func (e *enc) layout(l rfs.Layout) {
	e.u16(uint16(l.Pool))
	e.u8(l.K)
	e.u8(l.M)
	e.u32(uint32(l.Start))
	e.u32(l.Unit)
	e.u32(l.Cell)
}

type dec struct {
	b   []byte
	bad bool
}

func (d *dec) take(n int) []byte {
	if d.bad || len(d.b) < n {
		d.bad = true
		return make([]byte, n)
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *dec) u8() uint8    { return d.take(1)[0] }
func (d *dec) u16() uint16  { return binary.LittleEndian.Uint16(d.take(2)) }
func (d *dec) u32() uint32  { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *dec) u64() uint64  { return binary.LittleEndian.Uint64(d.take(8)) }
func (d *dec) i64() int64   { return int64(d.u64()) }
func (d *dec) tag() rfs.Tag { return rfs.GetTag(d.take(rfs.TagSize)) }
func (d *dec) rest() []byte {
	b := d.b
	d.b = nil
	return b
}

func (d *dec) layout() (l rfs.Layout) {
	l.Pool, l.K, l.M = rfs.PoolID(d.u16()), d.u8(), d.u8()
	l.Start, l.Unit, l.Cell = rfs.SlotID(d.u32()), d.u32(), d.u32()
	return l
}

func (d *dec) version() {
	if d.u8() != valueVersion {
		d.bad = true
	}
}

func (d *dec) end(what string) error {
	if d.bad || len(d.b) > 0 {
		return fmt.Errorf("%w: %s (written by a newer version of rfs, or damaged)", errValue, what)
	}
	return nil
}

// node is an inode as it is stored: its attributes, and what others need not know.
type node struct {
	Attr
	written bool // was opened for writing: there may be shards
	unnamed bool // was made without a name, and has had none yet
	target  string
}

const inodeFixed = 96

func (n *node) encode() []byte {
	e := make(enc, 0, inodeFixed+32*len(n.Trims)+len(n.target))
	e.u8(valueVersion)
	e.u8(bit(n.written) | bit(n.unnamed)<<1)
	e.u8(n.Layout.K)
	e.u8(n.Layout.M)
	for _, v := range [...]uint32{n.Mode, n.Nlink, n.UID, n.GID, n.Rdev} {
		e.u32(v)
	}
	for _, v := range [...]int64{n.Size, n.Atime, n.Mtime, n.Ctime, n.Btime, int64(n.Parent), int64(n.Change)} {
		e.i64(v)
	}
	e.u16(uint16(n.Layout.Pool))
	e.u16(uint16(len(n.Trims)))
	e.u32(uint32(n.Layout.Start))
	e.u32(n.Layout.Unit)
	e.u32(n.Layout.Cell)
	for _, t := range n.Trims {
		e.i64(t.Size)
		e.tag(t.Tag)
		e.u64(uint64(bit(t.Swept)))
	}
	return append(e, n.target...)
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func decodeNode(ino rfs.InodeID, b []byte) (*node, error) {
	d, n := &dec{b: b}, &node{Attr: Attr{Inode: ino}}
	d.version()
	f := d.u8()
	n.written, n.unnamed = f&1 != 0, f&2 != 0
	n.Layout.K, n.Layout.M = d.u8(), d.u8()
	for _, p := range [...]*uint32{&n.Mode, &n.Nlink, &n.UID, &n.GID, &n.Rdev} {
		*p = d.u32()
	}
	for _, p := range [...]*int64{&n.Size, &n.Atime, &n.Mtime, &n.Ctime, &n.Btime} {
		*p = d.i64()
	}
	n.Parent, n.Change = rfs.InodeID(d.u64()), d.u64()
	n.Layout.Pool = rfs.PoolID(d.u16())
	trims := int(d.u16())
	n.Layout.Start, n.Layout.Unit, n.Layout.Cell = rfs.SlotID(d.u32()), d.u32(), d.u32()
	for range trims {
		if d.bad {
			break
		}
		t := Trim{Size: d.i64(), Tag: d.tag()}
		t.Swept = d.u64()&1 != 0
		n.Trims = append(n.Trims, t)
	}
	n.target = string(d.rest())
	return n, d.end("inode " + ino.String())
}

// dirent is the value of an entry.
type dirent struct {
	typ   uint8 // st_mode >> 12; 0: a held place
	inode rfs.InodeID
	name  []byte
}

func (x *dirent) encode() []byte {
	e := make(enc, 0, 10+len(x.name))
	e.u8(valueVersion)
	e.u8(x.typ)
	e.u64(uint64(x.inode))
	return append(e, x.name...)
}

func decodeDirent(b []byte) (dirent, error) {
	d := &dec{b: b}
	d.version()
	x := dirent{typ: d.u8(), inode: rfs.InodeID(d.u64())}
	x.name = d.rest()
	return x, d.end("directory entry")
}

// open is what a session has open of a file.
type open struct {
	readers, writers uint32
	cache            CacheMode
	grant            uint64 // Raft index at which cache was granted
}

func (o *open) encode() []byte {
	e := make(enc, 0, 18)
	e.u8(valueVersion)
	e.u8(uint8(o.cache))
	e.u32(o.readers)
	e.u32(o.writers)
	e.u64(o.grant)
	return e
}

func decodeOpen(b []byte) (*open, error) {
	d := &dec{b: b}
	d.version()
	o := &open{cache: CacheMode(d.u8())}
	o.readers, o.writers, o.grant = d.u32(), d.u32(), d.u64()
	return o, d.end("open file")
}

// live is a session as it is stored.
type live struct {
	nonce uint64
	name  string
	opens map[rfs.InodeID]struct{} // rebuilt from the opens
}

func (s *live) encode() []byte {
	e := make(enc, 0, 9+len(s.name))
	e.u8(valueVersion)
	e.u64(s.nonce)
	return append(e, s.name...)
}

func decodeLive(b []byte) (*live, error) {
	d := &dec{b: b}
	d.version()
	s := &live{nonce: d.u64(), opens: map[rfs.InodeID]struct{}{}}
	s.name = string(d.rest())
	return s, d.end("session")
}

// asker is who sends commands under a nonce, and what it was answered.
type asker struct {
	session rfs.SessionID     // 0: none, or ended
	low     uint64            // answers to sequences below are not kept
	last    uint64            // Raft index of its last command
	results map[uint64][]byte // by sequence; each is stored under a key of its own
}

func (a *asker) encode() []byte {
	e := make(enc, 0, 21)
	e.u8(valueVersion)
	e.u32(uint32(a.session))
	e.u64(a.low)
	e.u64(a.last)
	return e
}

func decodeAsker(b []byte) (*asker, error) {
	d := &dec{b: b}
	d.version()
	a := &asker{session: rfs.SessionID(d.u32()), results: map[uint64][]byte{}}
	a.low, a.last = d.u64(), d.u64()
	return a, d.end("asker")
}

// purge is an inode whose shards are to be deleted.
type purge struct {
	inode  rfs.InodeID
	layout rfs.Layout
}

func (p *purge) encode() []byte {
	e := make(enc, 0, 25)
	e.u8(valueVersion)
	e.u64(uint64(p.inode))
	e.layout(p.layout)
	return e
}

func decodePurge(b []byte) (purge, error) {
	d := &dec{b: b}
	d.version()
	p := purge{inode: rfs.InodeID(d.u64())}
	p.layout = d.layout()
	return p, d.end("removed inode")
}

// trimming is a truncation that the session which asked for it still carries out.
type trimming struct {
	session rfs.SessionID
	size    int64
	layout  rfs.Layout
}

func (t *trimming) encode() []byte {
	e := make(enc, 0, 29)
	e.u8(valueVersion)
	e.u32(uint32(t.session))
	e.i64(t.size)
	e.layout(t.layout)
	return e
}

func decodeTrimming(b []byte) (trimming, error) {
	d := &dec{b: b}
	d.version()
	t := trimming{session: rfs.SessionID(d.u32())}
	t.size = d.i64()
	t.layout = d.layout()
	return t, d.end("truncation")
}

// counters are what the state machine hands out, and never twice.
type counters struct {
	nextInode   uint64
	nextSession uint32
	nextPurge   uint64
	nextEnded   uint32
	inodes      uint64
	nextMember  uint64
	made        int64
}

func (c *counters) encode() []byte {
	e := make(enc, 0, 49)
	e.u8(valueVersion)
	e.u64(c.nextInode)
	e.u32(c.nextSession)
	e.u64(c.nextPurge)
	e.u32(c.nextEnded)
	e.u64(c.inodes)
	e.u64(c.nextMember)
	e.i64(c.made)
	return e
}

func decodeCounters(b []byte) (c counters, err error) {
	d := &dec{b: b}
	d.version()
	c.nextInode, c.nextSession, c.nextPurge = d.u64(), d.u32(), d.u64()
	c.nextEnded, c.inodes, c.nextMember, c.made = d.u32(), d.u64(), d.u64(), d.i64()
	return c, d.end("counters")
}
