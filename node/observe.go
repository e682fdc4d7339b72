package node

import (
	"context"
	"net"
	"sync"
	"time"

	"rfs"
	"rfs/internal/metrics"
	"rfs/transport"
	"rfs/transport/wire"
)

// observed returns t with its calls measured, by operation and by the target or
// peer that answers.
func observed(t transport.Transport) transport.Transport { return &observedTransport{t} }

type observedTransport struct{ t transport.Transport }

func (o *observedTransport) Dial(ctx context.Context, addr transport.Addr) (transport.Conn, error) {
	c, err := o.t.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &observedConn{c}, nil
}

func (o *observedTransport) Serve(ctx context.Context, l net.Listener, h transport.Handler) error {
	return o.t.Serve(ctx, l, observedHandler{h})
}

type observedConn struct{ transport.Conn }

func (o *observedConn) Call(ctx context.Context, op wire.Op, hdr []byte, src, dst transport.Buf) (transport.Reply, error) {
	return o.CallInto(ctx, op, hdr, src, dst, nil)
}

// CallInto makes an observed Conn a transport.IntoCaller.
func (o *observedConn) CallInto(ctx context.Context, op wire.Op, hdr []byte, src, dst transport.Buf, into []byte) (transport.Reply, error) {
	target := label(op, hdr)
	depth := metrics.Begin(metrics.Client, target)
	start := time.Now()
	rep, err := transport.CallInto(ctx, o.Conn, op, hdr, src, dst, into)
	status, moved := "broken", rep.Pushed
	if err == nil {
		status = rep.Status.String()
	}
	if src != nil {
		moved += len(src.Bytes())
	}
	depth.Dec()
	metrics.Observe(metrics.Client, op.String(), target, status, start, moved)
	return rep, err
}

type observedHandler struct{ h transport.Handler }

func (o observedHandler) ServeRPC(ctx context.Context, r transport.Request) {
	if r.Op() < wire.OpMeta { // server.Server measures its own, by target
		o.h.ServeRPC(ctx, r)
		return
	}
	op := r.Op().String()
	depth := metrics.Begin(metrics.Server, metaLabel)
	start := time.Now()
	m := requests.Get().(*observedRequest)
	*m = observedRequest{Request: r, status: wire.StatusInternal, bytes: r.PayloadLen()}
	o.h.ServeRPC(ctx, m)
	depth.Dec()
	metrics.Observe(metrics.Server, op, metaLabel, m.status.String(), start, m.bytes)
	*m = observedRequest{}
	requests.Put(m)
}

// observedRequest keeps what it was answered with.
type observedRequest struct {
	transport.Request
	status wire.Status
	bytes  int
}

var requests = sync.Pool{New: func() any { return new(observedRequest) }}

func (m *observedRequest) Reply(st wire.Status, hdr []byte, push transport.Buf, n int) error {
	m.status = st
	m.bytes += n
	return m.Request.Reply(st, hdr, push, n)
}

const metaLabel = "meta"

// label names who a request is for: the first digits of the target's id, which
// stands at a fixed offset of every data request (wire.Common), or "meta".
func label(op wire.Op, hdr []byte) string {
	if op >= wire.OpMeta || len(hdr) < wire.CommonSize {
		return metaLabel
	}
	id := rfs.TargetID(hdr[32:48])
	labelMu.RLock()
	l, ok := labels[id]
	labelMu.RUnlock()
	if !ok {
		l = id.String()[:8]
		labelMu.Lock()
		labels[id] = l
		labelMu.Unlock()
	}
	return l
}

var (
	labelMu sync.RWMutex
	labels  = map[rfs.TargetID]string{} // as many as the cluster ever had targets
)
