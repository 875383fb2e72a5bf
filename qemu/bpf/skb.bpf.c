// SPDX-License-Identifier: GPL-2.0
/*
 * As script.bpf.c, in programs that have an skb: one for each place where they
 * can be attached. Only the one that is asked for is loaded. Packets of TCP take
 * part as well.
 */
#include "script.h"

/* What a type of program may do */
#define MAY_WRITE	1	/* set and delete */
#define MAY_CHANGE	2	/* push headers, send clones */
#define MAY_REDIRECT	4	/* to the other end of a cable */
#define MAY_ENCAPSULATE	8	/* put an IP header in front */

/* The header of an IPv6 fragment, which follows the packet's */
#define IPV6_FRAGMENT 44

/*
 * Is this IP packet, from its header on, for the port of UDP or TCP; or, if the
 * port is 0, a fragment?
 */
#define DEFINE_MATCH(name, context, load)				\
static __always_inline int name(context from, __u32 port)		\
{									\
	__u32 transport;						\
	__be16 dest;							\
	__u8 version, protocol;						\
									\
	if (load(from, 0, &version, sizeof(version)))			\
		return 0;						\
	if (version >> 4 == 4) {					\
		struct iphdr ip;					\
									\
		if (load(from, 0, &ip, sizeof(ip)))			\
			return 0;					\
		if (ip.frag_off & bpf_htons(IPV4_FRAGMENT))		\
			return !port;					\
		protocol = ip.protocol;					\
		transport = ip.ihl * 4;					\
	} else if (version >> 4 == 6) {					\
		struct ipv6hdr ip;					\
									\
		if (load(from, 0, &ip, sizeof(ip)))			\
			return 0;					\
		if (ip.nexthdr == IPV6_FRAGMENT)			\
			return !port;					\
		protocol = ip.nexthdr;					\
		transport = sizeof(ip);					\
	} else {							\
		return 0;						\
	}								\
	if (!port || (protocol != IPPROTO_UDP && protocol != IPPROTO_TCP)) \
		return 0;						\
	/* Which is in the same place for both */			\
	transport += offsetof(struct udphdr, dest);			\
	return !load(from, transport, &dest, sizeof(dest)) &&		\
	       dest == bpf_htons(port);					\
}

#define load_skb(skb, offset, to, size)					\
	bpf_skb_load_bytes_relative(skb, offset, to, size, BPF_HDR_START_NET)
#define load_memory(data, offset, to, size)				\
	bpf_probe_read_kernel(to, size, (data) + (offset))

#define load_route(skb, offset, to, size)				\
	bpf_skb_load_bytes(skb, offset, to, size)

DEFINE_MATCH(is_lwt_for, struct __sk_buff *, load_route)
DEFINE_MATCH(is_skb_for, struct __sk_buff *, load_skb)
DEFINE_MATCH(is_memory_for, const unsigned char *, load_memory)

static __always_inline int is_wanted(struct __sk_buff *skb)
{
	__u8 version, protocol;

	if (script.kind == SCRIPT_PORT)
		return is_skb_for(skb, script.port);
	if (script.kind == SCRIPT_ETHERTYPE)
		return skb->protocol == bpf_htons(script.port);
	if (load_skb(skb, 0, &version, sizeof(version)))
		return 0;
	if (version >> 4 == 4)
		return !load_skb(skb, offsetof(struct iphdr, protocol), &protocol,
				 sizeof(protocol)) && protocol == script.port;
	return version >> 4 == 6 &&
	       !load_skb(skb, offsetof(struct ipv6hdr, nexthdr), &protocol,
			 sizeof(protocol)) && protocol == script.port;
}

static __always_inline void note(__u32 i, int status, const __u8 *value)
{
	int j;

	results.steps[i].status = status;
	for (j = 0; j < 16; j++)
		results.steps[i].value[j] = value[j];
}

static __always_inline int write_meta(struct __sk_buff *skb, const __u8 *value)
{
	__u64 *meta = (void *)(long)skb->data_meta;

	if ((void *)(meta + 1) > (void *)(long)skb->data)
		return -1;
	__builtin_memcpy(meta, value, sizeof(*meta));
	return 0;
}

/* From the first to the second address at @ends, 4 bytes each: IPv4 in IPv4 */
static __always_inline int encapsulate(struct __sk_buff *skb, const __u8 *ends)
{
	struct iphdr header = {
		.version = 4,
		.ihl = 5,
		.ttl = 64,
		.protocol = IPPROTO_IPIP,
		.tot_len = bpf_htons(sizeof(header) + skb->len),
	};
	__u32 sum = 0;
	int i;

	__builtin_memcpy(&header.saddr, ends, 8);
	for (i = 0; i < sizeof(header) / 2; i++)
		sum += ((__u16 *)&header)[i];
	sum = (sum & 0xffff) + (sum >> 16);
	header.check = ~(sum + (sum >> 16));
	return bpf_lwt_push_encap(skb, BPF_LWT_ENCAP_IP, &header,
				  sizeof(header));
}

