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
 */
enum traits_key_flags {
	TRAITS_KEY_FLAGS_OPEN_READ = 1,
	TRAITS_KEY_FLAGS_OPEN_WRITE = 2,
	TRAITS_KEY_FLAGS_CROSS_NETNS = 4,
};

enum {
	TRAITS_A_KEY_ID = 1,
	TRAITS_A_KEY_NAME,
	TRAITS_A_KEY_SIZE,
	TRAITS_A_KEY_FLAGS,

	__TRAITS_A_KEY_MAX,
	TRAITS_A_KEY_MAX = (__TRAITS_A_KEY_MAX - 1)
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

	__TRAITS_CMD_MAX,
	TRAITS_CMD_MAX = (__TRAITS_CMD_MAX - 1)
};

#endif /* _LINUX_TRAITS_NETLINK_H */
