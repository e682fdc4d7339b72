package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"rfs"
	"rfs/chunkstore"
	"rfs/internal/config"
	"rfs/internal/vfs"
	"rfs/placement"
	"rfs/raftmeta"
)

// DevOptions say what an embedded cluster is. The zero value is 3 metadata
// replicas, 7 nodes with a target each, and a pool "default" of ec:4+2.
type DevOptions struct {
	// Dir keeps the cluster's data. Default: a new temporary directory, removed by Close.
	Dir string
	// Replicas is how many metadata replicas there are, Targets how many storage nodes
	// with one target each. Defaults: 3, 7.
	Replicas, Targets int
	// Scheme is that of the pool "default". Default "ec:4+2".
	Scheme string
	// Slots of the pool. Default 64.
	Slots int
	// Unit and Cell of the pool in bytes. Defaults: rfs.DefaultUnit, rfs.DefaultCell.
	Unit, Cell uint32
	// Capacity of each target in bytes. Default: 95% of what is free, shared by all.
	Capacity int64
	// TargetLease and SessionLease are those of the metadata service. Defaults: 6 s, 30 s.
	TargetLease, SessionLease time.Duration
	Log                       *slog.Logger // default: none
}

func (o *DevOptions) defaults() {
	if o.Replicas == 0 {
		o.Replicas = 3
	}
	if o.Targets == 0 {
		o.Targets = 7
	}
	if o.Scheme == "" {
		o.Scheme = "ec:4+2"
	}
	if o.Slots == 0 {
		o.Slots = 64
	}
	if o.TargetLease == 0 {
		o.TargetLease = 6 * time.Second
	}
	if o.SessionLease == 0 {
		o.SessionLease = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

// A DevCluster is a whole cluster in this process. Its daemons are as separate as
// processes would be: each has its transport, its arena and its sockets. Its
// methods may be called from one goroutine at a time.
type DevCluster struct {
	opts     DevOptions
	id       config.Identity
	temp     bool
	replicas []*Daemon // nil while stopped
	targets  []*Daemon
	ids      []rfs.TargetID // of the targets of nodes that were started
	admin    *Cluster
}

// Dev starts an embedded cluster and returns when its pool can be written.
//
//	DIR/cluster.key, client.toml     as on a real node
//	DIR/meta1 .. meta3               replicas: state of the node, Raft log and state, socket
//	DIR/node1 .. node7               storage nodes: state, target, socket
func Dev(ctx context.Context, o DevOptions) (d *DevCluster, err error) {
	o.defaults()
	scheme, err := placement.ParseScheme(o.Scheme)
	if err != nil {
		return nil, err
	}
	d = &DevCluster{opts: o, replicas: make([]*Daemon, o.Replicas), targets: make([]*Daemon, o.Targets), ids: make([]rfs.TargetID, o.Targets)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
			d = nil
		}
	}()
	if err := d.prepare(); err != nil {
		return d, err
	}
	for i := range d.replicas {
		if err := d.StartMeta(ctx, i); err != nil {
			return d, err
		}
	}
	if d.admin, err = connect(d.ClientConfig(), d.id, o.Log); err != nil {
		return d, err
	}
	if err := d.init(ctx); err != nil {
		return d, err
	}
	for i := range d.targets {
		if err := d.StartTarget(ctx, i); err != nil {
			return d, err
		}
	}
	if _, err := d.WaitMap(ctx, func(m *placement.Map) bool { return up(m) >= o.Targets }); err != nil {
		return d, err
	}
	return d, d.createPool(ctx, scheme)
}

// prepare makes the directory and reads or makes the cluster's identity.
func (d *DevCluster) prepare() (err error) {
	if d.opts.Dir == "" {
		if d.opts.Dir, err = os.MkdirTemp("", "rfs-"); err != nil {
			return err
		}
		d.temp = true
	}
	if d.opts.Dir, err = filepath.Abs(d.opts.Dir); err != nil {
		return err
	}
	if n := len(d.socket("node", len(d.targets))); n > 107 {
		return fmt.Errorf("directory %s: the path of a Unix socket below it would have %d bytes, and the system takes 107: choose a shorter one", d.opts.Dir, n)
	}
	if err := os.MkdirAll(d.opts.Dir, 0o755); err != nil {
		return err
	}
	key := d.keyFile()
	if _, err := os.Stat(key); errors.Is(err, os.ErrNotExist) {
		names, err := os.ReadDir(d.opts.Dir)
		if err != nil {
			return err
		}
		if len(names) > 0 {
			return fmt.Errorf("directory %s has %q and is not an embedded cluster's: give an empty one", d.opts.Dir, names[0].Name())
		}
		if err := config.NewIdentity().Write(key); err != nil {
			return err
		}
	}
	d.id, err = config.ReadKey(key)
	return err
}

// init makes the replicas a cluster, unless they are.
func (d *DevCluster) init(ctx context.Context) error {
	_, err := d.admin.Meta.ClusterInit(ctx)
	if errors.Is(err, rfs.ErrExist) {
		return nil
	}
	return err
}

func (d *DevCluster) createPool(ctx context.Context, scheme placement.Scheme) error {
	m, err := d.admin.Meta.RefreshMap(ctx)
	if err != nil {
		return err
	}
	if m.PoolByName("default") == nil {
		_, err = d.admin.Meta.CreatePool(ctx, raftmeta.PoolSpec{Name: "default", Scheme: scheme, Slots: d.opts.Slots, Unit: d.opts.Unit, Cell: d.opts.Cell})
		if err != nil {
			return err
		}
	}
	return d.waitWritable(ctx)
}

// waitWritable waits until all slots of all pools can be written.
func (d *DevCluster) waitWritable(ctx context.Context) error {
	_, err := d.WaitMap(ctx, func(m *placement.Map) bool {
		for i := range m.Pools {
			p := &m.Pools[i]
			for j := range p.Slots {
				if !m.CanWrite(p, &p.Slots[j]) {
					return false
				}
			}
		}
		return len(m.Pools) > 0
	})
	return err
}

// Replace drains storage node i, which may be stopped: others take its place in
// every slot, with its shards rebuilt. It returns when no slot names it any more.
func (d *DevCluster) Replace(ctx context.Context, i int) error {
	if err := d.admin.Meta.Drain(ctx, d.ids[i], false); err != nil {
		return err
	}
	_, err := d.WaitMap(ctx, func(m *placement.Map) bool {
		for _, p := range m.Pools {
			for j := range p.Slots {
				if p.Slots[j].Names(d.ids[i]) {
					return false
				}
			}
		}
		return true
	})
	return err
}

// capacity is what each target may use.
func (d *DevCluster) capacity() int64 {
	if d.opts.Capacity != 0 {
		return d.opts.Capacity
	}
	u, err := vfs.OS.Usage(d.opts.Dir)
	if err != nil {
		return 0
	}
	return max(u.Avail/20*19/int64(len(d.targets)), chunkstore.MinCapacity)
}

// Dir returns where the cluster's data is.
func (d *DevCluster) Dir() string { return d.opts.Dir }

func (d *DevCluster) keyFile() string { return filepath.Join(d.opts.Dir, "cluster.key") }

// socket returns the path of the socket of "meta" or "node" i, from 0.
func (d *DevCluster) socket(kind string, i int) string {
	return filepath.Join(d.opts.Dir, fmt.Sprintf("%s%d", kind, i+1), "sock")
}

func (d *DevCluster) metaAddresses() (out []string) {
	for i := range d.opts.Replicas {
		out = append(out, "unix:"+d.socket("meta", i))
	}
	return out
}

// ClientConfig returns how a client reaches the cluster.
func (d *DevCluster) ClientConfig() config.Client {
	c := config.DefaultClient()
	c.Meta, c.KeyFile = d.metaAddresses(), d.keyFile()
	return c
}

// daemon returns the configuration of "meta" or "node" i.
func (d *DevCluster) daemon(kind string, i int) config.Daemon {
	c := config.DefaultDaemon()
	dir := filepath.Dir(d.socket(kind, i))
	c.Cluster = config.Cluster{KeyFile: d.keyFile(), Meta: d.metaAddresses()}
	c.Node.FailureDomain = fmt.Sprintf("%s%d", kind, i+1)
	c.Node.Socket, c.Node.Advertise = d.socket(kind, i), "unix:"+d.socket(kind, i)
	c.Node.StateDir = filepath.Join(dir, "state")
	c.HTTP.Listen = ""
	c.Meta = config.Meta{Dir: filepath.Join(dir, "raft"),
		TargetLease: config.Duration{Duration: d.opts.TargetLease}, SessionLease: config.Duration{Duration: d.opts.SessionLease}}
	return c
}

// StartMeta starts metadata replica i, from 0.
func (d *DevCluster) StartMeta(ctx context.Context, i int) (err error) {
	if d.replicas[i] != nil {
		return nil
	}
	c := d.daemon("meta", i)
	c.Node.Roles = []string{config.RoleMeta}
	c.Transport.Arena, c.Transport.Window = config.Size{Bytes: 64 << 20}, config.Size{Bytes: 16 << 20}
	d.replicas[i], err = startNamed(ctx, c, d.id, d.opts.Log)
	return err
}

// StartTarget starts storage node i, from 0.
func (d *DevCluster) StartTarget(ctx context.Context, i int) (err error) {
	if d.targets[i] != nil {
		return nil
	}
	c := d.daemon("node", i)
	c.Node.Roles = []string{config.RoleStorage}
	c.Transport.Arena, c.Transport.Window = config.Size{Bytes: 96 << 20}, config.Size{Bytes: 32 << 20}
	c.Storage.Targets = []config.Target{{Dir: filepath.Join(filepath.Dir(c.Node.Socket), "t0"), Capacity: config.Size{Bytes: d.capacity()}}}
	if err := os.MkdirAll(c.Storage.Targets[0].Dir, 0o755); err != nil {
		return err
	}
	if d.targets[i], err = startNamed(ctx, c, d.id, d.opts.Log); err == nil {
		d.ids[i] = d.targets[i].stores[0].Store.Identity().Target
	}
	return err
}

func startNamed(ctx context.Context, c config.Daemon, id config.Identity, log *slog.Logger) (*Daemon, error) {
	dm, err := start(ctx, c, id, log.With("daemon", c.Node.FailureDomain))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Node.FailureDomain, err)
	}
	return dm, nil
}

