// SPDX-License-Identifier: GPL-2.0
/*
 * Does to a packet what a test has written down, step by step, and notes
 * what came of each. As the script is read-only, the verifier knows it and
 * follows no other path than the one that is run.
 */
#include "script.h"

static __always_inline int write_meta(struct xdp_md *xdp, const __u8 *value)
{
	__u64 *meta = (void *)(long)xdp->data_meta;

	if ((void *)(meta + 1) > (void *)(long)xdp->data)
		return -1;
	__builtin_memcpy(meta, value, sizeof(*meta));
	return 0;
}

static __always_inline int read_meta(struct xdp_md *xdp, __u8 *value)
{
	__u64 *meta = (void *)(long)xdp->data_meta;

	if ((void *)(meta + 1) > (void *)(long)xdp->data)
		return -1;
	__builtin_memcpy(value, meta, sizeof(*meta));
	return sizeof(*meta);
}

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bpf_devmap_val);
} ports SEC(".maps");

SEC("xdp")
int script_run(struct xdp_md *xdp)
{
	__u32 i, j;

	if (!is_packet(xdp, script.kind, script.port))
		return XDP_PASS;

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

		if (operation == SCRIPT_SET)
			status = bpf_xdp_trait_set(xdp, key, value, size, flags);
		else if (operation == SCRIPT_GET)
			status = bpf_xdp_trait_get(xdp, key, value, size, flags);
		else if (operation == SCRIPT_DEL)
			status = bpf_xdp_trait_del(xdp, key, flags);
		else if (operation == SCRIPT_ADJUST_HEAD)
			status = bpf_xdp_adjust_head(xdp, step->delta);
		else if (operation == SCRIPT_ADJUST_META)
			status = bpf_xdp_adjust_meta(xdp, step->delta);
		else if (operation == SCRIPT_ADJUST_TAIL)
			status = bpf_xdp_adjust_tail(xdp, step->delta);
		else if (operation == SCRIPT_WRITE_META)
			status = write_meta(xdp, value);
		else if (operation == SCRIPT_READ_META)
			status = read_meta(xdp, value);

		results.steps[i].status = status;
		for (j = 0; j < 16; j++)
			results.steps[i].value[j] = value[j];
	}
	__sync_fetch_and_add(&results.runs, 1);

	if (script.interface == SCRIPT_BY_MAP)
		return bpf_redirect_map(&ports, 0, 0);
	if (script.interface)
		return bpf_redirect(script.interface, 0);
	return script.action;
}

char _license[] SEC("license") = "GPL";
