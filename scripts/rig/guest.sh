# Runs in the guest, chrooted into the host's file system, as PID 1.
cd / || exit
. /run/job/env
ulimit -l unlimited
ulimit -n 65536
end() {
	dmesg >/run/job/dmesg 2>/dev/null
	echo "$1" >/run/job/rc
	sync
	/bin/busybox poweroff -f 2>/dev/null || busybox poweroff -f
}
stty -F /dev/hvc1 raw -echo -opost 2>/dev/null
if [ "$(cat /run/job/mode)" = shell ]; then
	exec </dev/hvc0 >/dev/hvc0 2>&1
else
	stty -F /dev/hvc0 raw -echo -opost 2>/dev/null
	exec </dev/null >/dev/hvc0 2>/dev/hvc1
fi
hostname rfs-rig
ip link set lo up
if ! . /run/job/net.sh; then
	echo "rig: no soft-RoCE device in the guest" >&2
	end 125
fi
cd "$(cat /run/job/cwd)" || end 125
(eval "$(cat /run/job/cmd)")
end $?
