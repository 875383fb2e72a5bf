// SPDX-License-Identifier: MIT
#define _GNU_SOURCE
#include "CTraits.h"

#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>

size_t ctraits_cmsg_align(size_t length)
{
	return CMSG_ALIGN(length);
}

size_t ctraits_cmsg_space(size_t length)
{
	return CMSG_SPACE(length);
}

size_t ctraits_cmsg_len(size_t length)
{
	return CMSG_LEN(length);
}

int ctraits_recvmmsg(int socket, struct ctraits_mmsghdr *messages, unsigned int count, int flags)
{
	/* Without a time-out: the kernel looks at that after each message only */
	return recvmmsg(socket, (struct mmsghdr *)messages, count, flags | MSG_WAITFORONE, NULL);
}

int ctraits_sendmmsg(int socket, struct ctraits_mmsghdr *messages, unsigned int count, int flags)
{
	return sendmmsg(socket, (struct mmsghdr *)messages, count, flags);
}

int ctraits_accept(int socket, void *address, uint32_t *length)
{
	return accept4(socket, address, length, SOCK_CLOEXEC);
}

int ctraits_epoll_create(void)
{
	return epoll_create1(EPOLL_CLOEXEC);
}

int ctraits_epoll_watch(int epoll, int socket, uint64_t token, uint32_t events,
			enum ctraits_readiness readiness)
{
	struct epoll_event event = {
		.events = events | (readiness == CTRAITS_READINESS_ONCE ? EPOLLONESHOT : EPOLLET),
		.data.u64 = token,
	};

	if (!epoll_ctl(epoll, EPOLL_CTL_MOD, socket, &event))
		return 0;
	return errno == ENOENT ? epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &event) : -1;
}

int ctraits_epoll_forget(int epoll, int socket)
{
	return epoll_ctl(epoll, EPOLL_CTL_DEL, socket, NULL);
}

int ctraits_epoll_wait(int epoll, uint64_t *tokens, int count)
{
	struct epoll_event events[64];
	int i, got;

	if (count > 64)
		count = 64;
	got = epoll_wait(epoll, events, count, -1);
	for (i = 0; i < got; i++)
		tokens[i] = events[i].data.u64;
	return got;
}

void ctraits_name_thread(const char *name)
{
	prctl(PR_SET_NAME, name);
}

/* The layout that the Swift sources take for granted */

_Static_assert(sizeof(struct trait) == 24, "a record is 24 bytes");
_Static_assert(_Alignof(struct trait) == 4, "a record needs 4-byte alignment at most");
_Static_assert(offsetof(struct trait, key) == 0, "key");
_Static_assert(offsetof(struct trait, len) == 4, "len");
_Static_assert(offsetof(struct trait, flags) == 6, "flags");
_Static_assert(offsetof(struct trait, value) == 8, "value");
_Static_assert(sizeof(((struct trait *)0)->value) == TRAITS_VALUE_MAX, "value");
_Static_assert(TRAITS_VALUE_MAX == 16, "largest value");
_Static_assert(TRAITS_KEYS_MAX == 64, "a mask is 64 bits");
_Static_assert(TRAITS_NAME_MAX == 31, "longest name");
_Static_assert(SOL_TRAITS == 288 && TRAITS_RECV == 1 && TRAITS_SEND == 2 && TRAITS_SAVE_SYN == 3 &&
	       TRAITS_SYN == 4 && SCM_TRAITS == 1,
	       "numbers that are part of the kernel's ABI");
_Static_assert(TRAITS_FAMILY_VERSION == 1, "the version that is spoken here");

_Static_assert(offsetof(struct cmsghdr, cmsg_len) == 0, "cmsg_len");
_Static_assert(offsetof(struct cmsghdr, cmsg_level) == sizeof(size_t), "cmsg_level");
_Static_assert(offsetof(struct cmsghdr, cmsg_type) == sizeof(size_t) + 4, "cmsg_type");
_Static_assert(sizeof(((struct cmsghdr *)0)->cmsg_len) == sizeof(size_t), "cmsg_len");

_Static_assert(sizeof(socklen_t) == sizeof(uint32_t), "socklen_t");

_Static_assert(CTRAITS_POLLRDHUP == POLLRDHUP, "POLLRDHUP");
_Static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT && EPOLLRDHUP == POLLRDHUP,
	       "epoll(7) has the numbers of poll(2)");

#define SAME_PLACE(ours, field, theirs, their_field)				\
	_Static_assert(offsetof(ours, field) == offsetof(theirs, their_field) &&	\
		       sizeof(((ours *)0)->field) == sizeof(((theirs *)0)->their_field),	\
		       #their_field)

SAME_PLACE(struct ctraits_msghdr, name, struct msghdr, msg_name);
SAME_PLACE(struct ctraits_msghdr, name_length, struct msghdr, msg_namelen);
SAME_PLACE(struct ctraits_msghdr, vector, struct msghdr, msg_iov);
SAME_PLACE(struct ctraits_msghdr, vector_length, struct msghdr, msg_iovlen);
SAME_PLACE(struct ctraits_msghdr, control, struct msghdr, msg_control);
SAME_PLACE(struct ctraits_msghdr, control_length, struct msghdr, msg_controllen);
SAME_PLACE(struct ctraits_msghdr, flags, struct msghdr, msg_flags);
SAME_PLACE(struct ctraits_mmsghdr, header, struct mmsghdr, msg_hdr);
SAME_PLACE(struct ctraits_mmsghdr, length, struct mmsghdr, msg_len);
_Static_assert(sizeof(struct ctraits_mmsghdr) == sizeof(struct mmsghdr), "an array of them");
