package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rfs"
)

var updateFrames = flag.Bool("update-frames", false, "write the golden files of frames anew")

func filled[T ~[16]byte | ~[32]byte](from byte) (v T) {
	for i := range len(v) {
		v[i] = from + byte(i)
	}
	return v
}

var (
	goldenHeader = FrameHeader{Version: Major, Type: TypeReq, Flags: FlagOwnCRC, Length: 0x01020, Session: 0x11121314,
		ID: NewRequestID(0x2122, 0x313233343536), MapEpoch: 0x41424344, Credits: 0x5152, Status: StatusStaleTag,
		Timeout: 0x71727374, BodyCRC: 0x81828384}
	goldenHello = Hello{Major: 1, Minor: 2, Features: 0x0102030405060708, Cluster: filled[rfs.UUID](0x10),
		Nonce: filled[rfs.UUID](0x20), Challenge: filled[[32]byte](0x30), Stream: 3, Name: "client-1"}
	goldenAck = Ack{Major: 1, Minor: 2, Features: 0x0102030405060708, Cluster: filled[rfs.UUID](0x10),
		Nonce: filled[rfs.UUID](0x20), Challenge: filled[[32]byte](0x30), Proof: filled[[32]byte](0x60), Name: "node-1"}
	goldenGoaway = Goaway{Major: 1, Minor: 2, Reason: ReasonVersion, Text: "run the same release"}
	goldenReq    = ReqHeader{Op: OpPrepare, Attempt: 2, HeaderLen: 5, SrcLen: 3, DstLen: 0x10203, Trace: 0x0102030405060708, InlineLen: 3}
	goldenResp   = RespHeader{HeaderLen: 5, PushedLen: 0x10203}
	goldenRange  = Range{Off: 0x10203, Len: 0x1020, Pull: 7}
	goldenGrant  = Grant{Messages: 256, Serial: 9, Bytes: 64 << 20, Cookie: 0x0102030405060708}
)

func put(n int, f func([]byte)) []byte {
	b := make([]byte, n)
	f(b)
	return b
}

