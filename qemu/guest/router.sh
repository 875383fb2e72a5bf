# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced inside the guest: three network namespaces in a row. Nothing is left to
# chance while they are used: addresses are not probed for, neighbours known for good.
#
#   sender [out] -- [left] router [right] -- [in] receiver
#   10.78.1.2    --  10.78.1.1  10.78.2.1  --  10.78.2.2, the same with fd78:1:: and fd78:2::

# configure_end NAMESPACE DEVICE SUBNET HOST
configure_end() {
	ip -n "$1" -batch - <<-BATCH
	link set lo up
	address add 10.78.$3.$4/24 dev $2
	address add fd78:$3::$4/64 dev $2 nodad
	link set $2 up
	BATCH
}

# know_neighbour NAMESPACE DEVICE SUBNET HOST ETHERNET-ADDRESS
know_neighbour() {
	ip -n "$1" neighbour replace "10.78.$3.$4" dev "$2" lladdr "$5" nud permanent
	ip -n "$1" neighbour replace "fd78:$3::$4" dev "$2" lladdr "$5" nud permanent
}

make_router() {
	local namespace
	for namespace in sender router receiver; do
		ip netns add $namespace
	done
	ip link add out netns sender address 02:00:00:00:01:02 type veth \
		peer name left netns router address 02:00:00:00:01:01
	ip link add in netns receiver address 02:00:00:00:02:02 type veth \
		peer name right netns router address 02:00:00:00:02:01
	ip netns exec router sh -c \
		'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding'
	configure_end sender out 1 2
	configure_end router left 1 1
	configure_end router right 2 1
	configure_end receiver in 2 2
	ip -n sender route add default via 10.78.1.1
	ip -n sender route add default via fd78:1::1
	ip -n receiver route add default via 10.78.2.1
	ip -n receiver route add default via fd78:2::1
	know_neighbour sender out 1 1 02:00:00:00:01:01
	know_neighbour router left 1 2 02:00:00:00:01:02
	know_neighbour router right 2 2 02:00:00:00:02:02
	know_neighbour receiver in 2 1 02:00:00:00:02:01
}
