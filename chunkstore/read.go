package chunkstore

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"rfs"
	"rfs/internal/crc"
	"rfs/internal/vfs"
)

// ErrGone means that the very version asked for is not stored, or not any more.
var ErrGone = errors.New("version is not stored")

// A CorruptError is bytes on disk that do not check. It unwraps to rfs.ErrCorrupt.
type CorruptError struct {
	Key    rfs.ShardKey
	Tag    rfs.Tag
	Kind   Kind
	Shard  uint8  // of the block: Key's, or, in an overlay at a parity target, the data shard's
	Block  uint32 // of that shard
	Path   string // the segment's file
	Offset int64  // where in it the block's bytes are
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("chunkstore: %v %v %v: block %d of shard %d, %s offset %d: %v",
		e.Key, e.Tag, e.Kind, e.Block, e.Shard, e.Path, e.Offset, rfs.ErrCorrupt)
}

func (e *CorruptError) Unwrap() error { return rfs.ErrCorrupt }

// ReadAt says what to read of a shard.
type ReadAt struct {
	// Exact, unless zero, asks for the Full version of this tag, in whatever
	// state and without overlays. Otherwise all complete versions are merged.
	Exact  rfs.Tag
	Off, N uint32   // bytes of the shard
	CRCs   []uint32 // room for the result's
}

// ReadResult says what was read.
type ReadResult struct {
	Tag  rfs.Tag // the highest complete version merged
	Base rfs.Tag // the Full version below it; zero: there is none, that is zeros
	// Length is how far the shard's bytes reach: all beyond are zeros.
	Length uint32
	// N is how many bytes of dst were filled: as many as asked for, or up to Length.
	N int
	// CRCs are of the blocks that the N bytes touch, each of the bytes among
	// them, in the memory of ReadAt.CRCs if that sufficed.
	CRCs []uint32
	// Unresolved, unless zero, is the highest tag of versions that bear on the
	// range and are not known complete. Nothing was read then.
	Unresolved rfs.Tag
}

// A fragment is a range of a shard whose bytes are those of one segment of one
// record, or, with rec -1, zeros.
type fragment struct {
	off, end uint32
	rec, seg int // seg is -1 for a Full record
}

// Read fills dst, at least at.N bytes long, with a range of a shard. Each
// block that it takes from the disk has been checked; one that does not check
// is a *CorruptError. A shard that was never written is no error: it has Length 0.
// Exact, of a version that is not there, is ErrGone.
//
// Read takes no lock. What it reads may be superseded, and its extent used
// again, while it does; then the checksums, which know the place and the
// content, do not match, and it starts again.
func (s *Store) Read(key rfs.ShardKey, at ReadAt, dst []byte) (ReadResult, error) {
	if int(at.N) > len(dst) || at.Off > maxShard || at.N > maxShard {
		return ReadResult{}, fmt.Errorf("chunkstore: read %v: %d bytes at %d into %d: %w", key, at.N, at.Off, len(dst), rfs.ErrInvalid)
	}
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	var res ReadResult
	err := s.optimistic(w, key, func() (err error) {
		res, err = s.read(w, key, at, dst)
		return err
	})
	if err != nil {
		return ReadResult{}, err
	}
	s.stats.reads.Add(1)
	s.stats.readBytes.Add(int64(res.N))
	return res, nil
}

// optimistic loads the shard's records and reads, again for as long as a block
// does not check whose version has gone meanwhile.
func (s *Store) optimistic(w *scratch, key rfs.ShardKey, read func() error) error {
	if err := s.usable(); err != nil {
		return err
	}
	if err := s.load(w, key); err != nil {
		return err
	}
	for {
		err := read()
		var bad *CorruptError
		if !errors.As(err, &bad) {
			return err
		}
		was := findAny(w, bad.Tag, bad.Kind).seq()
		if err := s.load(w, key); err != nil {
			return err
		}
		if r := findAny(w, bad.Tag, bad.Kind); r != nil && r.seq() == was {
			s.stats.crcFailures.Add(1)
			s.log.Error("block does not check", "err", err)
			return err
		}
	}
}

