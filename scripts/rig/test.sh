#!/usr/bin/env bash
# usage: scripts/rig/test.sh [PACKAGE...]
# Runs the tests of packages on a real RDMA device: builds their binaries here, runs all of them in
# one boot of the rig, and prints the device, the packets that went over it, and the counts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
rig=scripts/rig/rig
if [ "${1:-}" = --in-rig ]; then
	dir=$2
	devices() { for d in /sys/class/infiniband/*; do echo "${d##*/}"; done; }
	# rxe counts the one, other devices the other
	packets() {
		cat /sys/class/infiniband/*/ports/*/{hw_counters/sent_pkts,counters/port_xmit_packets} 2>/dev/null |
			awk '{n += $1} END {print n + 0}' || true
	}
	echo "rig: $RFS_RIG, $(uname -r): $(devices | xargs)" >&2
	before=$(packets) rc=0
	while read -r pkg folder; do
		(cd "$folder" && "$dir/test2json" -t -p "$pkg" "$dir/${pkg//\//_}.test" -test.v=test2json -test.timeout=15m -test.short \
			${RIG_RUN:+"-test.run=$RIG_RUN"}) || rc=1
	done <"$dir/packages"
	after=$(packets)
	echo "rig: $((after - before)) packets sent by $(devices | xargs)" >&2
	# The tests of verbs alone send thousands. Fewer mean that something else carried them.
	if [ -z "${RIG_RUN:-}" ] && [ $((after - before)) -lt 1000 ]; then
		echo "rig: the payload did not go over RDMA" >&2
		rc=1
	fi
	exit $rc
fi
[ $# -gt 0 ] || set -- ./cgo/ibverbs ./verbs
dir=$(mktemp -d "${TMPDIR:-/tmp}/rfs-rig-test.XXXXXX")
trap 'rm -rf "$dir"' EXIT
go build -o "$dir/test2json" cmd/test2json
go list -tags rdma -f '{{.ImportPath}} {{.Dir}}' "$@" >"$dir/packages"
while read -r pkg folder; do go test -tags rdma -c -o "$dir/${pkg//\//_}.test" "$folder"; done <"$dir/packages"
go build -o "$dir/testsum" ./scripts/testsum
RFS_RDMA_REQUIRE=1 "$rig" bash "$PWD/scripts/rig/test.sh" --in-rig "$dir" | "$dir/testsum"
