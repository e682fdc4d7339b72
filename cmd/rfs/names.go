package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"rfs"
	"rfs/internal/cli"
	"rfs/placement"
	"rfs/raftmeta"
)

// withFiles runs do for each path. It waits as long as an asking command does.
func (o *options) withFiles(c *cobra.Command, paths []string, do func(ctx context.Context, fs *files, path string) error) (err error) {
	if o.timeout == 0 {
		o.timeout = patience
	}
	fs, err := o.files(c.Context())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fs.close()) }()
	for _, p := range paths {
		if err := do(c.Context(), fs, p); err != nil {
			return fmt.Errorf("%s %s: %w", c.Name(), p, err)
		}
	}
	return nil
}

// entry is a line of ls.
type entry struct {
	Name  string      `json:"name"`
	Inode rfs.InodeID `json:"inode"`
	Type  string      `json:"type"`
	Mode  string      `json:"mode"`
	Links uint32      `json:"links"`
	UID   uint32      `json:"uid"`
	GID   uint32      `json:"gid"`
	Size  int64       `json:"size"`
	Mtime time.Time   `json:"mtime"`
	Link  string      `json:"link,omitempty"` // what a symbolic link points to
}

func newEntry(name string, a raftmeta.Attr) entry {
	m := fileMode(a.Mode)
	return entry{Name: name, Inode: a.Inode, Type: typeName(a.Type()), Mode: m.String(), Links: a.Nlink, UID: a.UID, GID: a.GID,
		Size: a.Size, Mtime: time.Unix(0, a.Mtime)}
}

// fileMode turns st_mode into Go's.
func fileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&bit != 0 {
			m |= flag
		}
	}
	return m | map[uint32]fs.FileMode{raftmeta.TypeDir: fs.ModeDir, raftmeta.TypeLink: fs.ModeSymlink, raftmeta.TypeFIFO: fs.ModeNamedPipe,
		raftmeta.TypeSocket: fs.ModeSocket, raftmeta.TypeBlock: fs.ModeDevice, raftmeta.TypeChar: fs.ModeDevice | fs.ModeCharDevice}[mode&raftmeta.TypeMask]
}

func typeName(t uint32) string {
	return map[uint32]string{raftmeta.TypeDir: "directory", raftmeta.TypeLink: "link", raftmeta.TypeFile: "file", raftmeta.TypeFIFO: "fifo",
		raftmeta.TypeSocket: "socket", raftmeta.TypeBlock: "block device", raftmeta.TypeChar: "character device"}[t]
}

func newLs(o *options) *cobra.Command {
	var long bool
	c := &cobra.Command{
		Use:     "ls [PATH...]",
		Short:   "List directories and files",
		Example: "  rfs ls -l /jobs\n  rfs ls --json / | jq '.[].name'",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"/"}
			}
			all := []entry{}
			if err := o.withFiles(c, args, func(ctx context.Context, fs *files, p string) error {
				es, err := list(ctx, fs, p)
				all = append(all, es...)
				return err
			}); err != nil {
				return err
			}
			return o.print(c.OutOrStdout(), all, func(w io.Writer) { showEntries(w, all, long) })
		},
	}
	c.Flags().BoolVarP(&long, "long", "l", false, "modes, owners, sizes and times")
	return c
}

// list returns the entries of a directory, or the one of something else.
func list(ctx context.Context, fs *files, p string) ([]entry, error) {
	a, err := fs.WalkNoFollow(ctx, p)
	if err != nil {
		return nil, err
	}
	if !a.IsDir() {
		e := newEntry(p, a)
		if a.Type() == raftmeta.TypeLink {
			e.Link, err = fs.Readlink(ctx, a.Inode)
		}
		return []entry{e}, err
	}
	var out []entry
	err = readDir(ctx, fs, a.Inode, func(d raftmeta.DirEntry) error {
		a := *d.Attr
		if a.Writers { // the writers know the size
			if fresh, err := fs.Getattr(ctx, a.Inode); err == nil {
				a = fresh
			}
		}
		e := newEntry(d.Name, a)
		if a.Type() == raftmeta.TypeLink {
			if e.Link, err = fs.Readlink(ctx, a.Inode); err != nil {
				return err
			}
		}
		out = append(out, e)
		return nil
	})
	slices.SortFunc(out, func(a, b entry) int { return cmp.Compare(a.Name, b.Name) })
	return out, err
}

// readDir calls do for every entry of a directory, with its attributes.
func readDir(ctx context.Context, fs *files, dir rfs.InodeID, do func(raftmeta.DirEntry) error) error {
	for cookie, last := uint64(0), false; !last; {
		var es []raftmeta.DirEntry
		var err error
		if es, last, err = fs.ReadDir(ctx, dir, cookie, 0, true); err != nil {
			return err
		}
		for _, e := range es {
			if err := do(e); err != nil {
				return err
			}
			cookie = e.Cookie
		}
	}
	return nil
}

