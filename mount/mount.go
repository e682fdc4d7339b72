package mount

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rfs/client"
)

// Config says what to mount where.
type Config struct {
	// FS is the client to serve. The mount does not close it.
	FS *client.FS
	// Point is the directory to mount upon.
	Point string
	// Source is what /proc/mounts and df show, by convention "rfs:CLUSTER".
	Source  string
	Options Options
	Log     *slog.Logger
}

// A Server is a mount. It serves until it is unmounted, by Unmount or by umount(8).
type Server struct {
	cfg   Config
	point string
	fs    *fileSystem
	fuse  *fuse.Server
	conn  string // directory of the connection in /sys/fs/fuse/connections
	ended chan struct{}
}

// Mount mounts cfg.FS and serves it. An error names what is in the way and the remedy.
func Mount(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	root := os.Geteuid() == 0
	if err := checkDevice(root, cfg.Options.AllowOther); err != nil {
		return nil, err
	}
	point, err := preparePoint(cfg.Point)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, point: point, ended: make(chan struct{})}
	s.fs = newFileSystem(cfg)
	if s.fuse, err = fuse.NewServer(s.fs, point, s.fuseOptions(root)); err != nil {
		s.fs.close()
		return nil, mountError(cfg.Point, root, err)
	}
	go func() {
		defer close(s.ended)
		s.fuse.Serve()
		s.fs.close()
	}()
	if err := s.fuse.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount on %s: the first request failed: %w", cfg.Point, err), s.Unmount(context.Background()))
	}
	s.tune()
	if cfg.Options.Cache == CacheNone && s.fuse.KernelSettings().Flags64()&fuse.CAP_DIRECT_IO_ALLOW_MMAP == 0 {
		cfg.Log.Warn("this kernel (before Linux 6.6) maps no file shared that is read and written directly: programs that need it, such as SQLite with a WAL, need the mount option cache=page")
	}
	cfg.Log.Info("mounted", "point", point, "source", cfg.Source, "cache", cfg.Options.Cache.String(), "max_io", cfg.Options.MaxRead)
	return s, nil
}

func (s *Server) fuseOptions(root bool) *fuse.MountOptions {
	o := s.cfg.Options
	mo := &fuse.MountOptions{
		FsName:                   s.cfg.Source,
		Name:                     "rfs",
		AllowOther:               o.AllowOther,
		Options:                  []string{"default_permissions"},
		MaxWrite:                 o.MaxRead,
		MaxReadAhead:             MaxIO,
		MaxBackground:            o.MaxBackground,
		EnableLocks:              true,
		DisableReadDirPlus:       o.EntryTimeout == 0,
		DisableSplice:            true, // a reply of 1 MiB does not fit a pipe; measured slower besides
		ExplicitDataCacheControl: false,
		// Mapping shared what is open for direct I/O, AIO that is not serialised, O_TRUNC that is
		// part of open, clearing privileges here instead of a GETXATTR before each write.
		ExtraCapabilities: fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_ASYNC_DIO | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_HANDLE_KILLPRIV_V2,
		DirectMountStrict: root,
		DirectMountFlags:  o.flags(),
		PanicHandler:      panicked(s.cfg.Log),
		Logger:            slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
		Debug:             o.Debug,
	}
	if !root {
		mo.Options = append(mo.Options, o.words()...)
	}
	return mo
}

// tune finds the connection's directory, and lets the kernel read far ahead where it keeps what it
// read: 128 KiB, its default, would be eight requests a MiB.
func (s *Server) tune() {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, s.point, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return
	}
	s.conn = "/sys/fs/fuse/connections/" + strconv.Itoa(int(st.Dev_minor)) // the major of what has no device is 0
	bdi := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", st.Dev_major, st.Dev_minor)
	if s.cfg.Options.Cache == CachePage {
		if err := os.WriteFile(bdi, []byte("4096"), 0); err != nil {
			s.cfg.Log.Info("the kernel's read-ahead stays as it is", "err", err)
		}
	}
}

// Point returns the absolute path of the mount point.
func (s *Server) Point() string { return s.point }

// Done is closed when the mount has ended, whoever ended it.
func (s *Server) Done() <-chan struct{} { return s.ended }

// Wait waits until the mount has ended and all its requests are answered.
func (s *Server) Wait() { <-s.ended }

// Unmount ends the mount. Programs that still use it keep it until they are done: it is taken out of the tree at
// once, who they are is logged, and Unmount waits for them. When ctx ends first, the
// mount is cut off: what they do next fails with ENOTCONN.
func (s *Server) Unmount(ctx context.Context) error {
	if err := s.detach(); err != nil {
		return err
	}
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
	}
	return s.abort()
}

// detach takes the mount out of the tree.
func (s *Server) detach() error {
	err := unmount(s.point)
	// Files that were just closed are still being released; give them a moment.
	for try := 1; errors.Is(err, unix.EBUSY) && try < 6 && !s.isOver(); try++ {
		time.Sleep(time.Duration(try) * 5 * time.Millisecond)
		err = unmount(s.point)
	}
	if errors.Is(err, unix.EBUSY) {
		hs := holders(s.point)
		s.cfg.Log.Warn("the mount is busy: it is taken out of the tree, and ends when its users do; end them, or interrupt again to cut them off",
			"point", s.point, "users", fmt.Sprint(hs))
		err = detach(s.point)
	}
	if err == nil || s.isOver() || errors.Is(err, unix.EINVAL) { // EINVAL: somebody else unmounted it
		return nil
	}
	return fmt.Errorf("unmount %s: %w; try `umount -l %s` as root", s.point, err, quote(s.point))
}

func (s *Server) isOver() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// abort cuts the kernel's connection, ends all requests that are under way, and waits for them.
func (s *Server) abort() error {
	err := os.WriteFile(filepath.Join(s.conn, "abort"), []byte("1"), 0)
	s.fs.cancel()
	if err != nil && !s.isOver() {
		return fmt.Errorf("unmount %s: its users are not done, and the connection cannot be cut: %w", s.point, err)
	}
	select {
	case <-s.ended:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("unmount %s: requests under way did not end", s.point)
	}
}

// Run mounts cfg.FS and serves it until it is unmounted or ctx ends; then it unmounts. When users keep the mount
// busy, it serves them until they are done or force ends.
func Run(ctx, force context.Context, cfg Config) error {
	s, err := Mount(cfg)
	if err != nil {
		return err
	}
	select {
	case <-s.Done():
		return nil
	case <-ctx.Done():
		return s.Unmount(force)
	}
}

// Mounts lists the mount points of rfs on this machine.
func Mounts() ([]string, error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 2 && f[2] == fsType {
			points = append(points, unescape(f[1]))
		}
	}
	return points, nil
}
