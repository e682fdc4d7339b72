#!/usr/bin/env bash
# Gets Debian's kernel package (70 MB) and makes of it vmlinux and an initrd for the rig's qemu.
# Finds out once whether KVM boots it.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/rig/common.sh
. "$here/common.sh"
need qemu-system-x86_64:qemu-system-x86 busybox:busybox-static rdma:iproute2 xz:xz-utils cpio:cpio dpkg-deb:dpkg
mkdir -p "$cache/qemu"
cd "$cache/qemu"
exec 9>lock
flock 9
made=$(cat "$here/prepare-qemu.sh" "$here/init-qemu" | sha256sum)
[ "$(cat made 2>/dev/null)" != "$made" ] || exit 0
# The number in the package's name moves with the ABI: ask for it.
name() { apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ {print $2; exit}'; }
pkg=$(name)
if [ -z "$pkg" ] || ! apt-get -qq download "$pkg" 2>/dev/null; then
	apt-get -qq update >/dev/null 2>&1 || true
	pkg=$(name)
	apt-get -qq download "$pkg" 2>/dev/null || die "cannot download ${pkg:-linux-image-amd64}: is this Debian with its repositories?"
fi
version=${pkg#linux-image-}
version=${version%-unsigned}
# In load order: what a module needs stands before it.
mods="drivers/virtio/virtio_ring drivers/virtio/virtio
drivers/virtio/virtio_pci_modern_dev drivers/virtio/virtio_pci_legacy_dev drivers/virtio/virtio_pci
drivers/char/virtio_console
fs/netfs/netfs fs/fscache/fscache net/9p/9pnet net/9p/9pnet_virtio fs/9p/9p fs/overlayfs/overlay fs/fuse/fuse
crypto/crc32_generic crypto/crc32c_generic lib/libcrc32c
drivers/net/veth drivers/net/dummy net/sched/sch_netem
net/ipv4/udp_tunnel net/ipv6/ip6_udp_tunnel
drivers/infiniband/core/ib_core drivers/infiniband/core/ib_uverbs
fs/configfs/configfs drivers/infiniband/core/ib_cm drivers/infiniband/core/iw_cm
drivers/infiniband/core/rdma_cm drivers/infiniband/core/rdma_ucm
drivers/infiniband/sw/rxe/rdma_rxe"
rm -rf initrd tree
mkdir -p tree initrd/bin initrd/mods initrd/proc initrd/sys initrd/dev initrd/new
{
	echo "./boot/vmlinuz-$version"
	for m in $mods; do echo "./lib/modules/$version/kernel/$m.ko"; done
} >want
dpkg-deb --fsys-tarfile "$pkg"_*.deb | tar -x -C tree -T want
# The ELF out of the bzImage: booted by PVH it need not unpack itself, which takes 7 s under emulation.
z=tree/boot/vmlinuz-$version
word() { od -An -t "u$2" -j "$1" -N "$2" "$z" | tr -d ' '; }
off=$((($(word $((0x1f1)) 1) + 1) * 512 + $(word $((0x248)) 4)))
tail -c +$((off + 1)) "$z" | xz -dc --single-stream >vmlinux 2>/dev/null || true
[ "$(head -c4 vmlinux | od -An -tx1 | tr -d ' ')" = 7f454c46 ] || die "no ELF in $pkg"
cp "$(command -v busybox)" initrd/bin/busybox
for m in $mods; do
	cp "tree/lib/modules/$version/kernel/$m.ko" initrd/mods/
	[ "${m##*/}" = rdma_rxe ] || echo "${m##*/}"
done >initrd/mods/order
cp "$here/init-qemu" initrd/init
chmod +x initrd/init
(cd initrd && find . | cpio -o -H newc --quiet) >initrd.cpio # not packed: to unpack costs more than to read
rm -rf tree initrd want "$pkg"_*.deb kvm
if [ -w /dev/kvm ] && timeout 20 qemu-system-x86_64 -M pc -accel kvm -cpu max -m 256 -nodefaults -display none -no-reboot \
	-kernel vmlinux -append 'console=ttyS0 panic=-1' -serial file:kvm.log </dev/null >/dev/null 2>&1 && grep -q 'Unable to mount root' kvm.log; then
	touch kvm
fi
rm -f kvm.log
echo "$made" >made
note "made $cache/qemu of $pkg ($([ -e kvm ] && echo KVM || echo emulated))"
