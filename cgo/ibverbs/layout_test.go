//go:build rdma && cgo && linux

package ibverbs

import (
	"bytes"
	"encoding/hex"
	"testing"
	"unsafe"
)

func TestFieldsStandWhereCHasThem(t *testing.T) {
	for _, f := range fields() {
		if f.goOff != f.cOff {
			t.Errorf("%s: at %d in Go, at %d in C", f.name, f.goOff, f.cOff)
		}
	}
}

func TestConstantsAreTheHeaders(t *testing.T) {
	for _, c := range constants {
		if c.got != c.value {
			t.Errorf("IBV_%s is %d in Go, %d in the header", c.name, c.got, c.value)
		}
	}
}

// TestGoldenBytes compares what C wrote with bytes written down here, and with
// the fields that Go reads from them.
func TestGoldenBytes(t *testing.T) {
	var (
		w WC
		s SGE
		g GIDEntry
		e AsyncEvent
	)
	golden(&w, &s, &g, &e)
	for _, c := range []struct{ name, got, want string }{
		{"ibv_wc", dump(&w), "0807060504030201" + "0a000000" + "81000000" + "14131211" + "24232221" + "31323334" + "43424100" + "53525100" + "02000000" + "6261" + "7271" + "81" + "91" + "0000"},
		{"ibv_sge", dump(&s), "0807060504030201" + "14131211" + "24232221"},
		{"ibv_gid_entry", dump(&g), "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf" + "03000000" + "01000000" + "02000000" + "07000000"},
		{"ibv_async_event", dump(&e), "0200000000000000" + "0a000000" + "00000000"},
	} {
		if c.got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.name, c.got, c.want)
		}
	}
	want := WC{ID: 0x0102030405060708, Status: WCRemAccessErr, Opcode: WCRecvWriteImm, VendorErr: 0x11121314, ByteLen: 0x21222324,
		ImmBE: 0x34333231, QPNum: 0x414243, SrcQP: 0x515253, Flags: WCWithImm, PKeyIndex: 0x6162, SLID: 0x7172, SL: 0x81, PathBits: 0x91}
	if w != want {
		t.Errorf("ibv_wc reads %+v, want %+v", w, want)
	}
	if e.Port() != 2 || e.Type != EventPortErr {
		t.Errorf("ibv_async_event reads %+v", e)
	}
	if !bytes.HasPrefix(g.GID[:], []byte{0xa0, 0xa1}) || g.Ifindex != 7 {
		t.Errorf("ibv_gid_entry reads %+v", g)
	}
}

func dump[T any](p *T) string {
	return hex.EncodeToString(unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p)))
}

func TestLoadNamesWhatIsMissing(t *testing.T) {
	if _, err := Load("libno-such-library.so.1"); err == nil || !bytes.Contains([]byte(err.Error()), []byte("libno-such-library")) {
		t.Fatalf("got %v", err)
	}
	if _, err := Load("libc.so.6"); err == nil || !bytes.Contains([]byte(err.Error()), []byte("ibv_get_device_list")) {
		t.Fatalf("got %v", err)
	}
}
