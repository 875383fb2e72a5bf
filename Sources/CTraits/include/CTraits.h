/* SPDX-License-Identifier: MIT */
/*
 * The kernel's interface for packet traits, and what Swift cannot import of the
 * C library: the function-like macros of <sys/socket.h> for control messages,
 * and what is declared for _GNU_SOURCE alone or in headers that Swift's module
 * of the C library lacks.
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
#include <stdint.h>

#include <linux/traits.h>
#include <linux/traits_netlink.h>

/* Length of a control message with padding: the distance to the next one */
size_t ctraits_cmsg_align(size_t length);

/* What a message with `length` bytes of data takes up in a control buffer */
size_t ctraits_cmsg_space(size_t length);

/* What cmsg_len says of a message with `length` bytes of data */
size_t ctraits_cmsg_len(size_t length);

/* struct msghdr of recvmsg(2) */
struct ctraits_msghdr {
	void *name;
	uint32_t name_length;
	void *vector;			/* struct iovec */
	size_t vector_length;
	void *control;
	size_t control_length;
	int32_t flags;
};

/* struct mmsghdr of recvmmsg(2) */
struct ctraits_mmsghdr {
	struct ctraits_msghdr header;
	uint32_t length;
};

/* recvmmsg(2), waiting for the first message and for no other (MSG_WAITFORONE);
 * the number of messages, or -1 and errno
 */
int ctraits_recvmmsg(int socket, struct ctraits_mmsghdr *messages, unsigned int count, int flags);

/* sendmmsg(2); the number of messages, or -1 and errno */
int ctraits_sendmmsg(int socket, struct ctraits_mmsghdr *messages, unsigned int count, int flags);

/* accept4(2), close-on-exec; a descriptor, or -1 and errno. `address` is room for a
 * struct sockaddr, `length` how many bytes it has, and then how many the address has.
 */
int ctraits_accept(int socket, void *address, uint32_t *length);

/* POLLRDHUP of poll(2): nothing can be received any more, but what is there */
#define CTRAITS_POLLRDHUP 0x2000

/* When epoll(7) is to tell that there is what is waited for, or an error */
enum ctraits_readiness {
	/* Now or next, once: EPOLLONESHOT */
	CTRAITS_READINESS_ONCE,
	/* Now, and at each change: EPOLLET */
	CTRAITS_READINESS_CHANGES,
};

/* epoll_create1(2), close-on-exec; a descriptor, or -1 and errno */
int ctraits_epoll_create(void);

/* epoll_ctl(2): watches a socket from now on, or in another way than before, for
 * these events of poll(2), and for POLLERR and POLLHUP in any case. What is told
 * bears this token. 0, or -1 and errno.
 */
int ctraits_epoll_watch(int epoll, int socket, uint64_t token, uint32_t events,
			enum ctraits_readiness readiness);

/* epoll_ctl(2): watches it no more; 0, or -1 and errno */
int ctraits_epoll_forget(int epoll, int socket);

/* epoll_wait(2), for as long as it takes; the number of tokens, at most `count`
 * and 64, or -1 and errno
 */
int ctraits_epoll_wait(int epoll, uint64_t *tokens, int count);

/* prctl(PR_SET_NAME): names this thread, by at most 15 characters */
void ctraits_name_thread(const char *name);

#endif /* CTRAITS_H */
