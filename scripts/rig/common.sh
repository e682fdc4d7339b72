# What the rig's scripts share. Sourced; $here is scripts/rig.
cache=${RFS_RIG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rfs-rig}

note() { echo "rig: $*" >&2; }
die() { note "$@"; exit 125; }
usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' "$here/rig" | sed '$d'; }

# need CMD:PACKAGE... installs what is missing.
need() {
	local n pkgs=()
	for n in "$@"; do
		PATH=$PATH:/sbin:/usr/sbin command -v "${n%%:*}" >/dev/null || pkgs+=("${n#*:}")
	done
	[ ${#pkgs[@]} -gt 0 ] || return 0
	command -v apt-get >/dev/null || die "missing here: ${pkgs[*]} (names of Debian's packages): install them"
	[ "$(id -u)" = 0 ] || die "missing here: as root: apt-get install ${pkgs[*]}"
	note "installing ${pkgs[*]}"
	DEBIAN_FRONTEND=noninteractive
	export DEBIAN_FRONTEND
	apt-get -qq update </dev/null >/dev/null 2>&1 || true
	apt-get -qq -y --no-install-recommends install "${pkgs[@]}" </dev/null >/dev/null || die "cannot install ${pkgs[*]}"
}

# The user-mode kernel is named by what it is built from.
uml_kernel() { echo "$cache/linux-uml-$(cat "$here/build-uml.sh" "$here/uml.config" | sha256sum | cut -c1-12)"; }

# Where the guest's memory lives: it needs room for all of it, and may not be mounted noexec.
memory_dir() {
	local d
	for d in /dev/shm "${TMPDIR:-/tmp}" /var/tmp; do
		[ -w "$d" ] && [ "$(df -Pm "$d" | awk 'NR==2 {print $4}')" -gt "$mem" ] || continue
		case ,$(findmnt -nro OPTIONS -T "$d" 2>/dev/null), in *,noexec,*) continue ;; esac
		echo "$d"
		return
	done
	die "no directory has $mem MB for the guest's memory (/dev/shm, ${TMPDIR:-/tmp}, /var/tmp)"
}

# Both are called with the output of the command on 3 and 4, and end with the machine.
run_uml() {
	local d dir in=null
	sed '/^$/q' /proc/cpuinfo >"$job/cpuinfo" # programs want "cpu MHz", which the guest does not show
	for d in "${writable[@]}"; do echo "$d" >>"$job/rw"; done
	dir=$(memory_dir)
	[ "$(cat "$job/mode")" = run ] || in=fd:0
	export TMPDIR=$dir
	exec timeout --foreground -k 10 "$limit" "$(uml_kernel)" "mem=${mem}M" rootfstype=hostfs rootflags=/ ro quiet loglevel=4 \
		panic=-1 init=/bin/bash con=null "con0=$in,fd:3" con1=null,fd:4 con2=null,fd:1 console=tty2 "JOB=$job" -- "$job/init-uml" >"$job/console" 2>&1
}

run_qemu() {
	local args=() i=0 d accel='tcg,thread=multi,tb-size=512' chardev=file,id=out,path=$job/out q=0
	for d in "${writable[@]}"; do
		echo "rw$i $d" >>"$job/rw"
		args+=(-virtfs "local,path=$d,mount_tag=rw$i,security_model=passthrough,multidevs=remap")
		i=$((i + 1))
	done
	[ ! -e "$cache/qemu/kvm" ] || accel=kvm
	[ "$(cat "$job/mode")" = run ] || chardev=stdio,id=out,signal=off,mux=off
	# qemu opens by name, and would cut a file that 3 or 4 are: pipes between
	mkfifo "$job/out" "$job/err"
	cat "$job/out" >&3 &
	cat "$job/err" >&4 &
	timeout --foreground -k 10 "$limit" qemu-system-x86_64 \
		-M pc,usb=off,vmport=off -accel "$accel" -cpu max -smp "$(nproc)" -m "$mem" \
		-nodefaults -no-user-config -display none -no-reboot -kernel "$cache/qemu/vmlinux" -initrd "$cache/qemu/initrd.cpio" \
		-append "console=ttyS0 quiet loglevel=4 panic=-1 oops=panic mitigations=off nokaslr random.trust_cpu=on tsc=reliable no_timer_check audit=0 apparmor=0 transparent_hugepage=always" \
		-chardev "file,id=con,path=$job/console" -serial chardev:con \
		-device virtio-serial-pci -chardev "$chardev" -device virtconsole,chardev=out \
		-chardev "file,id=err,path=$job/err" -device virtconsole,chardev=err \
		-virtfs "local,path=/,mount_tag=root,security_model=passthrough,readonly=on,multidevs=remap" \
		-virtfs "local,path=$job,mount_tag=job,security_model=passthrough,multidevs=remap" \
		"${args[@]}" || q=$?
	: 1<>"$job/out" 1<>"$job/err" # ends a cat whose pipe qemu never opened
	wait
	return $q
}
