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

/* The same of the packets of one interface */
int lab_open_tap_on(unsigned int interface);

/* Makes a tap device of this network namespace, which lives as long as the
 * descriptor: what is written to that, a frame each, the device receives. The
 * descriptor, or a negative errno value
 */
int lab_open_tap_device(const char *name);

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

/* Attaches a BPF program to a netfilter hook of this network namespace, by its numbers
 * (linux/netfilter.h), for as long as the link is open: the link's descriptor, or a negative
 * errno value
 */
int lab_attach_netfilter(int program, unsigned int family, unsigned int hook, int priority);

/* Sends a descriptor along a unix socket, with a message of one byte. 0 or an errno
 * value
 */
int lab_pass_descriptor(int channel, int descriptor);

/* Moves what is there of a socket into a pipe: splice(2). How many bytes, or a negative
 * errno value
 */
long lab_splice(int socket, int pipe, size_t length);

/* A message of sendmsg() or recvmsg(), to or from where the socket is connected to. After
 * receiving, the lengths are those of what came, and flags those that came back.
 */
struct lab_message {
	void *payload;
	size_t payload_length;
	void *control;
	size_t control_length;
	int flags;
};

/* Does the kernel run 32-bit programs? */
int lab_has_calls32(void);

/* System calls of a 32-bit program, made with int $0x80; the data may be anywhere. Control
 * data is in that program's layout. The result, or a negative errno value
 */
long lab_setsockopt32(int socket, int level, int name, const void *value, unsigned int length);
long lab_getsockopt32(int socket, int level, int name, void *value, unsigned int *length);

enum lab_call32 {
	/* The call of this name */
	LAB_CALL32_OWN,
	/* The one that all socket calls once were: socketcall(2) */
	LAB_CALL32_SOCKETCALL,
	/* As one of many: sendmmsg(2), recvmmsg(2) */
	LAB_CALL32_MANY,
};

long lab_sendmsg32(enum lab_call32 call, int socket, const struct lab_message *message);
long lab_recvmsg32(enum lab_call32 call, int socket, struct lab_message *message);

/* A ring of io_uring(7), that of a 32-bit program if asked for; NULL and errno if there is
 * none
 */
struct lab_ring;
struct lab_ring *lab_ring_make(int is32);
void lab_ring_free(struct lab_ring *ring);

/* How a request is done */
enum lab_request {
	/* At once, or when the socket is ready */
	LAB_REQUEST_PLAIN,
	/* By a thread of the kernel's: IOSQE_ASYNC */
	LAB_REQUEST_BY_WORKER,
	/* IORING_OP_SENDMSG_ZC, until the buffers are given back */
	LAB_REQUEST_WITHOUT_COPY,
};

/* One request. The result, or a negative errno value */
long lab_ring_sendmsg(struct lab_ring *ring, int socket, enum lab_request request,
		      const struct lab_message *message);

/* One request that may wait for its message until it is asked for, 10 seconds at most. The
 * message stays where it is until then. 0 or the result, or a negative errno value
 */
long lab_ring_begin_recvmsg(struct lab_ring *ring, int socket, enum lab_request request,
			    struct lab_message *message);
long lab_ring_end_recvmsg(struct lab_ring *ring);

/* One request that receives the messages that are there, `count` at most
 * (IORING_RECV_MULTISHOT). All have as much room for control data as the first. How many
 * came, or a negative errno value
 */
long lab_ring_recvmsg_many(struct lab_ring *ring, int socket, struct lab_message *messages,
			   unsigned int count);

/* SOCKET_URING_OP_SETSOCKOPT; for getsockopt() there is no such request at other levels than
 * SOL_SOCKET. 0 or a negative errno value
 */
long lab_ring_setsockopt(struct lab_ring *ring, int socket, int level, int name,
			 const void *value, unsigned int length);

/* A process that has what this one has open, and does nothing until it is killed. Its
 * number, or a negative errno value
 */
int lab_fork_idle(void);

/* What lab_connect_many() does, and what came of it. Traits are expected to be those of
 * syn.bpf.c.
 */
struct lab_handshakes {
	/* Listens, without waiting; from outside of this thread's network namespace */
	int listener;
	/* Where to, and where from in turn: struct sockaddr_in or sockaddr_in6 */
	const void *to;
	const void *from;
	unsigned int from_count;
	unsigned int address_length;
	/* Keys of 4, 8 and 16 bytes */
	unsigned int keys[3];
	/* How many connections, how many of them at a time, and how many SYNs of
	 * nobody go before each time
	 */
	unsigned int count;
	unsigned int together;
	unsigned int flood;

	/* Accepted, with the traits of their SYN, with those of their
	 * acknowledgment, without any, and with others
	 */
	unsigned int of_syn;
	unsigned int of_acknowledgment;
	unsigned int of_nothing;
	unsigned int wrong;
	/* What went wrong */
	const char *failed;
};

/* Connects, and looks at the traits that were kept for each socket that is accepted. 0 or an
 * errno value
 */
int lab_connect_many(struct lab_handshakes *handshakes);

#endif /* CNETWORKLAB_H */
