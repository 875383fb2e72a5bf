// SPDX-License-Identifier: GPL-2.0
/*
 * Gives TCP segments traits that tell whose they are: of 4 bytes the port where they come
 * from, and whether it is the SYN; of 16 bytes the address; of 8 bytes a number made of both.
 */
#include <linux/tcp.h>

#include "traits.h"

/* Set before the program is loaded */
const volatile struct syn_config {
	__u32 port;	/* destination, in host byte order */
	__u32 keys[3];	/* for values of 4, 8 and 16 bytes; none if not < 64 */
	__u32 action;	/* what becomes of segments that are no SYN */
} config SEC(".rodata.config") = { .action = XDP_PASS };

struct syn_counts {
	__u64 syns;
	__u64 others;
	__u64 failed;	/* traits that could not be set */
} counts SEC(".data.counts") = {};

/* As lab_connect_many() has them */
#define KIND_SYN	1
#define KIND_OTHER	2

static __always_inline __u64 mix(__u64 sum, __u64 number)
{
	return (sum ^ number) * 0x9e3779b97f4a7c15ULL;
}

static __always_inline void set_trait(struct xdp_md *xdp, __u32 key, const void *value, __u32 size)
{
	if (key < 64 && bpf_xdp_trait_set(xdp, key, value, size, 0))
		__sync_fetch_and_add(&counts.failed, 1);
}

SEC("xdp")
int syn(struct xdp_md *xdp)
{
	struct ethhdr *ethernet = (void *)(long)xdp->data;
	void *end = (void *)(long)xdp->data_end;
	struct tcphdr *tcp;
	__u32 from[4] = {}, value4;
	__u64 value8;
	int is_syn;

	if ((void *)(ethernet + 1) > end)
		return XDP_PASS;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end || ip->ihl != 5 || ip->protocol != IPPROTO_TCP)
			return XDP_PASS;
		from[2] = bpf_htonl(0xffff);
		from[3] = ip->saddr;
		tcp = (void *)(ip + 1);
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_TCP)
			return XDP_PASS;
		__builtin_memcpy(from, &ip->saddr, sizeof(from));
		tcp = (void *)(ip + 1);
	} else {
		return XDP_PASS;
	}
	if ((void *)(tcp + 1) > end || tcp->dest != bpf_htons(config.port))
		return XDP_PASS;

	is_syn = tcp->syn && !tcp->ack;
	__sync_fetch_and_add(is_syn ? &counts.syns : &counts.others, 1);

	value4 = bpf_ntohs(tcp->source) << 16 | (is_syn ? KIND_SYN : KIND_OTHER);
	value8 = mix(mix(mix(value4, from[1]), from[2]), from[3]);
	set_trait(xdp, config.keys[0], &value4, sizeof(value4));
	set_trait(xdp, config.keys[1], &value8, sizeof(value8));
	set_trait(xdp, config.keys[2], from, sizeof(from));
	return is_syn ? XDP_PASS : config.action;
}

char _license[] SEC("license") = "GPL";
