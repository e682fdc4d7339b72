package raftmeta

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// machine is a state machine alone, fed with commands.
type machine struct {
	t     testing.TB
	s     *state
	index uint64
	seq   uint64
	last  effects
}

const testNonce = 77

func newMachine(t testing.TB) *machine {
	t.Helper()
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), Logger: quiet{orDiscard(nil)}})
	ok(t, err)
	t.Cleanup(func() { ok(t, db.Close()) })
	b := db.NewBatch()
	ok(t, initialState(b, halfA, testCluster, []Member{{ID: 1}}, 1000))
	ok(t, b.Commit(pebble.NoSync))
	m := &machine{t: t, s: &state{db: db, half: halfA}, index: initIndex}
	ok(t, m.s.load())
	return m
}

// pool gives the machine six targets and pool 0.
func (m *machine) pool() *machine {
	node := rfs.UUID{9}
	m.do(0, &metapb.Command{Op: &metapb.Command_RegisterNode{RegisterNode: &metapb.RegisterNode{Id: node[:], Name: "n"}}})
	for i := range 6 {
		id := rfs.UUID{1, byte(i)}
		m.do(0, &metapb.Command{Op: &metapb.Command_RegisterTarget{RegisterTarget: &metapb.RegisterTarget{
			Id: id[:], Node: node[:], Name: fmt.Sprint("t", i), Capacity: 1 << 30, Clean: true,
		}}})
	}
	rep := m.do(0, &metapb.Command{Op: &metapb.Command_CreatePool{CreatePool: &metapb.CreatePool{Name: "p", Scheme: "ec:4+2", Slots: 8}}})
	m.want(rep, wire.StatusOK)
	return m
}

// apply applies one command as an entry of its own.
func (m *machine) apply(cmd *metapb.Command) *metapb.Response {
	m.t.Helper()
	m.index++
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	t := m.s.begin()
	rep := m.s.apply(t, m.index, cmd)
	m.last = t.effects
	ok(m.t, m.s.commit(t, m.index, 1))
	return rep
}

// do applies a command under the next sequence, acknowledging all before it.
func (m *machine) do(id rfs.SessionID, cmd *metapb.Command) *metapb.Response {
	m.t.Helper()
	m.seq++
	cmd.Nonce, cmd.Seq, cmd.Ack, cmd.Session = testNonce, m.seq, m.seq, uint32(id)
	cmd.Time = int64(m.seq) * 1000
	return m.apply(cmd)
}

func (m *machine) want(rep *metapb.Response, st wire.Status) *metapb.Response {
	m.t.Helper()
	if got := wire.Status(rep.GetStatus()); got != st {
		m.t.Fatalf("status %v (%s), want %v", got, rep.GetDetail(), st)
	}
	return rep
}

func (m *machine) session() rfs.SessionID {
	m.t.Helper()
	rep := m.do(0, &metapb.Command{Op: &metapb.Command_OpenSession{OpenSession: &metapb.OpenSession{Name: "s"}}})
	return rfs.SessionID(m.want(rep, wire.StatusOK).GetSession())
}

// query reads.
func (m *machine) query(q *metapb.Query) *metapb.Response {
	m.t.Helper()
	v := m.s.view()
	defer v.close()
	rep, err := m.s.read(v, 0, q)
	ok(m.t, err)
	return rep
}

// check compares the mirror with what the keys say.
func (m *machine) check() {
	m.t.Helper()
	again := &state{db: m.s.db, half: m.s.half}
	ok(m.t, again.load())
	for _, x := range []struct {
		what string
		a, b any
	}{
		{"index", m.s.index, again.index}, {"counters", m.s.counters, again.counters}, {"sessions", m.s.sessions, again.sessions},
		{"opens", m.s.opens, again.opens}, {"locks", encoded(m.s.locks), encoded(again.locks)}, {"waits", m.s.waits, again.waits},
		{"askers", m.s.askers, again.askers}, {"ended", m.s.ended, again.ended}, {"cursors", m.s.cursors, again.cursors},
		{"recover", m.s.recover, again.recover}, {"purges", m.s.purges, again.purges}, {"map", m.s.mapBytes, again.mapBytes},
		{"members", m.s.members, again.members},
	} {
		if !reflect.DeepEqual(x.a, x.b) {
			m.t.Fatalf("the mirror of %s is\n%+v\nits keys say\n%+v", x.what, x.a, x.b)
		}
	}
}

