package mount

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cache says who keeps the bytes of files that programs read and write.
type Cache uint8

const (
	// CacheNone hands each read and write straight to the client (FOPEN_DIRECT_IO), which keeps its own
	// caches coherent with the other clients'. Only what a program maps is in the kernel's page cache.
	CacheNone Cache = iota
	// CachePage lets the kernel's page cache hold what was read, checked at each open. Writes still go through.
	CachePage
)

func (c Cache) String() string { return [...]string{"none", "page"}[c] }

// MaxIO is the largest read or write of a request in bytes, what the kernel allows without a sysctl.
const MaxIO = 1 << 20

// Options are what stands after `-o`. The zero value is not valid; see DefaultOptions.
type Options struct {
	ReadOnly   bool
	AllowOther bool // others than who mounts may use it; the default for root
	Suid       bool // honour set-user-ID bits and capabilities of files; off unless asked, as for all scratch
	Dev        bool // honour device nodes
	NoExec     bool
	NoAtime    bool

	Cache Cache
	// Soft makes requests fail with EIO when the cluster did not answer for Timeout. The
	// default, hard, waits for the cluster as long as it takes, as NFS does: a job
	// continues after an outage instead of failing. A waiting program can be killed either way.
	Soft    bool
	Timeout time.Duration // default 60 s

	// EntryTimeout and AttrTimeout are for how long the kernel may answer from names and attributes it has seen
	// before. 0, the default, makes names and attributes linearizable across clients;
	// above 0, what others do is seen that much later, and directories are listed with READDIRPLUS.
	EntryTimeout, AttrTimeout time.Duration

	MaxRead       int // bytes of a read request, default MaxIO
	MaxBackground int // requests that the kernel sends without waiting for their answers (read-ahead, AIO), default 64

	Debug bool // log each FUSE request

	// For who connects: they are parsed here, because they arrive in one string.
	Config    string // path of the client's configuration
	KeyFile   string // path of the cluster's key
	Transport string // auto, rdma, dpdk, tcp
	Pool      string // pool of new files
	Log       string // path of the log
}

// DefaultOptions returns the options of a mount that asks for nothing; root is whether root mounts.
func DefaultOptions(root bool) Options {
	return Options{AllowOther: root, Timeout: time.Minute, MaxRead: MaxIO, MaxBackground: 64}
}

// ignored are options of mount(8) and fstab(5) that are for others, or are so anyway.
var ignored = []string{
	"", "rw", "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail", "async",
	"nosuid", "nodev", "exec", "relatime", "norelatime", "atime", "strictatime", "nodiratime", "diratime", "default_permissions",
	"nolazytime", "lazytime", "hard", "nonempty", "silent", "loud", "noiversion", "nomand",
}

// setters are the options that take no value and change something.
var setters = map[string]func(*Options){
	"ro":            func(o *Options) { o.ReadOnly = true },
	"suid":          func(o *Options) { o.Suid = true },
	"dev":           func(o *Options) { o.Dev = true },
	"noexec":        func(o *Options) { o.NoExec = true },
	"noatime":       func(o *Options) { o.NoAtime = true },
	"allow_other":   func(o *Options) { o.AllowOther = true },
	"noallow_other": func(o *Options) { o.AllowOther = false },
	"soft":          func(o *Options) { o.Soft = true },
	"debug":         func(o *Options) { o.Debug = true },
	"rw":            func(o *Options) { o.ReadOnly = false },
	"hard":          func(o *Options) { o.Soft = false },
	"nosuid":        func(o *Options) { o.Suid = false },
	"nodev":         func(o *Options) { o.Dev = false },
	"exec":          func(o *Options) { o.NoExec = false },
	"atime":         func(o *Options) { o.NoAtime = false },
}

