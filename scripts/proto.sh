#!/usr/bin/env bash
# Generates the Go code of the protobuf messages. It needs protoc (Debian:
# apt install protobuf-compiler); protoc-gen-go is pinned in scripts/tools/go.mod.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v protoc >/dev/null || { echo "protoc is missing: apt install protobuf-compiler" >&2; exit 1; }
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
(cd scripts/tools && GOFLAGS=-mod=mod go build -o "$bin/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go)
protoc --plugin="$bin/protoc-gen-go" --go_out=. --go_opt=module=rfs raftmeta/metapb/*.proto