static __always_inline void run(struct __sk_buff *skb, int may)
{
	__u32 i, j;

	for (i = 0; i < SCRIPT_STEPS; i++) {
		const volatile struct script_step *step = &script.steps[i];
		__u32 operation = step->operation;
		__u32 key = step->key;
		__u32 size = step->size;
		__u64 flags = step->flags;
		__u8 value[32] = {};
		int status = 0;

		if (operation == SCRIPT_END || size > sizeof(value))
			break;
		for (j = 0; j < 16; j++)
			value[j] = step->value[j];

		if (operation == SCRIPT_GET || operation == SCRIPT_NEED)
			status = bpf_skb_trait_get(skb, key, value, size, flags);
		else if (may & MAY_WRITE && operation == SCRIPT_SET)
			status = bpf_skb_trait_set(skb, key, value, size, flags);
		else if (may & MAY_WRITE && operation == SCRIPT_DEL)
			status = bpf_skb_trait_del(skb, key, flags);
		else if (may & MAY_CHANGE && operation == SCRIPT_PUSH_VLAN)
			status = bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), key);
		else if (may & MAY_CHANGE && operation == SCRIPT_POP_VLAN)
			status = bpf_skb_vlan_pop(skb);
		else if (may & MAY_CHANGE && operation == SCRIPT_CLONE)
			status = bpf_clone_redirect(skb, step->delta, 0);
		else if (may & MAY_CHANGE && operation == SCRIPT_WRITE_META)
			status = write_meta(skb, value);
		else if (may & MAY_CHANGE && operation == SCRIPT_ADJUST_ROOM)
			status = bpf_skb_adjust_room(skb, step->delta,
						     BPF_ADJ_ROOM_MAC, 0);
		else if (may & MAY_CHANGE && operation == SCRIPT_CHANGE_TAIL)
			status = bpf_skb_change_tail(skb, skb->len + step->delta,
						     0);
		else if (may & MAY_CHANGE && operation == SCRIPT_CHANGE_HEAD)
			status = bpf_skb_change_head(skb, step->delta, 0);
		else if (may & MAY_CHANGE && operation == SCRIPT_CHANGE_PROTO)
			status = bpf_skb_change_proto(skb, bpf_htons(key), 0);
		else if (may & MAY_ENCAPSULATE && operation == SCRIPT_ENCAPSULATE)
			status = encapsulate(skb, value);
		else
			status = -1;

		/* Not one of the packets that the script is for */
		if (operation == SCRIPT_NEED && status < 0)
			return;
		note(i, status, value);
	}
	__sync_fetch_and_add(&results.runs, 1);
}

#define PROGRAM(section, name, may)					\
SEC(section)								\
int name(struct __sk_buff *skb)						\
{									\
	if (!is_wanted(skb))						\
		return script.action;					\
	run(skb, may);							\
	if ((may) & MAY_REDIRECT && script.interface)			\
		return bpf_redirect_peer(script.interface, 0);		\
	return script.action;						\
}

PROGRAM("tc", skb_classifier, MAY_WRITE | MAY_CHANGE | MAY_REDIRECT)
PROGRAM("action", skb_action, MAY_WRITE | MAY_CHANGE)
/* A route's program sees the packet from its IP header on, and may read it from
 * there only.
 */
SEC("lwt_xmit")
int skb_route(struct __sk_buff *skb)
{
	if (!is_lwt_for(skb, script.port))
		return BPF_OK;
	run(skb, MAY_WRITE | MAY_ENCAPSULATE);
	return script.action;
}

PROGRAM("cgroup_skb/ingress", skb_group_ingress, MAY_WRITE)
PROGRAM("cgroup_skb/egress", skb_group_egress, MAY_WRITE)
PROGRAM("socket", skb_socket_filter, 0)

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sockets SEC(".maps");

/* What a socket received: whatever comes */
SEC("sk_skb/stream_verdict")
int skb_verdict(struct __sk_buff *skb)
{
	run(skb, MAY_WRITE);
	return script.action;
}

/* Messages of one length, which is the action */
SEC("sk_skb/stream_parser")
int skb_parser(struct __sk_buff *skb)
{
	return script.action;
}

/* A packet begins with its IP header there */
SEC("netfilter")
int skb_netfilter(struct bpf_nf_ctx *hook)
{
	struct sk_buff *skb = hook->skb;

	if (is_memory_for(skb->data, script.port))
		run((struct __sk_buff *)skb, MAY_WRITE);
	return script.action;
}

/* Before this tracepoint the packet's link layer header was taken off */
SEC("tp_btf/netif_receive_skb")
int skb_trace(__u64 *arguments)
{
	struct sk_buff *skb = (void *)arguments[0];
	__u32 i;

	if (!is_memory_for(skb->data, script.port))
		return 0;

	for (i = 0; i < SCRIPT_STEPS; i++) {
		const volatile struct script_step *step = &script.steps[i];
		__u8 value[32] = {};
		__u32 size = step->size;
		int status;

		if (step->operation != SCRIPT_GET || size > sizeof(value))
			break;
		status = bpf_trace_skb_trait_get(skb, step->key, value, size,
						 step->flags);
		note(i, status, value);
	}
	__sync_fetch_and_add(&results.runs, 1);
	return 0;
}

char _license[] SEC("license") = "GPL";
