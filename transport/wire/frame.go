// Package wire owns the bytes between two processes of rfs: the frame, the
// sub-headers of requests and answers, the handshake, the statuses and
// operations, and the headers of data operations (data.go). Metadata operations
// carry protobuf messages in the same frames.
//
// All numbers are little-endian. A frame is a header of 48 bytes and a body:
//
//	 0 magic 4        "rfs1"
//	 4 version 1      major version of the protocol
//	 5 type 1
//	 6 flags 2
//	 8 body length 4
//	12 session 4      the sender's session with the metadata service, 0 for a daemon
//	16 request id 8   channel << 48 | sequence; 0 where no request is meant
//	24 map epoch 4    the sender's cluster map
//	28 credits 2      message credits: the window that ACK and CREDIT grant
//	30 status 2       of a RESP
//	32 timeout ms 4   of a REQ, from its receipt; 0 is none
//	36 body CRC 4     CRC32C of the body; with FlagOwnCRC, of the body before its payload
//	40 reserved 4
//	44 header CRC 4   CRC32C of the 44 bytes before
//
// A client numbers its channels from 0. A channel carries one request at a
// time, with rising sequence numbers; so the request id, with the client's nonce
// in its HELLO, is the key by which a server knows a request that is sent again,
// and one kept answer a channel is enough.
//
// Bodies, by type:
//
//	HELLO       major 2 | minor 2 | features 8 | cluster 16 | client nonce 16 | challenge 32 |
//	            stream 2 | reserved 2 | name length 2 | name
//	ACK         major 2 | minor 2 | features 8 | cluster 16 | server nonce 16 | challenge 32 |
//	            proof 32 | name length 2 | name
//	READY       proof 32
//	REQ         op 2 | attempt 2 | header length 4 | src length 4 | dst length 4 | trace id 8 |
//	            inline length 4 | reserved 4 | header | inline payload
//	RESP        header length 4 | pushed length 4 | reserved 8 | header | pushed payload
//	PULL        offset 4 | length 4 | pull id 4 | reserved 4
//	DATA        offset 4 | length 4 | pull id 4 | reserved 4 | payload
//	CANCEL      nothing
//	CANCEL_ACK  nothing: the request named can no longer touch the client's memory
//	CREDIT      messages 4 | serial 4 | bytes 8 | session cookie 8
//	PING, PONG  nothing
//	GOAWAY      major 2 | minor 2 | reason 2 | text length 2 | text
//
// PULL and DATA stand for RDMA READ on transports of bytes; pushed payload
// stands for RDMA WRITE.
//
// The frame header, the first four bytes of HELLO, and GOAWAY are the same in
// every major version, so that any two versions can say why they part.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"rfs"
)

// The protocol's version. Another major is refused; a higher minor only adds.
const (
	Major = 1
	Minor = 0
)

// Magic opens each frame: "rfs1".
const Magic = 0x31736672

// HeaderSize is the length of a frame header in bytes.
const HeaderSize = 48

// MaxBody is the longest body of any frame in bytes: a payload of 4 MiB and a message.
const MaxBody = 4<<20 + 8<<10

// Type is the type of a frame.
type Type uint8

// The types of frames.
const (
	TypeHello Type = 1 + iota
	TypeAck
	TypeReady
	TypeReq
	TypeResp
	TypeCancel
	TypeCancelAck
	TypeCredit
	TypePing
	TypePong
	TypeGoaway
	TypePull
	TypeData
	typeEnd
)

var typeNames = [...]string{
	TypeHello: "HELLO", TypeAck: "ACK", TypeReady: "READY", TypeReq: "REQ", TypeResp: "RESP",
	TypeCancel: "CANCEL", TypeCancelAck: "CANCEL_ACK", TypeCredit: "CREDIT", TypePing: "PING",
	TypePong: "PONG", TypeGoaway: "GOAWAY", TypePull: "PULL", TypeData: "DATA",
}

func (t Type) String() string {
	if t > 0 && t < typeEnd {
		return typeNames[t]
	}
	return fmt.Sprintf("frame type %d", uint8(t))
}