// StopMeta stops metadata replica i.
func (d *DevCluster) StopMeta(i int) error { return stopDaemon(&d.replicas[i], (*Daemon).Stop) }

// StopTarget stops storage node i cleanly.
func (d *DevCluster) StopTarget(i int) error { return stopDaemon(&d.targets[i], (*Daemon).Stop) }

func stopDaemon(dm **Daemon, how func(*Daemon, context.Context) error) error {
	if *dm == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := how(*dm, ctx)
	*dm = nil
	return err
}

// Target returns the daemon of storage node i, or nil while it is stopped.
func (d *DevCluster) Target(i int) *Daemon { return d.targets[i] }

// Meta returns the daemon of replica i, or nil while it is stopped.
func (d *DevCluster) Meta(i int) *Daemon { return d.replicas[i] }

// Admin returns a way to the cluster for questions about it.
func (d *DevCluster) Admin() *Cluster { return d.admin }

// Connect returns a new way to the cluster, which the caller closes before the cluster.
func (d *DevCluster) Connect() (*Cluster, error) {
	return connect(d.ClientConfig(), d.id, d.opts.Log)
}

// WaitMap waits for a cluster map that is as ok says.
func (d *DevCluster) WaitMap(ctx context.Context, ok func(*placement.Map) bool) (*placement.Map, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		m, err := d.admin.Meta.RefreshMap(ctx)
		if err == nil && ok(m) {
			return m, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return m, fmt.Errorf("waiting for the cluster map to change: %w", errors.Join(context.Cause(ctx), err))
		}
	}
}

