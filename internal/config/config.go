// Package config reads the two TOML files of rfs: the daemon's (rfsd.toml) and
// the client's (client.toml).
//
// A key that is not known is an error which names its line and the nearest key
// that is; Validate reports everything that is wrong at once. Sizes and times
// are strings with a unit: "10GiB", "6s". A fully commented file with all
// defaults is what `rfsd config init` prints (default.toml beside this file).
package config

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// DefaultTOML is the daemon's file with every key, its default and its meaning.
//
//go:embed default.toml
var DefaultTOML string

// ClientTOML is the same for the client's file.
//
//go:embed client.toml
var ClientTOML string

// Where the files are when nothing else is said.
const (
	DaemonPath = "/etc/rfs/rfsd.toml"
	ClientPath = "/etc/rfs/client.toml"
)

// Roles of a daemon.
const (
	RoleMeta    = "meta"
	RoleStorage = "storage"
)

// Daemon is rfsd.toml.
type Daemon struct {
	Cluster   Cluster   `toml:"cluster"`
	Node      Node      `toml:"node"`
	Transport Transport `toml:"transport"`
	Meta      Meta      `toml:"meta"`
	Storage   Storage   `toml:"storage"`
	HTTP      HTTP      `toml:"http"`
	Log       Log       `toml:"log"`
}

// Cluster is what all daemons of a cluster have in common.
type Cluster struct {
	// KeyFile holds the cluster's id and key, as `rfsd cluster key` wrote them,
	// readable by its owner only. Default /etc/rfs/cluster.key.
	KeyFile string `toml:"key_file"`
	// Meta lists the addresses (host:port) of the metadata replicas. One that answers
	// is enough: it names the others. Required.
	Meta []string `toml:"meta"`
}

// Node is this machine.
type Node struct {
	// Roles that this daemon has: "meta", "storage" or both. Required.
	Roles []string `toml:"roles"`
	// FailureDomain is what fails together, from the outside in: "rack7/host42".
	// No two shards of a stripe lie in one domain while there are enough. Default: the host's name.
	FailureDomain string `toml:"failure_domain"`
	// Listen is the address (host:port) that this daemon serves on. Default "0.0.0.0:7440".
	Listen string `toml:"listen"`
	// Advertise is the address (host:port) that peers dial. Default: the host's name and the port of Listen.
	Advertise string `toml:"advertise"`
	// Socket is the path of the Unix socket for peers and clients on this host; at
	// most 107 bytes. Default "/run/rfs/rfsd.sock".
	Socket string `toml:"socket"`
	// StateDir holds the node's id. Default "/var/lib/rfs".
	StateDir string `toml:"state_dir"`
}

// Transport is how peers are reached.
type Transport struct {
	// Mode is "auto" or "tcp": auto takes the best that both ends have; a mode
	// that is named and cannot be had is an error. Default "auto".
	Mode string `toml:"mode"`
	// Streams is how many TCP streams go to a peer. Default 4.
	Streams int `toml:"streams"`
	// Arena is the memory for payloads, reserved at start. Default "256MiB".
	Arena Size `toml:"arena"`
	// Window is how many payload bytes a client may have under way to this daemon. Default "64MiB".
	Window Size `toml:"window"`
	// TLSCert, TLSKey and TLSCA (PEM files) turn on mutual TLS on TCP, beside the cluster key. Default: off.
	TLSCert string `toml:"tls_cert"`
	TLSKey  string `toml:"tls_key"`
	TLSCA   string `toml:"tls_ca"`
}

// Meta is the metadata replica of this daemon.
type Meta struct {
	// Dir holds the Raft log and the state. Default "/var/lib/rfs/meta".
	Dir string `toml:"dir"`
	// Join is true for a replica that `rfs meta add` adds to a running cluster: with an empty dir
	// it waits for that, and takes no part in `rfsd cluster init`. Default false.
	Join bool `toml:"join"`
	// TargetLease is how long a target may be unheard of before it counts as down. Default "6s".
	TargetLease Duration `toml:"target_lease"`
	// SessionLease is how long a client may be unheard of before its session, its
	// locks and open files end. Default "30s".
	SessionLease Duration `toml:"session_lease"`
}

// Storage is the storage role of this daemon.
type Storage struct {
	// Targets are the stores, one a disk.
	Targets []Target `toml:"target"`
}

