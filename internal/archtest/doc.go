// Package archtest keeps the shape of the tree: its tests parse all sources and
// fail when a package has no package doc, imports a package that is not below
// it, uses cgo outside cgo/, or names what has no place in the repository.
//
//	cmd/*                                  flags and wiring only
//	bench                                  workloads and reports
//	mount                transfer          kernel requests / copies -> client calls
//	node                                   roles wired into one process
//	client            server               files as stripes / targets
//	raftmeta          chunkstore           names, layouts, map / shards on disk
//	placement         erasure              pure functions
//	rdma  transport/tcp  transport/dpdk    implementations of transport
//	transport                              Conn, Handler, Buf, the arena, the shared suite
//	transport/wire                         the bytes
//	verbs                                  Go-shaped verbs; no C
//	cgo/*                                  the only import "C"
//	rfs, internal/*                        nouns and leaf helpers
//
// Test files may import from anywhere: a test of the client starts a cluster.
package archtest
