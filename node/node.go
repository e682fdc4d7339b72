// Package node wires roles into a process: it turns a configuration into a
// running daemon, into a client of a cluster, or into a whole cluster in one process.
//
//	              listeners: TCP, Unix socket
//	                         |
//	                  transport/tcp.Serve
//	                         |
//	              observed: latency, bytes, depth of queues
//	                         |
//	                   handler: by operation
//	                   /                  \
//	OpMeta .. OpAdmin /                    \ OpPrepare .. OpTargetStat
//	   raftmeta.Replica                server.Server, with its agent
//	       |                               |            |
//	   meta.dir                       chunkstore.Store  raftmeta.Client
//	                                  one a target
//
// Start is a daemon (rfsd), Connect a client (rfs), Dev an embedded cluster of 3
// metadata replicas and 7 storage nodes, which are daemons of their own that meet
// on Unix sockets; tests and `rfs dev` use it.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"rfs/internal/config"
	"rfs/internal/hostid"
	"rfs/internal/metrics"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/server"
	"rfs/transport"
	"rfs/transport/arena"
	"rfs/transport/tcp"
	"rfs/transport/wire"
)

// Transports says what this build has.
const Transports = "tcp, unix; not in this build: rdma, dpdk"

// A Daemon is a running rfsd.
type Daemon struct {
	cfg       config.Daemon
	log       *slog.Logger
	node      placement.Node
	arena     *arena.Arena
	transport *tcp.Transport
	speak     speaker
	meta      *raftmeta.Client  // of the storage role
	replica   *raftmeta.Replica // nil without the role
	self      *raftmeta.Client  // asks only the own replica
	server    *server.Server    // nil without the role
	stores    []server.TargetOptions
	web       *http.Server
	webAddr   net.Addr

	ctx    context.Context // of Serve
	cancel context.CancelFunc
	wg     sync.WaitGroup

	unmeasure func()        // nil before it serves
	failed    chan struct{} // closed when a listener fails
	once      sync.Once
	err       error
}

// Start starts the daemon. It returns when it serves; registering with the
// metadata service goes on in the background. ctx bounds the start only.
func Start(ctx context.Context, cfg config.Daemon, log *slog.Logger) (*Daemon, error) {
	id, err := config.ReadKey(cfg.Cluster.KeyFile)
	if err != nil {
		return nil, err
	}
	return start(ctx, cfg, id, log)
}

func start(ctx context.Context, cfg config.Daemon, id config.Identity, log *slog.Logger) (d *Daemon, err error) {
	d = &Daemon{cfg: cfg, log: log, failed: make(chan struct{})}
	d.ctx, d.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Stop(context.WithoutCancel(ctx)))
		}
	}()
	if d.node, err = d.identify(); err != nil {
		return d, err
	}
	if d.transport, err = newTransport(cfg.Transport, id, d.node.Name, log, &d.speak); err != nil {
		return d, err
	}
	if d.arena, err = arena.New(arena.Config{Bytes: cfg.Transport.Arena.Bytes}); err != nil {
		return d, fmt.Errorf("transport.arena of %v: %w", cfg.Transport.Arena, err)
	}
	listeners, err := d.listen()
	if err != nil {
		return d, err
	}
	if err = errors.Join(d.startMeta(id), d.startStorage(id)); err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		return d, err
	}
	for _, l := range listeners {
		d.serve(l)
	}
	if d.server != nil { // in the background: there may be no cluster yet
		d.wg.Go(func() {
			if err := d.server.Start(d.ctx); err != nil && d.ctx.Err() == nil {
				d.fail(fmt.Errorf("register with the metadata service: %w", err))
			}
		})
	}
	if err = d.startHTTP(); err != nil {
		return d, err
	}
	d.unmeasure = metrics.AddSource(d.measure)
	log.Info("serving", "node", d.node.Name, "id", d.node.ID, "roles", cfg.Node.Roles, "listen", d.cfg.Node.Listen,
		"socket", cfg.Node.Socket, "transports", Transports)
	return d, nil
}

// identify returns who this node is: its id is kept in the state directory.
func (d *Daemon) identify() (placement.Node, error) {
	id, err := nodeID(d.cfg.Node.StateDir)
	if err != nil {
		return placement.Node{}, err
	}
	network, address := config.SplitAddress(d.cfg.Node.Advertise)
	name, _, err := net.SplitHostPort(address)
	if network == "unix" || err != nil {
		name = filepath.Base(filepath.Dir(address)) // an embedded node: DIR/node1/sock
	}
	n := placement.Node{ID: id, Name: name, Domain: d.cfg.Node.FailureDomain}
	addr := ParseAddr(d.cfg.Node.Advertise)
	addr.Local, addr.HostID = d.cfg.Node.Socket, hostid.Get()
	n.Addr = placement.Addr(addr)
	return n, nil
}