func encoded(tables map[rfs.InodeID]*lockTable) map[rfs.InodeID]string {
	out := map[rfs.InodeID]string{}
	for ino, lt := range tables {
		out[ino] = string(lt.encode())
	}
	return out
}

// A fs is a machine with a session and paths, for stories.
type fs struct {
	*machine
	id rfs.SessionID
}

func newFS(t testing.TB) *fs {
	m := newMachine(t).pool()
	return &fs{m, m.session()}
}

// at resolves a path; the last name need not exist.
func (f *fs) at(path string) (uint64, []byte) {
	f.t.Helper()
	names := strings.Split(path, "/")
	dir := uint64(rfs.RootInode)
	for _, n := range names[:len(names)-1] {
		rep := f.query(&metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{Parent: dir, Name: []byte(n)}}})
		f.want(rep, wire.StatusOK)
		dir = rep.GetAttr().GetInode()
	}
	return dir, []byte(names[len(names)-1])
}

func (f *fs) ino(path string) uint64 {
	f.t.Helper()
	return f.stat(path).GetAttr().GetInode()
}

func (f *fs) stat(path string) *metapb.Response {
	f.t.Helper()
	dir, n := f.at(path)
	return f.query(&metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{Parent: dir, Name: n}}})
}

func (f *fs) run(line string) wire.Status {
	f.t.Helper()
	w := strings.Fields(line)
	dir, n := f.at(w[1])
	var cmd *metapb.Command
	switch w[0] {
	case "mkdir":
		cmd = &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: dir, Name: n, Mode: TypeDir | 0o755}}}
	case "mknod":
		cmd = &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: dir, Name: n, Mode: TypeChar | 0o600, Rdev: 0x103}}}
	case "touch":
		cmd = &metapb.Command{Op: &metapb.Command_Create{Create: &metapb.Create{Parent: dir, Name: n, Mode: 0o644, Excl: true}}}
	case "create":
		cmd = &metapb.Command{Op: &metapb.Command_Create{Create: &metapb.Create{Parent: dir, Name: n, Mode: 0o644, Open: uint32(OpenWrite)}}}
	case "symlink":
		cmd = &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: dir, Name: n, Mode: TypeLink | 0o777, Target: []byte(w[2])}}}
	case "link":
		to, tn := f.at(w[2])
		cmd = &metapb.Command{Op: &metapb.Command_Link{Link: &metapb.Link{Inode: f.ino(w[1]), Parent: to, Name: tn}}}
	case "unlink", "rmdir":
		cmd = &metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: dir, Name: n, Dir: w[0] == "rmdir"}}}
	case "rename", "exchange", "noreplace":
		to, tn := f.at(w[2])
		flags := map[string]RenameFlags{"exchange": RenameExchange, "noreplace": RenameNoReplace}[w[0]]
		cmd = &metapb.Command{Op: &metapb.Command_Rename{Rename: &metapb.Rename{Parent: dir, Name: n, NewParent: to, NewName: tn, Flags: uint32(flags)}}}
	case "open", "openw":
		mode := OpenRead
		if w[0] == "openw" {
			mode = OpenWrite
		}
		cmd = &metapb.Command{Op: &metapb.Command_Open{Open: &metapb.Open{Inode: f.ino(w[1]), Mode: uint32(mode)}}}
	case "truncate":
		cmd = &metapb.Command{Op: &metapb.Command_Setattr{Setattr: &metapb.Setattr{Inode: f.ino(w[1]), Size: new(int64(5)), Tag: &metapb.Tag{Hlc: f.index + 1, Session: 1}}}}
	default:
		f.t.Fatalf("no such verb: %s", line)
	}
	return wire.Status(f.do(f.id, cmd).GetStatus())
}