// findAny is find among all records, superseded ones included.
func findAny(w *scratch, tag rfs.Tag, kind Kind) record {
	if r := find(w.recs, tag, kind); r != nil {
		return r
	}
	return find(w.old, tag, kind)
}

func (s *Store) read(w *scratch, key rfs.ShardKey, at ReadAt, dst []byte) (ReadResult, error) {
	res := ReadResult{CRCs: at.CRCs[:0]}
	recs := w.recs
	if !at.Exact.IsZero() {
		r := findAny(w, at.Exact, Full)
		if r == nil {
			return res, fmt.Errorf("chunkstore: read %v %v: %w", key, at.Exact, ErrGone)
		}
		w.one[0] = r
		recs = w.one[:]
		res.Tag, res.Base, res.Length = at.Exact, at.Exact, r.length()
	} else {
		res.survey(recs, key.Shard, at.Off, at.Off+at.N)
		if !res.Unresolved.IsZero() {
			return res, nil
		}
	}
	end := min(at.Off+at.N, res.Length)
	if end <= at.Off {
		return res, nil
	}
	res.N = int(end - at.Off)
	w.compose(recs, key.Shard, at.Off, end, res.Base)
	w.fillGaps(at.Off, end)
	dst = dst[:res.N]
	for _, f := range w.frag {
		if err := s.fetch(w, key, recs, f, dst[f.off-at.Off:f.end-at.Off]); err != nil {
			return res, err
		}
	}
	res.CRCs = w.checksums(res.CRCs, key, key.Shard, recs, at.Off, dst)
	return res, nil
}

// survey finds out what the complete records add up to, and whether records
// that are not complete bear on bytes [off, end) of the shard.
func (res *ReadResult) survey(recs []record, shard uint8, off, end uint32) {
	for _, r := range recs {
		switch {
		case !r.complete():
			// What a fold holds is not new.
			if r.kind() == Full && !r.fold() || r.kind() == Partial && touches(r, shard, off, end) {
				res.Unresolved = r.tag()
			}
		case r.kind() == Full:
			res.Tag, res.Base, res.Length = r.tag(), r.tag(), r.length()
		default:
			res.Tag = r.tag()
			for i := range r.segments() {
				if g := r.segment(i); g.Shard == shard && !g.Zero {
					res.Length = max(res.Length, g.end())
				}
			}
		}
	}
}

// touches reports whether a Partial record has a segment in [off, end) of the shard.
func touches(r record, shard uint8, off, end uint32) bool {
	for i := range r.segments() {
		if g := r.segment(i); g.Shard == shard && g.Off < end && off < g.end() {
			return true
		}
	}
	return false
}

// compose sets w.frag to what bytes [off, end) of the shard are made of, in
// order of offset, looking from the newest record down to the base, or, with
// a zero base, to the end; what no record covers is left out. Records that are
// not complete, other than the one of the base's tag, are left out too.
func (w *scratch) compose(recs []record, shard uint8, off, end uint32, base rfs.Tag) {
	w.frag = w.frag[:0]
	for i := len(recs) - 1; i >= 0; i-- {
		r := recs[i]
		if r.kind() == Full {
			if r.tag() == base {
				w.lay(fragment{off: off, end: min(end, r.length()), rec: i, seg: -1})
			}
			continue
		}
		if !r.complete() {
			continue
		}
		for j := r.segments() - 1; j >= 0; j-- {
			if g := r.segment(j); g.Shard == shard {
				f := fragment{off: max(off, g.Off), end: min(end, g.end()), rec: i, seg: j}
				if g.Zero {
					f.rec = -1
				}
				w.lay(f)
			}
		}
	}
}

