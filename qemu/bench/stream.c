// SPDX-License-Identifier: Apache-2.0
/*
 * stream SCENARIO KEYS: what it costs that the segments of a TCP stream have traits, in ticks of
 * the time stamp counter (see traffic.c).
 *
 * KEYS are the numbers of as many keys of 16 bytes as a store has room for, between commas. Each
 * variant has a connection of its own on the loopback device. Both ends have its sticky traits, so
 * acknowledgments have them too. In all variants the readers have room for control messages.
 *
 *   small-ipv4, small-ipv6   writes of 64 bytes, there and back: each is a segment that acknowledges
 *                            the one before
 *   together, apart          writes of WRITE full segments, in one direction. Whether they go through
 *                            the stack as one or one by one is up to the device, and to be seen to.
 *
 * The variants take turns. Prints a line for each turn (see print_turn()), with how many traits a
 * read delivered. Variants whose calls the kernel does not have are left out.
 */
#define _GNU_SOURCE
#include <linux/traits.h>
#include <stdbool.h>
#include <stdlib.h>

#include "common.h"

#define SMALL	64
#define ROUNDS	20
#define WARM_UP	5
#define PORT	4252
/* So many that they fit into the window that a connection begins with */
#define WRITE	8
#define KEYS	12
#define ROOM	CMSG_SPACE(TRAITS_KEYS_MAX * sizeof(struct trait))

static const struct scenario scenarios[] = {
	{ "small-ipv4", SOCK_STREAM, "127.0.0.1" },
	{ "small-ipv6", SOCK_STREAM, "::1" },
	{ "together", SOCK_STREAM, "127.0.0.1" },
	{ "apart", SOCK_STREAM, "127.0.0.1" },
};

#define SCENARIOS (sizeof(scenarios) / sizeof(scenarios[0]))

static bool is_bulk(const struct scenario *scenario)
{
	return scenario >= &scenarios[2];
}

/* How many traits are sticky, how many each write has of its own, and are they read? */
static const struct variant {
	const char *name;
	unsigned int sticky, own;
	bool reads;
} variants[] = {
	{ "without", 0, 0, false },
	{ "one", 1, 0, false },
	{ "full", KEYS, 0, false },
	{ "one-read", 1, 0, true },
	{ "full-read", KEYS, 0, true },
	{ "own-read", 0, 1, true },
};

#define VARIANTS (sizeof(variants) / sizeof(variants[0]))

static struct connection {
	int ends[2];
	bool exists;
	unsigned int own;
	/* What was read, since somebody set it to 0 */
	long reads, traits;
} connections[VARIANTS];

static struct trait records[KEYS];
static char payload[65536], incoming[65536];

static void read_keys(char *text)
{
	unsigned int i;

	for (i = 0; i < KEYS; i++) {
		char *word = strtok(i ? NULL : text, ",");

		if (!word)
			error(2, 0, "%u keys are needed, not %u", KEYS, i);
		records[i].key = strtoul(word, NULL, 10);
		records[i].len = sizeof(records[i].value);
		memset(records[i].value, 1 + i, sizeof(records[i].value));
	}
}

static void send_all(struct connection *connection, int fd, size_t length)
{
	size_t own = connection->own * sizeof(records[0]);
	char control[CMSG_SPACE(sizeof(records))] = {};
	struct cmsghdr header = { .cmsg_len = CMSG_LEN(own), .cmsg_level = SOL_TRAITS, .cmsg_type = SCM_TRAITS };
	struct iovec vector = { payload, length };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1 };

	if (own) {
		memcpy(control, &header, sizeof(header));
		memcpy(control + CMSG_LEN(0), records, own);
		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(own);
	}
	if (sendmsg(fd, &message, 0) != (ssize_t)length)
		error(1, errno, "sendmsg");
}

static void receive_all(struct connection *connection, int fd, size_t length)
{
	static char control[ROOM];
	struct iovec vector = { incoming, length };
	struct cmsghdr *header;

	while (vector.iov_len) {
		struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = control,
					  .msg_controllen = sizeof(control) };
		ssize_t count = recvmsg(fd, &message, 0);

		if (count <= 0)
			error(1, errno, "a segment did not come");
		vector.iov_len -= count;
		connection->reads++;
		for (header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
			if (header->cmsg_level == SOL_TRAITS)
				connection->traits += (header->cmsg_len - CMSG_LEN(0)) / sizeof(struct trait);
		}
	}
}

