// SPDX-License-Identifier: MIT
/*
 * plain-server 4|6 PORT|inherited=N ROOM: a UDP server as there are many. It wants to know
 * where each datagram was sent to, its type of service and when it came; answers it from
 * there, with the same payload and type of service; and prints a line about it. It knows
 * nothing of packet traits. A datagram "quit" ends it; "hello" is answered, no more.
 *
 * ROOM is how many bytes its buffer for control messages has beyond those that it asks for.
 *
 * A line is the number of bytes of payload, a checksum of them, the flags and the length of
 * the control data as recvmsg() gave them back, the level and type of each message, the
 * address and the type of service.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

static int family;

static void turn_on(int fd, int level, int name)
{
	int on = 1;

	if (setsockopt(fd, level, name, &on, sizeof(on)))
		error(1, errno, "option %d of level %d", name, level);
}

static int listen_at(const char *port)
{
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(port)) };
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(family, SOCK_DGRAM, 0), off = 0, status;

	if (fd < 0)
		error(1, errno, "socket");
	if (family == AF_INET) {
		status = bind(fd, (struct sockaddr *)&in, sizeof(in));
	} else {
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
		status = bind(fd, (struct sockaddr *)&in6, sizeof(in6));
	}
	if (status)
		error(1, errno, "bind to port %s", port);
	return fd;
}

static unsigned int checksum(const uint8_t *bytes, ssize_t length)
{
	unsigned int sum = 5381;

	while (length-- > 0)
		sum = sum * 33 + *bytes++;
	return sum;
}

int main(int argc, char **argv)
{
	/* What is asked for below; of an IPv6 socket the type of service as well as the
	 * traffic class, of which a datagram has one
	 */
	size_t room = CMSG_SPACE(sizeof(struct timeval)) + CMSG_SPACE(sizeof(int));
	static uint8_t payload[65536];
	static union {
		struct cmsghdr header;
		uint8_t bytes[4096];
	} control, answer;
	char text[INET6_ADDRSTRLEN];
	int fd, tos;

	if (argc != 4)
		error(64, 0, "usage: plain-server 4|6 PORT|inherited=N ROOM");
	family = *argv[1] == '4' ? AF_INET : AF_INET6;
	if (sscanf(argv[2], "inherited=%d", &fd) != 1)
		fd = listen_at(argv[2]);
	if (family == AF_INET) {
		room += CMSG_SPACE(sizeof(struct in_pktinfo));
		turn_on(fd, IPPROTO_IP, IP_PKTINFO);
	} else {
		room += CMSG_SPACE(sizeof(struct in6_pktinfo));
		turn_on(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO);
		turn_on(fd, IPPROTO_IPV6, IPV6_RECVTCLASS);
	}
	turn_on(fd, IPPROTO_IP, IP_RECVTOS);
	turn_on(fd, SOL_SOCKET, SO_TIMESTAMP);
	room += atoi(argv[3]);
	if (room > sizeof(control))
		error(64, 0, "%s is too much", argv[3]);

	for (;;) {
		struct sockaddr_storage peer;
		struct iovec vector = { payload, sizeof(payload) };
		struct msghdr message = {
			.msg_name = &peer, .msg_namelen = sizeof(peer),
			.msg_iov = &vector, .msg_iovlen = 1,
			.msg_control = &control, .msg_controllen = room,
		};
		struct cmsghdr *header, *next;
		ssize_t length;

		length = recvmsg(fd, &message, 0);
		if (length < 0)
			error(1, errno, "recvmsg");
		if (length == 4 && !memcmp(payload, "quit", 4))
			return 0;
		memset(&answer, 0, sizeof(answer));
		next = &answer.header;
		tos = -1;
		strcpy(text, "-");
		if (length != 5 || memcmp(payload, "hello", 5))
			printf("%zd %08x flags %x control %zu:", length, checksum(payload, length),
			       message.msg_flags, (size_t)message.msg_controllen);
		for (header = CMSG_FIRSTHDR(&message); header;
		     header = CMSG_NXTHDR(&message, header)) {
			void *data = CMSG_DATA(header);

			if (length != 5 || memcmp(payload, "hello", 5))
				printf(" %d/%d", header->cmsg_level, header->cmsg_type);
			if (header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_PKTINFO) {
				struct in_pktinfo info = { .ipi_spec_dst = ((struct in_pktinfo *)data)->ipi_addr };

				inet_ntop(AF_INET, &info.ipi_spec_dst, text, sizeof(text));
				*next = (struct cmsghdr){ CMSG_LEN(sizeof(info)), IPPROTO_IP, IP_PKTINFO };
				memcpy(CMSG_DATA(next), &info, sizeof(info));
				next = (void *)next + CMSG_SPACE(sizeof(info));
			} else if (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_PKTINFO) {
				inet_ntop(AF_INET6, data, text, sizeof(text));
				*next = (struct cmsghdr){ CMSG_LEN(sizeof(struct in6_pktinfo)), IPPROTO_IPV6, IPV6_PKTINFO };
				memcpy(CMSG_DATA(next), data, sizeof(struct in6_pktinfo));
				next = (void *)next + CMSG_SPACE(sizeof(struct in6_pktinfo));
			} else if (header->cmsg_level == IPPROTO_IP && header->cmsg_type == IP_TOS) {
				tos = *(uint8_t *)data;
			} else if (header->cmsg_level == IPPROTO_IPV6 && header->cmsg_type == IPV6_TCLASS) {
				memcpy(&tos, data, sizeof(tos));
			}
		}
		if (length != 5 || memcmp(payload, "hello", 5)) {
			printf(" %s %d\n", text, tos);
			fflush(stdout);
		}
		if (tos >= 0) {
			int is_ipv6 = family == AF_INET6 && strncmp(text, "::ffff:", 7);

			*next = (struct cmsghdr){ CMSG_LEN(sizeof(tos)), is_ipv6 ? IPPROTO_IPV6 : IPPROTO_IP,
						  is_ipv6 ? IPV6_TCLASS : IP_TOS };
			memcpy(CMSG_DATA(next), &tos, sizeof(tos));
			next = (void *)next + CMSG_SPACE(sizeof(tos));
		}
		vector.iov_len = length;
		message.msg_control = &answer;
		message.msg_controllen = (uint8_t *)next - answer.bytes;
		message.msg_flags = 0;
		while (sendmsg(fd, &message, 0) != length)
			if (errno != ENOBUFS && errno != ENOMEM)
				error(1, errno, "sendmsg");
	}
}
