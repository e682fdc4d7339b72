package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const good = `
[cluster]
meta = ["m1:7440", "m2:7440", "m3:7440"]
[node]
roles = ["meta", "storage"]
advertise = "m2:7440"
[[storage.target]]
dir = "/srv/rfs/t0"
capacity = "1.5TB"
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rfsd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadDaemon(t *testing.T) {
	c, err := LoadDaemon(write(t, good))
	if err != nil {
		t.Fatal(err)
	}
	if c.Meta.TargetLease.Duration != 6*time.Second || c.Storage.Targets[0].Capacity.Bytes != 1.5e12 {
		t.Errorf("loaded %+v", c)
	}
}

// Each bad file gets errors that name the key and the remedy, all at once.
func TestBadFiles(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"unknown keys", good + "[transprt]\nmode='tcp'\n[log]\nlvel = 'info'\n", []string{
			`line 10: unknown key "transprt"; did you mean "transport"?`,
			`line 13: unknown key "log.lvel"; did you mean "log.level"?`}},
		{"key in the wrong table", strings.Replace(good, "[node]\n", "[node]\nkey_file = '/k'\n", 1),
			[]string{`line 5: unknown key "node.key_file"; did you mean "cluster.key_file"?`}},
		{"a key that nothing is like", good + "[http]\nzzzzzzzzzzzzzzzzzz = 1\n", []string{"`rfsd config init` prints all keys"}},
		{"not TOML", "[cluster\n", []string{"line 1"}},
		{"a size without a unit", strings.Replace(good, `"1.5TB"`, `"1500"`, 1), []string{"line 9", `size "1500": want a string of a number and a unit`}},
		{"a size that is a number", strings.Replace(good, `"1.5TB"`, `1500`, 1), []string{`line 9: size "1500": want a string`}},
		{"a duration that is a number", good + "[meta]\ntarget_lease = 6\n", []string{`line 11: duration "6": want a string`}},
		{"a bad duration", good + "[meta]\ntarget_lease = \"6\"\n", []string{"line 11", `duration "6"`}},
		{"everything at once", `
[cluster]
meta = ["m1", "m2:7440", "m2:7440"]
key_file = "cluster.key"
[node]
roles = ["meta", "stroage"]
listen = "nowhere"
socket = "/` + strings.Repeat("s", 120) + `"
[transport]
mode = "rdma"
streams = 0
arena = "1MiB"
tls_cert = "/c"
[meta]
target_lease = "10ms"
[[storage.target]]
dir = "t"
[log]
level = "loud"
`, []string{
			`cluster.meta[0] is "m1"`, `cluster.meta[2] is "m2:7440" again`, "cluster.key_file is \"cluster.key\": want an absolute path",
			`node.roles has "stroage"`, `node.listen is "nowhere"`, "node.socket has 121 bytes", `transport.mode is "rdma", which this build does not have`,
			"transport.streams is 0", "transport.arena is 1MiB", "transport.window is 64MiB", "transport.tls_cert, tls_key, tls_ca go together",
			"meta.target_lease is 10ms", `storage.target is given, but node.roles has no "storage"`, `log.level is "loud"`}},
		{"a directory twice", good + "[[storage.target]]\ndir = \"/srv/rfs/t0/\"\n", []string{"storage.target[1].dir is /srv/rfs/t0, as storage.target[0].dir is"}},
		{"storage without targets", strings.Split(good, "[[")[0], []string{"storage.target is missing"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, c.text)
			_, err := LoadDaemon(path)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error lacks %q:\n%v", want, err)
				}
			}
			for line := range strings.Lines(err.Error()) {
				if !strings.HasPrefix(line, path+": ") {
					t.Errorf("a line does not name the file: %s", line)
				}
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	_, err := LoadClient("/nonexistent/client.toml")
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/client.toml does not exist: write it, or say where it is with --config") {
		t.Errorf("error: %v", err)
	}
}

// The printed defaults name every key, and are the defaults of the code.
func TestPrintedDefaults(t *testing.T) {
	t.Run("daemon", func(t *testing.T) {
		host := DefaultDaemon().Node.FailureDomain
		text := uncomment(DefaultTOML)
		text = strings.NewReplacer("rack7/host42", host, "host42:7440", "", `"/etc/rfs/tls/host.pem"`, `""`,
			`"/etc/rfs/tls/host.key"`, `""`, `"/etc/rfs/tls/ca.pem"`, `""`).Replace(text)
		want := DefaultDaemon()
		want.Cluster.Meta = []string{"meta1:7440", "meta2:7440", "meta3:7440"}
		want.Node.Roles = []string{RoleMeta, RoleStorage}
		want.Storage.Targets = []Target{{Dir: "/srv/rfs/t0"}}
		var have Daemon
		if err := load(write(t, text), &have); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(have, want) {
			t.Errorf("printed:\n%+v\ncode:\n%+v", have, want)
		}
		allKeys(t, reflect.TypeFor[Daemon](), DefaultTOML)
		var untouched Daemon
		if err := load(write(t, DefaultTOML), &untouched); err != nil {
			t.Errorf("the file as printed: %v", err)
		}
	})
	t.Run("client", func(t *testing.T) {
		text := strings.NewReplacer(`"/etc/rfs/tls/host.pem"`, `""`,
			`"/etc/rfs/tls/host.key"`, `""`, `"/etc/rfs/tls/ca.pem"`, `""`).Replace(uncomment(ClientTOML))
		want := DefaultClient()
		want.Meta = []string{"meta1:7440", "meta2:7440", "meta3:7440"}
		have, err := LoadClient(write(t, text))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(have, want) {
			t.Errorf("printed:\n%+v\ncode:\n%+v", have, want)
		}
		allKeys(t, reflect.TypeFor[Client](), ClientTOML)
	})
}

// uncomment takes the # from lines that are keys or tables; prose has a space after it.
func uncomment(text string) string {
	return regexp.MustCompile(`(?m)^#([a-z\[])`).ReplaceAllString(text, "$1")
}

