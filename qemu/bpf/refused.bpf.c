// SPDX-License-Identifier: GPL-2.0
/*
 * Programs that the kernel must not load, each for one reason, and beside them
 * ones of the same types that it loads. A test loads one at a time.
 */
#include "traits.h"

#define VALUE_SIZE 8

/* What leads from a socket to a packet */
struct tcp_sock {
	struct sk_buff *highest_sack;
} __attribute__((preserve_access_index));

struct sock_common {
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	struct sock_common *sk_common;
} __attribute__((preserve_access_index));

const volatile __u64 constant = 1;
__u64 variable;
char block[sizeof(struct __sk_buff)];

/* Of a type that may not call the function */

SEC("socket")
int filter_sets(struct __sk_buff *skb)
{
	__u64 value = 1;

	return bpf_skb_trait_set(skb, 0, &value, sizeof(value), 0);
}

SEC("socket")
int filter_deletes(struct __sk_buff *skb)
{
	return bpf_skb_trait_del(skb, 0, 0);
}

SEC("tc")
int classifier_as_xdp(struct __sk_buff *skb)
{
	__u64 value = 1;

	return bpf_xdp_trait_set((void *)skb, 0, &value, sizeof(value), 0);
}

SEC("xdp")
int xdp_as_classifier(struct xdp_md *xdp)
{
	__u64 value = 1;

	return bpf_skb_trait_set((void *)xdp, 0, &value, sizeof(value), 0);
}

SEC("xdp")
int xdp_gets_as_classifier(struct xdp_md *xdp)
{
	__u64 value;

	return bpf_skb_trait_get((void *)xdp, 0, &value, sizeof(value), 0);
}

SEC("tc")
int classifier_traces(struct __sk_buff *skb)
{
	__u64 value;

	return bpf_trace_skb_trait_get((void *)skb, 0, &value, sizeof(value), 0);
}

SEC("tp_btf/netif_receive_skb")
int trace_gets_as_classifier(__u64 *arguments)
{
	__u64 value;

	return bpf_skb_trait_get((void *)arguments[0], 0, &value, sizeof(value), 0);
}

SEC("sk_reuseport")
int choice_as_classifier(struct sk_reuseport_md *choice)
{
	__u64 value;

	return bpf_skb_trait_get((void *)choice, 0, &value, sizeof(value), 0);
}

SEC("sk_reuseport")
int choice_as_callback(struct sk_reuseport_md *choice)
{
	__u64 value;

	return bpf_sock_ops_trait_get((void *)choice, 0, &value, sizeof(value), 0);
}

SEC("tc")
int classifier_as_choice(struct __sk_buff *skb)
{
	__u64 value;

	return bpf_sk_reuseport_trait_get((void *)skb, 0, &value, sizeof(value), 0);
}

SEC("tc")
int classifier_as_callback(struct __sk_buff *skb)
{
	__u64 value;

	return bpf_sock_ops_trait_get((void *)skb, 0, &value, sizeof(value), 0);
}

SEC("netfilter")
int netfilter_traces(struct bpf_nf_ctx *hook)
{
	__u64 value;

	return bpf_trace_skb_trait_get(hook->skb, 0, &value, sizeof(value), 0) == 8;
}

/* Of a type that sees no packet */

SEC("sk_lookup")
int lookup_gets(struct bpf_sk_lookup *lookup)
{
	__u64 value;

	return bpf_skb_trait_get((void *)lookup, 0, &value, sizeof(value), 0) == 8;
}

SEC("sk_lookup")
int lookup_as_choice(struct bpf_sk_lookup *lookup)
{
	__u64 value;

	return bpf_sk_reuseport_trait_get((void *)lookup, 0, &value, sizeof(value), 0) == 8;
}

SEC("sk_msg")
int message_gets(struct sk_msg_md *message)
{
	__u64 value;

	return bpf_skb_trait_get((void *)message, 0, &value, sizeof(value), 0) == 8;
}

SEC("cgroup/getsockopt")
int option_gets(struct bpf_sockopt *option)
{
	__u64 value;

	return bpf_skb_trait_get((void *)option, 0, &value, sizeof(value), 0) == 8;
}

SEC("sockops")
int callback_as_classifier(struct bpf_sock_ops *ops)
{
	__u64 value;

	return bpf_skb_trait_get((void *)ops, 0, &value, sizeof(value), 0) == 8;
}

SEC("cgroup_skb/ingress")
int group_as_callback(struct __sk_buff *skb)
{
	__u64 value;

	return bpf_sock_ops_trait_get((void *)skb, 0, &value, sizeof(value), 0) == 8;
}

/* With a pointer to something else */

SEC("tc")
int packet_is_stack(struct __sk_buff *skb)
{
	char other[sizeof(struct __sk_buff)] = {};
	__u64 value;

	return bpf_skb_trait_get((void *)other, 0, &value, sizeof(value), 0);
}

SEC("cgroup/connect4")
int packet_is_map(struct bpf_sock_addr *address)
{
	__u64 value;

	return bpf_skb_trait_get((void *)block, 0, &value, sizeof(value), 0) == 8;
}

SEC("cgroup/connect4")
int packet_is_other_context(struct bpf_sock_addr *address)
{
	__u64 value = 1;

	return bpf_skb_trait_set((void *)address, 0, &value, sizeof(value), 0) == 0;
}

SEC("tp_btf/netif_receive_skb")
int packet_is_not_trusted(__u64 *arguments)
{
	struct sk_buff *skb = (void *)arguments[0];
	__u64 value;

	return bpf_trace_skb_trait_get(skb->next, 0, &value, sizeof(value), 0);
}

