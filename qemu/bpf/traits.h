/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What programs here have in common: the kernel's functions for traits, and
 * the search for UDP datagrams.
 */
#ifndef TRAITS_BPF_H
#define TRAITS_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

extern int bpf_xdp_trait_set(struct xdp_md *xdp, __u32 key, const void *value,
			     __u32 value__sz, __u64 flags) __ksym;
extern int bpf_xdp_trait_get(struct xdp_md *xdp, __u32 key, void *value,
			     __u32 value__sz, __u64 flags) __ksym;
extern int bpf_xdp_trait_del(struct xdp_md *xdp, __u32 key, __u64 flags) __ksym;

extern int bpf_skb_trait_set(struct __sk_buff *skb, __u32 key,
			     const void *value, __u32 value__sz,
			     __u64 flags) __ksym;
extern int bpf_skb_trait_get(struct __sk_buff *skb, __u32 key, void *value,
			     __u32 value__sz, __u64 flags) __ksym;
extern int bpf_skb_trait_del(struct __sk_buff *skb, __u32 key,
			     __u64 flags) __ksym;

/* What tracing programs here look at. Offsets are those of the running kernel */
struct sk_buff {
	unsigned char *head;
	unsigned char *data;
	struct sk_buff *next;
} __attribute__((preserve_access_index));

/* The context of a netfilter program. Its fields are read as pointers of the kernel's */
struct bpf_nf_ctx {
	const struct nf_hook_state *state;
	struct sk_buff *skb;
} __attribute__((preserve_access_index));

extern int bpf_sk_reuseport_trait_get(struct sk_reuseport_md *choice, __u32 key,
				      void *value, __u32 value__sz,
				      __u64 flags) __ksym;
extern int bpf_sock_ops_trait_get(struct bpf_sock_ops *ops, __u32 key,
				  void *value, __u32 value__sz,
				  __u64 flags) __ksym;
extern int bpf_trace_skb_trait_get(const struct sk_buff *skb, __u32 key,
				   void *value, __u32 value__sz,
				   __u64 flags) __ksym;

/* More fragments, or an offset: only the first fragment has the UDP header */
#define IPV4_FRAGMENT 0x3fff

/*
 * Is this a UDP datagram for the port? Then *sequence is the number that its
 * payload begins with, 4 bytes in network byte order.
 */
static __always_inline int is_datagram(struct xdp_md *xdp, __u32 port,
				       __u32 *sequence)
{
	void *data = (void *)(long)xdp->data;
	void *end = (void *)(long)xdp->data_end;
	struct ethhdr *ethernet = data;
	struct udphdr *udp;
	__be32 *number;

	if ((void *)(ethernet + 1) > end)
		return 0;

	if (ethernet->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end || ip->ihl < 5 ||
		    ip->protocol != IPPROTO_UDP ||
		    ip->frag_off & bpf_htons(IPV4_FRAGMENT))
			return 0;
		udp = (void *)ip + ip->ihl * 4;
	} else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(ethernet + 1);

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_UDP)
			return 0;
		udp = (void *)(ip + 1);
	} else {
		return 0;
	}

	number = (void *)(udp + 1);
	if ((void *)(number + 1) > end || udp->dest != bpf_htons(port))
		return 0;

	*sequence = bpf_ntohl(*number);
	return 1;
}

/* What a script is for, said by its number */
enum script_kind {
	SCRIPT_PORT,		/* UDP or TCP */
	SCRIPT_ETHERTYPE,
	SCRIPT_PROTOCOL,	/* behind the IP header */
};

/* Is this one of the packets that a script is for? */
static __always_inline int is_packet(struct xdp_md *xdp, __u32 kind,
				     __u32 number)
{
	struct ethhdr *ethernet = (void *)(long)xdp->data;
	void *end = (void *)(long)xdp->data_end;
	struct ipv6hdr *ip6 = (void *)(ethernet + 1);
	struct iphdr *ip = (void *)(ethernet + 1);
	__u32 sequence;

	if (kind == SCRIPT_PORT)
		return is_datagram(xdp, number, &sequence);
	if ((void *)(ethernet + 1) > end)
		return 0;
	if (kind == SCRIPT_ETHERTYPE)
		return ethernet->h_proto == bpf_htons(number);
	if (ethernet->h_proto == bpf_htons(ETH_P_IP))
		return (void *)(ip + 1) <= end && ip->protocol == number;
	if (ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		return (void *)(ip6 + 1) <= end && ip6->nexthdr == number;
	return 0;
}

#endif /* TRAITS_BPF_H */