// Target is one store.
type Target struct {
	// Dir is the directory, on a file system of its own. It is formatted when it is
	// empty. Required.
	Dir string `toml:"dir"`
	// Capacity is how much the target may use. Default "0": 95% of its file system.
	Capacity Size `toml:"capacity"`
}

// HTTP is the endpoint for people and Prometheus.
type HTTP struct {
	// Listen serves /metrics, /healthz and /debug/pprof. Empty: none. It is not
	// authenticated: keep it to the management network. Default "127.0.0.1:7441".
	Listen string `toml:"listen"`
}

// Log is the daemon's own log, to standard error.
type Log struct {
	// Level is "debug", "info", "warn" or "error". Default "info".
	Level string `toml:"level"`
	// Format is "text" or "json". Default "text".
	Format string `toml:"format"`
}

// Client is client.toml.
type Client struct {
	// Meta lists addresses of metadata replicas, as in rfsd.toml; "unix:/path" is a
	// socket on this host. Required.
	Meta []string `toml:"meta"`
	// KeyFile holds the cluster's id and key. Default /etc/rfs/cluster.key.
	KeyFile string `toml:"key_file"`
	// Transport is as in rfsd.toml.
	Transport Transport `toml:"transport"`
	// Soft makes requests fail with EIO after Timeout while the cluster cannot
	// answer; else they wait until it can, like an NFS hard mount. Default false.
	Soft bool `toml:"soft"`
	// Timeout is how long a soft client waits. Default "60s".
	Timeout Duration `toml:"timeout"`
}

// DefaultDaemon returns the defaults.
func DefaultDaemon() Daemon {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return Daemon{
		Cluster:   Cluster{KeyFile: "/etc/rfs/cluster.key"},
		Node:      Node{FailureDomain: host, Listen: "0.0.0.0:7440", Socket: "/run/rfs/rfsd.sock", StateDir: "/var/lib/rfs"},
		Transport: defaultTransport(),
		Meta:      Meta{Dir: "/var/lib/rfs/meta", TargetLease: Seconds(6), SessionLease: Seconds(30)},
		HTTP:      HTTP{Listen: "127.0.0.1:7441"},
		Log:       Log{Level: "info", Format: "text"},
	}
}

// DefaultClient returns the defaults.
func DefaultClient() Client {
	return Client{KeyFile: "/etc/rfs/cluster.key",
		Transport: defaultTransport(), Timeout: Seconds(60)}
}

func defaultTransport() Transport {
	return Transport{Mode: "auto", Streams: 4, Arena: Size{256 << 20}, Window: Size{64 << 20}}
}

// LoadDaemon reads and validates the file.
func LoadDaemon(path string) (Daemon, error) {
	c := DefaultDaemon()
	if err := load(path, &c); err != nil {
		return c, err
	}
	if c.Node.Advertise == "" {
		host, _ := os.Hostname()
		_, port, _ := net.SplitHostPort(c.Node.Listen)
		c.Node.Advertise = net.JoinHostPort(host, port)
	}
	if err := c.Validate(); err != nil {
		return c, wrong(path, err)
	}
	return c, nil
}

// LoadClient reads and validates the file.
func LoadClient(path string) (Client, error) {
	c := DefaultClient()
	if err := load(path, &c); err != nil {
		return c, err
	}
	if err := c.Validate(); err != nil {
		return c, wrong(path, err)
	}
	return c, nil
}

// Validate reports everything that is wrong with c, one line each.
func (c *Daemon) Validate() error {
	var p problems
	p.file("cluster.key_file", c.Cluster.KeyFile)
	p.addresses("cluster.meta", c.Cluster.Meta)
	if len(c.Node.Roles) == 0 {
		p.add("node.roles", `is empty: want "meta", "storage" or both`)
	}
	for _, r := range c.Node.Roles {
		if r != RoleMeta && r != RoleStorage {
			p.add("node.roles", fmt.Sprintf(`has %q: want "meta", "storage" or both`, r))
		}
	}
	p.address("node.listen", c.Node.Listen)
	if c.Node.Advertise != "" {
		p.address("node.advertise", c.Node.Advertise)
	}
	if c.Node.FailureDomain == "" || strings.ContainsFunc(c.Node.FailureDomain, func(r rune) bool { return r <= ' ' }) {
		p.add("node.failure_domain", fmt.Sprintf(`is %q: want names separated by /, like "rack7/host42"`, c.Node.FailureDomain))
	}
	p.socket("node.socket", c.Node.Socket)
	p.file("node.state_dir", c.Node.StateDir)
	p.transport(c.Transport)
	if c.Has(RoleMeta) {
		p.meta(c)
	}
	if c.Has(RoleStorage) {
		p.targets(c.Storage.Targets)
	} else if len(c.Storage.Targets) > 0 {
		p.add("storage.target", `is given, but node.roles has no "storage"`)
	}
	if c.HTTP.Listen != "" {
		p.address("http.listen", c.HTTP.Listen)
	}
	p.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	p.oneOf("log.format", c.Log.Format, "text", "json")
	return errors.Join(p...)
}

