package raftmeta

import (
	"context"
	"fmt"
	"time"

	"rfs"
	"rfs/raftmeta/metapb"
	"rfs/transport/wire"
)

// The namespace as a client sees it. The service trusts the uid and gid that
// an authenticated client gives, and does not check permissions: the kernel of
// the client does (mount option default_permissions).

func name(op, n string) error {
	if len(n) > rfs.MaxName {
		return fmt.Errorf("%s %.40q...: %w", op, n, rfs.ErrNameTooLong)
	}
	return nil
}

func entry(op string, dir rfs.InodeID, n string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q in %v: %w", op, n, dir, err)
}

func inode(op string, ino rfs.InodeID, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %v: %w", op, ino, err)
}

// Lookup returns the attributes of what name stands for in dir. "." and ".." are allowed.
func (c *Client) Lookup(ctx context.Context, dir rfs.InodeID, n string) (Attr, error) {
	if err := name("lookup", n); err != nil {
		return Attr{}, err
	}
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{Parent: uint64(dir), Name: []byte(n)}}}, 0)
	return attrFromPB(rep.GetAttr()), entry("lookup", dir, n, err)
}

// Getattr returns the attributes of an inode. If other sessions have the file
// open for writing they are asked for its size first.
func (c *Client) Getattr(ctx context.Context, ino rfs.InodeID) (Attr, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Getattr{Getattr: &metapb.Getattr{Inode: uint64(ino), Fresh: true}}}, 0)
	return attrFromPB(rep.GetAttr()), inode("getattr", ino, err)
}

// GetattrLazy is Getattr that asks no writers: Size and Mtime lag if Attr.Writers is set.
func (c *Client) GetattrLazy(ctx context.Context, ino rfs.InodeID) (Attr, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Getattr{Getattr: &metapb.Getattr{Inode: uint64(ino)}}}, 0)
	return attrFromPB(rep.GetAttr()), inode("getattr", ino, err)
}

// Setattr changes attributes and returns them all.
func (c *Client) Setattr(ctx context.Context, ino rfs.InodeID, set SetAttr) (Attr, error) {
	rep, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Setattr{Setattr: &metapb.Setattr{
		Inode: uint64(ino), Mode: set.Mode, Uid: set.UID, Gid: set.GID, Size: set.Size,
		Atime: set.Atime, Mtime: set.Mtime, Ctime: set.Ctime, Tag: tagToPB(set.Tag),
	}}})
	return attrFromPB(rep.GetAttr()), inode("setattr", ino, err)
}

// Create makes a file and opens it, in one command; without spec.Excl it opens what is there.
// An empty name makes a file without one (O_TMPFILE): Link gives it one, or it goes with its last close.
func (c *Client) Create(ctx context.Context, dir rfs.InodeID, n string, spec CreateSpec) (OpenResult, error) {
	if err := name("create", n); err != nil {
		return OpenResult{}, err
	}
	rep, err := c.openCommand(ctx, spec.Open, &metapb.Command{Op: &metapb.Command_Create{Create: &metapb.Create{
		Parent: uint64(dir), Name: []byte(n), Mode: spec.Mode, Uid: spec.UID, Gid: spec.GID, Excl: spec.Excl, Open: uint32(spec.Open),
	}}})
	return openResult(rep), entry("create", dir, n, err)
}

// openCommand sends a command that opens a file. If the caller gives up before
// it is answered, what it may have opened is closed again in the background.
func (c *Client) openCommand(ctx context.Context, mode OpenMode, cmd *metapb.Command) (*metapb.Response, error) {
	id := c.Session()
	if id == 0 {
		return nil, fmt.Errorf("metadata: no session is open: %w", rfs.ErrSessionLost)
	}
	cmd.Session = uint32(id)
	seq := c.seqs.begin()
	rep, err := c.commandAs(ctx, seq, cmd)
	if err == nil || definite(err) {
		c.seqs.end(seq)
		return rep, err
	}
	c.wg.Go(func() {
		defer c.seqs.end(seq)
		undo := &metapb.Settle{WaitSeq: seq, Cancel: true, Open: uint32(mode)}
		_, uerr := c.command(c.ctx, &metapb.Command{Session: uint32(id), Op: &metapb.Command_Settle{Settle: undo}})
		if uerr != nil && c.ctx.Err() == nil {
			c.log.Warn("an open that was given up is not undone; it is when the session ends", "session", id, "err", uerr)
		}
	})
	return rep, err
}

func openResult(rep *metapb.Response) OpenResult {
	o := rep.GetOpen()
	return OpenResult{Attr: attrFromPB(rep.GetAttr()), Cache: CacheMode(o.GetCache()), Grant: o.GetGrant(), Created: o.GetCreated()}
}

