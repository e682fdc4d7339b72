package mount

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseOptions(t *testing.T) {
	root := DefaultOptions(true)
	with := func(f func(*Options)) Options { o := root; f(&o); return o }
	for s, want := range map[string]Options{
		"":         root,
		"defaults": root,
		"rw,_netdev,nofail,x-systemd.automount,noauto,user,comment=scratch": root,
		"ro":                 with(func(o *Options) { o.ReadOnly = true }),
		"ro,rw":              root,
		"noallow_other":      with(func(o *Options) { o.AllowOther = false }),
		"soft,timeo=300":     with(func(o *Options) { o.Soft, o.Timeout = true, 30*time.Second }),
		"timeo=2m,hard":      with(func(o *Options) { o.Timeout = 2 * time.Minute }),
		"cache=page":         with(func(o *Options) { o.Cache = CachePage }),
		"attr_timeout=0.5":   with(func(o *Options) { o.AttrTimeout = 500 * time.Millisecond }),
		"entry_timeout=1s":   with(func(o *Options) { o.EntryTimeout = time.Second }),
		"max_read=131072":    with(func(o *Options) { o.MaxRead = 128 << 10 }),
		"suid,dev,noexec":    with(func(o *Options) { o.Suid, o.Dev, o.NoExec = true, true, true }),
		"key=/etc/k,pool=p":  with(func(o *Options) { o.KeyFile, o.Pool = "/etc/k", "p" }),
		"transport=tcp":      with(func(o *Options) { o.Transport = "tcp" }),
		"config=/etc/c.toml": with(func(o *Options) { o.Config = "/etc/c.toml" }),
	} {
		if got, err := ParseOptions(root, s, false); err != nil || got != want {
			t.Errorf("%q: %+v, %v\nwant %+v", s, got, err, want)
		}
	}
}

func TestParseOptionsReportsAllThatIsWrong(t *testing.T) {
	_, err := ParseOptions(DefaultOptions(false), "cache=much,bogus,timeo=never,max_read=5,ro=yes,key=,soft", false)
	for _, want := range []string{"cache=much", "none", `"bogus" is not known`, "allow_other", "timeo=never", "max_read=5", "4096", "ro takes no value", "key="} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
	if _, err := ParseOptions(DefaultOptions(false), "bogus,vers=4.2", true); err != nil {
		t.Errorf("sloppy: %v", err)
	}
	if _, err := ParseOptions(DefaultOptions(false), "cache", false); err == nil || !strings.Contains(err.Error(), "cache=VALUE") {
		t.Errorf("a value is missing: %v", err)
	}
}

func TestFlags(t *testing.T) {
	o := DefaultOptions(true)
	if f := o.flags(); f != unix.MS_SILENT|unix.MS_NOSUID|unix.MS_NODEV {
		t.Errorf("flags of the default: %#x", f)
	}
	o, err := ParseOptions(o, "ro,suid,dev,noexec,noatime", false)
	if err != nil {
		t.Fatal(err)
	}
	if f := o.flags(); f != unix.MS_SILENT|unix.MS_RDONLY|unix.MS_NOEXEC|unix.MS_NOATIME {
		t.Errorf("flags: %#x", f)
	}
	if w := strings.Join(o.words(), ","); w != "ro,suid,dev,noexec,noatime" {
		t.Errorf("words: %s", w)
	}
}
