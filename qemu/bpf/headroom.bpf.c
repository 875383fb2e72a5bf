// SPDX-License-Identifier: GPL-2.0
/*
 * Sets a trait on a UDP datagram, and then takes all of the headroom for
 * packet data or for metadata, which runs over the store; then gives it back.
 */
#include "traits.h"

#define HEAD_STEP	8
#define META_STEP	4
#define STEPS		128

/* Set before the program is loaded */
const volatile struct headroom_config {
	__u32 port;	/* destination, in host byte order */
	__u32 key;	/* of 8 bytes */
	__u32 meta;	/* take the room for metadata, and not for data */
} config SEC(".rodata.config") = {};

/* Of the last datagram */
struct headroom_results {
	__u64 runs;	/* datagrams so far */
	__s32 set;	/* what setting the trait returned */
	__s32 before;	/* what getting it returned before the room was taken */
	__s32 after;	/* and after */
	__s32 restored;	/* what giving the room back returned */
	__u32 taken;	/* in bytes */
	__u32 reserved;
} results SEC(".data.results") = {};

SEC("xdp")
int headroom(struct xdp_md *xdp)
{
	__u64 value = 0x1122334455667788ULL;
	__u32 sequence, step, taken = 0;
	int i;

	if (!is_datagram(xdp, config.port, &sequence))
		return XDP_PASS;

	step = config.meta ? META_STEP : HEAD_STEP;
	results.set = bpf_xdp_trait_set(xdp, config.key, &value, sizeof(value), 0);
	results.before = bpf_xdp_trait_get(xdp, config.key, &value, sizeof(value), 0);

	for (i = 0; i < STEPS; i++) {
		if (config.meta ? bpf_xdp_adjust_meta(xdp, -META_STEP) :
				  bpf_xdp_adjust_head(xdp, -HEAD_STEP))
			break;
		taken += step;
	}

	results.after = bpf_xdp_trait_get(xdp, config.key, &value, sizeof(value), 0);
	results.restored = config.meta ? bpf_xdp_adjust_meta(xdp, taken) :
					 bpf_xdp_adjust_head(xdp, taken);
	results.taken = taken;
	__sync_fetch_and_add(&results.runs, 1);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
