package wire

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the sub-headers in bytes.
const (
	ReqHeaderSize  = 32
	RespHeaderSize = 16
	RangeSize      = 16
	GrantSize      = 24
)

// ReqHeader opens the body of a REQ; the operation's header and the payload
// that rides inline follow.
type ReqHeader struct {
	Op        Op
	Attempt   uint16 // counts up each time that the request is sent again
	HeaderLen uint32
	SrcLen    uint32 // what the client lends to pull from
	DstLen    uint32 // what the client lends to push into
	Trace     uint64
	InlineLen uint32 // 0, or SrcLen
}

// Put writes h into the first ReqHeaderSize bytes of b.
func (h *ReqHeader) Put(b []byte) {
	_ = b[ReqHeaderSize-1]
	le := binary.LittleEndian
	le.PutUint16(b, uint16(h.Op))
	le.PutUint16(b[2:], h.Attempt)
	le.PutUint32(b[4:], h.HeaderLen)
	le.PutUint32(b[8:], h.SrcLen)
	le.PutUint32(b[12:], h.DstLen)
	le.PutUint64(b[16:], h.Trace)
	le.PutUint32(b[24:], h.InlineLen)
	le.PutUint32(b[28:], 0)
}

// Parse reads the whole body of a REQ and checks that its lengths agree.
func (h *ReqHeader) Parse(body []byte) error {
	if len(body) < ReqHeaderSize {
		return fmt.Errorf("%w: REQ of %d bytes", ErrFrame, len(body))
	}
	le := binary.LittleEndian
	*h = ReqHeader{
		Op:        Op(le.Uint16(body)),
		Attempt:   le.Uint16(body[2:]),
		HeaderLen: le.Uint32(body[4:]),
		SrcLen:    le.Uint32(body[8:]),
		DstLen:    le.Uint32(body[12:]),
		Trace:     le.Uint64(body[16:]),
		InlineLen: le.Uint32(body[24:]),
	}
	switch {
	case uint64(h.HeaderLen)+uint64(h.InlineLen) != uint64(len(body)-ReqHeaderSize),
		h.InlineLen != 0 && h.InlineLen != h.SrcLen,
		h.SrcLen > maxPayload, h.DstLen > maxPayload:
		return fmt.Errorf("%w: REQ of %d bytes with header %d, src %d, dst %d, inline %d",
			ErrFrame, len(body), h.HeaderLen, h.SrcLen, h.DstLen, h.InlineLen)
	}
	return nil
}

const maxPayload = 4 << 20

// RespHeader opens the body of a RESP; the answer's header and the pushed payload follow.
type RespHeader struct {
	HeaderLen uint32
	PushedLen uint32
}

// Put writes h into the first RespHeaderSize bytes of b.
func (h *RespHeader) Put(b []byte) {
	_ = b[RespHeaderSize-1]
	le := binary.LittleEndian
	le.PutUint32(b, h.HeaderLen)
	le.PutUint32(b[4:], h.PushedLen)
	le.PutUint64(b[8:], 0)
}

// Parse reads the start of a RESP's body, whose whole length is n.
func (h *RespHeader) Parse(b []byte, n int) error {
	if n < RespHeaderSize || len(b) < RespHeaderSize {
		return fmt.Errorf("%w: RESP of %d bytes", ErrFrame, n)
	}
	le := binary.LittleEndian
	*h = RespHeader{HeaderLen: le.Uint32(b), PushedLen: le.Uint32(b[4:])}
	if h.HeaderLen > 8<<10 || uint64(h.HeaderLen)+uint64(h.PushedLen) != uint64(n-RespHeaderSize) {
		return fmt.Errorf("%w: RESP of %d bytes with header %d, pushed %d", ErrFrame, n, h.HeaderLen, h.PushedLen)
	}
	return nil
}

// Range is the body of a PULL and opens that of a DATA: a range of the client's src.
type Range struct {
	Off, Len uint32
	Pull     uint32 // tells the pulls of one request apart
}

// Put writes r into the first RangeSize bytes of b.
func (r *Range) Put(b []byte) {
	_ = b[RangeSize-1]
	le := binary.LittleEndian
	le.PutUint32(b, r.Off)
	le.PutUint32(b[4:], r.Len)
	le.PutUint32(b[8:], r.Pull)
	le.PutUint32(b[12:], 0)
}

// Parse reads the first RangeSize bytes of b.
func (r *Range) Parse(b []byte) error {
	if len(b) < RangeSize {
		return fmt.Errorf("%w: range of %d bytes", ErrFrame, len(b))
	}
	le := binary.LittleEndian
	*r = Range{Off: le.Uint32(b), Len: le.Uint32(b[4:]), Pull: le.Uint32(b[8:])}
	if uint64(r.Off)+uint64(r.Len) > maxPayload {
		return fmt.Errorf("%w: range of %d bytes from %d", ErrFrame, r.Len, r.Off)
	}
	return nil
}

// Grant is the body of a CREDIT: how many requests, and how many bytes of src
// and dst, the client may have under way. It replaces grants of lower serial.
type Grant struct {
	Messages uint32
	Serial   uint32
	Bytes    uint64
	Cookie   uint64 // names the server's memory of this client's answers
}

// Put writes g into the first GrantSize bytes of b.
func (g *Grant) Put(b []byte) {
	_ = b[GrantSize-1]
	le := binary.LittleEndian
	le.PutUint32(b, g.Messages)
	le.PutUint32(b[4:], g.Serial)
	le.PutUint64(b[8:], g.Bytes)
	le.PutUint64(b[16:], g.Cookie)
}

// Parse reads the first GrantSize bytes of b.
func (g *Grant) Parse(b []byte) error {
	if len(b) < GrantSize {
		return fmt.Errorf("%w: CREDIT of %d bytes", ErrFrame, len(b))
	}
	le := binary.LittleEndian
	*g = Grant{Messages: le.Uint32(b), Serial: le.Uint32(b[4:]), Bytes: le.Uint64(b[8:]), Cookie: le.Uint64(b[16:])}
	if g.Messages == 0 || g.Bytes == 0 {
		return fmt.Errorf("%w: CREDIT of %d messages, %d bytes", ErrFrame, g.Messages, g.Bytes)
	}
	return nil
}
