package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Op is an operation that a Rule can make fail and OnOp can watch.
type Op uint8

// Operations. All but OpRead change the disk, or what of it is durable.
const (
	OpRead Op = iota
	OpWrite
	OpSync // of a file or a directory
	OpCreate
	OpRemove
	OpRename
	OpLink
	OpTruncate // and allocate
	OpPunch
)

func (o Op) String() string {
	return [...]string{"read", "write", "sync", "create", "remove", "rename", "link", "truncate", "punch"}[o]
}

// A Rule makes operations fail: of those that match, the first Skip go through,
// and the next Times (0: all) fail with Err. A write that fails has written
// nothing, or, with Short, its first half.
type Rule struct {
	Op    Op
	Path  string // pattern of path.Match for the file's name without its directories; "" is any
	Skip  int
	Times int
	Err   syscall.Errno
	Short bool
}

// Disk is a simulated disk with a file system. It keeps, of every file, the
// sectors as they are and as they were when last flushed, with all that was
// written between, and of every directory the names that are durable.
//
// CrashClone returns a disk as it may be found after the power failed. Errors,
// a full disk, bit rot and read-only mode are had by asking.
type Disk struct {
	mu       sync.Mutex
	root     *node
	locks    map[string]bool
	rules    []*rule
	readOnly bool
	capacity int64 // 0: endless
	used     int64 // sectors that hold something
	boot     string
	onOp     func(Op, string)
}

type rule struct {
	Rule
	seen int
}

type sector = *[SectorSize]byte

var zeroSector sector = new([SectorSize]byte)

// A node is a file or a directory. Sectors are never changed in place, so that
// clones share them.
type node struct {
	dir bool
	mod time.Time

	// Of a file: now, and what is durable. A sector that is missing is zeros.
	size, durableSize int64
	now, durable      map[int64]sector
	// What a crash may find instead of durable: any of what was written since
	// the last flush, in order; the size likewise.
	pending      map[int64][]sector
	pendingSizes []int64

	// Of a directory: now, what is durable, and the changes between, in order. A
	// crash finds a prefix of them, as file systems that journal names do: one that
	// found any subset would lose a file that was created under a new name before
	// the old one was removed.
	names, durableNames map[string]*node
	journal             []nameChange
}

// A nameChange sets a name to a file (nil: none) and removes another ("": none), at once.
type nameChange struct {
	set  string
	n    *node
	gone string
}

func (c nameChange) apply(names map[string]*node) {
	names[c.set] = c.n
	if c.n == nil {
		delete(names, c.set)
	}
	delete(names, c.gone)
}

// change changes the names of a directory.
func (n *node) change(c nameChange) {
	c.apply(n.names)
	n.journal = append(n.journal, c)
}

func newFile() *node {
	return &node{now: map[int64]sector{}, durable: map[int64]sector{}, pending: map[int64][]sector{}, mod: time.Now()}
}

func newDir() *node {
	return &node{dir: true, names: map[string]*node{}, durableNames: map[string]*node{}, mod: time.Now()}
}

// NewDisk returns an empty disk. A capacity of 0 is endless.
func NewDisk(capacity int64) *Disk {
	return &Disk{root: newDir(), locks: map[string]bool{}, capacity: capacity, boot: "boot 1"}
}

// Inject adds a rule and returns a function that takes it off again.
func (d *Disk) Inject(r Rule) (remove func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	x := &rule{Rule: r}
	d.rules = append(d.rules, x)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.rules = slices.DeleteFunc(d.rules, func(y *rule) bool { return x == y })
	}
}

// SetReadOnly makes all changes fail with EROFS, or no longer.
func (d *Disk) SetReadOnly(ro bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.readOnly = ro
}

// SetCapacity changes the size of the disk; 0 is endless.
func (d *Disk) SetCapacity(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.capacity = n
}

// OnOp has f called before each operation that changes the disk, on the
// goroutine that does it, with no lock held: f may call CrashClone. nil ends it.
func (d *Disk) OnOp(f func(op Op, name string)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onOp = f
}

// FlipBit changes one bit of a file, durably and behind everybody's back.
func (d *Disk) FlipBit(name string, off int64, bit uint) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.file("flip", name)
	if err != nil {
		return err
	}
	if off >= n.size {
		return &os.PathError{Op: "flip", Path: name, Err: io.EOF}
	}
	for _, m := range []map[int64]sector{n.now, n.durable} {
		s := *orZero(m[off/SectorSize])
		s[off%SectorSize] ^= 1 << (bit % 8)
		m[off/SectorSize] = &s
	}
	return nil
}

