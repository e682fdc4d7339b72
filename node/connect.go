package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"rfs"
	"rfs/client"
	"rfs/internal/config"
	"rfs/internal/hostid"
	"rfs/placement"
	"rfs/raftmeta"
	"rfs/transport"
	"rfs/transport/arena"
	"rfs/transport/tcp"
	"rfs/transport/wire"
)

// A Cluster is a client's way to a cluster: what the configuration says, connected.
type Cluster struct {
	Config    config.Client
	Identity  config.Identity
	Arena     *arena.Arena
	Transport *tcp.Transport
	Meta      *raftmeta.Client

	speak speaker
	log   *slog.Logger
}

// speaker is what the frames of a process tell its peers, asked for each frame.
type speaker struct {
	session atomic.Uint32
	meta    atomic.Pointer[raftmeta.Client]
}

func (s *speaker) Session() rfs.SessionID { return rfs.SessionID(s.session.Load()) }

func (s *speaker) MapEpoch() rfs.Epoch {
	if c := s.meta.Load(); c != nil {
		if m := c.CachedMap(); m != nil {
			return m.Epoch
		}
	}
	return 0
}

// Connect prepares what the configuration says. It waits for nobody: the first call does.
func Connect(cfg config.Client, log *slog.Logger) (*Cluster, error) {
	id, err := config.ReadKey(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	return connect(cfg, id, log)
}

func connect(cfg config.Client, id config.Identity, log *slog.Logger) (*Cluster, error) {
	c := &Cluster{Config: cfg, Identity: id, log: log}
	t, err := newTransport(cfg.Transport, id, "client "+hostname(), log, &c.speak)
	if err != nil {
		return nil, err
	}
	c.Transport = t
	if c.Arena, err = arena.New(arena.Config{Bytes: cfg.Transport.Arena.Bytes}); err != nil {
		return nil, fmt.Errorf("transport.arena of %v: %w", cfg.Transport.Arena, err)
	}
	mc := raftmeta.Config{Cluster: id.ID, Replicas: addresses(cfg.Meta), Transport: observed(t), Arena: c.Arena, Logger: log}
	if cfg.Soft {
		mc.Timeout = cfg.Timeout.Duration
	}
	if c.Meta, err = raftmeta.NewClient(mc); err != nil {
		return nil, errors.Join(err, c.Arena.Close())
	}
	c.speak.meta.Store(c.Meta)
	return c, nil
}

// Files opens a session and returns a client of the cluster's files.
func (c *Cluster) Files(ctx context.Context) (*client.FS, error) {
	cfg := client.Config{
		Meta: c.Meta, Transport: observed(c.Transport), Arena: c.Arena,
		Memory: c.Config.Transport.Arena.Bytes * 3 / 4, Logger: c.log,
	}
	if c.Config.Soft {
		cfg.Soft = c.Config.Timeout.Duration
	}
	fs, err := client.New(ctx, cfg)
	if err == nil {
		c.speak.session.Store(uint32(fs.Session()))
	}
	return fs, err
}

// Probe dials a node and says what carries the link and why, or why there is none.
func (c *Cluster) Probe(ctx context.Context, addr placement.Addr) (carrier, reason string) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := c.Transport.Dial(ctx, transport.Addr(addr))
	if err != nil {
		return "", err.Error()
	}
	defer conn.Close()
	if t, ok := conn.(interface{ Carrier() string }); ok {
		carrier = t.Carrier()
	}
	if carrier == "unix" {
		return carrier, "same host"
	}
	if addr.HostID != "" && addr.HostID == hostid.Get() {
		return carrier, "same host, but its Unix socket cannot be used"
	}
	return carrier, "this build has no RDMA and no DPDK"
}

// Close ends the connections. A client that Files returned is closed before.
func (c *Cluster) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(c.Meta.Close(ctx), c.Arena.Close())
}

// newTransport returns the transport that the configuration asks for.
func newTransport(cfg config.Transport, id config.Identity, name string, log *slog.Logger, speak *speaker) (*tcp.Transport, error) {
	tc := tcp.Config{
		Key: id.Key, Cluster: id.ID, Name: name, Streams: cfg.Streams, Bytes: cfg.Window.Bytes,
		TotalBytes: max(cfg.Arena.Bytes/2, cfg.Window.Bytes), Log: log, OwnCRC: ownCRC,
		Session: speak.Session, MapEpoch: speak.MapEpoch,
	}
	if cfg.TLSCert != "" {
		t, err := loadTLS(cfg)
		if err != nil {
			return nil, err
		}
		tc.TLS = t
	}
	return tcp.New(tc)
}

// ownCRC: the header of PREPARE and the reply of READ have a checksum for each
// block of payload, which the target and the client check.
func ownCRC(op wire.Op) bool { return op == wire.OpPrepare || op == wire.OpRead }

// loadTLS returns a configuration for both ends of mutual TLS.
func loadTLS(cfg config.Transport) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(cfg.TLSCert, cfg.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("transport.tls_cert %s, tls_key %s: %w", cfg.TLSCert, cfg.TLSKey, err)
	}
	pem, err := os.ReadFile(cfg.TLSCA)
	if err != nil {
		return nil, fmt.Errorf("transport.tls_ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("transport.tls_ca %s has no PEM certificate", cfg.TLSCA)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13}, nil
}

// addresses turns entries of a configuration's meta into addresses.
func addresses(list []string) []transport.Addr {
	var out []transport.Addr
	for _, s := range list {
		out = append(out, ParseAddr(s))
	}
	return out
}

// ParseAddr reads "host:port" or "unix:/path".
func ParseAddr(s string) transport.Addr {
	network, address := config.SplitAddress(s)
	return transport.Addr{Network: network, Address: address}
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	h, _, _ = strings.Cut(h, ".")
	return h
}
