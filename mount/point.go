package mount

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fsType is what stands in /proc/mounts.
const fsType = "fuse.rfs"

// preparePoint checks that dir can be mounted upon, and clears away a mount of rfs whose process died.
// It returns the absolute path without symbolic links.
func preparePoint(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("mount point: no directory given")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("mount point %s: %w", dir, err)
	}
	st, err := os.Stat(abs)
	if errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.ECONNABORTED) {
		if err := clearDead(abs); err != nil {
			return "", err
		}
		st, err = os.Stat(abs)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", fmt.Errorf("mount point %s does not exist: create it with `mkdir -p %s`", dir, quote(abs))
	case errors.Is(err, os.ErrPermission):
		return "", fmt.Errorf("mount point %s: %w: a directory above it is closed to you; mount as root or elsewhere", dir, err)
	case err != nil:
		return "", fmt.Errorf("mount point %s: %w", dir, err)
	case !st.IsDir():
		return "", fmt.Errorf("mount point %s is not a directory: name an (empty) directory", dir)
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return "", fmt.Errorf("mount point %s: %w", dir, err)
	}
	if m, ok := mountedAt(abs); ok {
		return "", fmt.Errorf("mount point %s is busy: %s of type %s is mounted there; unmount it with `umount %s`, or name another directory",
			dir, m.source, m.fsType, quote(abs))
	}
	return abs, nil
}

// clearDead unmounts what is mounted at dir, of which the serving process is gone, if it is of rfs.
func clearDead(dir string) error {
	m, ok := mountedAt(dir)
	if !ok || m.fsType != fsType {
		return fmt.Errorf("mount point %s is below a dead mount (%s, type %s): its process is gone; clear it with `umount -l %s`",
			dir, m.source, m.fsType, quote(dir))
	}
	if err := detach(dir); err != nil {
		return fmt.Errorf("mount point %s has a dead mount of rfs, left by a process that died, and it cannot be cleared: %w; clear it with `umount -l %s` as root",
			dir, err, quote(dir))
	}
	return nil
}

// detach takes the mount out of the tree at once; it ends when its last user does.
func detach(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EPERM {
		return fusermount("-u", "-z", "-q", dir)
	}
	return err
}

// unmount takes the mount out of the tree, or fails with EBUSY when it is in use.
func unmount(dir string) error {
	err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
	if err == unix.EPERM {
		if err := fusermount("-u", "-q", dir); err != nil {
			return fmt.Errorf("%w (%w)", unix.EBUSY, err) // fusermount3 does not say, and has no other reason
		}
		return nil
	}
	return err
}

func fusermount(args ...string) error {
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err != nil && len(out) > 0 {
		return fmt.Errorf("fusermount3: %s", bytes.TrimSpace(out))
	}
	return err
}

// mountError explains why mount(2) or fusermount3 failed.
func mountError(dir string, root bool, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("mount on %s: %w: another program is mounting there or uses it; see `fuser -vm %s`", dir, err, quote(dir))
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount on %s: %w: the kernel has no FUSE; load it with `modprobe fuse`", dir, err)
	case errors.Is(err, unix.EPERM) && root:
		return fmt.Errorf("mount on %s: %w: this root may not mount; in a container, start it with `--cap-add SYS_ADMIN --device /dev/fuse`", dir, err)
	}
	return fmt.Errorf("mount on %s: %w", dir, err)
}

// checkDevice reports what stands between this process and FUSE.
func checkDevice(root, allowOther bool) error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return errors.New("/dev/fuse is missing: load the kernel's FUSE with `modprobe fuse`; in a container, start it with `--device /dev/fuse`")
	case errors.Is(err, os.ErrPermission):
		return errors.New("/dev/fuse may not be opened: mount as root, or have its mode set to 0666 (`chmod 666 /dev/fuse`); in a container, start it with `--device /dev/fuse`")
	case err != nil:
		return fmt.Errorf("/dev/fuse: %w", err)
	}
	f.Close()
	if root {
		return nil
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return errors.New("fusermount3 is missing, which mounts for users other than root: install the package fuse3, or mount as root")
	}
	if conf, err := os.ReadFile("/etc/fuse.conf"); allowOther && (err != nil || !hasLine(conf, "user_allow_other")) {
		return errors.New("allow_other is for root unless /etc/fuse.conf has the line user_allow_other: add it, or mount without allow_other")
	}
	return nil
}

func hasLine(text []byte, line string) bool {
	for l := range bytes.Lines(text) {
		if string(bytes.TrimSpace(l)) == line {
			return true
		}
	}
	return false
}

// A mounted is a line of /proc/self/mountinfo; see proc(5).
type mounted struct {
	device, point, fsType, source string // device is "major:minor"
}

// mountedAt returns the topmost mount at exactly dir.
func mountedAt(dir string) (mounted, bool) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mounted{}, false
	}
	defer f.Close()
	return findMount(f, dir)
}

func findMount(mountinfo io.Reader, dir string) (last mounted, ok bool) {
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// 36 35 98:0 /root /point options optional... - type source superoptions
		left, right, found := strings.Cut(lines.Text(), " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !found || len(l) < 5 || len(r) < 2 {
			continue
		}
		if m := (mounted{l[2], unescape(l[4]), r[0], unescape(r[1])}); m.point == dir {
			last, ok = m, true
		}
	}
	return last, ok
}

// unescape undoes the kernel's \040 for blanks in paths.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// A holder is a process that keeps a mount busy.
type holder struct {
	pid  int
	name string
	what string // "works in it", "has FILE open", ...
}

func (h holder) String() string { return fmt.Sprintf("%s (pid %d) %s", h.name, h.pid, h.what) }

// holders lists who uses the mount at dir, as far as this process may see. It reads links
// only and never asks the file system itself, which may hang.
func holders(dir string) []holder {
	var hs []holder
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		pid, _ := strconv.Atoi(filepath.Base(proc))
		if what := holds(proc, dir); what != "" && pid != os.Getpid() {
			name, _ := os.ReadFile(proc + "/comm")
			hs = append(hs, holder{pid, strings.TrimSpace(string(name)), what})
		}
	}
	slices.SortFunc(hs, func(a, b holder) int { return a.pid - b.pid })
	return hs
}

func holds(proc, dir string) string {
	for link, what := range map[string]string{"cwd": "works in it", "root": "has it as root", "exe": "runs from it"} {
		if at, err := os.Readlink(proc + "/" + link); err == nil && within(at, dir) {
			return what
		}
	}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		if at, err := os.Readlink(proc + "/fd/" + fd.Name()); err == nil && within(at, dir) {
			return "has " + at + " open"
		}
	}
	if maps, err := os.ReadFile(proc + "/maps"); err == nil && bytes.Contains(maps, []byte(" "+dir+"/")) {
		return "has a file mapped"
	}
	return ""
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// quote returns s as a word for a shell.
func quote(s string) string {
	plain := func(r rune) bool { return r > 127 || strings.ContainsRune("/._-+=:@%", r) || isAlnum(r) }
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func isAlnum(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}