func orZero(s sector) sector {
	if s == nil {
		return zeroSector
	}
	return s
}

// Crash says what a crash does to what was not flushed.
type Crash struct {
	// Keep is how many percent of the sectors and sizes that were not flushed are
	// found as they were, or as one of the writes since the last flush left
	// them, rather than as they were at that flush; of the changes of names in a
	// directory it is the chance of each, given those before it.
	Keep int
	// Tear is how many percent of the sectors that are kept hold the new bytes
	// only up to some point.
	Tear int
}

// CrashClone returns a disk as it may be found after a crash at this moment,
// in a new boot. What happens is drawn from rng, which may be nil if Keep is 0. The disk itself goes on unharmed.
func (d *Disk) CrashClone(c Crash, rng *rand.Rand) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	clone := NewDisk(d.capacity)
	clone.boot = d.boot + "+1"
	clone.root = (&crash{c, rng, map[*node]*node{}}).node(d.root)
	clone.used = clone.root.sectors(map[*node]bool{}) * SectorSize
	return clone
}

func (n *node) sectors(seen map[*node]bool) (sum int64) {
	if seen[n] {
		return 0
	}
	seen[n] = true
	for _, c := range n.names {
		sum += c.sectors(seen)
	}
	return sum + int64(len(n.now))
}

type crash struct {
	Crash
	rng  *rand.Rand
	done map[*node]*node // a file may have two names
}

func (c *crash) keeps() bool { return c.Keep > 0 && c.rng.IntN(100) < c.Keep }

func (c *crash) node(n *node) *node {
	if m := c.done[n]; m != nil {
		return m
	}
	var m *node
	if n.dir {
		m = newDir()
		c.done[n] = m
		c.names(n, m)
	} else {
		m = newFile()
		c.done[n] = m
		c.bytes(n, m)
	}
	m.mod = n.mod
	return m
}

func (c *crash) names(n, m *node) {
	names := maps.Clone(n.durableNames)
	for _, change := range n.journal {
		if !c.keeps() {
			break
		}
		change.apply(names)
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		m.names[name] = c.node(names[name])
	}
	m.durableNames = maps.Clone(m.names)
}

func (c *crash) bytes(n, m *node) {
	m.size = n.durableSize
	if len(n.pendingSizes) > 0 && c.keeps() {
		m.size = n.pendingSizes[c.rng.IntN(len(n.pendingSizes))]
	}
	maps.Copy(m.now, n.durable)
	for _, i := range slices.Sorted(maps.Keys(n.pending)) {
		writes := n.pending[i]
		if !c.keeps() {
			continue
		}
		s := writes[c.rng.IntN(len(writes))]
		if c.rng.IntN(100) < c.Tear {
			torn := *orZero(n.durable[i])
			copy(torn[:c.rng.IntN(SectorSize)], s[:])
			s = &torn
		}
		m.now[i] = s
	}
	for i := range m.now {
		if i*SectorSize >= m.size {
			delete(m.now, i)
		}
	}
	m.trimTail()
	m.durable, m.durableSize = maps.Clone(m.now), m.size
}

// trimTail zeros what the last sector has beyond the end.
func (n *node) trimTail() {
	if s, in := n.now[n.size/SectorSize], n.size%SectorSize; s != nil && in > 0 {
		t := *s
		clear(t[in:])
		n.now[n.size/SectorSize] = &t
	}
}

// begin is called first by everything that changes the disk, without the lock,
// and returns with it.
func (d *Disk) begin(op Op, name string) (short bool, err error) {
	d.mu.Lock()
	if f := d.onOp; f != nil && op != OpRead {
		d.mu.Unlock()
		f(op, name)
		d.mu.Lock()
	}
	if d.readOnly && op != OpRead && op != OpSync {
		return false, &os.PathError{Op: op.String(), Path: name, Err: syscall.EROFS}
	}
	for _, r := range d.rules {
		if r.Op != op {
			continue
		}
		if ok, _ := path.Match(r.Path, path.Base(name)); !ok && r.Path != "" {
			continue
		}
		if r.seen++; r.seen > r.Skip && (r.Times == 0 || r.seen <= r.Skip+r.Times) {
			return r.Short, &os.PathError{Op: op.String(), Path: name, Err: r.Err}
		}
	}
	return false, nil
}

