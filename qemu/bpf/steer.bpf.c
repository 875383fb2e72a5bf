// SPDX-License-Identifier: GPL-2.0
/*
 * A packet is classified once, in XDP, and its class is a trait. The other programs
 * here choose its way or its socket, each in another place, and none of them looks
 * at anything else. Only the one that is asked for is loaded.
 */
#include "traits.h"

#include <asm/socket.h>
#include <linux/netfilter.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

/* Set before a program is loaded */
const volatile struct steer_config {
	__u32 port;	/* destination of what is classified, in host byte order */
	__u32 key;	/* of 4 bytes: the class */
	__u32 class;	/* for programs that take one class out */
	__u32 cpu;	/* where packets are handed over to */
} config SEC(".rodata.config") = {};

#define CLASSES		4
#define NO_CLASS	3	/* is not written down: such packets have no trait */

struct {
	__uint(type, BPF_MAP_TYPE_REUSEPORT_SOCKARRAY);
	__uint(max_entries, CLASSES);
	__type(key, __u32);
	__type(value, __u64);
} group SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 2 * CLASSES);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

/* By class, 0 if there is none */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CLASSES);
	__type(key, __u32);
	__type(value, __u32);
} interfaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_CPUMAP);
	__uint(max_entries, 2);	/* no more than the kernel may have processors */
	__type(key, __u32);
	__type(value, struct bpf_cpumap_val);
} cpus SEC(".maps");

/* Of connections under way, by the client's port */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} requests SEC(".maps");

/* The port that a segment for the port comes from, or -1 */
static __always_inline int segment_from(struct xdp_md *xdp)
{
	struct ethhdr *ethernet = (void *)(long)xdp->data;
	void *end = (void *)(long)xdp->data_end;
	struct ipv6hdr *ip6 = (void *)(ethernet + 1);
	struct iphdr *ip = (void *)(ethernet + 1);
	struct tcphdr *tcp;

	if ((void *)(ip + 1) > end)
		return -1;
	if (ethernet->h_proto == bpf_htons(ETH_P_IP) &&
	    ip->protocol == IPPROTO_TCP)
		tcp = (void *)ip + ip->ihl * 4;
	else if (ethernet->h_proto == bpf_htons(ETH_P_IPV6) &&
		 (void *)(ip6 + 1) <= end && ip6->nexthdr == IPPROTO_TCP)
		tcp = (void *)(ip6 + 1);
	else
		return -1;

	if ((void *)(tcp + 1) > end || tcp->dest != bpf_htons(config.port) ||
	    !tcp->syn)
		return -1;
	return bpf_ntohs(tcp->source);
}

/* Gives a packet its class, by the number that a datagram begins with, or by the
 * port that a segment comes from. Is it one of those?
 */
static __always_inline int classify_packet(struct xdp_md *xdp)
{
	__u32 number, class;
	int port;

	if (!is_datagram(xdp, config.port, &number)) {
		port = segment_from(xdp);
		if (port < 0)
			return 0;
		number = port;
	}
	class = number % CLASSES;
	if (class != NO_CLASS)
		bpf_xdp_trait_set(xdp, config.key, &class, sizeof(class), 0);
	return 1;
}

SEC("xdp")
int classify(struct xdp_md *xdp)
{
	classify_packet(xdp);
	return XDP_PASS;
}

SEC("sk_reuseport")
int pick(struct sk_reuseport_md *choice)
{
	__u32 class;

	if (bpf_sk_reuseport_trait_get(choice, config.key, &class, sizeof(class), 0) > 0)
		bpf_sk_select_reuseport(choice, &group, &class, 0);
	return SK_PASS;
}

SEC("tc")
int assign(struct __sk_buff *skb)
{
	struct bpf_sock *sk;
	__u32 class;

	if (bpf_skb_trait_get(skb, config.key, &class, sizeof(class), 0) < 0)
		return TC_ACT_OK;
	sk = bpf_map_lookup_elem(&sockets, &class);
	if (sk) {
		bpf_sk_assign(skb, sk, 0);
		bpf_sk_release(sk);
	}
	return TC_ACT_OK;
}

/* Of a socket, or of a rule of iptables */
SEC("socket")
int filter(struct __sk_buff *skb)
{
	__u32 class;

	if (bpf_skb_trait_get(skb, config.key, &class, sizeof(class), 0) < 0)
		return 0;
	return class == config.class ? -1 : 0;
}

