/* SPDX-License-Identifier: MIT */
/*
 * System calls that Swift's Glibc module lacks, or that glibc turns into calls
 * for all threads.
 */
#ifndef CNETWORKLAB_H
#define CNETWORKLAB_H

#include <stddef.h>

/* Moves this thread to a network namespace. 0 or an errno value */
int lab_enter_network_namespace(int descriptor);

/* Moves this thread to a network namespace of its own, which ends with it.
 * 0 or an errno value
 */
int lab_make_network_namespace(void);

/* Makes this thread, and no other one, a user without privilege, for good.
 * 0 or an errno value
 */
int lab_drop_thread_privilege(unsigned int user);

/* Leaves this thread, and no other one, the capabilities whose bits are set, for
 * good. 0 or an errno value
 */
int lab_keep_thread_capabilities(unsigned long long capabilities);

/* Opens a socket that sees every packet of this network namespace: its
 * descriptor, or a negative errno value
 */
int lab_open_tap(void);

/* Opens a packet socket bound to one protocol of an interface of this network
 * namespace, without link-layer headers: its descriptor, or a negative errno value
 */
int lab_open_packet_socket(unsigned int interface, unsigned short protocol);

/* Hands a frame, from its Ethernet header on, to an interface of this network
 * namespace as if the machine itself had sent it. The protocol is what an Ethernet header
 * would say; 0 if there is one. 0 or an errno value
 */
int lab_send_frame(unsigned int interface, unsigned short protocol,
		   const void *frame, size_t length);

/* Sends a descriptor along a unix socket, with a message of one byte. 0 or an errno
 * value
 */
int lab_pass_descriptor(int channel, int descriptor);

#endif /* CNETWORKLAB_H */