// walk returns the directory that holds name, and name's last element.
func (d *Disk) walk(op, name string) (*node, string, error) {
	name = strings.Trim(path.Clean("/"+name), "/")
	dir := d.root
	for {
		first, rest, more := strings.Cut(name, "/")
		if !more {
			return dir, first, nil
		}
		if dir = dir.names[first]; dir == nil {
			return nil, "", &os.PathError{Op: op, Path: name, Err: syscall.ENOENT}
		}
		if !dir.dir {
			return nil, "", &os.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
		}
		name = rest
	}
}

func (d *Disk) find(op, name string) (*node, error) {
	dir, last, err := d.walk(op, name)
	if err != nil {
		return nil, err
	}
	if last == "" {
		return dir, nil
	}
	if n := dir.names[last]; n != nil {
		return n, nil
	}
	return nil, &os.PathError{Op: op, Path: name, Err: syscall.ENOENT}
}

func (d *Disk) file(op, name string) (*node, error) {
	n, err := d.find(op, name)
	if err == nil && n.dir {
		return nil, &os.PathError{Op: op, Path: name, Err: syscall.EISDIR}
	}
	return n, err
}

// Create is as in FS.
func (d *Disk) Create(name string) (File, error) {
	_, err := d.begin(OpCreate, name)
	defer d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	dir, last, err := d.walk("create", name)
	if err != nil {
		return nil, err
	}
	n := dir.names[last]
	if n == nil {
		n = newFile()
		dir.change(nameChange{set: last, n: n})
	} else if n.dir {
		return nil, &os.PathError{Op: "create", Path: name, Err: syscall.EISDIR}
	} else {
		d.resize(n, 0)
	}
	return &diskFile{d: d, n: n, name: name, write: true}, nil
}

// Open is as in FS. Direct is checked for alignment and is otherwise ReadWrite.
func (d *Disk) Open(name string, m Mode) (File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.file("open", name)
	if err != nil {
		return nil, err
	}
	if d.readOnly && m != ReadOnly {
		return nil, &os.PathError{Op: "open", Path: name, Err: syscall.EROFS}
	}
	return &diskFile{d: d, n: n, name: name, write: m != ReadOnly, direct: m == Direct}, nil
}

// Mkdir is as in FS. For simplicity a new directory's own name is durable at once.
func (d *Disk) Mkdir(name string) error {
	_, err := d.begin(OpCreate, name)
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	dir := d.root
	for part := range strings.SplitSeq(strings.Trim(path.Clean("/"+name), "/"), "/") {
		n := dir.names[part]
		if part == "" {
			n = dir
		}
		if n == nil {
			n = newDir()
			dir.names[part], dir.durableNames[part] = n, n
		} else if !n.dir {
			return &os.PathError{Op: "mkdir", Path: name, Err: syscall.ENOTDIR}
		}
		dir = n
	}
	return nil
}