// The bytes of each message are those of its golden file, for ever.
func TestFrameGolden(t *testing.T) {
	for name, got := range map[string][]byte{
		"frame_header": put(HeaderSize, goldenHeader.Put),
		"hello":        goldenHello.Append(nil),
		"ack":          goldenAck.Append(nil),
		"goaway":       goldenGoaway.Append(nil),
		"req":          append(put(ReqHeaderSize, goldenReq.Put), "headeabc"...),
		"resp":         append(put(RespHeaderSize, goldenResp.Put), "heade"...),
		"range":        put(RangeSize, goldenRange.Put),
		"credit":       put(GrantSize, goldenGrant.Put),
	} {
		path := filepath.Join("testdata", "frames", name+".hex")
		if *updateFrames {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(lines(got)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if lines(got) != string(want) {
			t.Errorf("%s: the bytes changed:\n%swant\n%s", name, lines(got), want)
		}
	}
}

// lines prints b as hexadecimal, 16 bytes a line.
func lines(b []byte) string {
	var s strings.Builder
	for len(b) > 0 {
		n := min(16, len(b))
		s.WriteString(hex.EncodeToString(b[:n]) + "\n")
		b = b[n:]
	}
	return s.String()
}

func TestFrameRoundTrips(t *testing.T) {
	var h FrameHeader
	if err := h.Parse(put(HeaderSize, goldenHeader.Put)); err != nil || h != goldenHeader {
		t.Errorf("%+v, %v", h, err)
	}
	var hello Hello
	if err := hello.Parse(goldenHello.Append(nil)); err != nil || hello != goldenHello {
		t.Errorf("%+v, %v", hello, err)
	}
	var ack Ack
	if err := ack.Parse(goldenAck.Append(nil)); err != nil || ack != goldenAck {
		t.Errorf("%+v, %v", ack, err)
	}
	// A higher minor version may append.
	if err := hello.Parse(append(goldenHello.Append(nil), "more"...)); err != nil || hello != goldenHello {
		t.Errorf("%+v, %v", hello, err)
	}
	var g Goaway
	if err := g.Parse(goldenGoaway.Append(nil)); err != nil || g != goldenGoaway {
		t.Errorf("%+v, %v", g, err)
	}
	var rq ReqHeader
	if err := rq.Parse(append(put(ReqHeaderSize, goldenReq.Put), "headeabc"...)); err != nil || rq != goldenReq {
		t.Errorf("%+v, %v", rq, err)
	}
	var rs RespHeader
	if err := rs.Parse(put(RespHeaderSize, goldenResp.Put), RespHeaderSize+5+0x10203); err != nil || rs != goldenResp {
		t.Errorf("%+v, %v", rs, err)
	}
	var rg Range
	if err := rg.Parse(put(RangeSize, goldenRange.Put)); err != nil || rg != goldenRange {
		t.Errorf("%+v, %v", rg, err)
	}
	var gr Grant
	if err := gr.Parse(put(GrantSize, goldenGrant.Put)); err != nil || gr != goldenGrant {
		t.Errorf("%+v, %v", gr, err)
	}
	if id := NewRequestID(3, 1<<40); id.Channel() != 3 || id.Sequence() != 1<<40 || id.String() != "3.1099511627776" {
		t.Errorf("request id %v", id)
	}
}

// Any single bit that flips in a frame header is seen.
func TestFrameHeaderBitFlips(t *testing.T) {
	good := put(HeaderSize, goldenHeader.Put)
	for bit := range HeaderSize * 8 {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		var h FrameHeader
		if err := h.Parse(b); !errors.Is(err, ErrCRC) && !errors.Is(err, ErrMagic) {
			t.Errorf("bit %d flipped: %v", bit, err)
		}
	}
}

func TestFrameHeaderRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*FrameHeader)
		want   error
	}{
		"another major":  {func(h *FrameHeader) { h.Version = 2 }, ErrVersion},
		"no type":        {func(h *FrameHeader) { h.Type = 0 }, ErrFrame},
		"unknown type":   {func(h *FrameHeader) { h.Type = typeEnd }, ErrFrame},
		"too long":       {func(h *FrameHeader) { h.Length = MaxBody + 1 }, ErrFrame},
		"as long as may": {func(h *FrameHeader) { h.Length = MaxBody }, nil},
	} {
		in := goldenHeader
		c.change(&in)
		var h FrameHeader
		if err := h.Parse(put(HeaderSize, in.Put)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if h.Version != in.Version {
			t.Errorf("%s: the version was not told", name)
		}
	}
}

func TestTruncatedMessages(t *testing.T) {
	parse := map[string]struct {
		whole []byte
		f     func([]byte) error
	}{
		"hello":  {goldenHello.Append(nil), new(Hello).Parse},
		"ack":    {goldenAck.Append(nil), new(Ack).Parse},
		"goaway": {goldenGoaway.Append(nil), new(Goaway).Parse},
		"req":    {append(put(ReqHeaderSize, goldenReq.Put), "headeabc"...), new(ReqHeader).Parse},
		"resp":   {put(RespHeaderSize, goldenResp.Put), func(b []byte) error { return new(RespHeader).Parse(b, len(b)) }},
		"range":  {put(RangeSize, goldenRange.Put), new(Range).Parse},
		"credit": {put(GrantSize, goldenGrant.Put), new(Grant).Parse},
	}
	for name, p := range parse {
		for n := range len(p.whole) {
			if err := p.f(p.whole[:n]); !errors.Is(err, ErrFrame) {
				t.Errorf("%d of %d bytes of %s: %v", n, len(p.whole), name, err)
			}
		}
	}
}

func TestTypeNames(t *testing.T) {
	for typ := Type(1); typ < typeEnd; typ++ {
		if strings.HasPrefix(typ.String(), "frame type") {
			t.Errorf("type %d has no name", typ)
		}
	}
	if Type(200).String() != "frame type 200" {
		t.Error(Type(200).String())
	}
}