func allKeys(t *testing.T, of reflect.Type, text string) {
	t.Helper()
	for _, k := range keys(of, "") {
		name := k[strings.LastIndexByte(k, '.')+1:]
		if !regexp.MustCompile(`(?m)^#?(` + name + ` = |#?\[\[?(.*\.)?` + name + `(\.\w+)?\]\]?$)`).MatchString(text) {
			t.Errorf("the printed file does not have the key %s", k)
		}
	}
}

// A list of replicas may name sockets; nothing else may.
func TestSocketAddresses(t *testing.T) {
	if c, err := LoadClient(write(t, "meta = ['unix:/run/m1.sock']")); err != nil {
		t.Error(err)
	} else if network, address := SplitAddress(c.Meta[0]); network != "unix" || address != "/run/m1.sock" {
		t.Errorf("split into %s and %s", network, address)
	}
	if _, err := LoadClient(write(t, "meta = ['unix:run/m1.sock']")); err == nil || !strings.Contains(err.Error(), "meta[0] is \"run/m1.sock\": want an absolute path") {
		t.Errorf("error: %v", err)
	}
	if _, err := LoadDaemon(write(t, good+"[http]\nlisten = 'unix:/x'")); err == nil {
		t.Error("http.listen takes a socket")
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "1B": 1, "4KiB": 4096, "1.5TB": 15e11, "10 GiB": 10 << 30, "8PiB": 8 << 50} {
		if s, err := ParseSize(text); err != nil || s.Bytes != want {
			t.Errorf("%q is %d, %v; want %d", text, s.Bytes, err, want)
		}
	}
	for _, bad := range []string{"", "1", "-1GiB", "GiB", "1XB", "99999999PiB", "NaNGiB", "1e30PB"} {
		if s, err := ParseSize(bad); err == nil {
			t.Errorf("%q is taken as %d", bad, s.Bytes)
		}
	}
	for _, n := range []int64{0, 1, 4096, 1000, 64 << 20, 15e11, 12345} {
		if s, err := ParseSize(Size{n}.String()); err != nil || s.Bytes != n {
			t.Errorf("%d is printed as %s and read as %d, %v", n, Size{n}, s.Bytes, err)
		}
	}
}

func TestKeysAreDocumented(t *testing.T) {
	if ks := keys(reflect.TypeFor[Daemon](), ""); !slices.Contains(ks, "storage.target.dir") || slices.Contains(ks, "meta.target_lease.") {
		t.Errorf("keys are %q", ks)
	}
}