// WaitUp waits until just n targets are up.
func (d *DevCluster) WaitUp(ctx context.Context, n int) error {
	_, err := d.WaitMap(ctx, func(m *placement.Map) bool { return up(m) == n })
	return err
}

// WaitSynced waits until every member of every slot is up and in sync.
func (d *DevCluster) WaitSynced(ctx context.Context) error {
	_, err := d.WaitMap(ctx, func(m *placement.Map) bool {
		for _, p := range m.Pools {
			for _, s := range p.Slots {
				for i := range s.Members {
					if !m.Readable(&s, i) {
						return false
					}
				}
			}
		}
		return true
	})
	return err
}

func up(m *placement.Map) (n int) {
	for _, t := range m.Targets {
		if t.State == placement.Up {
			n++
		}
	}
	return n
}

// Close stops everything, and removes the data if it was temporary.
func (d *DevCluster) Close() error {
	var errs []error
	if d.admin != nil {
		errs = append(errs, d.admin.Close())
	}
	for i := range d.targets {
		errs = append(errs, d.StopTarget(i))
	}
	for i := range d.replicas {
		errs = append(errs, d.StopMeta(i))
	}
	if d.temp {
		errs = append(errs, os.RemoveAll(d.opts.Dir))
	}
	return errors.Join(errs...)
}