// lay adds to w.frag what of f no fragment covers yet.
func (w *scratch) lay(f fragment) {
	if f.off >= f.end {
		return
	}
	w.add = w.add[:0]
	at := f.off
	for _, g := range w.frag {
		if g.end <= at {
			continue
		}
		if g.off >= f.end {
			break
		}
		if at < g.off {
			w.add = append(w.add, fragment{at, g.off, f.rec, f.seg})
		}
		at = g.end
	}
	if at < f.end {
		w.add = append(w.add, fragment{at, f.end, f.rec, f.seg})
	}
	w.frag = append(w.frag, w.add...)
	if len(w.frag) > len(w.add) {
		slices.SortFunc(w.frag, func(a, b fragment) int { return cmp.Compare(a.off, b.off) })
	}
}

// fillGaps lays zeros where no fragment is.
func (w *scratch) fillGaps(off, end uint32) {
	w.lay(fragment{off: off, end: end, rec: -1})
}

// A source is where the bytes of a segment, or of a Full record, are.
type source struct {
	Segment
	pos int // of its first byte in the payload
	crc int // index of its first CRC
}

// source returns segment i of r, or all of a Full r for -1.
func (r record) source(key rfs.ShardKey, i int) source {
	if i < 0 {
		return source{Segment: Segment{Shard: key.Shard, Len: r.length()}}
	}
	var src source
	for j := range i {
		if g := r.segment(j); !g.Zero {
			src.pos += int(g.Len)
			src.crc += g.blocks()
		}
	}
	src.Segment = r.segment(i)
	return src
}

// piece returns the bytes of a block that src has: what one CRC is of.
func (src source) piece(block uint32) (off, end uint32) {
	return max(src.Off, block*blockSize), min(src.end(), (block+1)*blockSize)
}

// crcOf returns the stored CRC of a block of src.
func (src source) crcOf(r record, block uint32) uint32 {
	return r.crc(src.crc + int(block-src.Off/blockSize))
}

// fetch fills dst with a fragment. Whole pieces go straight to dst; of a piece
// that the fragment cuts all has to be read, to check it, and takes a detour.
func (s *Store) fetch(w *scratch, key rfs.ShardKey, recs []record, f fragment, dst []byte) error {
	if f.rec < 0 {
		clear(dst)
		return nil
	}
	r := recs[f.rec]
	src := r.source(key, f.seg)
	for at := f.off; at < f.end; {
		block := at / blockSize
		off, end := src.piece(block)
		if off == at && end <= f.end {
			// As many whole pieces as follow: all but the last end at a block's end.
			last := (f.end - 1) / blockSize
			if _, e := src.piece(last); e > f.end {
				last--
			}
			_, end = src.piece(last)
			if err := s.readPieces(key, r, src, block, last, dst[at-f.off:end-f.off]); err != nil {
				return err
			}
		} else {
			edge := w.edge[:end-off]
			if err := s.readPieces(key, r, src, block, block, edge); err != nil {
				return err
			}
			end = min(end, f.end)
			copy(dst[at-f.off:], edge[at-off:end-off])
		}
		at = end
	}
	return nil
}

// readPieces fills dst with the pieces first..last of src, and checks each.
func (s *Store) readPieces(key rfs.ShardKey, r record, src source, first, last uint32, dst []byte) error {
	e := r.extent()
	g := s.segment(e.seg)
	start, _ := src.piece(first)
	off := e.offset() + int64(src.pos) + int64(start-src.Off)
	if err := g.read(off, dst); err != nil {
		s.stats.readErrors.Add(1)
		return fmt.Errorf("chunkstore: read %v: %s offset %d: %w", key, s.path(dataName(g.id)), off, err)
	}
	name := crc.Of(key.Inode, key.Stripe, src.Shard)
	for b := first; b <= last; b++ {
		from, to := src.piece(b)
		if name.Block(b, dst[from-start:to-start]) != src.crcOf(r, b) {
			return &CorruptError{
				Key: key, Tag: r.tag(), Kind: r.kind(), Shard: src.Shard, Block: b,
				Path: s.path(dataName(g.id)), Offset: off + int64(from-start),
			}
		}
	}
	return nil
}

