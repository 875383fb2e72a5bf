/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/* Do not edit directly, auto-generated from: */
/*	Documentation/netlink/specs/traits.yaml */
/* YNL-GEN uapi header */

#ifndef _LINUX_TRAITS_NETLINK_H
#define _LINUX_TRAITS_NETLINK_H

#define TRAITS_FAMILY_NAME	"traits"
#define TRAITS_FAMILY_VERSION	1

#define TRAITS_NAME_MAX	31

/**
 * enum traits_key_flags
 * @TRAITS_KEY_FLAGS_OPEN_READ: Sockets may receive the key without privilege.
 * @TRAITS_KEY_FLAGS_OPEN_WRITE: Sockets may send the key without privilege.
 * @TRAITS_KEY_FLAGS_CROSS_NETNS: The value stays on a packet that enters
 *   another network namespace.
 * @TRAITS_KEY_FLAGS_OWNED: The key is removed when the socket that registered
 *   it is closed.
 */
enum traits_key_flags {
	TRAITS_KEY_FLAGS_OPEN_READ = 1,
	TRAITS_KEY_FLAGS_OPEN_WRITE = 2,
	TRAITS_KEY_FLAGS_CROSS_NETNS = 4,
	TRAITS_KEY_FLAGS_OWNED = 8,
};

/**
 * enum traits_merge - What becomes of the values when two packets become one.
 *   Packets are merged by GRO, by the reassembly of fragments, and by TCP,
 *   where it joins segments and delivers what came in several of them.
 * @TRAITS_MERGE_EXACT: Packets whose values differ, or of which one has none,
 *   are not merged. Fragments cannot stay apart: the key is kept only if all
 *   of them have it, with equal values.
 * @TRAITS_MERGE_DROP: The key is kept only if all packets have it, with equal
 *   values. Datagrams that GRO would merge stay apart otherwise, as they will
 *   be taken apart again.
 * @TRAITS_MERGE_FIRST: The value of the first packet, in order of the data,
 *   that has one.
 * @TRAITS_MERGE_LAST: The value of the last packet, in order of the data, that
 *   has one.
 * @TRAITS_MERGE_MIN: The smallest value, as unsigned integers in native byte
 *   order, of those that there are. This and the following policies are for
 *   keys of 4 and 8 bytes only.
 * @TRAITS_MERGE_MAX: The largest value of those that there are.
 * @TRAITS_MERGE_OR: All bits that are set in one of the values that there are.
 * @TRAITS_MERGE_AND: All bits that are set in all values that there are.
 */
enum traits_merge {
	TRAITS_MERGE_EXACT,
	TRAITS_MERGE_DROP,
	TRAITS_MERGE_FIRST,
	TRAITS_MERGE_LAST,
	TRAITS_MERGE_MIN,
	TRAITS_MERGE_MAX,
	TRAITS_MERGE_OR,
	TRAITS_MERGE_AND,
};

enum {
	TRAITS_A_KEY_ID = 1,
	TRAITS_A_KEY_NAME,
	TRAITS_A_KEY_SIZE,
	TRAITS_A_KEY_FLAGS,
	TRAITS_A_KEY_MERGE,

	__TRAITS_A_KEY_MAX,
	TRAITS_A_KEY_MAX = (__TRAITS_A_KEY_MAX - 1)
};

enum {
	TRAITS_A_KEY_STATS_ID = 1,
	TRAITS_A_KEY_STATS_NAME,
	TRAITS_A_KEY_STATS_SET,
	TRAITS_A_KEY_STATS_READ,
	TRAITS_A_KEY_STATS_DROPPED,
	TRAITS_A_KEY_STATS_SCRUBBED,

	__TRAITS_A_KEY_STATS_MAX,
	TRAITS_A_KEY_STATS_MAX = (__TRAITS_A_KEY_STATS_MAX - 1)
};

enum {
	TRAITS_A_STATS_SET = 1,
	TRAITS_A_STATS_COPIED,
	TRAITS_A_STATS_DISCARDED,
	TRAITS_A_STATS_SCRUBBED,
	TRAITS_A_STATS_ALLOCATED,
	TRAITS_A_STATS_EVICTED,
	TRAITS_A_STATS_LOST,

	__TRAITS_A_STATS_MAX,
	TRAITS_A_STATS_MAX = (__TRAITS_A_STATS_MAX - 1)
};

enum {
	TRAITS_CMD_KEY_NEW = 1,
	TRAITS_CMD_KEY_DEL,
	TRAITS_CMD_KEY_GET,
	TRAITS_CMD_STATS_GET,
	TRAITS_CMD_KEY_STATS_GET,
	TRAITS_CMD_KEY_NEW_NTF,
	TRAITS_CMD_KEY_DEL_NTF,

	__TRAITS_CMD_MAX,
	TRAITS_CMD_MAX = (__TRAITS_CMD_MAX - 1)
};

#define TRAITS_MCGRP_CHANGES	"changes"

#endif /* _LINUX_TRAITS_NETLINK_H */