func TestNames(t *testing.T) {
	for _, story := range []string{
		`touch a: ok; touch a: exists; create a: ok; mkdir a: exists; unlink a: ok; unlink a: not found; rmdir a: not found`,
		`mkdir d: ok; touch d/a: ok; rmdir d: not empty; unlink d: is a directory; unlink d/a: ok; rmdir d: ok`,
		`touch a: ok; rmdir a: not a directory; touch a/b: not a directory; mkdir a/b: not a directory; create d: ok`,
		`mkdir d: ok; create d: is a directory; link d x: not permitted; open d: is a directory; truncate d: is a directory`,
		`symlink l target: ok; create l: exists; open l: invalid; truncate l: invalid; unlink l: ok`,
		`mknod n: ok; open n: invalid; link n m: ok; unlink n: ok; unlink m: ok`,
		`touch a: ok; link a b: ok; link a b: exists; unlink a: ok; link b a: ok`,
		`mkdir d: ok; mkdir d/e: ok; mkdir d/e/f: ok; rename d d/e/x: invalid; rename d d/x: invalid; exchange d d/e: invalid; exchange d/e d: invalid`,
		`touch a: ok; touch b: ok; noreplace a b: exists; noreplace a c: ok; exchange b c: ok; exchange b x: not found; rename x y: not found`,
		`mkdir d: ok; touch f: ok; rename f d: is a directory; rename d f: not a directory; exchange d f: ok; touch f/x: ok; touch d/x: not a directory`,
		`mkdir d: ok; mkdir e: ok; touch e/x: ok; rename d e: not empty; unlink e/x: ok; rename d e: ok; rmdir e: ok`,
		`touch a: ok; link a b: ok; rename a b: ok; unlink a: ok; unlink b: ok`,
		`touch a: ok; rename a a: ok; unlink a: ok`,
		`mkdir d: ok; mkdir e: ok; mkdir d/x: ok; rename d/x e/x: ok; rmdir d: ok; rename e/x x: ok; rmdir e: ok; rmdir x: ok`,
		`touch a: ok; open a: ok; unlink a: ok; touch a: ok`,
	} {
		t.Run("", func(t *testing.T) {
			f := newFS(t)
			for _, step := range strings.Split(story, ";") {
				line, want, _ := strings.Cut(step, ":")
				if got := f.run(strings.TrimSpace(line)); got.String() != strings.TrimSpace(want) {
					t.Errorf("%s: %v, want%s", line, got, want)
				}
				f.check()
			}
		})
	}
}

func TestNamesThatCannotBe(t *testing.T) {
	f := newFS(t)
	long := strings.Repeat("x", 256)
	for _, x := range []struct {
		name string
		want wire.Status
	}{
		{"", wire.StatusInvalid}, {".", wire.StatusInvalid}, {"..", wire.StatusInvalid}, {"a/b", wire.StatusInvalid},
		{"a\x00", wire.StatusInvalid}, {long, wire.StatusNameTooLong}, {long[:255], wire.StatusOK}, {"\xff\xfe", wire.StatusOK},
	} {
		rep := f.do(f.id, &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 1, Name: []byte(x.name), Mode: TypeFIFO}}})
		if wire.Status(rep.GetStatus()) != x.want {
			t.Errorf("%.20q: %v, want %v", x.name, wire.Status(rep.GetStatus()), x.want)
		}
	}
	for _, cmd := range []*metapb.Command{
		{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 1, Name: []byte("y"), Mode: 0o644}}},                                      // no type
		{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 1, Name: []byte("y"), Mode: TypeLink}}},                                   // no target
		{Op: &metapb.Command_Rename{Rename: &metapb.Rename{Parent: 1, Name: []byte("a"), NewParent: 1, NewName: []byte("b"), Flags: 3}}},  // both flags
		{Op: &metapb.Command_Rename{Rename: &metapb.Rename{Parent: 1, Name: []byte("a"), NewParent: 1, NewName: []byte(".."), Flags: 0}}}, // not a name
		{Op: &metapb.Command_Setattr{Setattr: &metapb.Setattr{Inode: 99}}},                                                                // no inode
		{Op: &metapb.Command_Link{Link: &metapb.Link{Inode: 99, Parent: 1, Name: []byte("y")}}},                                           // no inode
		{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 99, Name: []byte("y"), Mode: TypeDir}}},                                   // no directory
		{},
	} {
		if rep := f.do(f.id, cmd); rep.GetStatus() == 0 {
			t.Errorf("%v was applied", cmd)
		}
	}
	f.check()
}