// Mknod makes a file, directory, symbolic link, device node, FIFO or socket.
func (c *Client) Mknod(ctx context.Context, dir rfs.InodeID, n string, spec MknodSpec) (Attr, error) {
	if err := name("mknod", n); err != nil {
		return Attr{}, err
	}
	rep, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: uint64(dir), Name: []byte(n), Mode: spec.Mode, Uid: spec.UID, Gid: spec.GID, Rdev: spec.Rdev, Target: []byte(spec.Target),
	}}})
	return attrFromPB(rep.GetAttr()), entry("mknod", dir, n, err)
}

// Mkdir makes a directory.
func (c *Client) Mkdir(ctx context.Context, dir rfs.InodeID, n string, mode, uid, gid uint32) (Attr, error) {
	return c.Mknod(ctx, dir, n, MknodSpec{Mode: TypeDir | mode&^TypeMask, UID: uid, GID: gid})
}

// Symlink makes a symbolic link to target.
func (c *Client) Symlink(ctx context.Context, dir rfs.InodeID, n, target string, uid, gid uint32) (Attr, error) {
	return c.Mknod(ctx, dir, n, MknodSpec{Mode: TypeLink | 0o777, UID: uid, GID: gid, Target: target})
}

// Readlink returns the target of a symbolic link.
func (c *Client) Readlink(ctx context.Context, ino rfs.InodeID) (string, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Readlink{Readlink: &metapb.Readlink{Inode: uint64(ino)}}}, 0)
	return string(rep.GetValue()), inode("readlink", ino, err)
}

// Link gives an inode, not a directory, one more name.
func (c *Client) Link(ctx context.Context, ino, dir rfs.InodeID, n string) (Attr, error) {
	if err := name("link", n); err != nil {
		return Attr{}, err
	}
	rep, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Link{Link: &metapb.Link{Inode: uint64(ino), Parent: uint64(dir), Name: []byte(n)}}})
	return attrFromPB(rep.GetAttr()), entry("link", dir, n, err)
}

// Unlink removes a name that is not a directory's, and returns the inode as it
// is afterwards. A file that is open lives on without name until its last close.
func (c *Client) Unlink(ctx context.Context, dir rfs.InodeID, n string) (Attr, error) {
	rep, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: uint64(dir), Name: []byte(n)}}})
	return attrFromPB(rep.GetAttr()), entry("unlink", dir, n, err)
}

// Rmdir removes an empty directory.
func (c *Client) Rmdir(ctx context.Context, dir rfs.InodeID, n string) error {
	_, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: uint64(dir), Name: []byte(n), Dir: true}}})
	return entry("rmdir", dir, n, err)
}

// Rename moves a name, replacing what has the new one unless flags say otherwise.
func (c *Client) Rename(ctx context.Context, dir rfs.InodeID, n string, newDir rfs.InodeID, newName string, flags RenameFlags) error {
	_, err := c.rename(ctx, dir, n, newDir, newName, flags)
	return err
}

// RenameHold is Rename after which a file that lost its last name, and is not open anywhere, is still there, so that who has
// just looked up its name can open it: to them, too, the name is never without a file. It returns
// that file's inode, or 0. The session has it open for reading, until Release(inode, OpenRead).
func (c *Client) RenameHold(ctx context.Context, dir rfs.InodeID, n string, newDir rfs.InodeID, newName string, flags RenameFlags) (rfs.InodeID, error) {
	rep, err := c.rename(ctx, dir, n, newDir, newName, flags|renameHold)
	if err != nil || rep.GetOpen() == nil {
		return 0, err
	}
	return rfs.InodeID(rep.GetAttr().GetInode()), nil
}

func (c *Client) rename(ctx context.Context, dir rfs.InodeID, n string, newDir rfs.InodeID, newName string, flags RenameFlags) (*metapb.Response, error) {
	if err := name("rename to", newName); err != nil {
		return nil, err
	}
	rep, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Rename{Rename: &metapb.Rename{
		Parent: uint64(dir), Name: []byte(n), NewParent: uint64(newDir), NewName: []byte(newName), Flags: uint32(flags),
	}}})
	return rep, entry("rename", dir, n, err)
}

// readdirBytes is what a reply of Readdir may have.
const readdirBytes = 256 << 10

