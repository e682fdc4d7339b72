package server

import (
	"context"
	"testing"

	"rfs/server/stripe"
	"rfs/transport"
	"rfs/transport/wire"
)

// flatRequest is a request that allocates nothing itself.
type flatRequest struct {
	localRequest
	st wire.Status
}

func (r *flatRequest) Reply(st wire.Status, _ []byte, _ transport.Buf, _ int) error {
	r.st = st
	return nil
}

// The way of a full shard through the server, without the network.
func BenchmarkPrepare(b *testing.B) {
	c := newTestCluster(b, "ec:2+1", 3)
	w := c.full(one, [][]byte{make([]byte, unit), make([]byte, unit)})
	s := c.member(0).s
	src := c.buf(w.shards[0])
	defer src.Release()
	b.SetBytes(unit)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w.x = stripe.Stripe{Inode: one.Inode, Stripe: uint32(i % 64)}
		w.tag = c.nextTag()
		hdr, _ := w.at(0)
		r := &flatRequest{localRequest: localRequest{op: wire.OpPrepare, hdr: hdr, src: src}}
		s.ServeRPC(context.Background(), r)
		if r.st != wire.StatusOK {
			b.Fatal(r.st)
		}
		e := wire.AppendCommit(nil, &wire.Common{Target: c.member(0).id, Session: 7}, []wire.CommitEntry{{Key: c.common(w.x, 0).Key, Tag: w.tag}})
		r = &flatRequest{localRequest: localRequest{op: wire.OpCommit, hdr: e}}
		s.ServeRPC(context.Background(), r)
	}
}

func BenchmarkRead(b *testing.B) {
	c := newTestCluster(b, "ec:2+1", 3)
	w := c.full(one, [][]byte{make([]byte, unit), make([]byte, unit)}).send().commit()
	s := c.member(0).s
	dst := c.buf(make([]byte, unit))
	defer dst.Release()
	hdr := wire.AppendRead(nil, &wire.Read{Common: c.common(w.x, 0), N: unit})
	b.SetBytes(unit)
	b.ReportAllocs()
	for b.Loop() {
		r := flatRequest{localRequest: localRequest{op: wire.OpRead, hdr: hdr, dst: dst}}
		s.ServeRPC(context.Background(), &r)
		if r.st != wire.StatusOK {
			b.Fatal(r.st)
		}
	}
}
