// SPDX-License-Identifier: GPL-2.0
/*
 * Gives one packet after another traits of its own, row by row of a table that a
 * test has written down, and begins again after the last row. Or each says by a
 * byte of its own which row it is for, whatever the order.
 */
#include "traits.h"

#define TABLE_KEYS 16
#define TABLE_ROWS 32

const volatile struct table {
	__u32 port;		/* or as "kind" says */
	__u32 kind;
	__u32 rows;
	__u32 removes;		/* all that was set, again */
	struct {
		__u32 id;
		__u32 size;	/* 0: no key, and none behind it */
	} keys[TABLE_KEYS];
	struct {
		__u8 is_set[TABLE_KEYS];
		__u8 values[TABLE_KEYS][16];
	} cells[TABLE_ROWS];
	__u32 row_at;		/* where in the frame its row is, if not 0 */
} table SEC(".rodata.table") = {};

struct table_results {
	__u64 runs;		/* packets so far */
	__u64 failures;		/* values that could not be set */
} table_results SEC(".data.results") = {};

SEC("xdp")
int table_run(struct xdp_md *xdp)
{
	__u64 run;
	__u32 i, j, row;

	if (!table.rows || !is_packet(xdp, table.kind, table.port))
		return XDP_PASS;

	if (table.row_at) {
		__u8 *at = (void *)(long)xdp->data + (table.row_at & 0xff);

		if ((void *)(at + 1) > (void *)(long)xdp->data_end ||
		    *at >= table.rows)
			return XDP_PASS;
		row = *at & (TABLE_ROWS - 1);
		__sync_fetch_and_add(&table_results.runs, 1);
	} else {
		run = __sync_fetch_and_add(&table_results.runs, 1);
		row = (run % table.rows) & (TABLE_ROWS - 1);
	}

	for (i = 0; i < TABLE_KEYS; i++) {
		__u32 size = table.keys[i].size;
		__u8 value[16];

		if (!size || size > sizeof(value))
			break;
		if (!table.cells[row].is_set[i])
			continue;
		for (j = 0; j < sizeof(value); j++)
			value[j] = table.cells[row].values[i][j];
		if (bpf_xdp_trait_set(xdp, table.keys[i].id, value, size, 0))
			__sync_fetch_and_add(&table_results.failures, 1);
		else if (table.removes)
			bpf_xdp_trait_del(xdp, table.keys[i].id, 0);
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";
