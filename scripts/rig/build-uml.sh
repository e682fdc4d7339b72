#!/usr/bin/env bash
# Builds the user-mode Linux of the rig, with soft-RoCE, from Debian's kernel source: once, about
# 140 MB of download and 7 CPU minutes; 9 MB stay in the cache. Debian's own user-mode-linux has no InfiniBand.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/rig/common.sh
. "$here/common.sh"
kernel=$(uml_kernel)
need busybox:busybox-static rdma:iproute2
[ ! -x "$kernel" ] || exit 0
mkdir -p "$cache"
exec 9>"$cache/uml.lock"
flock 9
[ ! -x "$kernel" ] || exit 0
need gcc:gcc make:make flex:flex bison:bison bc:bc xz:xz-utils dpkg-deb:dpkg
dir=$(mktemp -d "$cache/uml.XXXXXX")
trap 'rm -rf "$dir"' EXIT
cd "$dir"
note "building user-mode Linux with soft-RoCE, once: 5 to 10 minutes"
pkg=$(apt-cache depends linux-source | awk '/Depends: linux-source-/ {print $2; exit}')
: "${pkg:=linux-source-6.1}"
apt-get -qq download "$pkg" 2>/dev/null || { apt-get -qq update >/dev/null 2>&1; apt-get -qq download "$pkg" 2>/dev/null; } ||
	die "cannot download $pkg: is this Debian 12 with its repositories?"
dpkg-deb --fsys-tarfile "$pkg"_*.deb | tar -xO "./usr/src/$pkg.tar.xz" | tar -xJ --strip-components=1
rm -f ./*.deb
# 2696 bytes hold the AVX-512 state but not AMX's (11008): without this every process dies in put_fp_registers.
sed -i 's/DEFINE_LONGS(HOST_FP_SIZE, 2696);/DEFINE_LONGS(HOST_FP_SIZE, 12288);/' arch/x86/um/user-offsets.c
{
	make ARCH=um allnoconfig
	scripts/kconfig/merge_config.sh -m -O . .config "$here/uml.config"
	make ARCH=um olddefconfig
} >build.log 2>&1 || { tail -n 20 build.log; die "cannot configure the kernel"; }
grep -q CONFIG_RDMA_RXE=y .config || die "$pkg has no rxe for user-mode Linux"
nice make -s ARCH=um -j"$(nproc)" linux >build.log 2>&1 || { tail -n 20 build.log; die "cannot build the kernel"; }
strip -g -o "$kernel.new" linux
mv "$kernel.new" "$kernel"
note "built $kernel"