// checksums appends the CRCs of the blocks of dst, which are w.frag from off on:
// the stored one where a block is a piece of one record, and else one of the
// merged bytes, all of which have been checked.
func (w *scratch) checksums(crcs []uint32, key rfs.ShardKey, shard uint8, recs []record, off uint32, dst []byte) []uint32 {
	name := crc.Of(key.Inode, key.Stripe, shard)
	end := off + uint32(len(dst))
	i := 0
	var src source
	known := -1 // the fragment that src is of
	for b := off / blockSize; b*blockSize < end; b++ {
		from, to := max(off, b*blockSize), min(end, (b+1)*blockSize)
		for w.frag[i].end <= from {
			i++
		}
		if f := w.frag[i]; f.rec >= 0 && f.end >= to {
			if known != i {
				src, known = recs[f.rec].source(key, f.seg), i
			}
			if po, pe := src.piece(b); po == from && pe == to {
				crcs = append(crcs, src.crcOf(recs[f.rec], b))
				continue
			}
		}
		crcs = append(crcs, name.Block(b, dst[from-off:to-off]))
	}
	return crcs
}

// OverlayResult is what complete Partial versions say of a range of a data shard.
type OverlayResult struct {
	Tag  rfs.Tag // the highest of them, or the base's
	Base rfs.Tag // the complete Full version below them; zero: none
	// W and Length are the base's.
	W      rfs.ShardSet
	Length uint32
	// Segments are where the range differs from the base, disjoint and in order.
	// The bytes of those that are not Zero stand in dst one after the other, N in all.
	Segments []Segment
	N        int
	// CRCs are as in Version.CRCs.
	CRCs []uint32
	// Unresolved is as in ReadResult.
	Unresolved rfs.Tag
}

// Overlays merges, at a parity target, what the complete Partial versions have
// of [off, off+n) of a data shard, into dst, at least n bytes long. key.Shard
// is the parity's own. The base and these make up the data shard.
func (s *Store) Overlays(key rfs.ShardKey, shard uint8, off, n uint32, dst []byte) (OverlayResult, error) {
	if int(n) > len(dst) || off > maxShard || n > maxShard {
		return OverlayResult{}, fmt.Errorf("chunkstore: overlays of %v: %d bytes at %d into %d: %w", key, n, off, len(dst), rfs.ErrInvalid)
	}
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	var res OverlayResult
	err := s.optimistic(w, key, func() (err error) {
		res, err = s.overlays(w, key, shard, off, off+n, dst)
		return err
	})
	if err == nil {
		s.stats.reads.Add(1)
		s.stats.readBytes.Add(int64(res.N))
	}
	return res, err
}

func (s *Store) overlays(w *scratch, key rfs.ShardKey, shard uint8, off, end uint32, dst []byte) (OverlayResult, error) {
	var sum ReadResult
	sum.survey(w.recs, shard, off, end)
	res := OverlayResult{Tag: sum.Tag, Base: sum.Base, Unresolved: sum.Unresolved}
	if b := base(w.recs); b != nil {
		res.W, res.Length = b.w(), b.length()
	}
	if !res.Unresolved.IsZero() {
		return res, nil
	}
	w.compose(w.recs, shard, off, end, rfs.Tag{})
	name := crc.Of(key.Inode, key.Stripe, shard)
	for _, f := range w.frag {
		g := Segment{Shard: shard, Zero: f.rec < 0, Off: f.off, Len: f.end - f.off}
		res.Segments = append(res.Segments, g)
		if g.Zero {
			continue
		}
		p := dst[res.N:][:g.Len]
		if err := s.fetch(w, key, w.recs, f, p); err != nil {
			return res, err
		}
		res.N += len(p)
		for b := f.off / blockSize; b*blockSize < f.end; b++ {
			from, to := source{Segment: g}.piece(b)
			res.CRCs = append(res.CRCs, name.Block(b, p[from-f.off:to-f.off]))
		}
	}
	return res, nil
}

