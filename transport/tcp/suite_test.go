package tcp

import (
	"net"
	"testing"

	"rfs"
	"rfs/transport"
	"rfs/transport/transporttest"
)

func TestSuite(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			mem := newArena(t)
			transporttest.Run(t, func(t *testing.T) transporttest.Fixture {
				return transporttest.Fixture{
					New:    fromOptions,
					Listen: func(t testing.TB) (net.Listener, transport.Addr) { return listen(t, network) },
					Mem:    mem,
					Stream: true,
				}
			})
		})
	}
}

func fromOptions(t testing.TB, o transporttest.Options) transport.Transport {
	t.Helper()
	tr, err := New(Config{
		Key: o.Key, Cluster: o.Cluster, Name: o.Name, Log: o.Log, OnMapEpoch: o.OnMapEpoch,
		Session:  func() rfs.SessionID { return o.Session },
		MapEpoch: func() rfs.Epoch { return o.MapEpoch },
		Streams:  o.Links, Messages: o.Messages, Bytes: o.Bytes, CancelWait: o.CancelWait,
		Keepalive: o.Keepalive, Dead: o.Dead, BackoffMax: o.BackoffMax,
	})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}