func TestFramesAllocateNothing(t *testing.T) {
	b := make([]byte, 256)
	var h FrameHeader
	var rq ReqHeader
	var rs RespHeader
	n := testing.AllocsPerRun(100, func() {
		goldenHeader.Put(b)
		goldenReq.Put(b[HeaderSize:])
		if h.Parse(b) != nil || rq.Parse(b[HeaderSize:HeaderSize+ReqHeaderSize+8]) != nil {
			t.Fatal("does not parse")
		}
		goldenResp.Put(b)
		if rs.Parse(b, RespHeaderSize+5+0x10203) != nil {
			t.Fatal("does not parse")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A header that parses is the one that was put.
func FuzzFrameHeader(f *testing.F) {
	f.Add(put(HeaderSize, goldenHeader.Put))
	f.Add(put(HeaderSize, (&FrameHeader{Version: 9, Type: TypeHello}).Put))
	f.Add(bytes.Repeat([]byte{0xff}, HeaderSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		var h FrameHeader
		if h.Parse(b) != nil {
			return
		}
		got := put(HeaderSize, h.Put)
		// The reserved bytes are not kept, so the CRC may differ with them.
		if !bytes.Equal(got[:40], b[:40]) {
			t.Fatalf("%x\n%x", got, b[:HeaderSize])
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(goldenHello.Append(nil))
	f.Add((&Hello{}).Append(nil))
	f.Add((&Hello{Name: strings.Repeat("n", MaxPeerName)}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h, again Hello
		if h.Parse(b) != nil {
			return
		}
		if err := again.Parse(h.Append(nil)); err != nil || again != h {
			t.Fatalf("%+v, %+v, %v", h, again, err)
		}
	})
}

func FuzzAckGoaway(f *testing.F) {
	f.Add(goldenAck.Append(nil))
	f.Add(goldenGoaway.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a, a2 Ack
		if a.Parse(b) == nil {
			if err := a2.Parse(a.Append(nil)); err != nil || a2 != a {
				t.Fatalf("%+v, %+v, %v", a, a2, err)
			}
		}
		var g, g2 Goaway
		if g.Parse(b) == nil {
			if err := g2.Parse(g.Append(nil)); err != nil || g2 != g {
				t.Fatalf("%+v, %+v, %v", g, g2, err)
			}
		}
	})
}

// What parses has lengths that stay within the body.
func FuzzReqHeader(f *testing.F) {
	f.Add(append(put(ReqHeaderSize, goldenReq.Put), "headeabc"...))
	f.Add(put(ReqHeaderSize, (&ReqHeader{Op: OpRead, DstLen: 1 << 20}).Put))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h ReqHeader
		if h.Parse(b) != nil {
			return
		}
		rest := b[ReqHeaderSize:]
		if int(h.HeaderLen)+int(h.InlineLen) != len(rest) || h.SrcLen > maxPayload || h.DstLen > maxPayload {
			t.Fatalf("%+v of %d bytes", h, len(b))
		}
		if got := put(ReqHeaderSize, h.Put); !bytes.Equal(got[:28], b[:28]) {
			t.Fatalf("%x\n%x", got, b[:ReqHeaderSize])
		}
	})
}

func FuzzRespHeader(f *testing.F) {
	f.Add(put(RespHeaderSize, goldenResp.Put), RespHeaderSize+5+0x10203)
	f.Add(put(RespHeaderSize, (&RespHeader{HeaderLen: 1<<32 - 1, PushedLen: 17}).Put), 32)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		var h RespHeader
		if n < 0 || n > MaxBody || h.Parse(b, n) != nil {
			return
		}
		if RespHeaderSize+int(h.HeaderLen)+int(h.PushedLen) != n {
			t.Fatalf("%+v of %d bytes", h, n)
		}
	})
}

func FuzzRangeGrant(f *testing.F) {
	f.Add(put(RangeSize, goldenRange.Put))
	f.Add(put(GrantSize, goldenGrant.Put))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Range
		if r.Parse(b) == nil && uint64(r.Off)+uint64(r.Len) > maxPayload {
			t.Fatalf("%+v", r)
		}
		var g Grant
		if g.Parse(b) == nil && (g.Messages == 0 || g.Bytes == 0) {
			t.Fatalf("%+v", g)
		}
	})
}
