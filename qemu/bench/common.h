/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs share that measure in the guest: network namespaces, pairs of sockets, and
 * lines of variants that take turns.
 */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <linux/tcp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <x86intrin.h>

/* How often each variant has its turn */
#define TURNS	60

struct scenario {
	const char *name;
	int type;
	const char *address;	/* where the receiver is */
	const char *sender;	/* network namespaces, NULL for the current one */
	const char *receiver;
};

/* NULL: back to where the program began */
static inline void enter(const char *namespace)
{
	char path[64] = "/proc/self/ns/net";
	static int original = -1;
	int fd;

	if (original < 0) {
		original = open(path, O_RDONLY | O_CLOEXEC);
		if (original < 0)
			error(1, errno, "%s", path);
	}
	if (!namespace) {
		if (setns(original, CLONE_NEWNET))
			error(1, errno, "back to the first network namespace");
		return;
	}
	snprintf(path, sizeof(path), "/run/netns/%s", namespace);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		error(1, errno, "network namespace %s", path);
	close(fd);
}

static inline socklen_t parse(const char *text, uint16_t port, struct sockaddr_storage *address)
{
	struct sockaddr_in6 *in6 = (void *)address;
	struct sockaddr_in *in = (void *)address;

	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET, text, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		in->sin_port = htons(port);
		return sizeof(*in);
	}
	if (inet_pton(AF_INET6, text, &in6->sin6_addr) != 1)
		error(1, 0, "%s is no address", text);
	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(port);
	return sizeof(*in6);
}

/* A packet that does not come must not hang the run */
static inline void limit(int fd)
{
	struct timeval second = { .tv_sec = 5 };

	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second)))
		error(1, errno, "SO_RCVTIMEO");
}

/* A pair of sockets: what is sent on the first is received on the second */
static inline void connect_pair(const struct scenario *scenario, uint16_t port, int pair[2])
{
	struct sockaddr_storage address;
	socklen_t length = parse(scenario->address, port, &address);
	int one = 1;

	enter(scenario->receiver);
	pair[1] = socket(address.ss_family, scenario->type, 0);
	if (pair[1] < 0 ||
	    setsockopt(pair[1], SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ||
	    bind(pair[1], (void *)&address, length))
		error(1, errno, "%s: bind to %s", scenario->name, scenario->address);
	if (scenario->type == SOCK_STREAM && listen(pair[1], 1))
		error(1, errno, "%s: listen", scenario->name);

	enter(scenario->sender);
	pair[0] = socket(address.ss_family, scenario->type, 0);
	if (pair[0] < 0 || connect(pair[0], (void *)&address, length))
		error(1, errno, "%s: connect to %s", scenario->name, scenario->address);
	enter(NULL);

	if (scenario->type == SOCK_STREAM) {
		int listener = pair[1];

		pair[1] = accept(listener, NULL, NULL);
		if (pair[1] < 0)
			error(1, errno, "%s: accept", scenario->name);
		close(listener);
		setsockopt(pair[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		setsockopt(pair[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	}
	limit(pair[0]);
	limit(pair[1]);
}

/* One measurement, for turns.awk: @packets took so many @ticks, and had @each of something that
 * tells variants apart
 */
static inline void print_turn(unsigned int turn, const char *scenario, const char *variant, long packets,
			      uint64_t ticks, double each)
{
	printf("%u\t%s\t%s\t%ld\t%.2f\t%.2f\n", turn, scenario, variant, packets, (double)ticks / packets, each);
	if (ferror(stdout))
		error(1, errno, "the measurements cannot be written");
}

#endif