SEC("tp_btf/netif_receive_skb")
int packet_is_other_argument(__u64 *arguments)
{
	__u64 value;

	return bpf_trace_skb_trait_get((void *)arguments, 0, &value, sizeof(value), 0);
}

SEC("cgroup/connect4")
int packet_of_a_socket(struct bpf_sock_addr *address)
{
	struct tcp_sock *tcp;
	__u64 value = 1;

	if (!address->sk)
		return 1;
	tcp = bpf_skc_to_tcp_sock(address->sk);
	if (!tcp)
		return 1;
	return bpf_skb_trait_set((void *)tcp->highest_sack, 0, &value,
				 sizeof(value), 0) == 0;
}

SEC("iter/tcp")
int packet_of_an_iterator(struct bpf_iter__tcp *iterator)
{
	struct sock_common *sk = iterator->sk_common;
	struct tcp_sock *tcp;
	__u64 value;

	if (!sk)
		return 0;
	tcp = bpf_skc_to_tcp_sock(sk);
	if (tcp)
		bpf_trace_skb_trait_get(tcp->highest_sack, 0, &value,
					sizeof(value), 0);
	return 0;
}

SEC("netfilter")
int packet_behind_another(struct bpf_nf_ctx *hook)
{
	__u64 value = 1;

	return bpf_skb_trait_set((void *)hook->skb->next, 0, &value,
				 sizeof(value), 0) == 0;
}

SEC("netfilter")
int packet_is_the_hook(struct bpf_nf_ctx *hook)
{
	__u64 value = 1;

	return bpf_skb_trait_set((void *)hook, 0, &value, sizeof(value), 0) == 0;
}

/* With a value that is not there, or not known to be */

SEC("tc")
int size_is_unbounded(struct __sk_buff *skb)
{
	__u64 value = 1;

	return bpf_skb_trait_set(skb, 0, &value, skb->len, 0);
}

SEC("tc")
int size_is_too_large(struct __sk_buff *skb)
{
	__u64 value = 1;

	return bpf_skb_trait_get(skb, 0, &value, 4096, 0);
}

SEC("tc")
int map_is_smaller(struct __sk_buff *skb)
{
	return bpf_skb_trait_get(skb, 0, &variable, 4096, 0);
}

SEC("tc")
int value_is_a_number(struct __sk_buff *skb)
{
	return bpf_skb_trait_get(skb, 0, (void *)(long)skb->len, VALUE_SIZE, 0);
}

SEC("tc")
int value_is_null(struct __sk_buff *skb)
{
	return bpf_skb_trait_set(skb, 0, (void *)0, VALUE_SIZE, 0);
}

SEC("tc")
int value_is_null_and_nothing(struct __sk_buff *skb)
{
	return bpf_skb_trait_get(skb, 0, (void *)0, 0, 0);
}

SEC("tc")
int value_is_read_only(struct __sk_buff *skb)
{
	return bpf_skb_trait_get(skb, 0, (void *)&constant, sizeof(constant), 0);
}

SEC("tc")
int value_is_the_packet(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;

	/* Nothing was compared with data_end */
	return bpf_skb_trait_get(skb, 0, data, VALUE_SIZE, 0);
}

/* Fine, if the one who loads it may use traits */

SEC("socket")
int filter_gets(struct __sk_buff *skb)
{
	__u64 value = 0;

	return bpf_skb_trait_get(skb, 0, &value, sizeof(value), 0);
}

SEC("cgroup_skb/ingress")
int group_gets(struct __sk_buff *skb)
{
	__u64 value = 0;

	return bpf_skb_trait_get(skb, 0, &value, sizeof(value), 0) == 8;
}

SEC("cgroup_skb/egress")
int group_sets(struct __sk_buff *skb)
{
	__u64 value = 1;

	return bpf_skb_trait_set(skb, 0, &value, sizeof(value), 0) == 0;
}

SEC("tp_btf/netif_receive_skb")
int trace_gets(__u64 *arguments)
{
	__u64 value = 0;

	return bpf_trace_skb_trait_get((void *)arguments[0], 0, &value, sizeof(value), 0);
}

SEC("netfilter")
int netfilter_sets(struct bpf_nf_ctx *hook)
{
	__u64 value = 1;

	return bpf_skb_trait_set((void *)hook->skb, 0, &value, sizeof(value), 0) == 0;
}

SEC("sk_skb/stream_verdict")
int verdict_sets(struct __sk_buff *skb)
{
	__u64 value = 1;

	return bpf_skb_trait_set(skb, 0, &value, sizeof(value), 0) == 0;
}

SEC("sk_reuseport")
int choice_gets(struct sk_reuseport_md *choice)
{
	__u64 value = 0;

	return bpf_sk_reuseport_trait_get(choice, 0, &value, sizeof(value), 0) == 8;
}

SEC("sockops")
int callback_gets(struct bpf_sock_ops *ops)
{
	__u64 value = 0;

	return bpf_sock_ops_trait_get(ops, 0, &value, sizeof(value), 0) == 8;
}

/* Fine for anybody who may load programs of their types */

SEC("sk_reuseport")
int choice_alone(struct sk_reuseport_md *choice)
{
	return 1;
}

SEC("socket")
int filter_alone(struct __sk_buff *skb)
{
	return skb->len;
}

SEC("cgroup_skb/ingress")
int group_alone(struct __sk_buff *skb)
{
	return 1;
}

SEC("tp_btf/netif_receive_skb")
int trace_alone(__u64 *arguments)
{
	return 0;
}

char _license[] SEC("license") = "GPL";
