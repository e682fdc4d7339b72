// Package transport says how a request and its payload travel between two
// processes of rfs, whatever carries them: TCP, a Unix socket, RDMA, DPDK.
//
// The server moves the payload. A write's payload is pulled by the server from
// memory that the client lends for the time of the call; a read's is pushed
// into such memory. On RDMA these are READ and WRITE; on TCP they are framed
// bytes, read straight into the destination buffer.
//
//	client                                server
//	Call(op, hdr, src, dst) --- REQ --->  Handler.ServeRPC(Request)
//	                        <-- pull ---  Request.Pull(dst, off, n)    any number of times
//	                        <-- RESP ---  Request.Reply(st, hdr, push) exactly once
//
// Every implementation passes the suite in transport/transporttest.
package transport

import (
	"context"
	"errors"
	"fmt"
	"net"

	"rfs/transport/wire"
)

// MaxHeader is the longest hdr of a Call or a Reply in bytes, so that it and
// up to MaxInline bytes of payload fit a message of 8 KiB with their headers.
const (
	MaxMessage = 8 << 10
	MaxInline  = 4 << 10
	// MaxHeader + MaxInline may exceed a message: payload that does not fit beside its header is moved.
	MaxHeader = MaxMessage - 256
	// MaxPayload is the largest src or dst of a call in bytes.
	MaxPayload = 4 << 20
)

// A Buf is memory of the process's arena, which a device can reach. Retain and
// Release count its owners; the transport holds one for as long as a peer may
// touch the memory. Bytes has the length asked of the arena.
type Buf interface {
	Bytes() []byte
	Retain()
	Release()
}

// Addr is where a peer can be reached. The zero value is nowhere.
type Addr struct {
	Network string `json:"network"` // "tcp"; "unix" (Address is the path)
	Address string `json:"address"`
	// Local, if set, is the path of a Unix socket of the same server, to be
	// preferred when it exists on this host and HostID is this host's.
	Local  string `json:"local,omitempty"`
	HostID string `json:"host_id,omitempty"`
}

func (a Addr) String() string { return a.Network + "://" + a.Address }

// Reply is a peer's answer to a call.
type Reply struct {
	Status wire.Status
	// Header is owned by the caller.
	Header []byte
	// Pushed is how many bytes were written to dst, from its start.
	Pushed int
}

// Transport connects and serves. Its methods may be called from any goroutine.
type Transport interface {
	// Dial connects to a peer and authenticates both ends. It returns once the
	// connection can carry calls, or an error that names the peer and the
	// remedy. It does not retry.
	Dial(ctx context.Context, addr Addr) (Conn, error)
	// Serve accepts connections of l until ctx ends or l fails, and calls h for
	// each request, on a goroutine of its own. It returns after all of them
	// have ended. It closes l.
	Serve(ctx context.Context, l net.Listener, h Handler) error
}

// Conn is a connection to one peer. Its methods may be called from any goroutine.
//
// A Conn outlives its links: when one breaks it is dialled again with back-off
// (50 ms to 5 s), and calls that were under way are sent again; the server
// applies each once. A call that went out to a server which has lost its memory of
// it since (it was restarted, or the client was away for too long) fails with
// ErrBroken instead. Done is closed only by Close, or when the peer refuses for
// good (a wrong key, another major version).
//
// While no link is up a call waits, until its context ends: give it a deadline.
type Conn interface {
	// Call sends hdr and lends src, which the server may pull, and dst, into
	// which it may push, until it returns; either may be nil. An error means that
	// there is no answer (ErrClosed, ErrBroken, the context's error); the request
	// may have been applied. A server's refusal is a Status in the Reply.
	//
	// When ctx ends first, Call cancels the request, and returns only after the
	// peer can no longer touch src and dst.
	Call(ctx context.Context, op wire.Op, hdr []byte, src, dst Buf) (Reply, error)
	Close() error
	Done() <-chan struct{}
}

// Handler answers requests. ServeRPC is called on a goroutine of the request's
// own and must Reply exactly once before it returns; one that does not is
// answered with wire.StatusInternal. ctx ends when the client cancels, its
// deadline passes or its connection is gone; it carries the trace id (TraceID).
type Handler interface {
	ServeRPC(ctx context.Context, r Request)
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(ctx context.Context, r Request)

func (f HandlerFunc) ServeRPC(ctx context.Context, r Request) { f(ctx, r) }

// Request is one call as its server sees it. It is valid until Reply returns.
type Request interface {
	Op() wire.Op
	// Header is valid until Reply.
	Header() []byte
	// PayloadLen is the length of what the client lends as src, CapLen of dst, in bytes.
	PayloadLen() int
	CapLen() int
	// Peer says who asks.
	Peer() Peer
	// Pull copies n bytes from offset off of the client's src into dst, from its
	// start. It fails when the client cancelled or is gone; then nothing is known of dst.
	Pull(ctx context.Context, dst Buf, off, n int) error
	// Reply answers, pushing n bytes of push (nil: none) from its start into the client's dst.
	// It takes no ownership: push may be released when Reply returns, hdr is copied.
	Reply(st wire.Status, hdr []byte, push Buf, n int) error
}

// Peer is who is at the other end, as authenticated.
type Peer struct {
	// Node is the peer's process as it named itself in its HELLO.
	Node    string
	Session uint32 // rfs.SessionID of a client, 0 for a daemon
	Addr    string // for messages
	Carrier string // "tcp", "unix", "rdma", ...
}

// ErrClosed is returned by calls on a connection that this side closed.
// ErrBroken means that no link could be had before the context ended, or that the peer is gone for good.
// ErrRefused means that the peer said no for good; the error's text names the reason and the remedy.
var (
	ErrClosed  = errors.New("transport: connection closed")
	ErrBroken  = errors.New("transport: connection broken")
	ErrRefused = errors.New("transport: peer refused the connection")
)

// StatusError is a status other than OK as an error. It unwraps to the error of
// the root package that the status stands for.
type StatusError struct {
	Op     wire.Op
	Status wire.Status
	Detail string
}

func (e *StatusError) Error() string {
	if e.Detail != "" {
		return fmt.Sprintf("%v: %s", e.Op, e.Detail)
	}
	return fmt.Sprintf("%v: %v", e.Op, e.Status)
}

func (e *StatusError) Unwrap() error { return e.Status.Err() }

type traceKey struct{}

// WithTrace returns a context whose calls carry the trace id.
func WithTrace(ctx context.Context, id uint64) context.Context {
	return context.WithValue(ctx, traceKey{}, id)
}

// TraceID returns the trace id of ctx, or 0.
func TraceID(ctx context.Context) uint64 {
	switch id := ctx.Value(traceKey{}).(type) {
	case uint64:
		return id
	case *uint64: // an implementation's own context, see IsTraceKey
		return *id
	}
	return 0
}

// IsTraceKey reports whether a context is asked for its trace id. The context of
// an implementation answers with a *uint64, so that nothing is allocated.
func IsTraceKey(key any) bool {
	_, ok := key.(traceKey)
	return ok
}