// Validate reports everything that is wrong with c, one line each.
func (c *Client) Validate() error {
	var p problems
	p.addresses("meta", c.Meta)
	p.file("key_file", c.KeyFile)
	p.transport(c.Transport)
	p.atLeast("timeout", c.Timeout, time.Second)
	return errors.Join(p...)
}

// SplitAddress returns the network and address of an entry of meta: "tcp" and
// host:port, or "unix" and a path.
func SplitAddress(s string) (network, address string) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return "unix", path
	}
	return "tcp", s
}

// Has says whether the daemon has the role.
func (c *Daemon) Has(role string) bool { return slices.Contains(c.Node.Roles, role) }

// problems collects what is wrong.
type problems []error

func (p *problems) add(key, what string) { *p = append(*p, fmt.Errorf("%s %s", key, what)) }

func (p *problems) meta(c *Daemon) {
	p.file("meta.dir", c.Meta.Dir)
	p.atLeast("meta.target_lease", c.Meta.TargetLease, time.Second)
	p.atLeast("meta.session_lease", c.Meta.SessionLease, 2*time.Second)
}

func (p *problems) targets(targets []Target) {
	if len(targets) == 0 {
		p.add("storage.target", `is missing: node.roles has "storage", so give a [[storage.target]] with a dir`)
	}
	for i, t := range targets {
		key := fmt.Sprintf("storage.target[%d]", i)
		p.file(key+".dir", t.Dir)
		if t.Capacity.Bytes != 0 && t.Capacity.Bytes < 64<<20 {
			p.add(key+".capacity", fmt.Sprintf("is %v: want at least 64MiB, or \"0\" for 95%% of the file system", t.Capacity))
		}
		for j := range i {
			if a, b := filepath.Clean(t.Dir), filepath.Clean(targets[j].Dir); a == b {
				p.add(key+".dir", fmt.Sprintf("is %s, as storage.target[%d].dir is: each target needs a directory of its own", a, j))
			}
		}
	}
}

func (p *problems) transport(t Transport) {
	switch t.Mode {
	case "auto", "tcp":
	case "rdma", "dpdk":
		p.add("transport.mode", fmt.Sprintf("is %q, which this build does not have: use \"auto\" or \"tcp\"", t.Mode))
	default:
		p.add("transport.mode", fmt.Sprintf("is %q: want \"auto\" or \"tcp\"", t.Mode))
	}
	if t.Streams < 1 || t.Streams > 64 {
		p.add("transport.streams", fmt.Sprintf("is %d: want 1 to 64", t.Streams))
	}
	if t.Arena.Bytes < 32<<20 {
		p.add("transport.arena", fmt.Sprintf("is %v: want at least 32MiB", t.Arena))
	}
	if t.Window.Bytes < 4<<20 || t.Window.Bytes > t.Arena.Bytes {
		p.add("transport.window", fmt.Sprintf("is %v: want 4MiB up to transport.arena, %v", t.Window, t.Arena))
	}
	set := 0
	for _, f := range []string{t.TLSCert, t.TLSKey, t.TLSCA} {
		if f != "" {
			set++
		}
	}
	if set != 0 && set != 3 {
		p.add("transport.tls_cert, tls_key, tls_ca", "go together: give all three, or none for no TLS")
	}
}

func (p *problems) file(key, path string) {
	if path == "" {
		p.add(key, "is empty: want an absolute path")
	} else if !filepath.IsAbs(path) {
		p.add(key, fmt.Sprintf("is %q: want an absolute path", path))
	}
}

func (p *problems) socket(key, path string) {
	p.file(key, path)
	if len(path) > 107 {
		p.add(key, fmt.Sprintf("has %d bytes: the system takes 107 for a Unix socket", len(path)))
	}
}

