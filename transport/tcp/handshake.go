package tcp

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"rfs"
	"rfs/transport"
	"rfs/transport/wire"
)

// The set-up of a link:
//
//	client                                            server
//	HELLO versions, cluster, nonce, challenge   ----> checks versions and cluster
//	      checks the proof                      <---- ACK challenge, proof
//	READY proof                                 ----> checks the proof
//	      the link is up                        <---- CREDIT window, cookie
//
// A proof is HMAC-SHA256 with the cluster key over who proves, the HELLO and the
// ACK without its proof: so it is bound to both challenges, and nothing in
// between can change a version or a feature. Whoever fails gets one GOAWAY.
// Until READY the server has nothing of the peer but its goroutine's stack.

// features is what this build speaks beyond the major version: none yet.
const features = 0

// refusal is a GOAWAY to send, and the error that it is here.
type refusal struct {
	reason wire.Reason
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(reason wire.Reason, format string, args ...any) error {
	return &refusal{reason, fmt.Sprintf(format, args...)}
}

func (t *Transport) proof(who string, hello, ack []byte) []byte {
	m := hmac.New(sha256.New, t.cfg.Key)
	m.Write([]byte("rfs " + who + "\x00"))
	m.Write(hello)
	m.Write(ack)
	return m.Sum(nil)
}

// ackTranscript is an ACK as both proofs cover it.
func ackTranscript(a wire.Ack) []byte {
	a.Proof = [wire.ProofSize]byte{}
	return a.Append(nil)
}

// greet is the client's side of the set-up.
func (t *Transport) greet(nc net.Conn, nonce rfs.UUID, stream int) (peer string, g wire.Grant, err error) {
	hello := wire.Hello{Major: wire.Major, Minor: wire.Minor, Features: features, Cluster: t.cfg.Cluster,
		Nonce: nonce, Stream: uint16(stream), Name: t.cfg.Name}
	_, _ = rand.Read(hello.Challenge[:])
	helloBody := hello.Append(nil)
	if err := t.writeFrame(nc, wire.TypeHello, helloBody); err != nil {
		return "", g, err
	}
	var ack wire.Ack
	body, err := t.expect(nc, wire.TypeAck)
	if err == nil {
		err = ack.Parse(body)
	}
	if err != nil {
		return "", g, err
	}
	transcript := ackTranscript(ack)
	switch {
	case ack.Cluster != t.cfg.Cluster:
		return "", g, fmt.Errorf("%w: it is of cluster %v, this process of %v: check the address and the cluster id", transport.ErrRefused, ack.Cluster, t.cfg.Cluster)
	case !hmac.Equal(ack.Proof[:], t.proof("server", helloBody, transcript)):
		return "", g, fmt.Errorf("%w: it does not have this process's cluster key: copy the key file of the cluster to both", transport.ErrRefused)
	}
	if err := t.writeFrame(nc, wire.TypeReady, t.proof("client", helloBody, transcript)); err != nil {
		return "", g, err
	}
	if body, err = t.expect(nc, wire.TypeCredit); err == nil {
		err = g.Parse(body)
	}
	return ack.Name, g, err
}

// admit is the server's side, up to the checked READY.
func (t *Transport) admit(nc net.Conn) (wire.Hello, error) {
	var hello wire.Hello
	h, helloBody, err := t.readFrame(nc)
	if errors.Is(err, wire.ErrMagic) {
		return hello, refuse(wire.ReasonProtocol, "this is an rfs server: what came is not an rfs frame")
	}
	if err != nil && !errors.Is(err, wire.ErrVersion) {
		return hello, err
	}
	switch {
	case h.Version != wire.Major:
		return hello, refuse(wire.ReasonVersion, "%s", versions(h.Version))
	case h.Type != wire.TypeHello:
		return hello, refuse(wire.ReasonProtocol, "a connection begins with HELLO, not %v", h.Type)
	}
	if err := hello.Parse(helloBody); err != nil {
		return hello, refuse(wire.ReasonProtocol, "%v", err)
	}
	switch {
	case hello.Major != wire.Major:
		return hello, refuse(wire.ReasonVersion, "%s", versions(uint8(hello.Major)))
	case hello.Cluster != t.cfg.Cluster:
		return hello, refuse(wire.ReasonCluster, "this server is of another cluster than %v: check the address and the cluster id", hello.Cluster)
	}
	ack := wire.Ack{Major: wire.Major, Minor: wire.Minor, Features: features & hello.Features,
		Cluster: t.cfg.Cluster, Nonce: t.nonce, Name: t.cfg.Name}
	_, _ = rand.Read(ack.Challenge[:])
	transcript := ackTranscript(ack)
	copy(ack.Proof[:], t.proof("server", helloBody, transcript))
	if err := t.writeFrame(nc, wire.TypeAck, ack.Append(nil)); err != nil {
		return hello, err
	}
	h, proof, err := t.readFrame(nc)
	switch {
	case err != nil:
		return hello, fmt.Errorf("after ACK (a client that has another cluster key hangs up here): %w", err)
	case h.Type != wire.TypeReady || !hmac.Equal(proof, t.proof("client", helloBody, transcript)):
		return hello, refuse(wire.ReasonAuth, "the cluster key of the client is not this server's: copy the key file of the cluster to both")
	}
	return hello, nil
}

func versions(theirs uint8) string {
	return fmt.Sprintf("rfs wire protocol version %d is spoken here (%d.%d), version %d by the other end: run the same release of rfs on both",
		wire.Major, wire.Major, wire.Minor, theirs)
}

func (t *Transport) writeFrame(nc net.Conn, typ wire.Type, body []byte) error {
	h := t.header(typ)
	h.Length, h.BodyCRC = uint32(len(body)), wire.CRC(0, body)
	b := make([]byte, wire.HeaderSize, wire.HeaderSize+len(body))
	h.Put(b)
	_, err := nc.Write(append(b, body...))
	return err
}

// readFrame reads a frame of the set-up: no more than it needs, of bounded length.
func (t *Transport) readFrame(nc net.Conn) (h wire.FrameHeader, body []byte, err error) {
	var head [wire.HeaderSize]byte
	if _, err := io.ReadFull(nc, head[:]); err != nil {
		return h, nil, err
	}
	if err := h.Parse(head[:]); err != nil {
		return h, nil, err
	}
	if h.Length > wire.MaxHandshake {
		return h, nil, fmt.Errorf("%w: %v of %d bytes before authentication", wire.ErrFrame, h.Type, h.Length)
	}
	body = make([]byte, h.Length)
	if _, err := io.ReadFull(nc, body); err != nil {
		return h, nil, err
	}
	if wire.CRC(0, body) != h.BodyCRC {
		return h, nil, fmt.Errorf("%v: %w", h.Type, wire.ErrCRC)
	}
	return h, body, nil
}

// expect reads a frame of the type; a GOAWAY instead is the peer's refusal.
func (t *Transport) expect(nc net.Conn, typ wire.Type) ([]byte, error) {
	h, body, err := t.readFrame(nc)
	switch {
	case errors.Is(err, wire.ErrVersion):
		if h.Type != wire.TypeGoaway {
			return nil, fmt.Errorf("%w: %s", transport.ErrRefused, versions(h.Version))
		}
		if body, err = readBody(nc, h); err != nil {
			return nil, err
		}
	case errors.Is(err, wire.ErrMagic):
		return nil, fmt.Errorf("what listens there does not speak rfs: check the address (and TLS, if only one end has it): %w", err)
	case err != nil:
		return nil, err
	case h.Type == typ:
		return body, nil
	case h.Type != wire.TypeGoaway:
		return nil, fmt.Errorf("%w: %v where %v was due", wire.ErrFrame, h.Type, typ)
	}
	var g wire.Goaway
	if err := g.Parse(body); err != nil {
		return nil, err
	}
	return nil, goawayError(g)
}

// readBody reads what follows the header of another major version's GOAWAY.
func readBody(nc net.Conn, h wire.FrameHeader) ([]byte, error) {
	body := make([]byte, min(h.Length, wire.MaxHandshake))
	_, err := io.ReadFull(nc, body)
	return body, err
}

func goawayError(g wire.Goaway) error {
	if g.Reason.Final() {
		return fmt.Errorf("%w: %s", transport.ErrRefused, g.Text)
	}
	return fmt.Errorf("peer hung up: %s", g.Text)
}

// sendGoaway says why, as well as it can be said, before the hang-up.
func (t *Transport) sendGoaway(nc net.Conn, r *refusal) {
	g := wire.Goaway{Major: wire.Major, Minor: wire.Minor, Reason: r.reason, Text: r.text}
	_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
	_ = t.writeFrame(nc, wire.TypeGoaway, g.Append(nil))
}

// secure wraps a new stream in TLS where it is configured.
func (t *Transport) secure(ctx context.Context, nc net.Conn, server bool, host string) (net.Conn, error) {
	if t.cfg.TLS == nil || isUnix(nc) && len(t.cfg.Key) > 0 {
		return nc, nil
	}
	var tc *tls.Conn
	if server {
		tc = tls.Server(nc, t.cfg.TLS)
	} else {
		cfg := t.cfg.TLS.Clone()
		if cfg.ServerName == "" {
			cfg.ServerName = host
		}
		tc = tls.Client(nc, cfg)
	}
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return tc, nil
}

func isUnix(nc net.Conn) bool {
	_, ok := nc.(*net.UnixConn)
	return ok
}
