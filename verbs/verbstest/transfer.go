package verbstest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"rfs/verbs"
)

func testDevices(t *testing.T, e Env) {
	names, err := e.Provider.Devices()
	must(t, err)
	seen := map[string]bool{}
	for _, n := range names {
		seen[n] = true
	}
	for _, n := range e.Devices {
		if !seen[n] {
			t.Fatalf("%q is not among %q", n, names)
		}
		c, err := verbs.Open(e.Provider, n)
		must(t, err)
		a := c.Attr()
		p, err := c.Port(1)
		must(t, err)
		g, err := c.GIDs()
		must(t, err)
		if a.MaxQPWR < sendWRs || a.MaxCQE < sendWRs+recvWRs || a.Ports < 1 || p.MaxMsg < 1<<20 || verbs.PortState(p.State) != verbs.PortActive ||
			verbs.MTU(p.ActiveMTU).Bytes() < 256 || len(g) == 0 {
			t.Errorf("%s: %+v %+v %v", n, a, p, g)
		}
		t.Logf("%s: firmware %q, port %v, %v, MTU %v, message %d, %d GIDs (%v)", n, a.Firmware, verbs.PortState(p.State), verbs.LinkLayer(p.LinkLayer),
			verbs.MTU(p.ActiveMTU), p.MaxMsg, len(g), verbs.Addr(g[0].GID))
		must(t, c.Close())
		must(t, c.Close())
		if _, err := c.AllocPD(); !errors.Is(err, verbs.ErrClosed) {
			t.Errorf("allocate on a closed device: %v", err)
		}
	}
	if _, err := verbs.Open(e.Provider, "no-such-device"); !errors.Is(err, verbs.ErrNoDevice) {
		t.Errorf("open of a device that is not there: %v", err)
	}
}

var sizes = []int{0, 1, 63, 1024, 4095, 4096, 4097, 65536, 1 << 20}

func testTransfers(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	const half = region / 2
	for i, n := range sizes {
		id := uint64(i)
		t.Run(fmt.Sprintf("%d", n), func(t *testing.T) {
			// SEND
			pattern(a.mem[:n], i)
			b.receive(id, 0, half)
			a.post(verbs.SendWR{ID: id, Opcode: verbs.OpSend, Flags: verbs.Signaled}, a.mr.SGE(0, n))
			if w := b.ok(id, verbs.WCRecv); int(w.ByteLen) != n {
				t.Fatalf("received %d bytes of %d", w.ByteLen, n)
			}
			a.ok(id, verbs.WCSend)
			same(t, b.mem[:n], a.mem[:n])
			// WRITE
			pattern(a.mem[:n], i+100)
			a.post(verbs.SendWR{ID: id, Opcode: verbs.OpWrite, Flags: verbs.Signaled, RemoteAddr: b.mr.Addr(half), RKey: b.mr.RKey()}, a.mr.SGE(0, n))
			a.ok(id, verbs.WCWrite)
			same(t, b.mem[half:half+n], a.mem[:n])
			// READ
			pattern(b.mem[half:half+n], i+200)
			a.post(verbs.SendWR{ID: id, Opcode: verbs.OpRead, Flags: verbs.Signaled, RemoteAddr: b.mr.Addr(half), RKey: b.mr.RKey()}, a.mr.SGE(half, n))
			a.ok(id, verbs.WCRead)
			same(t, a.mem[half:half+n], b.mem[half:half+n])
		})
	}
	a.quiet()
	b.quiet()
}

func same(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d of %d is %#x, want %#x", i, len(got), got[i], want[i])
			}
		}
	}
}

func testInline(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	if a.qp.Cap().MaxInline < 256 {
		t.Fatalf("a queue pair carries %d bytes inline, asked for 256", a.qp.Cap().MaxInline)
	}
	pattern(a.mem[:256], 3)
	want := bytes.Clone(a.mem[:256])
	b.receive(1, 0, 4096)
	s := a.mr.SGE(0, 256)
	s.LKey = 0 // not looked at
	a.post(verbs.SendWR{ID: 2, Opcode: verbs.OpSend, Flags: verbs.Signaled | verbs.Inline}, s)
	clear(a.mem[:256]) // it is the queue pair's once it is posted
	b.ok(1, verbs.WCRecv)
	a.ok(2, verbs.WCSend)
	same(t, b.mem[:256], want)
}

func testImmediate(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	for i, op := range []uint32{verbs.OpSendImm, verbs.OpWriteImm} {
		b.receive(7, 0, 4096)
		pattern(a.mem[:100], i)
		a.post(verbs.SendWR{ID: 8, Opcode: op, Flags: verbs.Signaled, Imm: 0xfeed0001, RemoteAddr: b.mr.Addr(0), RKey: b.mr.RKey()}, a.mr.SGE(0, 100))
		want := uint32(verbs.WCRecv)
		if op == verbs.OpWriteImm {
			want = verbs.WCRecvWriteImm
		}
		w := b.ok(7, want)
		var be [4]byte
		binary.NativeEndian.PutUint32(be[:], w.ImmBE)
		if got := binary.BigEndian.Uint32(be[:]); got != 0xfeed0001 || w.Flags&2 == 0 {
			t.Errorf("opcode %d: immediate data %#x, flags %#x", op, got, w.Flags)
		}
		if op == verbs.OpSendImm && w.ByteLen != 100 {
			t.Errorf("received %d bytes of 100", w.ByteLen)
		}
		a.next()
		same(t, b.mem[:100], a.mem[:100])
	}
}