SEC("cgroup_skb/ingress")
int admit(struct __sk_buff *skb)
{
	__u32 class;

	if (bpf_skb_trait_get(skb, config.key, &class, sizeof(class), 0) < 0)
		return 1;
	return class != config.class;
}

SEC("sockops")
int answer(struct bpf_sock_ops *ops)
{
	__u32 client = ops->remote_port, class, *found;
	int priority;

	switch (ops->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		bpf_sock_ops_cb_flags_set(ops, BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		/* The SYN's, while it is answered */
		if (bpf_sock_ops_trait_get(ops, config.key, &class, sizeof(class), 0) > 0)
			bpf_map_update_elem(&requests, &client, &class, BPF_ANY);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		bpf_sock_ops_cb_flags_set(ops, 0);
		found = bpf_map_lookup_elem(&requests, &client);
		if (!found)
			break;
		priority = 1 + *found;
		bpf_setsockopt(ops, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
		bpf_map_delete_elem(&requests, &client);
		break;
	}
	return 1;
}

/* The same, once the connection is there, by what its listener kept of the SYN */
SEC("sockops")
int greet(struct bpf_sock_ops *ops)
{
	__u32 class;
	int priority;

	if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB &&
	    bpf_sock_ops_trait_get(ops, config.key, &class, sizeof(class), 0) > 0) {
		priority = 1 + class;
		bpf_setsockopt(ops, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
	}
	return 1;
}

SEC("sk_skb/stream_verdict")
int verdict(struct __sk_buff *skb)
{
	__u32 class;

	if (bpf_skb_trait_get(skb, config.key, &class, sizeof(class), 0) < 0)
		return SK_PASS;
	return bpf_sk_redirect_map(skb, &sockets, class, BPF_F_INGRESS);
}

SEC("tc")
int redirect(struct __sk_buff *skb)
{
	__u32 class, *interface;

	if (bpf_skb_trait_get(skb, config.key, &class, sizeof(class), 0) < 0)
		return TC_ACT_OK;
	interface = bpf_map_lookup_elem(&interfaces, &class);
	return interface && *interface ? bpf_redirect(*interface, 0) : TC_ACT_OK;
}

SEC("tc")
int mark(struct __sk_buff *skb)
{
	__u32 class;

	if (bpf_skb_trait_get(skb, config.key, &class, sizeof(class), 0) > 0)
		skb->mark = class;
	return TC_ACT_OK;
}

/* To every interface that is in the map, where its own program decides */
SEC("xdp")
int spread(struct xdp_md *xdp)
{
	if (!classify_packet(xdp))
		return XDP_PASS;
	return bpf_redirect_map(&ports, 0, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS);
}

SEC("xdp/devmap")
int leave(struct xdp_md *xdp)
{
	__u32 class, *interface;

	if (bpf_xdp_trait_get(xdp, config.key, &class, sizeof(class), 0) < 0)
		return XDP_DROP;
	interface = bpf_map_lookup_elem(&interfaces, &class);
	return interface && *interface == xdp->egress_ifindex ? XDP_PASS : XDP_DROP;
}

/* To another processor, where a program decides */
SEC("xdp")
int hand(struct xdp_md *xdp)
{
	if (!classify_packet(xdp))
		return XDP_PASS;
	return bpf_redirect_map(&cpus, config.cpu, 0);
}

SEC("xdp/cpumap")
int take(struct xdp_md *xdp)
{
	__u32 class, *interface;

	if (bpf_xdp_trait_get(xdp, config.key, &class, sizeof(class), 0) < 0)
		return XDP_PASS;
	if (class == config.class)
		return XDP_DROP;
	interface = bpf_map_lookup_elem(&interfaces, &class);
	return interface && *interface ? bpf_redirect(*interface, 0) : XDP_PASS;
}

SEC("netfilter")
int wall(struct bpf_nf_ctx *hook)
{
	struct __sk_buff *skb = (struct __sk_buff *)hook->skb;
	__u32 class;

	if (bpf_skb_trait_get(skb, config.key, &class, sizeof(class), 0) < 0)
		return NF_ACCEPT;
	return class == config.class ? NF_DROP : NF_ACCEPT;
}

char _license[] SEC("license") = "GPL";
