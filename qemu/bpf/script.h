/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A script: steps that a test has written down, and what came of each.
 */
#ifndef SCRIPT_BPF_H
#define SCRIPT_BPF_H

#include "traits.h"

#define SCRIPT_STEPS 64

enum script_operation {
	SCRIPT_END,
	SCRIPT_SET,
	SCRIPT_GET,
	SCRIPT_DEL,
	/* XDP */
	SCRIPT_ADJUST_HEAD,
	SCRIPT_ADJUST_META,
	SCRIPT_WRITE_META,	/* tc, too */
	SCRIPT_READ_META,
	/* tc */
	SCRIPT_PUSH_VLAN,
	SCRIPT_POP_VLAN,
	SCRIPT_CLONE,
	SCRIPT_NEED,
	SCRIPT_ADJUST_ROOM,
	SCRIPT_CHANGE_TAIL,
	SCRIPT_CHANGE_HEAD,
	SCRIPT_CHANGE_PROTO,
	/* routes */
	SCRIPT_ENCAPSULATE,
	/* XDP */
	SCRIPT_ADJUST_TAIL,
};

/* A redirection through the map "ports", not by number */
#define SCRIPT_BY_MAP	((__u32)-1)

struct script_step {
	__u32 operation;
	__u32 key;
	__u32 size;		/* of the value, 0 .. 32 */
	__s32 delta;		/* by which data begins elsewhere; an interface */
	__u64 flags;
	__u8 value[16];		/* to be written */
};

struct script_result {
	__s32 status;
	__u32 reserved;
	__u8 value[16];		/* what was read */
};

/* Set before the program is loaded */
const volatile struct script {
	__u32 port;		/* destination, or as "kind" says */
	__u32 action;		/* what the program returns */
	__u32 interface;	/* where a packet is redirected to, if not 0 */
	__u32 kind;
	struct script_step steps[SCRIPT_STEPS];
} script SEC(".rodata.script") = {};

/* Of the last datagram */
struct script_results {
	__u64 runs;		/* datagrams so far */
	struct script_result steps[SCRIPT_STEPS];
} results SEC(".data.results") = {};

#endif /* SCRIPT_BPF_H */