func testScatterGather(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	pattern(a.mem, 9)
	n, err := b.qp.PostRecv([]verbs.RecvWR{{ID: 1, NumSGE: 2}, {ID: 2, NumSGE: 1}}, []verbs.SGE{b.mr.SGE(0, 10), b.mr.SGE(100, 5000), b.mr.SGE(9000, 64)})
	if n != 2 || err != nil {
		t.Fatal(n, err)
	}
	// two requests of 3 and 1 elements from one slice
	n, err = a.qp.PostSend([]verbs.SendWR{{ID: 3, Opcode: verbs.OpSend, NumSGE: 3}, {ID: 4, Opcode: verbs.OpSend, NumSGE: 1, Flags: verbs.Signaled}},
		[]verbs.SGE{a.mr.SGE(0, 7), a.mr.SGE(1000, 0), a.mr.SGE(2000, 4096), a.mr.SGE(8000, 64)})
	if n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if w := b.ok(1, verbs.WCRecv); w.ByteLen != 4103 {
		t.Errorf("received %d bytes", w.ByteLen)
	}
	b.ok(2, verbs.WCRecv)
	a.ok(4, verbs.WCSend)
	want := append(bytes.Clone(a.mem[:7]), a.mem[2000:6096]...)
	same(t, append(bytes.Clone(b.mem[:10]), b.mem[100:100+4093]...), want)
	same(t, b.mem[9000:9064], a.mem[8000:8064])
	if n, err := a.qp.PostSend([]verbs.SendWR{{Opcode: verbs.OpSend, NumSGE: 2}}, []verbs.SGE{a.mr.SGE(0, 1)}); n != 0 || err == nil {
		t.Errorf("more elements than there are: %d, %v", n, err)
	}
}

// testOrder: what was written before a SEND of the same queue pair is there when it is received.
func testOrder(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	pattern(a.mem, 1)
	for round := range 20 {
		b.receive(uint64(round), region-64, 64)
		const writes, size = 15, 3000
		var wr []verbs.SendWR
		var sge []verbs.SGE
		for i := range writes {
			wr = append(wr, verbs.SendWR{ID: uint64(i), Opcode: verbs.OpWrite, NumSGE: 1, RemoteAddr: b.mr.Addr(i * size), RKey: b.mr.RKey()})
			sge = append(sge, a.mr.SGE(round*100+i*size, size))
		}
		wr = append(wr, verbs.SendWR{ID: 99, Opcode: verbs.OpSend, NumSGE: 1, Flags: verbs.Signaled})
		sge = append(sge, a.mr.SGE(0, 8))
		if n, err := a.qp.PostSend(wr, sge); n != len(wr) || err != nil {
			t.Fatal(n, err)
		}
		b.ok(uint64(round), verbs.WCRecv)
		same(t, b.mem[:writes*size], a.mem[round*100:round*100+writes*size])
		a.ok(99, verbs.WCSend)
	}
}

func testManyReads(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	pattern(b.mem, 5)
	const reads, size = sendWRs, 8192
	var wr []verbs.SendWR
	var sge []verbs.SGE
	for i := range reads {
		wr = append(wr, verbs.SendWR{ID: uint64(i), Opcode: verbs.OpRead, NumSGE: 1, Flags: verbs.Signaled, RemoteAddr: b.mr.Addr(i * size), RKey: b.mr.RKey()})
		sge = append(sge, a.mr.SGE(i*size, size))
	}
	if n, err := a.qp.PostSend(wr, sge); n != reads || err != nil {
		t.Fatal(n, err)
	}
	for i := range reads {
		a.ok(uint64(i), verbs.WCRead)
	}
	same(t, a.mem[:reads*size], b.mem[:reads*size])
}

// testPingPong goes back and forth by events only. A completion that comes
// between the last poll and the arming makes no event: without the poll after
// the arming this hangs.
func testPingPong(t *testing.T, e Env) {
	a, b := pair(t, e, options{})
	done := make(chan error, 1)
	turn := func(x *end, first bool) error {
		for i := range e.Rounds {
			id := uint64(i)
			if first {
				x.receive(id, 0, 64)
				x.post(verbs.SendWR{ID: id, Opcode: verbs.OpSend, Flags: verbs.Signaled | verbs.Inline}, x.mr.SGE(64, 8))
			}
			got := 0
			for got < 2 { // its own send and the peer's
				w := x.next()
				if err := verbs.Err(&w); err != nil {
					return err
				}
				if got++; !first && w.Opcode == verbs.WCRecv {
					if i+1 < e.Rounds {
						x.receive(id+1, 0, 64)
					}
					x.post(verbs.SendWR{ID: id, Opcode: verbs.OpSend, Flags: verbs.Signaled | verbs.Inline}, x.mr.SGE(64, 8))
				}
			}
		}
		return nil
	}
	b.receive(0, 0, 64)
	go func() {
		defer close(done) // a Fatal in b ends it too
		done <- turn(b, false)
	}()
	err := turn(a, true)
	must(t, <-done)
	must(t, err)
	t.Logf("%d rounds, first end: %+v", e.Rounds, a.cq.Stats())
}
