package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"rfs"
	"rfs/internal/cli"
	"rfs/internal/config"
	"rfs/mount"
	"rfs/node"
)

// readyFD is the descriptor on which a mount in the background tells the process
// that started it how it went: one line, empty if it is mounted.
const readyFD = "RFS_READY_FD"

const mountHelp = `Requests wait until the cluster can answer, like an NFS hard mount: a job that is paused goes
on after an outage. With -o soft,timeo=600 (tenths of a second) they fail with EIO instead.

Options, as after -o and in /etc/fstab:
  hard, soft, timeo=N        wait for ever (default), or fail with EIO after N tenths of a second
  ro, noatime, noexec, suid, dev   as for other file systems; suid and dev are off unless asked for
  allow_other, noallow_other others than who mounts may use it; the default for root
  cache=none|page            none: every read and write goes to the client, which is coherent
                             across nodes (default); page: the kernel caches what was read
  attr_timeout=S, entry_timeout=S   let the kernel answer from what it has seen (default 0: coherent)
  max_read=BYTES, max_background=N  as of FUSE
  config=FILE, key=FILE, transport=auto|tcp, log=FILE   instead of the configuration's`

func newMount(o *options) *cobra.Command {
	var opts string
	var background bool
	c := &cobra.Command{
		Use:   "mount DIR",
		Short: "Mount the file system",
		Long: `Mount the file system on DIR and serve it until it is unmounted, by rfs umount, umount(8), Ctrl-C or
SIGTERM; unwritten data is written first. With --background return when it is mounted.

"mount -t rfs SOURCE DIR" does the latter; SOURCE is a client configuration file, or
metadata replicas HOST:PORT,..., or "rfs" for the default configuration.

` + mountHelp + "\n\n" + cli.ExitHelp,
		Example: `  rfs mount /scratch
  rfs mount --background -o noatime,soft,timeo=600 /scratch
  mount -t rfs /etc/rfs/client.toml /scratch
  echo '/etc/rfs/client.toml /scratch rfs _netdev,nofail 0 0' >> /etc/fstab`,
		Args: cli.Args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			if background {
				return mountInBackground(c.Context(), append(mountFlags(o), "-o", opts), args[0])
			}
			return serveMount(c.Context(), o, args[0], opts, false)
		},
	}
	c.Flags().StringVarP(&opts, "options", "o", "", "mount options, separated by commas")
	c.Flags().BoolVarP(&background, "background", "b", false, "return when it is mounted")
	return c
}

// mountFlags turns o back into flags, for a process in the background.
func mountFlags(o *options) (args []string) {
	for flag, v := range map[string]string{"--config": o.config, "--key-file": o.keyFile, "--meta": strings.Join(o.meta, ",")} {
		if v != "" {
			args = append(args, flag, v)
		}
	}
	if o.timeout > 0 {
		args = append(args, "--timeout", o.timeout.String())
	}
	return args
}

// newMountHelper is what mount(8) calls: mount.rfs SOURCE DIR [-sfnv] [-o options].
func newMountHelper() *cobra.Command {
	var opts string
	var fake, sloppy, noMtab, verbose bool
	c := &cobra.Command{
		Use:     "mount.rfs SOURCE DIR [-sfnv] [-o OPTIONS]",
		Short:   "The helper of mount(8): mount -t rfs SOURCE DIR",
		Long:    "Mount the file system that SOURCE names on DIR, and return when it is mounted.\n\n" + mountHelp,
		Example: "  mount -t rfs /etc/rfs/client.toml /scratch",
		Args:    cli.Args(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			o, err := sourceOptions(args[0])
			if err != nil {
				return err
			}
			if _, err := mount.ParseOptions(mount.DefaultOptions(true), opts, sloppy); err != nil {
				return cli.Usage("%w", err)
			}
			if fake {
				return nil
			}
			if sloppy {
				opts += ",x-rfs-sloppy"
			}
			return mountInBackground(c.Context(), append(mountFlags(o), "-o", opts), args[1])
		},
	}
	c.Flags().StringVarP(&opts, "options", "o", "", "mount options, separated by commas")
	c.Flags().BoolVarP(&fake, "fake", "f", false, "check only")
	c.Flags().BoolVarP(&sloppy, "sloppy", "s", false, "pass over options that are not known")
	c.Flags().BoolVarP(&noMtab, "no-mtab", "n", false, "nothing: there is no mtab")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "nothing more is said")
	return c
}

