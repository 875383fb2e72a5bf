/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Packet traits: small typed values that travel with a packet.
 *
 * Socket options and control messages at level SOL_TRAITS. Keys are handed
 * out by the "traits" generic netlink family, see <linux/traits_netlink.h>.
 */
#ifndef _LINUX_TRAITS_H
#define _LINUX_TRAITS_H

#include <linux/types.h>

/* Level of the socket options and of the control messages below */
#ifndef SOL_TRAITS
#define SOL_TRAITS		288
#endif

/* Keys are 0 .. TRAITS_KEYS_MAX - 1 */
#define TRAITS_KEYS_MAX		64

/* The largest value, in bytes */
#define TRAITS_VALUE_MAX	16

/* Socket options.
 *
 * TRAITS_RECV: __u64, a mask of keys, bit k stands for key k. recvmsg() hands
 * over those that the datagram has as one SCM_TRAITS control message. TCP: those
 * of the segments that the bytes came in, merged; a read ends where they may not
 * be. A connection begins with the mask of its listener.
 */
#define TRAITS_RECV		1

/* TRAITS_SEND: an array of struct trait. Every packet that the socket sends has
 * these; they replace those that were set before. TCP: every segment from then
 * on, and every connection of a listener.
 */
#define TRAITS_SEND		2

/* TRAITS_SAVE_SYN: __u64, a mask of keys. TCP, on a listener: keep these of a SYN
 * for the socket that is accepted.
 */
#define TRAITS_SAVE_SYN		3

/* TRAITS_SYN: an array of struct trait in key order, getsockopt() alone. TCP, on
 * an accepted socket: what its listener kept. Reading does not consume it.
 */
#define TRAITS_SYN		4

/* Control messages.
 *
 * SCM_TRAITS: an array of struct trait. From recvmsg() in key order; absent if
 * the datagram has none of the keys asked for, never cut short: whole, or
 * MSG_CTRUNC. To sendmsg() in any order: traits of this datagram alone, or of
 * these bytes of a TCP stream, beside those of TRAITS_SEND and instead of those
 * with the same key.
 */
#define SCM_TRAITS		1

/**
 * struct trait - one key and its value
 * @key:	0 .. TRAITS_KEYS_MAX - 1
 * @len:	length of the value in bytes: 4, 8 or 16
 * @flags:	must be 0
 * @value:	@len bytes in native byte order, the rest is 0
 *
 * Needs no more than 4-byte alignment, which is what a control message has
 * in a 32-bit process.
 */
struct trait {
	__u32	key;
	__u16	len;
	__u16	flags;
	__u8	value[TRAITS_VALUE_MAX];
};

#endif /* _LINUX_TRAITS_H */