func TestNlinkAndSizeOfDirectories(t *testing.T) {
	f := newFS(t)
	want := func(path string, nlink uint32, size int64) {
		t.Helper()
		if a := f.stat(path).GetAttr(); a.GetNlink() != nlink || a.GetSize() != size {
			t.Errorf("%s: nlink %d, %d entries; want %d, %d", path, a.GetNlink(), a.GetSize(), nlink, size)
		}
	}
	for _, l := range []string{"mkdir d", "mkdir d/a", "mkdir d/b", "touch d/f", "mkdir e"} {
		f.run(l)
	}
	want("d", 4, 3)
	f.run("rename d/a e/a")
	want("d", 3, 2)
	want("e", 3, 1)
	if f.stat("e/a").GetAttr().GetParent() != f.ino("e") {
		t.Error("the parent of a moved directory is the old one")
	}
	f.run("exchange d/f e/a")
	want("d", 4, 2)
	want("e", 2, 1)
	f.run("rename d/b d/f")
	want("d", 3, 1)
}

func TestEachCommandIsAppliedOnce(t *testing.T) {
	f := newFS(t)
	cmd := &metapb.Command{
		Nonce: testNonce, Seq: 1000, Ack: f.seq, Session: uint32(f.id),
		Op: &metapb.Command_ReserveAppend{ReserveAppend: &metapb.ReserveAppend{N: 10}},
	}
	f.run("create a")
	cmd.GetReserveAppend().Inode = f.ino("a")
	first, again := f.apply(cmd), f.apply(cmd)
	if !proto.Equal(first, again) || f.stat("a").GetAttr().GetSize() != 10 {
		t.Fatalf("first %v, then %v: size %d", first, again, f.stat("a").GetAttr().GetSize())
	}
	f.check()
	f.seq = 2000
	f.run("create b") // acknowledges it
	f.want(f.apply(cmd), wire.StatusInvalid)
	if n := len(f.s.askers[testNonce].results); n != 1 {
		t.Errorf("%d answers are kept, want 1", n)
	}
	f.do(0, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: []uint32{uint32(f.id)}}}})
	f.want(f.do(f.id, &metapb.Command{Op: cmd.Op}), wire.StatusSessionLost)
	f.check()
}

func TestAnswersOfTheIdleAreDropped(t *testing.T) {
	m := newMachine(t)
	id := m.session()
	for i := range uint64(maxIdleAskers + 10) {
		m.apply(&metapb.Command{Nonce: 1000 + i, Seq: 1, Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{}}})
	}
	if n := len(m.s.askers); n > maxIdleAskers {
		t.Errorf("%d askers are kept", n)
	}
	m.check()
	m.want(m.do(id, &metapb.Command{Op: &metapb.Command_Close{Close: &metapb.Close{}}}), wire.StatusOK)
}

func TestOrphansLiveUntilTheLastClose(t *testing.T) {
	f := newFS(t)
	f.run("create a")
	ino := f.ino("a")
	other := f.session()
	f.want(f.do(other, &metapb.Command{Op: &metapb.Command_Open{Open: &metapb.Open{Inode: ino, Mode: uint32(OpenRead)}}}), wire.StatusOK)
	f.do(f.id, &metapb.Command{Op: &metapb.Command_Setxattr{Setxattr: &metapb.Setxattr{Inode: ino, Name: []byte("user.a"), Value: []byte("v")}}})
	f.run("unlink a")
	stat := func() *metapb.Response {
		return f.query(&metapb.Query{Op: &metapb.Query_Getattr{Getattr: &metapb.Getattr{Inode: ino}}})
	}
	closeIt := &metapb.Command{Op: &metapb.Command_Close{Close: &metapb.Close{Files: []*metapb.CloseOne{{Inode: ino, Mode: uint32(OpenWrite)}}}}}
	f.do(f.id, closeIt)
	if a := f.want(stat(), wire.StatusOK).GetAttr(); a.GetNlink() != 0 {
		t.Errorf("nlink %d", a.GetNlink())
	}
	if f.s.purges != 0 {
		t.Error("an open file is queued for deletion")
	}
	f.check()
	f.do(0, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: []uint32{uint32(other)}, Expired: true}}})
	f.want(stat(), wire.StatusStale)
	if f.s.purges != 1 || !f.last.queued {
		t.Errorf("%d inodes are queued for deletion, want 1", f.s.purges)
	}
	f.want(f.query(&metapb.Query{Op: &metapb.Query_Getxattr{Getxattr: &metapb.Getxattr{Inode: ino, Name: []byte("user.a")}}}), wire.StatusStale)
	f.check()
}