// ReadVersion reads the payload of one version as it was put, whatever its
// state, into dst, which must have room for it, and returns the version, with
// its CRCs, and the payload's length. ErrGone means that it is not there.
func (s *Store) ReadVersion(key rfs.ShardKey, tag rfs.Tag, kind Kind, dst []byte) (Version, int, error) {
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	var v Version
	err := s.optimistic(w, key, func() error {
		r := findAny(w, tag, kind)
		if r == nil {
			return fmt.Errorf("chunkstore: read %v %v %v: %w", key, tag, kind, ErrGone)
		}
		if int(r.payload()) > len(dst) {
			return fmt.Errorf("chunkstore: read %v %v %v: %d bytes into %d: %w", key, tag, kind, r.payload(), len(dst), rfs.ErrInvalid)
		}
		v = r.version()
		return s.readPayload(key, r, dst)
	})
	if err != nil {
		return Version{}, 0, err
	}
	s.stats.reads.Add(1)
	s.stats.readBytes.Add(int64(v.payload))
	return v, int(v.payload), nil
}

// readPayload fills dst with the payload of r, and checks it.
func (s *Store) readPayload(key rfs.ShardKey, r record, dst []byte) error {
	first, last := -1, -1
	if r.kind() == Partial {
		first, last = 0, r.segments()-1
	}
	for i := first; i <= last; i++ {
		src := r.source(key, i)
		if src.blocks() == 0 {
			continue
		}
		if err := s.readPieces(key, r, src, src.Off/blockSize, (src.end()-1)/blockSize, dst[src.pos:src.pos+int(src.Len)]); err != nil {
			return err
		}
	}
	return nil
}

// FoldLocal stores, Prepared, the Full version v.Tag of a shard made of what is
// stored: its base and the complete overlays up to and including v.Tag, v.Length
// bytes long. Of v it takes Tag, Length, W, Slot and Pool. It uses the reserve.
func (s *Store) FoldLocal(key rfs.ShardKey, v Version) error {
	v.Kind, v.State, v.Fold, v.Segments = Full, Prepared, true, nil
	if v.Length > MaxPayload {
		return fmt.Errorf("chunkstore: fold %v %v: %d bytes: at most %d: %w", key, v.Tag, v.Length, MaxPayload, rfs.ErrInvalid)
	}
	w := scratches.Get().(*scratch)
	defer scratches.Put(w)
	buf := payloads.Get().(*[]byte)
	defer payloads.Put(buf)
	dst := (*buf)[:v.Length]
	err := s.optimistic(w, key, func() error {
		recs := w.recs
		for len(recs) > 0 && v.Tag.Less(recs[len(recs)-1].tag()) {
			recs = recs[:len(recs)-1]
		}
		var sum ReadResult
		sum.survey(recs, key.Shard, 0, maxShard)
		if !sum.Unresolved.IsZero() {
			return fmt.Errorf("chunkstore: fold %v %v: version %v is not complete: %w", key, v.Tag, sum.Unresolved, rfs.ErrUnavailable)
		}
		w.compose(recs, key.Shard, 0, v.Length, sum.Base)
		w.fillGaps(0, v.Length)
		for _, f := range w.frag {
			if err := s.fetch(w, key, recs, f, dst[f.off:f.end]); err != nil {
				return err
			}
		}
		w.crcs = w.crcs[:0]
		if v.Length > 0 {
			w.crcs = w.checksums(w.crcs, key, key.Shard, recs, 0, dst)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.stats.folds.Add(1)
	return s.Put(key, v, dst, w.crcs)
}

// payloads are aligned buffers of the largest payload, for folding and recovery.
var payloads = sync.Pool{New: func() any { b := alignedBytes(MaxPayload); return &b }}

// alignedBytes returns n bytes that O_DIRECT takes.
func alignedBytes(n int) []byte {
	b := make([]byte, n+vfs.DirectAlign)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % vfs.DirectAlign
	return b[skip:][:n:n]
}