// Remove is as in FS.
func (d *Disk) Remove(name string) error {
	_, err := d.begin(OpRemove, name)
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	dir, last, err := d.walk("remove", name)
	if err != nil {
		return err
	}
	n := dir.names[last]
	if n == nil {
		return &os.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	}
	if len(n.names) > 0 {
		return &os.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	dir.change(nameChange{set: last})
	d.used -= int64(len(n.now)) * SectorSize // of a file with two names too early; nothing here links but Pebble's checkpoints
	return nil
}

// Rename is as in FS.
func (d *Disk) Rename(oldname, newname string) error {
	_, err := d.begin(OpRename, newname)
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	return d.link(oldname, newname, true)
}

// Link is as in FS.
func (d *Disk) Link(oldname, newname string) error {
	_, err := d.begin(OpLink, newname)
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	return d.link(oldname, newname, false)
}

func (d *Disk) link(oldname, newname string, move bool) error {
	from, old, err := d.walk("rename", oldname)
	if err != nil {
		return err
	}
	to, name, err := d.walk("rename", newname)
	if err != nil {
		return err
	}
	n := from.names[old]
	switch {
	case n == nil:
		return &os.LinkError{Op: "rename", Old: oldname, New: newname, Err: syscall.ENOENT}
	case !move && to.names[name] != nil:
		return &os.LinkError{Op: "link", Old: oldname, New: newname, Err: syscall.EEXIST}
	case move && from == to && old == name:
		return nil
	}
	switch {
	case !move:
		to.change(nameChange{set: name, n: n})
	case from == to:
		to.change(nameChange{set: name, n: n, gone: old})
	default:
		to.change(nameChange{set: name, n: n})
		from.change(nameChange{set: old})
	}
	return nil
}

// List is as in FS.
func (d *Disk) List(dir string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find("list", dir)
	if err != nil {
		return nil, err
	}
	if !n.dir {
		return nil, &os.PathError{Op: "list", Path: dir, Err: syscall.ENOTDIR}
	}
	return slices.Sorted(maps.Keys(n.names)), nil
}

// Stat is as in FS.
func (d *Disk) Stat(name string) (os.FileInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := d.find("stat", name)
	if err != nil {
		return nil, err
	}
	return info{name: path.Base(name), size: n.size, dir: n.dir, mod: n.mod}, nil
}

type info struct {
	name string
	size int64
	dir  bool
	mod  time.Time
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) ModTime() time.Time { return i.mod }
func (i info) IsDir() bool        { return i.dir }
func (i info) Sys() any           { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o750
	}
	return 0o640
}

// SyncDir is as in FS.
func (d *Disk) SyncDir(dir string) error {
	_, err := d.begin(OpSync, dir)
	defer d.mu.Unlock()
	if err != nil {
		return err
	}
	n, err := d.find("sync", dir)
	if err != nil {
		return err
	}
	n.durableNames, n.journal = maps.Clone(n.names), nil
	return nil
}

// syncName makes the name of a file durable that Pebble has synced. POSIX does
// not say so, but ext4, XFS and btrfs do it, and Pebble counts on it: it points
// its marker at a manifest whose directory it has not synced yet.
func (d *Disk) syncName(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if dir, last, err := d.walk("sync", name); err == nil && dir.names[last] != nil {
		dir.durableNames[last] = dir.names[last]
		dir.journal = slices.DeleteFunc(dir.journal, func(c nameChange) bool { return c.set == last && c.gone == "" })
	}
}

