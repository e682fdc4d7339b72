package wire

import (
	"encoding/binary"
	"fmt"

	"rfs"
)

// Sizes of the handshake in bytes.
const (
	ChallengeSize = 32
	ProofSize     = 32
	MaxPeerName   = 255
	helloFixed    = 82
	ackFixed      = 110
	goawayFixed   = 8
	maxReason     = 1024
	// MaxHandshake is the longest body before both ends are authenticated.
	MaxHandshake = goawayFixed + maxReason
)

// Hello is the body of a HELLO: the client names itself and challenges the server.
type Hello struct {
	Major, Minor uint16
	Features     uint64
	Cluster      rfs.UUID
	Nonce        rfs.UUID // of the client's connection: the same on all its links
	Challenge    [ChallengeSize]byte
	Stream       uint16 // which of the connection's links
	Name         string
}

// Append appends the encoded h to b.
func (h *Hello) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, h.Major)
	b = le.AppendUint16(b, h.Minor)
	b = le.AppendUint64(b, h.Features)
	b = append(b, h.Cluster[:]...)
	b = append(b, h.Nonce[:]...)
	b = append(b, h.Challenge[:]...)
	b = le.AppendUint16(b, h.Stream)
	b = le.AppendUint16(b, 0)
	return appendName(b, h.Name)
}

// Parse reads the body of a HELLO.
func (h *Hello) Parse(b []byte) error {
	if len(b) < helloFixed {
		return fmt.Errorf("%w: HELLO of %d bytes", ErrFrame, len(b))
	}
	le := binary.LittleEndian
	*h = Hello{Major: le.Uint16(b), Minor: le.Uint16(b[2:]), Features: le.Uint64(b[4:]), Stream: le.Uint16(b[76:])}
	copy(h.Cluster[:], b[12:])
	copy(h.Nonce[:], b[28:])
	copy(h.Challenge[:], b[44:])
	var err error
	h.Name, err = parseName(b[80:])
	return err
}

// Ack is the body of an ACK: the server proves that it has the key, and challenges the client.
type Ack struct {
	Major, Minor uint16
	Features     uint64 // those that both ends have
	Cluster      rfs.UUID
	Nonce        rfs.UUID // of the server's process
	Challenge    [ChallengeSize]byte
	Proof        [ProofSize]byte
	Name         string
}

// Append appends the encoded a to b.
func (a *Ack) Append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint16(b, a.Major)
	b = le.AppendUint16(b, a.Minor)
	b = le.AppendUint64(b, a.Features)
	b = append(b, a.Cluster[:]...)
	b = append(b, a.Nonce[:]...)
	b = append(b, a.Challenge[:]...)
	b = append(b, a.Proof[:]...)
	return appendName(b, a.Name)
}

// Parse reads the body of an ACK.
func (a *Ack) Parse(b []byte) error {
	if len(b) < ackFixed {
		return fmt.Errorf("%w: ACK of %d bytes", ErrFrame, len(b))
	}
	le := binary.LittleEndian
	*a = Ack{Major: le.Uint16(b), Minor: le.Uint16(b[2:]), Features: le.Uint64(b[4:])}
	copy(a.Cluster[:], b[12:])
	copy(a.Nonce[:], b[28:])
	copy(a.Challenge[:], b[44:])
	copy(a.Proof[:], b[76:])
	var err error
	a.Name, err = parseName(b[108:])
	return err
}

func appendName(b []byte, name string) []byte {
	name = name[:min(len(name), MaxPeerName)]
	b = binary.LittleEndian.AppendUint16(b, uint16(len(name)))
	return append(b, name...)
}

func parseName(b []byte) (string, error) {
	n := int(binary.LittleEndian.Uint16(b))
	// A higher minor version may have appended fields after the name.
	if n > MaxPeerName || n > len(b)-2 {
		return "", fmt.Errorf("%w: a name of %d bytes in %d", ErrFrame, n, len(b)-2)
	}
	return string(b[2 : 2+n]), nil
}

// Reason says why a peer sends GOAWAY.
type Reason uint16

// Reasons of a GOAWAY.
const (
	ReasonClosing  Reason = 1 + iota // the process stops, or the connection was closed; dial again
	ReasonProtocol                   // what was received makes no sense
	ReasonVersion                    // another major version
	ReasonCluster                    // another cluster
	ReasonAuth                       // the proof does not match
	ReasonBusy                       // too many handshakes; dial again later
	ReasonBye                        // the client is done: forget its answers
)

// Final reports whether to dial again cannot help.
func (r Reason) Final() bool { return r == ReasonVersion || r == ReasonCluster || r == ReasonAuth }

// Goaway is the body of a GOAWAY.
type Goaway struct {
	Major, Minor uint16
	Reason       Reason
	Text         string
}

// Append appends the encoded g to b.
func (g *Goaway) Append(b []byte) []byte {
	text := g.Text[:min(len(g.Text), maxReason)]
	le := binary.LittleEndian
	b = le.AppendUint16(b, g.Major)
	b = le.AppendUint16(b, g.Minor)
	b = le.AppendUint16(b, uint16(g.Reason))
	b = le.AppendUint16(b, uint16(len(text)))
	return append(b, text...)
}

// Parse reads the body of a GOAWAY.
func (g *Goaway) Parse(b []byte) error {
	if len(b) < goawayFixed {
		return fmt.Errorf("%w: GOAWAY of %d bytes", ErrFrame, len(b))
	}
	le := binary.LittleEndian
	*g = Goaway{Major: le.Uint16(b), Minor: le.Uint16(b[2:]), Reason: Reason(le.Uint16(b[4:]))}
	n := int(le.Uint16(b[6:]))
	if n > maxReason || n > len(b)-goawayFixed {
		return fmt.Errorf("%w: GOAWAY with a text of %d bytes in %d", ErrFrame, n, len(b)-goawayFixed)
	}
	g.Text = string(b[goawayFixed : goawayFixed+n])
	return nil
}
