# Network and soft-RoCE of the guest, sourced by guest.sh. Two rxe devices on the two ends of a
# veth pair, in one network namespace (rxe of Linux 6.1 works in the first one only):
#
#   rxe0 = veth0 10.0.0.1 <---> 10.0.0.2 veth1 = rxe1      policy routes make packets cross the pair
#
# netdev_max_backlog: else acknowledgements drop, and transfers stall for seconds.
sysctl -qw net.core.netdev_max_backlog=100000 net.core.rmem_max=67108864 net.core.wmem_max=67108864
[ -d /run/mods ] && insmod /run/mods/rdma_rxe.ko
ip link add veth0 type veth peer name veth1
sysctl -qw net.ipv4.conf.{all,default,veth0,veth1}.rp_filter=0 net.ipv4.conf.all.accept_local=1 \
	net.ipv4.conf.all.arp_ignore=1 net.ipv6.conf.all.disable_ipv6=1
ip link set veth0 mtu "${RIG_MTU:-9000}" up
ip link set veth1 mtu "${RIG_MTU:-9000}" up
ip addr add 10.0.0.1/24 dev veth0
ip addr add 10.0.0.2/24 dev veth1
ip rule add pref 100 lookup local
ip rule del pref 0 lookup local
ip route add 10.0.0.2/32 dev veth0 src 10.0.0.1 table 101
ip route add 10.0.0.1/32 dev veth1 src 10.0.0.2 table 102
ip rule add pref 1 oif veth0 lookup 101
ip rule add pref 2 oif veth1 lookup 102
ip rule add pref 3 iif lo from 10.0.0.1 to 10.0.0.2 lookup 101
ip rule add pref 4 iif lo from 10.0.0.2 to 10.0.0.1 lookup 102
rdma link add rxe0 type rxe netdev veth0 && rdma link add rxe1 type rxe netdev veth1