func TestPurgeQueueWaitsForEachTarget(t *testing.T) {
	f := newFS(t)
	for range 3 {
		f.run("create a")
		f.run("unlink a")
		f.do(f.id, &metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Sessions: []uint32{uint32(f.id)}}}})
		f.id = f.session()
	}
	pass := func(target byte, seq uint64) {
		id := rfs.UUID{1, target}
		f.do(0, &metapb.Command{Op: &metapb.Command_Purged{Purged: &metapb.Purged{Cursors: []*metapb.Cursor{{Target: id[:], Seq: seq}}}}})
		f.check()
	}
	for i := range byte(5) {
		pass(i, 3)
	}
	if f.s.purges != 3 {
		t.Fatalf("%d queued, want 3: one target has passed none", f.s.purges)
	}
	pass(5, 2)
	if f.s.purges != 1 {
		t.Fatalf("%d queued, want 1", f.s.purges)
	}
	pass(5, 3)
	if f.s.purges != 0 {
		t.Fatalf("%d queued, want 0", f.s.purges)
	}
}

func TestTruncationsAreRemembered(t *testing.T) {
	f := newFS(t)
	f.run("create a")
	ino := f.ino("a")
	f.do(f.id, &metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Inode: ino, Size: 100}}})
	cut := func(size int64, hlc uint64) {
		f.want(f.do(f.id, &metapb.Command{Op: &metapb.Command_Setattr{Setattr: &metapb.Setattr{Inode: ino, Size: &size, Tag: &metapb.Tag{Hlc: hlc}}}}), wire.StatusOK)
		f.check()
	}
	trims := func() (out []int64) {
		for _, tr := range f.stat("a").GetAttr().GetTrims() {
			out = append(out, tr.GetSize())
		}
		return out
	}
	cut(50, 1)
	cut(70, 2)
	if got := trims(); !reflect.DeepEqual(got, []int64{50, 70}) {
		t.Fatalf("trims %v", got)
	}
	cut(60, 3) // takes the one to 70 over
	if got := trims(); !reflect.DeepEqual(got, []int64{50, 60}) {
		t.Fatalf("trims %v", got)
	}
	f.do(f.id, &metapb.Command{Op: &metapb.Command_TrimSwept{TrimSwept: &metapb.TrimSwept{Inode: ino, Tag: &metapb.Tag{Hlc: 3}}}})
	if tr := f.stat("a").GetAttr().GetTrims(); !tr[1].GetSwept() || tr[0].GetSwept() {
		t.Fatalf("trims %v", tr)
	}
	f.do(f.id, &metapb.Command{Op: &metapb.Command_TrimDone{TrimDone: &metapb.TrimDone{Inode: ino, Tag: &metapb.Tag{Hlc: 1}}}})
	f.do(f.id, &metapb.Command{Op: &metapb.Command_TrimDone{TrimDone: &metapb.TrimDone{Inode: ino, Tag: &metapb.Tag{Hlc: 3}}}})
	if got := trims(); got != nil {
		t.Fatalf("trims %v", got)
	}
	f.check()
}

func TestCommitGrowsUnlessExact(t *testing.T) {
	f := newFS(t)
	f.run("create a")
	ino := f.ino("a")
	commit := func(size int64, exact bool, want int64) {
		t.Helper()
		rep := f.do(f.id, &metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Inode: ino, Size: size, Exact: exact, Mtime: 42}}})
		if a := rep.GetAttr(); a.GetSize() != want || a.GetMtime() != 42 {
			t.Errorf("size %d, mtime %d; want %d, 42", a.GetSize(), a.GetMtime(), want)
		}
	}
	commit(100, false, 100)
	commit(50, false, 100)
	commit(50, true, 50)
	rep := f.do(f.id, &metapb.Command{Op: &metapb.Command_ReserveAppend{ReserveAppend: &metapb.ReserveAppend{Inode: ino, N: 7}}})
	if rep.GetOffset() != 50 || f.stat("a").GetAttr().GetSize() != 57 {
		t.Errorf("appended at %d, size %d", rep.GetOffset(), f.stat("a").GetAttr().GetSize())
	}
	f.want(f.do(f.id, &metapb.Command{Op: &metapb.Command_ReserveAppend{ReserveAppend: &metapb.ReserveAppend{Inode: ino, N: MaxFileSize}}}), wire.StatusFileTooBig)
	f.want(f.do(f.id, &metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Inode: ino, Size: -1}}}), wire.StatusInvalid)
}

