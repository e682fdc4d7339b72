#!/usr/bin/env bash
# usage: scripts/deps.sh [demo|test]
# Installs what `make demo` or `make test` needs and this machine lacks: with apt on Debian and
# Ubuntu; elsewhere it prints the names of the packages. Go itself must be there already.
set -euo pipefail

for_what=${1:-test}
# command:Debian package:Fedora/RHEL package
need=("fusermount3:fuse3:fuse3")
case $for_what in
demo) ;;
test)
	# the race detector needs a C compiler; the smoke test runs the other programs on the mount
	need+=("gcc:gcc libc6-dev:gcc glibc-devel" "git:git:git" "tar:tar:tar" "rsync:rsync:rsync"
		"fio:fio:fio" "sqlite3:sqlite3:sqlite" "setfattr:attr:attr")
	;;
*)
	echo "usage: scripts/deps.sh [demo|test]" >&2
	exit 2
	;;
esac

want=$(sed -n 's/^go //p' "$(dirname "$0")/../go.mod")
command -v go >/dev/null || {
	echo "deps: Go is missing: install Go $want or newer from https://go.dev/dl/ and put it in PATH" >&2
	exit 1
}
have=$(go env GOVERSION | sed 's/^go//; s/[^0-9.].*//')
[ "$(printf '%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] || {
	echo "deps: Go $have is too old: install Go $want or newer from https://go.dev/dl/" >&2
	exit 1
}

debs=() rpms=()
for n in "${need[@]}"; do
	IFS=: read -r cmd deb rpm <<<"$n"
	PATH=$PATH:/sbin:/usr/sbin command -v "$cmd" >/dev/null && continue
	# shellcheck disable=SC2206 # a field may name two packages
	debs+=($deb) rpms+=($rpm)
done

if [ ${#debs[@]} -gt 0 ]; then
	if command -v apt-get >/dev/null; then
		sudo=
		if [ "$(id -u)" != 0 ]; then
			sudo=sudo
			command -v sudo >/dev/null || {
				echo "deps: as root: apt-get install ${debs[*]}" >&2
				exit 1
			}
		fi
		echo "deps: installing ${debs[*]}"
		export DEBIAN_FRONTEND=noninteractive
		$sudo apt-get -qq update </dev/null
		$sudo apt-get -qq -y --no-install-recommends install "${debs[@]}" </dev/null >/dev/null
	else
		echo "deps: missing here; install them and run this again: dnf install ${rpms[*]}" >&2
		exit 1
	fi
fi

if [ ! -e /dev/fuse ]; then
	modprobe fuse 2>/dev/null || true
	[ -e /dev/fuse ] || {
		echo "deps: /dev/fuse is missing: run 'modprobe fuse' as root; in a container start it with --device /dev/fuse --cap-add SYS_ADMIN" >&2
		exit 1
	}
fi
