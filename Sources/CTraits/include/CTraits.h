/* SPDX-License-Identifier: MIT */
/*
 * The kernel's interface for packet traits, and the macros of <sys/socket.h>
 * for control messages as functions: Swift imports no function-like macros.
 *
 * Not included here: <sys/socket.h>, whose types Swift would then take for this
 * module's.
 *
 * linux/traits.h and linux/traits_netlink.h are copies of what the patched
 * kernel's `make headers_install` gives, byte for byte.
 */
#ifndef CTRAITS_H
#define CTRAITS_H

#include <stddef.h>

#include <linux/traits.h>
#include <linux/traits_netlink.h>

/* Length of a control message with padding: the distance to the next one */
size_t ctraits_cmsg_align(size_t length);

/* What a message with `length` bytes of data takes up in a control buffer */
size_t ctraits_cmsg_space(size_t length);

/* What cmsg_len says of a message with `length` bytes of data */
size_t ctraits_cmsg_len(size_t length);

#endif /* CTRAITS_H */