// Readdir returns the entries of a directory after the one with the cookie (0:
// from the start), at most limit (0: as many as fit a message), with their
// attributes if plus is set, and whether these are the last. "." and ".." are
// not among them; cookies below 16 are the caller's to use for them.
//
// An entry that is there all the while is returned exactly once, whatever else changes.
func (c *Client) Readdir(ctx context.Context, dir rfs.InodeID, cookie uint64, limit int, plus bool) ([]DirEntry, bool, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Readdir{Readdir: &metapb.Readdir{
		Inode: uint64(dir), Cookie: cookie, Limit: uint32(max(limit, 0)), Plus: plus, Bytes: readdirBytes,
	}}}, readdirBytes+64<<10)
	if err != nil {
		return nil, false, inode("readdir", dir, err)
	}
	out := make([]DirEntry, len(rep.GetEntries()))
	for i, e := range rep.GetEntries() {
		out[i] = DirEntry{Name: string(e.GetName()), Inode: rfs.InodeID(e.GetInode()), Type: e.GetType(), Cookie: e.GetCookie()}
		if e.GetAttr() != nil {
			a := attrFromPB(e.GetAttr())
			out[i].Attr = &a
		}
	}
	return out, rep.GetEof(), nil
}

// Open records that the session has the file open, and says what it may cache.
// It returns when the sessions that must cache less have flushed.
func (c *Client) Open(ctx context.Context, ino rfs.InodeID, mode OpenMode) (OpenResult, error) {
	rep, err := c.openCommand(ctx, mode, &metapb.Command{Op: &metapb.Command_Open{Open: &metapb.Open{Inode: uint64(ino), Mode: uint32(mode)}}})
	return openResult(rep), inode("open", ino, err)
}

// CloseFile undoes one Open or Create with the same mode. Flush and Commit
// before: the file may be another's to cache, or gone, afterwards.
func (c *Client) CloseFile(ctx context.Context, ino rfs.InodeID, mode OpenMode) error {
	_, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Close{Close: &metapb.Close{Files: []*metapb.CloseOne{{Inode: uint64(ino), Mode: uint32(mode)}}}}})
	return inode("close", ino, err)
}

// Release is CloseFile that waits for nothing: it is sent soon, with others.
func (c *Client) Release(ino rfs.InodeID, mode OpenMode) {
	if c.Session() != 0 {
		c.closes.add(ino, mode)
	}
}

// Commit makes a writer's size and times known and returns the attributes.
func (c *Client) Commit(ctx context.Context, ino rfs.InodeID, spec CommitSpec) (Attr, error) {
	rep, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{
		Inode: uint64(ino), Size: spec.Size, Exact: spec.Exact, Mtime: spec.Mtime, Atime: spec.Atime,
	}}})
	return attrFromPB(rep.GetAttr()), inode("commit", ino, err)
}

// ReserveAppend makes the file n bytes longer and returns where they begin.
func (c *Client) ReserveAppend(ctx context.Context, ino rfs.InodeID, n int64) (int64, error) {
	rep, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_ReserveAppend{ReserveAppend: &metapb.ReserveAppend{Inode: uint64(ino), N: n}}})
	return rep.GetOffset(), inode("append to", ino, err)
}

// TrimDone says that the truncation recorded with the tag was carried out on the targets.
func (c *Client) TrimDone(ctx context.Context, ino rfs.InodeID, tag rfs.Tag) error {
	_, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_TrimDone{TrimDone: &metapb.TrimDone{Inode: uint64(ino), Tag: tagToPB(tag)}}})
	return inode("trim of", ino, err)
}

// SetPool makes a pool the one where new files of a directory go, and those of directories made in it.
func (c *Client) SetPool(ctx context.Context, dir rfs.InodeID, pool rfs.PoolID) error {
	_, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_SetLayout{SetLayout: &metapb.SetLayout{Inode: uint64(dir), Pool: uint32(pool)}}})
	return inode("set the pool of", dir, err)
}

// Getxattr returns an extended attribute.
func (c *Client) Getxattr(ctx context.Context, ino rfs.InodeID, n string) ([]byte, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Getxattr{Getxattr: &metapb.Getxattr{Inode: uint64(ino), Name: []byte(n)}}}, 0)
	return rep.GetValue(), inode("getxattr "+n+" of", ino, err)
}

// Setxattr sets an extended attribute.
func (c *Client) Setxattr(ctx context.Context, ino rfs.InodeID, n string, value []byte, flags XattrFlags) error {
	if err := name("setxattr", n); err != nil {
		return err
	}
	if len(value) > MaxXattr {
		return fmt.Errorf("setxattr %s of %v: %d bytes: at most %d: %w", n, ino, len(value), MaxXattr, rfs.ErrNoSpace)
	}
	_, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Setxattr{Setxattr: &metapb.Setxattr{Inode: uint64(ino), Name: []byte(n), Value: value, Flags: uint32(flags)}}})
	return inode("setxattr "+n+" of", ino, err)
}

// Listxattr returns the names of the extended attributes, in order.
func (c *Client) Listxattr(ctx context.Context, ino rfs.InodeID) ([]string, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Listxattr{Listxattr: &metapb.Listxattr{Inode: uint64(ino)}}}, 0)
	var names []string
	for _, n := range rep.GetNames() {
		names = append(names, string(n))
	}
	return names, inode("listxattr", ino, err)
}