// Lock is as in FS.
func (d *Disk) Lock(name string) (io.Closer, error) {
	if _, err := d.Stat(name); err != nil {
		f, err := d.Create(name)
		if err != nil {
			return nil, err
		}
		f.Close()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.readOnly {
		return nil, &os.PathError{Op: "lock", Path: name, Err: syscall.EROFS}
	}
	if d.locks[name] {
		return nil, &os.PathError{Op: "lock", Path: name, Err: syscall.EWOULDBLOCK}
	}
	d.locks[name] = true
	return &diskLock{d: d, name: name}, nil
}

type diskLock struct {
	d    *Disk
	name string
	once sync.Once
}

func (l *diskLock) Close() error {
	l.once.Do(func() {
		l.d.mu.Lock()
		defer l.d.mu.Unlock()
		delete(l.d.locks, l.name)
	})
	return nil
}

// Usage is as in FS.
func (d *Disk) Usage(string) (Usage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	total := d.capacity
	if total == 0 {
		total = 1 << 50
	}
	return Usage{Total: total, Avail: max(total-d.used, 0), Sparse: true}, nil
}

// BootID is as in FS.
func (d *Disk) BootID() string { return d.boot }

// Pebble is as in FS.
func (d *Disk) Pebble() vfs.FS { return pebbleFS{d} }

// put changes a sector.
func (d *Disk) put(n *node, i int64, s sector) error {
	if n.now[i] == nil && s != zeroSector {
		if d.capacity > 0 && d.used+SectorSize > d.capacity {
			return syscall.ENOSPC
		}
		d.used += SectorSize
	}
	n.pending[i] = append(n.pending[i], s)
	n.now[i] = s
	return nil
}

// zero makes sectors [from, to) zeros.
func (d *Disk) zero(n *node, from, to int64) {
	drop := func(i int64) {
		if i >= from && i < to {
			n.pending[i] = append(n.pending[i], zeroSector)
			delete(n.now, i)
			d.used -= SectorSize
		}
	}
	if to-from < int64(len(n.now)) {
		for i := from; i < to; i++ {
			if n.now[i] != nil {
				drop(i)
			}
		}
		return
	}
	for i := range n.now {
		drop(i)
	}
}

func (d *Disk) resize(n *node, size int64) {
	if size < n.size {
		d.zero(n, (size+SectorSize-1)/SectorSize, 1<<62)
		n.size = size
		if s := n.now[size/SectorSize]; s != nil && size%SectorSize != 0 {
			n.trimTail()
			n.pending[size/SectorSize] = append(n.pending[size/SectorSize], n.now[size/SectorSize])
		}
	}
	if size != n.size || n.size != n.durableSize {
		n.pendingSizes = append(n.pendingSizes, size)
	}
	n.size = size
}

type diskFile struct {
	d             *Disk
	n             *node
	name          string
	write, direct bool
}

func (f *diskFile) err(op string, err error) error {
	return &os.PathError{Op: op, Path: f.name, Err: err}
}

func (f *diskFile) ReadAt(p []byte, off int64) (int, error) {
	_, err := f.d.begin(OpRead, f.name)
	defer f.d.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if f.direct && !Aligned(p, off) {
		return 0, f.err("read", syscall.EINVAL)
	}
	if off >= f.n.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), f.n.size-off))
	for done := 0; done < n; {
		at := off + int64(done)
		done += copy(p[done:n], orZero(f.n.now[at/SectorSize])[at%SectorSize:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	short, err := f.d.begin(OpWrite, f.name)
	defer f.d.mu.Unlock()
	switch {
	case !f.write:
		return 0, f.err("write", syscall.EBADF)
	case f.direct && !Aligned(p, off):
		return 0, f.err("write", syscall.EINVAL)
	case err != nil && !short:
		return 0, err
	case short:
		p = p[:len(p)/2]
	}
	n, werr := f.d.writeAt(f.n, p, off)
	if werr != nil {
		return n, f.err("write", werr)
	}
	return n, err
}

func (d *Disk) writeAt(n *node, p []byte, off int64) (int, error) {
	n.mod = time.Now()
	done := 0
	for done < len(p) {
		at := off + int64(done)
		s := new([SectorSize]byte)
		in := at % SectorSize
		if rest := len(p) - done; in != 0 || rest < SectorSize {
			*s = *orZero(n.now[at/SectorSize])
		}
		w := copy(s[in:], p[done:])
		if err := d.put(n, at/SectorSize, s); err != nil {
			return done, err
		}
		done += w
		if at+int64(w) > n.size {
			n.size = at + int64(w)
		}
	}
	if n.size != n.durableSize && (len(n.pendingSizes) == 0 || n.pendingSizes[len(n.pendingSizes)-1] != n.size) {
		n.pendingSizes = append(n.pendingSizes, n.size)
	}
	return done, nil
}

func (f *diskFile) Sync() error {
	_, err := f.d.begin(OpSync, f.name)
	defer f.d.mu.Unlock()
	if err != nil {
		return err
	}
	n := f.n
	for i := range n.pending {
		if s := n.now[i]; s != nil {
			n.durable[i] = s
		} else {
			delete(n.durable, i)
		}
	}
	clear(n.pending)
	n.pendingSizes = nil
	n.durableSize = n.size
	return nil
}

func (f *diskFile) Truncate(size int64) error {
	_, err := f.d.begin(OpTruncate, f.name)
	defer f.d.mu.Unlock()
	if err == nil {
		f.d.resize(f.n, size)
	}
	return err
}

func (f *diskFile) Allocate(off, n int64) error {
	_, err := f.d.begin(OpTruncate, f.name)
	defer f.d.mu.Unlock()
	if err == nil && f.n.size < off+n {
		f.d.resize(f.n, off+n)
	}
	return err
}

func (f *diskFile) PunchHole(off, n int64) error {
	_, err := f.d.begin(OpPunch, f.name)
	defer f.d.mu.Unlock()
	if err != nil {
		return err
	}
	if off%SectorSize != 0 || n%SectorSize != 0 {
		return f.err("punch", fmt.Errorf("%d bytes at %d are not whole sectors: %w", n, off, syscall.EINVAL))
	}
	f.d.zero(f.n, off/SectorSize, (off+n)/SectorSize)
	return nil
}

func (f *diskFile) Size() (int64, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.n.size, nil
}

func (f *diskFile) Close() error { return nil }
