//go:build deps

package rfs

import (
	_ "github.com/Mellanox/rdmamap"
	_ "github.com/anishathalye/porcupine"
	_ "github.com/cockroachdb/pebble/v2"
	_ "github.com/hanwen/go-fuse/v2/fs"
	_ "github.com/HdrHistogram/hdrhistogram-go"
	_ "github.com/jedib0t/go-pretty/v6/table"
	_ "github.com/jsimonetti/rtnetlink/v2"
	_ "github.com/klauspost/cpuid/v2"
	_ "github.com/klauspost/reedsolomon"
	_ "github.com/pelletier/go-toml/v2"
	_ "github.com/prometheus/client_golang/prometheus/promhttp"
	_ "github.com/spf13/cobra"
	_ "github.com/spf13/cobra/doc"
	_ "github.com/vbauerster/mpb/v8"
	_ "go.etcd.io/raft/v3"
	_ "go.uber.org/goleak"
	_ "golang.org/x/sync/errgroup"
	_ "golang.org/x/sys/unix"
	_ "google.golang.org/protobuf/proto"
)
