// SPDX-License-Identifier: GPL-2.0
/*
 * Tags UDP datagrams: sets traits of 4, 8 and 16 bytes to values that follow
 * from the sequence number at the start of the payload.
 */
#include "traits.h"

/* Set before the program is loaded */
const volatile struct tag_config {
	__u32 port;	/* destination, in host byte order */
	__u32 every;	/* tag sequence numbers that are a multiple of this */
	__u32 keys[3];	/* for values of 4, 8 and 16 bytes; none if not < 64 */
} config SEC(".rodata.config") = { .every = 1 };

struct tag_counts {
	__u64 seen;	/* datagrams for the port */
	__u64 tagged;	/* of these, those that were given all traits */
	__u64 stale;	/* those that came with a trait already */
	__u64 failed;	/* traits that could not be set */
	__s64 error;	/* of the last one that could not be set */
} counts SEC(".data.counts") = {};

static __always_inline int has_trait(struct xdp_md *xdp, __u32 key)
{
	__u8 value[16] = {};

	return key < 64 && bpf_xdp_trait_get(xdp, key, value, sizeof(value), 0) > 0;
}

static __always_inline int set_trait(struct xdp_md *xdp, __u32 key,
				     const void *value, __u32 size)
{
	int err;

	if (key >= 64)
		return 0;

	err = bpf_xdp_trait_set(xdp, key, value, size, 0);
	if (err) {
		__sync_fetch_and_add(&counts.failed, 1);
		counts.error = err;
	}
	return err;
}

SEC("xdp")
int tag(struct xdp_md *xdp)
{
	__u32 sequence, value4, i;
	__u8 value16[16];
	__u64 value8;
	int err;

	if (!is_datagram(xdp, config.port, &sequence))
		return XDP_PASS;
	__sync_fetch_and_add(&counts.seen, 1);

	if (has_trait(xdp, config.keys[0]) || has_trait(xdp, config.keys[1]) ||
	    has_trait(xdp, config.keys[2]))
		__sync_fetch_and_add(&counts.stale, 1);

	if (!config.every || sequence % config.every)
		return XDP_PASS;

	/* Multiplied by an odd number, different ones stay different */
	value4 = sequence * 0x9e3779b1U;
	value8 = (sequence + 1ULL) * 0x9e3779b97f4a7c15ULL;
	for (i = 0; i < sizeof(value16); i++)
		value16[i] = (sequence >> 8 * (i % 4)) ^ (i * 0x11);

	err = set_trait(xdp, config.keys[0], &value4, sizeof(value4));
	err |= set_trait(xdp, config.keys[1], &value8, sizeof(value8));
	err |= set_trait(xdp, config.keys[2], value16, sizeof(value16));
	if (!err)
		__sync_fetch_and_add(&counts.tagged, 1);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
