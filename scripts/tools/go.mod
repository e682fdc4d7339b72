// Tools that generate code of rfs, pinned. Run them through scripts/proto.sh.
module rfs/scripts/tools

go 1.26.0

tool google.golang.org/protobuf/cmd/protoc-gen-go

require google.golang.org/protobuf v1.36.12 // indirect