/* Does the kernel have what this takes? If so, what the variant asks for is set. */
static bool set_up(struct connection *connection, const struct variant *variant)
{
	char control[CMSG_SPACE(sizeof(records[0]))] = {};
	struct cmsghdr header = { .cmsg_len = CMSG_LEN(sizeof(records[0])), .cmsg_level = SOL_TRAITS,
				  .cmsg_type = SCM_TRAITS };
	struct msghdr message = { .msg_control = control, .msg_controllen = sizeof(control) };
	uint64_t mask = 0;
	unsigned int i;

	for (i = 0; i < KEYS; i++)
		mask |= 1ULL << records[i].key;
	for (i = 0; i < 2; i++) {
		int fd = connection->ends[i];

		if (variant->sticky &&
		    setsockopt(fd, SOL_TRAITS, TRAITS_SEND, records, variant->sticky * sizeof(records[0])))
			error(1, errno, "TRAITS_SEND");
		if (variant->reads && setsockopt(fd, SOL_TRAITS, TRAITS_RECV, &mask, sizeof(mask))) {
			if (errno != EOPNOTSUPP)
				error(1, errno, "TRAITS_RECV");
			return false;
		}
		memcpy(control, &header, sizeof(header));
		memcpy(control + CMSG_LEN(0), records, sizeof(records[0]));
		/* Nothing is written, but the message is looked at */
		if (variant->own && sendmsg(fd, &message, 0)) {
			if (errno != EINVAL && errno != EOPNOTSUPP)
				error(1, errno, "SCM_TRAITS");
			return false;
		}
	}
	connection->own = variant->own;
	return true;
}

/* Segments with data, each for itself, however many went through the stack as one */
static long segments_of(int fd)
{
	struct tcp_info info;
	socklen_t length = sizeof(info);

	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length))
		error(1, errno, "TCP_INFO");
	return info.tcpi_data_segs_out;
}

static void round_of(const struct scenario *scenario, struct connection *connection, size_t length)
{
	send_all(connection, connection->ends[0], length);
	receive_all(connection, connection->ends[1], length);
	if (!is_bulk(scenario)) {
		send_all(connection, connection->ends[1], length);
		receive_all(connection, connection->ends[0], length);
	}
}

static void turn_of(const struct scenario *scenario, unsigned int turn, unsigned int variant)
{
	bool bulk = is_bulk(scenario);
	struct connection *connection = &connections[variant];
	long segments, expected = ROUNDS * (bulk ? WRITE : 2);
	socklen_t option = sizeof(int);
	uint64_t begin, ticks;
	size_t length = SMALL;
	unsigned int i;
	int mss;

	if (bulk) {
		if (getsockopt(connection->ends[0], IPPROTO_TCP, TCP_MAXSEG, &mss, &option))
			error(1, errno, "TCP_MAXSEG");
		length = (size_t)mss * WRITE;
		if (length > sizeof(payload))
			error(1, 0, "segments of %d bytes: the device's MTU is too large", mss);
	}
	for (i = 0; i < WARM_UP; i++)
		round_of(scenario, connection, length);
	connection->reads = connection->traits = 0;
	segments = segments_of(connection->ends[0]) + segments_of(connection->ends[1]);
	begin = __rdtsc();
	for (i = 0; i < ROUNDS; i++)
		round_of(scenario, connection, length);
	ticks = __rdtsc() - begin;
	segments = segments_of(connection->ends[0]) + segments_of(connection->ends[1]) - segments;
	/* One that is sent again does no harm, a few would */
	if (segments < expected || segments > expected + expected / 20)
		error(1, 0, "%s, %s: %ld segments instead of %ld", scenario->name, variants[variant].name, segments,
		      expected);
	print_turn(turn, scenario->name, variants[variant].name, expected, ticks,
		   (double)connection->traits / connection->reads);
}

int main(int argc, char **argv)
{
	const struct scenario *scenario = NULL;
	unsigned int turn, i;

	if (argc != 3)
		error(2, 0, "usage: stream SCENARIO KEYS");
	for (i = 0; i < SCENARIOS; i++) {
		if (!strcmp(argv[1], scenarios[i].name))
			scenario = &scenarios[i];
	}
	if (!scenario)
		error(64, 0, "there is no scenario '%s'", argv[1]);
	read_keys(argv[2]);

	for (i = 0; i < VARIANTS; i++) {
		connect_pair(scenario, PORT, connections[i].ends);
		connections[i].exists = set_up(&connections[i], &variants[i]);
	}
	for (turn = 1; turn <= TURNS; turn++) {
		for (i = 0; i < VARIANTS; i++) {
			if (connections[i].exists)
				turn_of(scenario, turn, i);
		}
	}
	return 0;
}