func TestXattrs(t *testing.T) {
	f := newFS(t)
	f.run("touch a")
	ino := f.ino("a")
	set := func(name, value string, flags XattrFlags) wire.Status {
		return wire.Status(f.do(f.id, &metapb.Command{Op: &metapb.Command_Setxattr{Setxattr: &metapb.Setxattr{Inode: ino, Name: []byte(name), Value: []byte(value), Flags: uint32(flags)}}}).GetStatus())
	}
	for _, x := range []struct {
		got, want wire.Status
	}{
		{set("user.a", "1", XattrReplace), wire.StatusNoAttr}, {set("user.a", "1", XattrCreate), wire.StatusOK},
		{set("user.a", "2", XattrCreate), wire.StatusExist}, {set("user.a", "", XattrReplace), wire.StatusOK},
		{set("user.b", strings.Repeat("v", MaxXattr), 0), wire.StatusOK}, {set("user.c", strings.Repeat("v", MaxXattr+1), 0), wire.StatusNoSpace},
		{set(strings.Repeat("n", 256), "", 0), wire.StatusNameTooLong}, {set("", "", 0), wire.StatusInvalid}, {set("user.d", "", 3), wire.StatusInvalid},
	} {
		if x.got != x.want {
			t.Errorf("%v, want %v", x.got, x.want)
		}
	}
	get := f.query(&metapb.Query{Op: &metapb.Query_Getxattr{Getxattr: &metapb.Getxattr{Inode: ino, Name: []byte("user.a")}}})
	if f.want(get, wire.StatusOK); len(get.GetValue()) != 0 {
		t.Errorf("value %q", get.GetValue())
	}
	list := f.query(&metapb.Query{Op: &metapb.Query_Listxattr{Listxattr: &metapb.Listxattr{Inode: ino}}})
	if got := fmt.Sprintf("%s", list.GetNames()); got != "[user.a user.b]" {
		t.Errorf("names %s", got)
	}
	del := func() *metapb.Response {
		return f.do(f.id, &metapb.Command{Op: &metapb.Command_Removexattr{Removexattr: &metapb.Removexattr{Inode: ino, Name: []byte("user.a")}}})
	}
	f.want(del(), wire.StatusOK)
	f.want(del(), wire.StatusNoAttr)
}

// Entries of one hash are numbered; a lookup goes through them.
func TestNamesOfOneHash(t *testing.T) {
	f := newFS(t)
	d := rfs.RootInode
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	tx := f.s.begin()
	defer tx.b.Close()
	tx.index = 1
	base := uint64(500) << 8
	// find by hand, as if all names had the hash 500
	find := func(name string) place {
		p := place{}
		for n := range uint64(cookieNumbers) {
			p.cookie = base + n
			v := tx.read(keyOf(tx.half, kEntry).ino(d).u64(p.cookie))
			if v == nil {
				return p
			}
			x, err := decodeDirent(v)
			ok(t, err)
			if x.typ == 0 && p.held == 0 {
				p.held = p.cookie
			}
			if x.typ != 0 && string(x.name) == name {
				p.ent = x
				return p
			}
		}
		return p
	}
	n := &node{Attr: Attr{Inode: 5, Mode: TypeFile}}
	add := func(name string) uint64 { tx.putEntry(d, find(name), []byte(name), n); return find(name).cookie - base }
	del := func(name string) { tx.delEntry(d, find(name)) }
	for i, name := range []string{"a", "b", "c"} {
		if got := add(name); got != uint64(i) {
			t.Fatalf("%s has number %d", name, got)
		}
	}
	del("b")
	if find("c").ent.typ == 0 || find("b").ent.typ != 0 {
		t.Fatal("c is lost, or b is there, after b was removed")
	}
	if got := add("d"); got != 1 {
		t.Fatalf("d has number %d, want the held place 1", got)
	}
	del("a")
	del("d")
	del("c")
	for i := range uint64(3) {
		if v := tx.read(keyOf(tx.half, kEntry).ino(d).u64(base + i)); v != nil {
			t.Errorf("place %d is held for nobody", i)
		}
	}
	ok(t, tx.err)
}