func (p *problems) address(key, addr string) {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok && strings.HasSuffix(key, "]") {
		p.socket(key, path)
		return
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		p.add(key, fmt.Sprintf("is %q: want host:port, like \"10.0.0.1:7440\"", addr))
	} else if _, err := net.LookupPort("tcp", port); err != nil {
		p.add(key, fmt.Sprintf("is %q: the port is not a number from 0 to 65535", addr))
	} else if host == "" && key != "node.listen" && key != "http.listen" {
		p.add(key, fmt.Sprintf("is %q: the host is missing", addr))
	}
}

func (p *problems) addresses(key string, addrs []string) {
	if len(addrs) == 0 {
		p.add(key, "is empty: list the metadata replicas, like [\"meta1:7440\", \"meta2:7440\", \"meta3:7440\"]")
	}
	for i, a := range addrs {
		p.address(fmt.Sprintf("%s[%d]", key, i), a)
		if slices.Index(addrs, a) < i {
			p.add(fmt.Sprintf("%s[%d]", key, i), fmt.Sprintf("is %q again", a))
		}
	}
}

func (p *problems) atLeast(key string, d Duration, least time.Duration) {
	if d.Duration < least {
		p.add(key, fmt.Sprintf("is %v: want at least %v", d, Duration{least}))
	}
}

func (p *problems) oneOf(key, have string, want ...string) {
	if !slices.Contains(want, have) {
		p.add(key, fmt.Sprintf("is %q: want one of %s", have, strings.Join(want, ", ")))
	}
}

// wrong puts the file's name before each line of err.
func wrong(path string, err error) error {
	return errors.New(path + ": " + strings.ReplaceAll(err.Error(), "\n", "\n"+path+": "))
}

// load decodes the file over the defaults that into holds.
func load(path string, into any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s does not exist: write it, or say where it is with --config", path)
	}
	if err != nil {
		return err
	}
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err = d.Decode(into)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	var unit *unitError
	switch {
	case errors.As(err, &unknown):
		var all []error
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			all = append(all, fmt.Errorf("line %d: unknown key %q%s", line, strings.Join(e.Key(), "."), nearest(into, e.Key())))
		}
		return wrong(path, errors.Join(all...))
	case errors.As(err, &bad):
		line, column := bad.Position()
		key := strings.Join(bad.Key(), ".")
		if key != "" {
			key += ": "
		}
		return fmt.Errorf("%s: line %d, column %d: %s%s", path, line, column, key, strings.TrimPrefix(bad.Error(), "toml: "))
	case errors.As(err, &unit): // a bare number; the decoder does not say where
		return fmt.Errorf("%s: line %d: %w", path, lineOf(b, unit.text), unit)
	case err != nil:
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// lineOf returns the first line of text on which a key has the bare value, from 1.
func lineOf(text []byte, value string) int {
	at := regexp.MustCompile(`(?m)=\s*` + regexp.QuoteMeta(value) + `\s*(#.*)?$`).FindIndex(text)
	if at == nil {
		return 1
	}
	return 1 + bytes.Count(text[:at[0]], []byte("\n"))
}

// nearest names the known key that is closest to the unknown one.
func nearest(into any, key toml.Key) string {
	known := keys(reflect.TypeOf(into).Elem(), "")
	have := strings.Join(key, ".")
	best := slices.MinFunc(known, func(a, b string) int { return distance(a, have) - distance(b, have) })
	if last := have[strings.LastIndexByte(have, '.')+1:]; distance(best, have) > max(3, len(last)/2) {
		// Right name, wrong table?
		for _, k := range known {
			if k[strings.LastIndexByte(k, '.')+1:] == last {
				return fmt.Sprintf("; did you mean %q?", k)
			}
		}
		return "; `rfsd config init` prints all keys"
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// keys lists the full names of the fields of t.
func keys(t reflect.Type, prefix string) []string {
	var all []string
	for i := range t.NumField() {
		f := t.Field(i)
		name := prefix + f.Tag.Get("toml")
		all = append(all, name)
		ft := f.Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		if ft.Kind() == reflect.Struct && ft != reflect.TypeFor[Size]() && ft != reflect.TypeFor[Duration]() {
			all = append(all, keys(ft, name+".")...)
		}
	}
	return all
}

// distance is Levenshtein's, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