// Flags of a frame.
const (
	// FlagOwnCRC: the payload is covered by checksums in the operation's own
	// header, and the body CRC covers only what stands before the payload.
	FlagOwnCRC = 1 << 0
)

// Errors of frames. Each is an error of the link: what follows cannot be trusted.
var (
	ErrMagic   = errors.New("wire: not an rfs frame")
	ErrCRC     = errors.New("wire: checksum does not match")
	ErrVersion = errors.New("wire: major version not spoken here")
	ErrFrame   = errors.New("wire: malformed frame")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRC returns the CRC32C of b, continued from crc (0 to begin).
func CRC(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

// FrameHeader is the header of a frame.
type FrameHeader struct {
	Version  uint8
	Type     Type
	Flags    uint16
	Length   uint32 // of the body
	Session  rfs.SessionID
	ID       RequestID
	MapEpoch rfs.Epoch
	Credits  uint16
	Status   Status
	Timeout  uint32 // milliseconds
	BodyCRC  uint32
}

// Put writes h and its CRC into the first HeaderSize bytes of b.
func (h *FrameHeader) Put(b []byte) {
	_ = b[HeaderSize-1]
	le := binary.LittleEndian
	le.PutUint32(b, Magic)
	b[4], b[5] = h.Version, byte(h.Type)
	le.PutUint16(b[6:], h.Flags)
	le.PutUint32(b[8:], h.Length)
	le.PutUint32(b[12:], uint32(h.Session))
	le.PutUint64(b[16:], uint64(h.ID))
	le.PutUint32(b[24:], uint32(h.MapEpoch))
	le.PutUint16(b[28:], h.Credits)
	le.PutUint16(b[30:], uint16(h.Status))
	le.PutUint32(b[32:], h.Timeout)
	le.PutUint32(b[36:], h.BodyCRC)
	le.PutUint32(b[40:], 0)
	le.PutUint32(b[44:], CRC(0, b[:44]))
}

// Parse reads the first HeaderSize bytes of b. On ErrVersion h is filled, so
// that the caller can answer in words that the other understands.
func (h *FrameHeader) Parse(b []byte) error {
	_ = b[HeaderSize-1]
	le := binary.LittleEndian
	if le.Uint32(b) != Magic {
		return ErrMagic
	}
	if le.Uint32(b[44:]) != CRC(0, b[:44]) {
		return fmt.Errorf("frame header: %w", ErrCRC)
	}
	*h = FrameHeader{
		Version:  b[4],
		Type:     Type(b[5]),
		Flags:    le.Uint16(b[6:]),
		Length:   le.Uint32(b[8:]),
		Session:  rfs.SessionID(le.Uint32(b[12:])),
		ID:       RequestID(le.Uint64(b[16:])),
		MapEpoch: rfs.Epoch(le.Uint32(b[24:])),
		Credits:  le.Uint16(b[28:]),
		Status:   Status(le.Uint16(b[30:])),
		Timeout:  le.Uint32(b[32:]),
		BodyCRC:  le.Uint32(b[36:]),
	}
	switch {
	case h.Version != Major:
		return ErrVersion
	case h.Type == 0 || h.Type >= typeEnd:
		return fmt.Errorf("%w: %v", ErrFrame, h.Type)
	case h.Length > MaxBody:
		return fmt.Errorf("%w: %v with a body of %d bytes, at most %d", ErrFrame, h.Type, h.Length, MaxBody)
	}
	return nil
}

// RequestID names a request within its client: channel << 48 | sequence.
type RequestID uint64

// MaxSequence is the highest sequence number of a channel.
const MaxSequence = 1<<48 - 1

// NewRequestID returns the id of a channel's request.
func NewRequestID(channel uint16, seq uint64) RequestID {
	return RequestID(uint64(channel)<<48 | seq&MaxSequence)
}

func (r RequestID) Channel() uint16  { return uint16(r >> 48) }
func (r RequestID) Sequence() uint64 { return uint64(r) & MaxSequence }
func (r RequestID) String() string   { return fmt.Sprintf("%d.%d", r.Channel(), r.Sequence()) }
