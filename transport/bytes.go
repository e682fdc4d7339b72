package transport

import (
	"context"
	"fmt"

	"rfs/transport/wire"
)

// Allocator gives Bufs; the arena and its budgets are ones.
type Allocator interface {
	Get(ctx context.Context, n int) (Buf, error)
}

// An IntoCaller is a Conn that can place a reply's header into the caller's memory.
type IntoCaller interface {
	// CallInto is Conn.Call whose Reply.Header is appended to into[:0]: nothing is
	// allocated if it has the capacity.
	CallInto(ctx context.Context, op wire.Op, hdr []byte, src, dst Buf, into []byte) (Reply, error)
}

// CallInto calls c and places the reply's header in into, if it has the capacity.
func CallInto(ctx context.Context, c Conn, op wire.Op, hdr []byte, src, dst Buf, into []byte) (Reply, error) {
	if c, ok := c.(IntoCaller); ok {
		return c.CallInto(ctx, op, hdr, src, dst, into)
	}
	r, err := c.Call(ctx, op, hdr, src, dst)
	r.Header = append(into[:0], r.Header...)
	return r, err
}

// CallBytes is a call whose request and reply are bytes of up to MaxPayload: what
// does not fit a header travels in Bufs of mem. maxReply is the longest reply
// that the caller expects; up to MaxHeader it costs no memory. The server uses
// ReadAll and ReplyBytes. The reply is the caller's own.
func CallBytes(ctx context.Context, c Conn, mem Allocator, op wire.Op, req []byte, maxReply int) ([]byte, wire.Status, error) {
	if len(req) > MaxPayload || maxReply > MaxPayload {
		return nil, 0, fmt.Errorf("%v: a request of %d bytes or a reply of %d: at most %d", op, len(req), maxReply, MaxPayload)
	}
	hdr := req
	var src, dst Buf
	if len(req) > MaxHeader {
		b, err := mem.Get(ctx, len(req))
		if err != nil {
			return nil, 0, err
		}
		defer b.Release()
		copy(b.Bytes(), req)
		hdr, src = nil, b
	}
	if maxReply > MaxHeader {
		b, err := mem.Get(ctx, maxReply)
		if err != nil {
			return nil, 0, err
		}
		defer b.Release()
		dst = b
	}
	r, err := c.Call(ctx, op, hdr, src, dst)
	switch {
	case err != nil:
		return nil, 0, err
	case r.Pushed > 0:
		return append([]byte(nil), dst.Bytes()[:r.Pushed]...), r.Status, nil
	}
	return r.Header, r.Status, nil
}

// ReadAll returns the bytes of a request made by CallBytes. They are the caller's own.
func ReadAll(ctx context.Context, r Request, mem Allocator) ([]byte, error) {
	if r.PayloadLen() == 0 {
		return append([]byte(nil), r.Header()...), nil
	}
	b, err := mem.Get(ctx, r.PayloadLen())
	if err != nil {
		return nil, err
	}
	defer b.Release()
	if err := r.Pull(ctx, b, 0, r.PayloadLen()); err != nil {
		return nil, err
	}
	return append([]byte(nil), b.Bytes()...), nil
}

// ReplyBytes answers a CallBytes. A reply longer than the client's maxReply is
// answered with StatusInternal, and is an error here.
func ReplyBytes(ctx context.Context, r Request, mem Allocator, st wire.Status, reply []byte) error {
	if len(reply) <= MaxHeader {
		return r.Reply(st, reply, nil, 0)
	}
	if len(reply) > r.CapLen() {
		err := fmt.Errorf("%v: a reply of %d bytes, the client takes %d: raise maxReply, or answer in pages", r.Op(), len(reply), r.CapLen())
		_ = r.Reply(wire.StatusInternal, []byte(err.Error()), nil, 0)
		return err
	}
	b, err := mem.Get(ctx, len(reply))
	if err != nil {
		_ = r.Reply(wire.StatusUnavailable, nil, nil, 0)
		return err
	}
	defer b.Release()
	copy(b.Bytes(), reply)
	return r.Reply(st, nil, b, len(reply))
}