// Removexattr removes an extended attribute.
func (c *Client) Removexattr(ctx context.Context, ino rfs.InodeID, n string) error {
	_, err := c.sessionCommand(ctx, &metapb.Command{Op: &metapb.Command_Removexattr{Removexattr: &metapb.Removexattr{Inode: uint64(ino), Name: []byte(n)}}})
	return inode("removexattr "+n+" of", ino, err)
}

// settleTime bounds how long a wait that is given up is settled before Lock returns without knowing.
const settleTime = 10 * time.Second

// Lock takes or releases (spec.Type Unlock) a lock for the session. If another
// holds it, Lock fails with rfs.ErrWouldBlock or, with wait, waits: until it is
// granted, until waiting would close a circle of owners (rfs.ErrDeadlock, POSIX
// locks only, as Linux), or until ctx ends. Then the wait is settled before Lock
// returns ctx's error: what was granted meanwhile is released, but for what the
// same owner holds from another request. If no replica answers to that, the
// lock is as uncertain as the session is, and ends with it.
func (c *Client) Lock(ctx context.Context, ino rfs.InodeID, spec LockSpec, wait bool) error {
	id := c.Session()
	if id == 0 {
		return inode("lock", ino, rfs.ErrSessionLost)
	}
	seq := c.seqs.begin()
	rep, err := c.commandAs(ctx, seq, &metapb.Command{Session: uint32(id), Op: &metapb.Command_Lock{Lock: &metapb.Lock{
		Inode: uint64(ino), Spec: lockToPB(spec), Wait: wait,
	}}})
	switch {
	case err == nil && rep.GetWaiting():
		c.seqs.end(seq) // the wait may be long, and answers are kept from the lowest that is not ended
		err = c.awaitLock(ctx, id, seq)
		return inode("lock", ino, c.settle(ctx, id, seq, err))
	case err == nil, definite(err), !wait:
		c.seqs.end(seq)
		return inode("lock", ino, err)
	}
	defer c.seqs.end(seq)
	return inode("lock", ino, c.settle(ctx, id, seq, err))
}

// awaitLock returns nil when the lock was granted.
func (c *Client) awaitLock(ctx context.Context, id rfs.SessionID, seq uint64) error {
	rep := new(metapb.Response)
	req := &metapb.LockWait{Session: uint32(id), Nonce: c.nonce, WaitSeq: seq}
	return c.do(ctx, wire.OpMeta, &metapb.Request{Kind: &metapb.Request_Wait{Wait: req}}, rep, 0)
}

// settle ends the wait seq: granted (err nil) or given up because of err.
func (c *Client) settle(ctx context.Context, id rfs.SessionID, seq uint64, err error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	cmd := &metapb.Settle{WaitSeq: seq, Cancel: err != nil}
	_, serr := c.command(ctx, &metapb.Command{Session: uint32(id), Op: &metapb.Command_Settle{Settle: cmd}})
	if err == nil {
		return serr
	}
	return err
}

// TestLock returns a lock of another owner that keeps spec from being granted, or nil.
func (c *Client) TestLock(ctx context.Context, ino rfs.InodeID, spec LockSpec) (*LockSpec, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_TestLock{TestLock: &metapb.TestLock{Inode: uint64(ino), Spec: lockToPB(spec)}}}, 0)
	if err != nil || rep.GetLock() == nil {
		return nil, inode("test a lock of", ino, err)
	}
	l := lockFromPB(rep.GetLock())
	return &l, nil
}

// Statfs returns the space of the cluster.
func (c *Client) Statfs(ctx context.Context) (Statfs, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Statfs{Statfs: &metapb.StatfsQuery{}}}, 0)
	if err != nil {
		return Statfs{}, fmt.Errorf("statfs: %w", err)
	}
	s := rep.GetStatfs()
	return Statfs{Capacity: s.GetCapacity(), Used: s.GetUsed(), Usable: s.GetUsable(), Free: s.GetFree(), Inodes: s.GetInodes()}, nil
}

// Openers returns the sessions that have a file open.
func (c *Client) Openers(ctx context.Context, ino rfs.InodeID) ([]Opener, error) {
	rep, err := c.query(ctx, &metapb.Query{Op: &metapb.Query_Openers{Openers: &metapb.Openers{Inode: uint64(ino)}}}, 0)
	var out []Opener
	for _, o := range rep.GetOpeners() {
		out = append(out, Opener{
			Session: rfs.SessionID(o.GetSession()), Readers: o.GetReaders(), Writers: o.GetWriters(),
			Cache: CacheMode(o.GetCache()), Grant: o.GetGrant(),
		})
	}
	return out, inode("openers of", ino, err)
}
