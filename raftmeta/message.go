package raftmeta

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"rfs/raftmeta/metapb"
	"rfs/transport"
	"rfs/transport/wire"
)

// Arena gives memory that a transport can lend to a peer.
type Arena interface {
	Get(ctx context.Context, n int) (transport.Buf, error)
}

// A message is the header of its request or reply if it fits one. A longer
// request is the payload of a request without header; a longer reply is pushed
// to the memory that the asker lent, beside an empty header. If there is none,
// or too little, the reply is StatusBadRequest and Response.Need.

// exchange sends req and decodes the answer into rep, having lent up to lend bytes for it.
func exchange(ctx context.Context, conn transport.Conn, arena Arena, op wire.Op, req proto.Message, rep *metapb.Response, lend int) (wire.Status, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return 0, err
	}
	hdr, src := body, transport.Buf(nil)
	if len(body) > transport.MaxHeader {
		if len(body) > transport.MaxPayload {
			return 0, fmt.Errorf("%v: a request of %d bytes: at most %d", op, len(body), transport.MaxPayload)
		}
		if src, err = arena.Get(ctx, len(body)); err != nil {
			return 0, err
		}
		defer src.Release()
		copy(src.Bytes(), body)
		hdr = nil
	}
	var dst transport.Buf
	if lend > 0 {
		if dst, err = arena.Get(ctx, lend); err != nil {
			return 0, err
		}
		defer dst.Release()
	}
	r, err := conn.Call(ctx, op, hdr, src, dst)
	if err != nil {
		return 0, err
	}
	answer := r.Header
	if r.Pushed > 0 {
		answer = dst.Bytes()[:r.Pushed]
	}
	proto.Reset(rep)
	if err := proto.Unmarshal(answer, rep); err != nil {
		return r.Status, fmt.Errorf("%v: the peer's answer does not decode: %w", op, err)
	}
	if n := int(rep.GetNeed()); r.Status == wire.StatusBadRequest && n > lend && n <= transport.MaxPayload {
		return exchange(ctx, conn, arena, op, req, rep, n)
	}
	return r.Status, nil
}

// receive decodes the message of r, which may be its payload.
func receive(ctx context.Context, r transport.Request, arena Arena, req proto.Message) error {
	if r.PayloadLen() == 0 || len(r.Header()) > 0 {
		return proto.Unmarshal(r.Header(), req)
	}
	b, err := arena.Get(ctx, r.PayloadLen())
	if err != nil {
		return err
	}
	defer b.Release()
	if err := r.Pull(ctx, b, 0, r.PayloadLen()); err != nil {
		return err
	}
	return proto.Unmarshal(b.Bytes(), req)
}

var errNoRoom = errors.New("the answer is longer than a payload may be")

// answer replies with rep, pushed if it is longer than a header may be.
func answer(ctx context.Context, r transport.Request, arena Arena, st wire.Status, rep *metapb.Response) error {
	rep.Status = uint32(st)
	body, err := proto.Marshal(rep)
	if err != nil {
		return err
	}
	if len(body) <= transport.MaxHeader {
		return r.Reply(st, body, nil, 0)
	}
	if len(body) > r.CapLen() {
		if len(body) > transport.MaxPayload {
			return errors.Join(errNoRoom, r.Reply(wire.StatusInternal, nil, nil, 0))
		}
		body, _ = proto.Marshal(&metapb.Response{Status: uint32(wire.StatusBadRequest), Need: uint64(len(body))})
		return r.Reply(wire.StatusBadRequest, body, nil, 0)
	}
	b, err := arena.Get(ctx, len(body))
	if err != nil {
		return errors.Join(err, r.Reply(wire.StatusUnavailable, nil, nil, 0))
	}
	defer b.Release()
	copy(b.Bytes(), body)
	return r.Reply(st, nil, b, len(body))
}