// sourceOptions reads what stands for the device: a configuration file, replicas, or "rfs".
func sourceOptions(source string) (*options, error) {
	switch {
	case source == "rfs" || source == "none":
		return &options{}, nil
	case filepath.IsAbs(source):
		return &options{config: source}, nil
	case strings.Contains(source, ":"):
		return &options{meta: strings.Split(source, ",")}, nil
	}
	return nil, cli.Usage(`mount source %q: want the path of a client.toml, metadata replicas like "meta1:7440,meta2:7440", or "rfs"`, source)
}

// mountInBackground starts `rfs mount` in a session of its own and waits until it is mounted.
func mountInBackground(ctx context.Context, args []string, dir string) error {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(exe, slices.Concat([]string{"mount"}, args, []string{"--", dir})...)
	cmd.ExtraFiles = []*os.File{w}
	cmd.Env = append(os.Environ(), readyFD+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	line, err := bufio.NewReader(r).ReadString('\n')
	said := strings.TrimSpace(line)
	switch {
	case err == nil && said == "":
		return cmd.Process.Release()
	case said == "":
		werr := cmd.Wait()
		return errors.Join(ctx.Err(), fmt.Errorf("mount %s: the process that serves it ended before it was mounted: %w", dir, werr))
	}
	_ = cmd.Wait()
	return &exitError{errors.New(said), cmd.ProcessState.ExitCode()}
}

// exitError is an error of another rfs process, with its exit code.
type exitError struct {
	error
	code int
}

func (e *exitError) Is(target error) bool { return target == cli.ErrUsage && e.code == cli.ExitUsage }

// serveMount mounts and serves until the mount ends or ctx does. A second signal cuts off who still uses it.
func serveMount(ctx context.Context, o *options, dir, opts string, quiet bool) (err error) {
	tell := ready()
	defer func() { tell(err) }()
	mo, err := mount.ParseOptions(mount.DefaultOptions(os.Geteuid() == 0), opts, strings.Contains(opts, "x-rfs-sloppy"))
	if err != nil {
		return cli.Usage("%w", err)
	}
	cfg, err := mountConfig(o, &mo)
	if err != nil {
		return err
	}
	log, closeLog, err := mountLog(mo.Log, o.verbose)
	if err != nil {
		return err
	}
	defer closeLog()
	fs, err := open(ctx, cfg, log)
	if err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	fs.ctx = context.WithoutCancel(ctx) // a signal unmounts; what is dirty is written all the same
	m, err := mount.Mount(mount.Config{FS: fs.FS, Point: dir, Source: "rfs:" + fs.Map().ClusterID.String()[:8], Options: mo, Log: log})
	if err != nil {
		return errors.Join(err, fs.close())
	}
	tell(nil)
	if !quiet && os.Getenv(readyFD) == "" {
		fmt.Fprintf(os.Stderr, "rfs: mounted on %s; Ctrl-C unmounts\n", m.Point())
	}
	return errors.Join(serveUntil(ctx, m), fs.close())
}

// serveUntil unmounts when ctx ends, and cuts users off upon one more signal or after a minute.
func serveUntil(ctx context.Context, m *mount.Server) error {
	select {
	case <-m.Done():
		return nil
	case <-ctx.Done():
	}
	force, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	force, stop := notify(force)
	defer stop()
	return m.Unmount(force)
}

// mountConfig lays the mount options over the configuration.
func mountConfig(o *options, mo *mount.Options) (config.Client, error) {
	flags := *o
	if mo.Config != "" {
		flags.config = mo.Config
	}
	if mo.KeyFile != "" {
		flags.keyFile = mo.KeyFile
	}
	cfg, err := flags.client()
	if err != nil {
		return cfg, err
	}
	if mo.Pool != "" {
		return cfg, cli.Usage("mount option pool=%s: new files go to their directory's pool: rfs mkdir --pool %s DIR", mo.Pool, mo.Pool)
	}
	if mo.Transport != "" {
		cfg.Transport.Mode = mo.Transport
	}
	if mo.Soft {
		cfg.Soft, cfg.Timeout = true, config.Duration{Duration: mo.Timeout}
	}
	if o.timeout > 0 {
		cfg.Soft, cfg.Timeout = true, config.Duration{Duration: o.timeout}
	}
	mo.Soft, mo.Timeout = cfg.Soft, cfg.Timeout.Duration
	if err := cfg.Validate(); err != nil {
		return cfg, cli.Usage("%w", err)
	}
	return cfg, nil
}

// mountLog returns where a mount's log goes: the file, else standard error.
func mountLog(path string, verbose bool) (*slog.Logger, func(), error) {
	level := "info"
	if verbose {
		level = "debug"
	}
	if path == "" {
		return node.NewLogger(os.Stderr, config.Log{Level: level, Format: "text"}), func() {}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, nil, fmt.Errorf("mount option log: %w", err)
	}
	return node.NewLogger(f, config.Log{Level: level, Format: "text"}), func() { _ = f.Close() }, nil
}

// ready returns what tells the process that started this one how the mount went,
// once; it lets go of that process's standard error with it.
func ready() func(error) {
	if os.Getenv(readyFD) != "3" {
		return func(error) {}
	}
	w := os.NewFile(3, "ready")
	told := false
	return func(err error) {
		if told {
			return
		}
		told = true
		said := ""
		if err != nil {
			said = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		_, _ = io.WriteString(w, said+"\n")
		_ = w.Close()
		if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
			for fd := range 3 {
				_ = syscall.Dup3(int(null.Fd()), fd, 0)
			}
			_ = null.Close()
		}
	}
}

func newUmount(o *options) *cobra.Command {
	var lazy bool
	c := &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "Unmount, after unwritten data is written",
		Example: "  rfs umount /scratch",
		Args:    cli.Args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return unmount(args[0], lazy)
		},
	}
	c.Flags().BoolVarP(&lazy, "lazy", "l", false, "take it out of the tree now; it ends when its users do")
	return c
}

// unmount unmounts dir: itself as root, else through fusermount3.
func unmount(dir string, lazy bool) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	points, err := mount.Mounts()
	if err != nil {
		return err
	}
	if !slices.Contains(points, abs) {
		if real, err := filepath.EvalSymlinks(abs); err != nil || !slices.Contains(points, real) {
			return fmt.Errorf("umount %s: no rfs is mounted there; there are %q: %w", dir, points, rfs.ErrNotFound)
		} else {
			abs = real
		}
	}
	flags, args := 0, []string{"-u", "-q", "--", abs}
	if lazy {
		flags, args = unix.MNT_DETACH, append([]string{"-z"}, args...)
	}
	err = unix.Unmount(abs, flags)
	if errors.Is(err, unix.EPERM) {
		if out, ferr := exec.Command("fusermount3", args...).CombinedOutput(); ferr != nil {
			return fmt.Errorf("umount %s: fusermount3: %s: %w", dir, bytes.TrimSpace(out), ferr)
		}
		return nil
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("umount %s: it is in use: `fuser -vm %s` shows by whom; --lazy takes it out of the tree now: %w", dir, dir, err)
	}
	if err != nil {
		return fmt.Errorf("umount %s: %w", dir, err)
	}
	return nil
}