func showEntries(w io.Writer, es []entry, long bool) {
	if !long {
		for _, e := range es {
			fmt.Fprintln(w, e.Name)
		}
		return
	}
	t := cli.Table(w)
	t.ResetHeaders()
	for _, e := range es {
		name := e.Name
		if e.Link != "" {
			name += " -> " + e.Link
		}
		t.AppendRow([]any{e.Mode, e.Links, userName(e.UID), groupName(e.GID), e.Size, e.Mtime.Format(time.DateTime), name})
	}
	if len(es) > 0 {
		t.Render()
	}
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func groupName(gid uint32) string {
	id := strconv.FormatUint(uint64(gid), 10)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// fileStatus is what `rfs stat` shows.
type fileStatus struct {
	entry
	Path    string        `json:"path"`
	Pool    string        `json:"pool,omitempty"`
	Scheme  string        `json:"scheme,omitempty"`
	Unit    uint32        `json:"unit,omitempty"`
	Cell    uint32        `json:"cell,omitempty"`
	Start   rfs.SlotID    `json:"start_slot"`
	Count   int64         `json:"stripe_count"`
	Stripes []stripePlace `json:"stripes,omitempty"`
}

type stripePlace struct {
	Stripe uint32       `json:"stripe"`
	Slot   rfs.SlotID   `json:"slot"`
	Epoch  rfs.Epoch    `json:"epoch"`
	Shards []shardPlace `json:"shards"`
}

type shardPlace struct {
	Shard  int          `json:"shard"`
	Parity bool         `json:"parity"`
	Target string       `json:"target"`
	ID     rfs.TargetID `json:"id"`
	State  string       `json:"state"`
}

func newStat(o *options) *cobra.Command {
	var stripes int
	c := &cobra.Command{
		Use:   "stat PATH...",
		Short: "Show a file's attributes, layout, and where each shard is",
		Example: `  rfs stat /jobs/4711/result.h5
  rfs stat --stripes 100 --json /jobs/4711/result.h5`,
		Args: cli.Args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			all := []fileStatus{}
			if err := o.withFiles(c, args, func(ctx context.Context, fs *files, p string) error {
				s, err := statFile(ctx, fs, p, stripes)
				all = append(all, s)
				return err
			}); err != nil {
				return err
			}
			return o.print(c.OutOrStdout(), all, func(w io.Writer) {
				for _, s := range all {
					s.show(w)
				}
			})
		},
	}
	c.Flags().IntVar(&stripes, "stripes", 4, "show where the shards of the first `N` stripes are (-1: all)")
	return c
}

func statFile(ctx context.Context, fs *files, p string, stripes int) (s fileStatus, err error) {
	a, err := fs.WalkNoFollow(ctx, p)
	if err != nil {
		return s, err
	}
	s = fileStatus{entry: newEntry(path.Base(path.Clean("/"+p)), a), Path: path.Clean("/" + p)}
	if a.Type() == raftmeta.TypeLink {
		s.Link, err = fs.Readlink(ctx, a.Inode)
	}
	if !a.IsRegular() || err != nil {
		return s, err
	}
	m, l := fs.Map(), a.Layout
	s.Scheme, s.Unit, s.Cell, s.Start = placement.Scheme{K: l.K, M: l.M}.String(), l.Unit, l.Cell, l.Start
	s.Count = (a.Size + l.StripeSize() - 1) / l.StripeSize()
	for i := range uint32(s.Count) {
		if stripes >= 0 && int(i) >= stripes {
			break
		}
		pool, slot, err := m.Slot(l, i)
		if err != nil {
			return s, err
		}
		s.Pool = pool.Name
		s.Stripes = append(s.Stripes, place(m, i, slot, int(l.K)))
	}
	if p := m.Pool(l.Pool); p != nil {
		s.Pool = p.Name
	}
	return s, nil
}

func place(m *placement.Map, stripe uint32, slot *placement.Slot, k int) stripePlace {
	out := stripePlace{Stripe: stripe, Slot: slot.ID, Epoch: slot.Epoch}
	for i, id := range slot.Members {
		sh := shardPlace{Shard: i, Parity: i >= k, ID: id, Target: id.String()[:8], State: "unknown"}
		if t := m.Target(id); t != nil {
			sh.Target, sh.State = targetName(m, t), t.State.String()
			if t.State == placement.Up && slot.Syncing.Has(uint8(i)) {
				sh.State = "syncing"
			}
		}
		out.Shards = append(out.Shards, sh)
	}
	return out
}

func (s fileStatus) show(w io.Writer) {
	fmt.Fprintf(w, "%s: %s, %s, inode %v, %d links, %s:%s\n", s.Path, s.Type, s.Mode, s.Inode, s.Links, userName(s.UID), groupName(s.GID))
	if s.Link != "" {
		fmt.Fprintf(w, "  points to %s\n", s.Link)
	}
	fmt.Fprintf(w, "  %d bytes (%s), changed %s\n", s.Size, cli.Bytes(s.Size), s.Mtime.Format("2006-01-02 15:04:05.000000000 -0700"))
	if s.Scheme == "" {
		return
	}
	fmt.Fprintf(w, "  pool %s, %s, shards of %s in rows of %s, %d stripes from slot %d\n",
		s.Pool, s.Scheme, cli.Bytes(int64(s.Unit)), cli.Bytes(int64(s.Cell)), s.Count, s.Start)
	if len(s.Stripes) == 0 {
		return
	}
	t := cli.Table(w, "stripe", "slot", "shard", "target", "state")
	for _, st := range s.Stripes {
		for i, sh := range st.Shards {
			kind := "data"
			if sh.Parity {
				kind = "parity"
			}
			row := []any{"", "", fmt.Sprintf("%d %s", sh.Shard, kind), sh.Target, sh.State}
			if i == 0 {
				row[0], row[1] = st.Stripe, st.Slot
			}
			t.AppendRow(row)
		}
	}
	t.Render()
	if left := s.Count - int64(len(s.Stripes)); left > 0 {
		fmt.Fprintf(w, "%d more stripes: --stripes -1\n", left)
	}
}

func newMkdir(o *options) *cobra.Command {
	var parents bool
	var pool string
	c := &cobra.Command{
		Use:     "mkdir PATH...",
		Short:   "Make directories",
		Example: "  rfs mkdir -p /jobs/4711/out\n  rfs mkdir --pool wide /data",
		Args:    cli.Args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return o.withFiles(c, args, func(ctx context.Context, fs *files, p string) error {
				return makeDir(ctx, fs, p, parents, pool)
			})
		},
	}
	c.Flags().BoolVarP(&parents, "parents", "p", false, "make parents too, and no error if it is there")
	c.Flags().StringVar(&pool, "pool", "", "new files in it, and below, go to the pool `NAME`")
	return c
}