// valued are the options NAME=VALUE.
var valued = map[string]func(o *Options, v string) error{
	"cache":          setCache,
	"timeo":          func(o *Options, v string) (err error) { o.Timeout, err = duration(v, time.Second/10); return },
	"entry_timeout":  func(o *Options, v string) (err error) { o.EntryTimeout, err = duration(v, time.Second); return },
	"attr_timeout":   func(o *Options, v string) (err error) { o.AttrTimeout, err = duration(v, time.Second); return },
	"max_read":       func(o *Options, v string) (err error) { o.MaxRead, err = number(v, 4096, MaxIO); return },
	"max_background": func(o *Options, v string) (err error) { o.MaxBackground, err = number(v, 1, 65535); return },
	"config":         func(o *Options, v string) error { return setText(&o.Config, v) },
	"key":            func(o *Options, v string) error { return setText(&o.KeyFile, v) },
	"transport":      func(o *Options, v string) error { return setText(&o.Transport, v) },
	"pool":           func(o *Options, v string) error { return setText(&o.Pool, v) },
	"log":            func(o *Options, v string) error { return setText(&o.Log, v) },
	"fsname":         func(*Options, string) error { return nil },
	"subtype":        func(*Options, string) error { return nil },
	"comment":        func(*Options, string) error { return nil },
}

// ParseOptions lays the comma-separated options s, as they stand after `-o` and in fstab, over base, and
// reports all that is wrong with them at once. Of two that contradict each other the later counts.
// With sloppy, as `mount -s` asks for, what is not known is passed over.
func ParseOptions(base Options, s string, sloppy bool) (Options, error) {
	var errs []error
	for opt := range strings.SplitSeq(s, ",") {
		name, value, has := strings.Cut(strings.TrimSpace(opt), "=")
		set, isSet := setters[name]
		setTo, isValued := valued[name]
		switch {
		case has && isValued:
			if err := setTo(&base, value); err != nil {
				errs = append(errs, fmt.Errorf("mount option %s=%s: %w", name, value, err))
			}
		case !has && isSet:
			set(&base)
		case !has && slices.Contains(ignored, name), strings.HasPrefix(name, "x-"), strings.HasPrefix(name, "X-"):
		case !has && isValued:
			errs = append(errs, fmt.Errorf("mount option %s needs a value: %s=VALUE", name, name))
		case has && (isSet || slices.Contains(ignored, name)):
			errs = append(errs, fmt.Errorf("mount option %s takes no value, have %q", name, value))
		case !sloppy:
			errs = append(errs, fmt.Errorf("mount option %q is not known; known are %s", name, known()))
		}
	}
	return base, errors.Join(errs...)
}

// known lists the options that do something.
func known() string {
	var names []string
	for n := range setters {
		names = append(names, n)
	}
	for n := range valued {
		names = append(names, n+"=")
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func setCache(o *Options, v string) error {
	switch v {
	case "none":
		o.Cache = CacheNone
	case "page":
		o.Cache = CachePage
	default:
		return errors.New("want none (each request goes to the client) or page (the kernel caches what was read)")
	}
	return nil
}

func setText(dst *string, v string) error {
	if v == "" {
		return errors.New("the value is empty")
	}
	*dst = v
	return nil
}

// duration parses "250ms" or a plain number of units.
func duration(v string, unit time.Duration) (time.Duration, error) {
	if f, err := strconv.ParseFloat(v, 64); err == nil {
		v = fmt.Sprintf("%fs", f*unit.Seconds())
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d > 365*24*time.Hour {
		return 0, fmt.Errorf("want a time such as 250ms or 2m, or a number of units of %v", unit)
	}
	return d, nil
}

func number(v string, low, high int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("want a number from %d to %d", low, high)
	}
	return n, nil
}

// flags returns the mount flags of o for mount(2).
func (o Options) flags() uintptr {
	// MS_SILENT changes nothing here, but a zero would be taken for "not said".
	f := uintptr(unix.MS_SILENT)
	for _, b := range []struct {
		set  bool
		flag uintptr
	}{
		{o.ReadOnly, unix.MS_RDONLY},
		{!o.Suid, unix.MS_NOSUID},
		{!o.Dev, unix.MS_NODEV},
		{o.NoExec, unix.MS_NOEXEC},
		{o.NoAtime, unix.MS_NOATIME},
	} {
		if b.set {
			f |= b.flag
		}
	}
	return f
}

// words returns the same flags as words for fusermount3.
func (o Options) words() []string {
	var w []string
	for _, b := range []struct {
		set  bool
		word string
	}{
		{o.ReadOnly, "ro"},
		{o.Suid, "suid"},
		{o.Dev, "dev"},
		{o.NoExec, "noexec"},
		{o.NoAtime, "noatime"},
	} {
		if b.set {
			w = append(w, b.word)
		}
	}
	return w
}
