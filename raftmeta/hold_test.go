package raftmeta

import (
	"errors"
	"testing"

	"rfs"
)

// A file that a rename replaced can still be opened by who looked its name up before, until the hold ends.
func TestRenameHold(t *testing.T) {
	c := began(t, 1, nil)
	a, b := c.session(Events{}), c.session(Events{})
	old := must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "f", CreateSpec{Mode: 0o644}))
	must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "tmp", CreateSpec{Mode: 0o644}))
	held := must[rfs.InodeID](t)(a.RenameHold(c.ctx(), rfs.RootInode, "tmp", rfs.RootInode, "f", 0))
	if held != old.Attr.Inode {
		t.Fatalf("held %v, want %v", held, old.Attr.Inode)
	}
	must[OpenResult](t)(b.Open(c.ctx(), held, OpenRead))
	ok(t, a.CloseFile(c.ctx(), held, OpenRead))
	if at := must[Attr](t)(b.Getattr(c.ctx(), held)); at.Nlink != 0 {
		t.Errorf("it has %d links", at.Nlink)
	}
	ok(t, b.CloseFile(c.ctx(), held, OpenRead))
	if _, err := b.Getattr(c.ctx(), held); !errors.Is(err, rfs.ErrStale) && !errors.Is(err, rfs.ErrNotFound) {
		t.Errorf("after the last close: %v", err)
	}
	// What has another name, or is open, needs no hold; nor does what is not replaced.
	must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "tmp", CreateSpec{Mode: 0o644, Open: OpenRead}))
	must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "x", CreateSpec{Mode: 0o644}))
	for _, to := range []string{"tmp", "new"} {
		if held := must[rfs.InodeID](t)(a.RenameHold(c.ctx(), rfs.RootInode, "x", rfs.RootInode, to, 0)); held != 0 {
			t.Errorf("rename to %s holds %v", to, held)
		}
		must[OpenResult](t)(a.Create(c.ctx(), rfs.RootInode, "x", CreateSpec{Mode: 0o644}))
	}
	if _, err := a.RenameHold(c.ctx(), rfs.RootInode, "x", rfs.RootInode, "f", RenameNoReplace); !errors.Is(err, rfs.ErrExist) {
		t.Errorf("NOREPLACE: %v", err)
	}
}

func TestUnnamedFiles(t *testing.T) {
	c := began(t, 1, nil)
	cl := c.session(Events{})
	before := must[Statfs](t)(cl.Statfs(c.ctx())).Inodes
	make := func() rfs.InodeID {
		r := must[OpenResult](t)(cl.Create(c.ctx(), rfs.RootInode, "", CreateSpec{Mode: 0o600, UID: 5, Open: OpenWrite}))
		if r.Attr.Nlink != 0 || r.Attr.UID != 5 || !r.Created || r.Cache != CacheReadWrite {
			t.Errorf("%+v", r)
		}
		return r.Attr.Inode
	}
	goes, stays := make(), make()
	ok(t, cl.CloseFile(c.ctx(), goes, OpenWrite))
	if _, err := cl.Getattr(c.ctx(), goes); err == nil {
		t.Error("it outlived its last close")
	}
	if at := must[Attr](t)(cl.Link(c.ctx(), stays, rfs.RootInode, "named")); at.Nlink != 1 {
		t.Errorf("after link it has %d names", at.Nlink)
	}
	ok(t, cl.CloseFile(c.ctx(), stays, OpenWrite))
	if at := must[Attr](t)(cl.Lookup(c.ctx(), rfs.RootInode, "named")); at.Inode != stays {
		t.Errorf("the name is %v's", at.Inode)
	}
	// Once it had a name, it is like any other: without names it gets none.
	must[OpenResult](t)(cl.Open(c.ctx(), stays, OpenRead))
	must[Attr](t)(cl.Unlink(c.ctx(), rfs.RootInode, "named"))
	if _, err := cl.Link(c.ctx(), stays, rfs.RootInode, "again"); !errors.Is(err, rfs.ErrNotFound) {
		t.Errorf("link of what was unlinked: %v", err)
	}
	ok(t, cl.CloseFile(c.ctx(), stays, OpenRead))
	if _, err := cl.Create(c.ctx(), rfs.RootInode, "", CreateSpec{Mode: 0o600}); !errors.Is(err, rfs.ErrInvalid) {
		t.Errorf("unnamed and not open: %v", err)
	}
	if after := must[Statfs](t)(cl.Statfs(c.ctx())).Inodes; after != before {
		t.Errorf("%d inodes, were %d", after, before)
	}
}