func TestReaddirGoesOnWhereItWas(t *testing.T) {
	f := newFS(t)
	f.run("mkdir d")
	dir := f.ino("d")
	want := map[string]bool{}
	for i := range 50 {
		n := fmt.Sprint("f", i)
		f.run("touch d/" + n)
		want[n] = true
	}
	seen := map[string]bool{}
	for cookie, round := uint64(0), 0; ; round++ {
		rep := f.query(&metapb.Query{Op: &metapb.Query_Readdir{Readdir: &metapb.Readdir{Inode: dir, Cookie: cookie, Limit: 7, Plus: round%2 == 0}}})
		for _, e := range rep.GetEntries() {
			if seen[string(e.GetName())] || e.GetCookie() < firstCookie || int64(e.GetCookie()) < 0 {
				t.Fatalf("entry %v", e)
			}
			seen[string(e.GetName())] = true
			cookie = e.GetCookie()
		}
		if rep.GetEof() {
			break
		}
		f.run(fmt.Sprint("touch d/new", round)) // may or may not be seen
		for n := range want {
			if seen[n] {
				f.run("unlink d/" + n) // seen already: must not disturb
				delete(want, n)
				break
			}
		}
	}
	for n := range want {
		if !seen[n] {
			t.Errorf("%s was there all the while and was not returned", n)
		}
	}
}

func TestNoPoolNoFile(t *testing.T) {
	m := newMachine(t)
	id := m.session()
	rep := m.do(id, &metapb.Command{Op: &metapb.Command_Create{Create: &metapb.Create{Parent: 1, Name: []byte("a")}}})
	m.want(rep, wire.StatusNoSpace)
	if !strings.Contains(rep.GetDetail(), "rfs pool create") {
		t.Errorf("detail %q does not say what to do", rep.GetDetail())
	}
	m.check()
}

func TestDirectoriesChooseThePool(t *testing.T) {
	f := newFS(t)
	f.want(f.do(0, &metapb.Command{Op: &metapb.Command_CreatePool{CreatePool: &metapb.CreatePool{Name: "r", Scheme: "replica:3", Slots: 4}}}), wire.StatusOK)
	f.run("mkdir d")
	f.want(f.do(f.id, &metapb.Command{Op: &metapb.Command_SetLayout{SetLayout: &metapb.SetLayout{Inode: f.ino("d"), Pool: 9}}}), wire.StatusNotFound)
	f.want(f.do(f.id, &metapb.Command{Op: &metapb.Command_SetLayout{SetLayout: &metapb.SetLayout{Inode: f.ino("d"), Pool: 1}}}), wire.StatusOK)
	f.run("mkdir d/e")
	f.run("touch d/e/f")
	f.run("touch g")
	if l := f.stat("d/e/f").GetAttr().GetLayout(); l.GetPool() != 1 || l.GetK() != 1 || l.GetM() != 2 {
		t.Errorf("layout %v", l)
	}
	if l := f.stat("g").GetAttr().GetLayout(); l.GetPool() != 0 || l.GetK() != 4 {
		t.Errorf("layout %v", l)
	}
}

func TestGroupBitOfDirectories(t *testing.T) {
	f := newFS(t)
	f.run("mkdir d")
	f.do(f.id, &metapb.Command{Op: &metapb.Command_Setattr{Setattr: &metapb.Setattr{Inode: f.ino("d"), Mode: new(uint32(0o2775)), Gid: new(uint32(7))}}})
	f.run("mkdir d/e")
	f.run("touch d/f")
	if a := f.stat("d/e").GetAttr(); a.GetGid() != 7 || a.GetMode() != TypeDir|0o2755 {
		t.Errorf("directory: gid %d, mode %o", a.GetGid(), a.GetMode())
	}
	if a := f.stat("d/f").GetAttr(); a.GetGid() != 7 || a.GetMode() != TypeFile|0o644 {
		t.Errorf("file: gid %d, mode %o", a.GetGid(), a.GetMode())
	}
}
