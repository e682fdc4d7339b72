// Package metapb has the messages of the metadata service, generated from
// meta.proto by scripts/proto.sh; meta.proto describes them.
//
//	OpMeta    Request{Command | Query | LockWait}  -> Response
//	OpEvents  EventsRequest                        -> Response{events}
//	OpAdmin   AdminRequest                         -> Response
//	OpRaft, OpSnapshot   RaftBatch, SnapshotChunk  -> Response
//
// A Command is also the data of an entry of the Raft log.
package metapb