// listen opens the TCP listener and the Unix socket.
func (d *Daemon) listen() (ls []net.Listener, err error) {
	if network, _ := config.SplitAddress(d.cfg.Node.Advertise); network == "tcp" {
		l, err := net.Listen("tcp", d.cfg.Node.Listen)
		if err != nil {
			return nil, fmt.Errorf("node.listen %s: %w: is another rfsd running, or another program on the port?", d.cfg.Node.Listen, err)
		}
		ls = append(ls, l)
	}
	l, err := listenUnix(d.cfg.Node.Socket)
	if err != nil {
		for _, l := range ls {
			_ = l.Close()
		}
		return nil, err
	}
	return append(ls, l), nil
}

// listenUnix listens on the socket, and takes the place of one that a dead process left.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("node.socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		c, derr := net.DialTimeout("unix", path, time.Second)
		if derr == nil {
			_ = c.Close()
			return nil, fmt.Errorf("node.socket %s: another rfsd serves it: end that one, or give this one another socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("node.socket %s: left by a dead process: %w", path, err)
		}
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("node.socket %s: %w", path, err)
	}
	// Whoever connects must prove that it has the cluster key.
	return l, os.Chmod(path, 0o666)
}

func (d *Daemon) serve(l net.Listener) {
	d.wg.Go(func() {
		if err := d.transport.Serve(d.ctx, l, observedHandler{d}); err != nil {
			d.fail(fmt.Errorf("listener %v: %w", l.Addr(), err))
		}
	})
}

func (d *Daemon) fail(err error) {
	d.once.Do(func() {
		d.err = err
		close(d.failed)
	})
}

// ServeRPC hands a request to the role that it is for.
func (d *Daemon) ServeRPC(ctx context.Context, r transport.Request) {
	isMeta := r.Op() >= wire.OpMeta && r.Op() < wire.OpTest
	switch {
	case isMeta && d.replica != nil:
		d.replica.ServeRPC(ctx, r)
	case !isMeta && d.server != nil:
		d.server.ServeRPC(ctx, r)
	default:
		_ = r.Reply(wire.StatusUnknownOp, nil, nil, 0)
	}
}

func (d *Daemon) startMeta(id config.Identity) (err error) {
	if !slices.Contains(d.cfg.Node.Roles, config.RoleMeta) {
		return nil
	}
	d.replica, err = raftmeta.Open(raftmeta.Options{
		Dir: d.cfg.Meta.Dir, Join: d.cfg.Meta.Join, Addr: transport.Addr(d.node.Addr), Transport: observed(d.transport), Arena: d.arena,
		TargetLease: d.cfg.Meta.TargetLease.Duration, SessionLease: d.cfg.Meta.SessionLease.Duration, Logger: d.log,
	})
	if err != nil {
		return err
	}
	d.self, err = raftmeta.NewClient(raftmeta.Config{Replicas: []transport.Addr{transport.Addr(d.node.Addr)},
		Transport: d.transport, Arena: d.arena, Logger: d.log})
	return err
}

func (d *Daemon) startStorage(id config.Identity) (err error) {
	if !slices.Contains(d.cfg.Node.Roles, config.RoleStorage) {
		return nil
	}
	d.meta, err = raftmeta.NewClient(raftmeta.Config{Cluster: id.ID, Replicas: addresses(d.cfg.Cluster.Meta),
		Transport: observed(d.transport), Arena: d.arena, Logger: d.log})
	if err != nil {
		return err
	}
	d.speak.meta.Store(d.meta)
	if d.stores, err = openTargets(d.cfg.Storage.Targets, d.cfg.Node.StateDir, id.ID, d.log); err != nil {
		return err
	}
	// Requests get three quarters, so that repair always finds memory.
	mem := d.cfg.Transport.Arena.Bytes
	d.server, err = server.New(server.Options{Node: d.node, Targets: d.stores, Meta: d.meta, Transport: observed(d.transport),
		Arena: d.arena.Budget(mem / 2), Background: d.arena.Budget(mem / 4), Log: d.log})
	if err != nil {
		closeTargets(d.stores)
	}
	return err
}

// Failed is closed when the daemon can serve no more; Err says why.
func (d *Daemon) Failed() <-chan struct{} { return d.failed }

// Err is why the daemon failed.
func (d *Daemon) Err() error { return d.err }

// Node returns what the daemon is in the cluster map.
func (d *Daemon) Node() placement.Node { return d.node }

// HTTPAddr returns where /metrics is, or nil.
func (d *Daemon) HTTPAddr() net.Addr { return d.webAddr }

// Stop ends the daemon cleanly: requests under way are answered or cancelled, the
// stores are marked clean, so that they need no comparison with their peers at the next start.
func (d *Daemon) Stop(ctx context.Context) error {
	var errs []error
	if d.unmeasure != nil {
		d.unmeasure()
	}
	d.cancel()
	if d.web != nil {
		errs = append(errs, d.web.Shutdown(ctx))
	}
	d.wg.Wait()
	if d.server != nil {
		errs = append(errs, d.server.Close())
	}
	if d.self != nil {
		errs = append(errs, d.self.Close(ctx))
	}
	if d.replica != nil {
		errs = append(errs, d.replica.Close())
	}
	if d.meta != nil {
		errs = append(errs, d.meta.Close(ctx))
	}
	if d.arena != nil {
		errs = append(errs, d.arena.Close())
	}
	return errors.Join(errs...)
}
