// SPDX-License-Identifier: GPL-2.0
/*
 * One datagram to many interfaces: "spread" sends it to all that are in the map
 * "ports", and "mark", the program of an entry, writes the number of its
 * interface into the packet and into a trait.
 */
#include "traits.h"

/* Set before the program is loaded */
const volatile struct broadcast_config {
	__u32 port;	/* destination, in host byte order */
	__u32 common;	/* key of 4 bytes that "spread" sets, to ~0 */
	__u32 own;	/* key of 4 bytes that "mark" sets to the interface */
} config SEC(".rodata.config") = {};

struct broadcast_counts {
	__u64 failed;	/* traits that could not be set, or were not there */
	__u64 foreign;	/* packets that "mark" found marked */
} counts SEC(".data.counts") = {};

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} ports SEC(".maps");

SEC("xdp")
int spread(struct xdp_md *xdp)
{
	__u32 sequence, value = ~0;

	if (!is_datagram(xdp, config.port, &sequence))
		return XDP_PASS;
	if (bpf_xdp_trait_set(xdp, config.common, &value, sizeof(value), 0))
		__sync_fetch_and_add(&counts.failed, 1);
	return bpf_redirect_map(&ports, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
}

SEC("xdp/devmap")
int mark(struct xdp_md *xdp)
{
	__u32 sequence, value = 0, interface = xdp->egress_ifindex;
	void *end = (void *)(long)xdp->data_end;
	struct {
		struct ethhdr ethernet;
		struct iphdr ip;
		struct udphdr udp;
		__be32 sequence;
		__be32 mark;
	} __attribute__((packed)) *packet = (void *)(long)xdp->data;

	/* Over IPv4 without options, and without a UDP checksum */
	if (!is_datagram(xdp, config.port, &sequence) ||
	    (void *)(packet + 1) > end || packet->udp.check)
		return XDP_PASS;

	if (packet->mark)
		__sync_fetch_and_add(&counts.foreign, 1);
	packet->mark = bpf_htonl(interface);

	if (bpf_xdp_trait_get(xdp, config.common, &value, sizeof(value), 0) < 0 ||
	    value != ~0U ||
	    bpf_xdp_trait_get(xdp, config.own, &value, sizeof(value), 0) >= 0 ||
	    bpf_xdp_trait_set(xdp, config.own, &interface, sizeof(interface), 0))
		__sync_fetch_and_add(&counts.failed, 1);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