func makeDir(ctx context.Context, fs *files, p string, parents bool, pool string) error {
	p = path.Clean("/" + p)
	dir, name := path.Split(p)
	if name == "" {
		if parents {
			return nil
		}
		return rfs.ErrExist
	}
	if parents {
		if a, err := fs.Walk(ctx, p); err == nil && a.IsDir() && pool == "" {
			return nil
		}
		if err := makeDir(ctx, fs, path.Clean(dir), true, ""); err != nil {
			return err
		}
	}
	parent, err := fs.Walk(ctx, dir)
	if err != nil {
		return err
	}
	a, err := fs.Mkdir(ctx, parent.Inode, name, 0o755, uint32(os.Getuid()), uint32(os.Getgid()))
	if errors.Is(err, rfs.ErrExist) && parents {
		a, err = fs.Walk(ctx, p)
	}
	if err != nil || pool == "" {
		return err
	}
	mp := fs.Map().PoolByName(pool)
	if mp == nil {
		return fmt.Errorf("pool %s: %w: `rfs pool ls` lists them", pool, rfs.ErrNotFound)
	}
	return fs.cluster.Meta.SetPool(ctx, a.Inode, mp.ID)
}

func newRm(o *options) *cobra.Command {
	var recursive, force bool
	c := &cobra.Command{
		Use:     "rm PATH...",
		Short:   "Remove files, and with -r directories",
		Example: "  rfs rm /jobs/4711/core\n  rfs rm -r /jobs/4711",
		Args:    cli.Args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return o.withFiles(c, args, func(ctx context.Context, fs *files, p string) error {
				err := remove(ctx, fs, p, recursive)
				if force && errors.Is(err, rfs.ErrNotFound) {
					return nil
				}
				return err
			})
		},
	}
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "remove directories and all below them")
	c.Flags().BoolVarP(&force, "force", "f", false, "no error if it is not there")
	return c
}

func remove(ctx context.Context, fs *files, p string, recursive bool) error {
	dir, name := path.Split(path.Clean("/" + p))
	if name == "" {
		return fmt.Errorf("%w: it is the root", rfs.ErrPermission)
	}
	parent, err := fs.Walk(ctx, dir)
	if err != nil {
		return err
	}
	a, err := fs.Lookup(ctx, parent.Inode, name)
	if err != nil {
		return err
	}
	if !a.IsDir() {
		return fs.Unlink(ctx, parent.Inode, name)
	}
	if !recursive {
		return fmt.Errorf("%w: give -r to remove it and all below it", rfs.ErrIsDir)
	}
	return removeTree(ctx, fs, parent.Inode, name, a.Inode)
}

// removeTree removes a directory and all below it, many files at once.
func removeTree(ctx context.Context, fs *files, parent rfs.InodeID, name string, dir rfs.InodeID) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	slots := make(chan struct{}, 16)
	err := readDir(ctx, fs, dir, func(e raftmeta.DirEntry) error {
		if e.Type == raftmeta.TypeDir {
			return removeTree(ctx, fs, dir, e.Name, e.Inode)
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := fs.Unlink(ctx, dir, e.Name); err != nil && !errors.Is(err, rfs.ErrNotFound) {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
		return nil
	})
	wg.Wait()
	if err = errors.Join(err, errors.Join(errs...)); err != nil {
		return err
	}
	return fs.Rmdir(ctx, parent, name)
}
