// SPDX-License-Identifier: Apache-2.0
/*
 * datagrams tag OBJECT KEYS NAMESPACE INTERFACE: attaches the XDP program of
 * qemu/bpf/tag.bpf.c, which gives each datagram that comes in there three traits.
 *
 * datagrams pass COUNT KEYS SENDER RECEIVER ADDRESS [INTERFACE]: sends datagrams from one
 * network namespace to an address in another, receives them and counts what came of
 * each. A tap on the receiver's INTERFACE makes the kernel clone every packet. Meant
 * for a kernel in which allocations fail: that datagrams are dropped is no failure
 * here, only counted.
 *
 * KEYS are three numbers with commas between, for values of 4, 8 and 16 bytes. The
 * second form prints lines "name number":
 *
 *   sent      datagrams that the kernel took
 *   refused   datagrams that it did not take for lack of memory
 *   received  different datagrams that arrived
 *   twice     datagrams that arrived again
 *   damaged   payloads that are not what was sent
 *   complete  datagrams with all traits, and the right values
 *   without   datagrams with none
 *   partial   datagrams with some
 *   wrong     values that are not what the program sets
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/traits.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define PORT		4251
#define BURST		8
#define HEADER		sizeof(uint32_t)
#define LARGEST		1400
#define MOST		100000

/* After that time without a datagram the others of a burst were dropped, and at the
 * end all that were late are there
 */
#define BURST_MS	40
#define END_MS		1000

/* As in qemu/bpf/tag.bpf.c */
struct tag_config {
	uint32_t port;
	uint32_t every;
	uint32_t keys[3];
};

static struct {
	unsigned int sent, refused, received, twice, damaged;
	unsigned int complete, without, partial, wrong;
} counts;

static uint32_t keys[3];
static bool arrived[MOST];

static void enter(const char *namespace)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", namespace);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		error(1, errno, "network namespace %s", path);
	close(fd);
}

/* In the current namespace, for as long as the interface lives */
static void attach(const char *object, const char *interface)
{
	struct tag_config config = { PORT, 1, { keys[0], keys[1], keys[2] } };
	struct bpf_program *program;
	struct bpf_object *loaded;
	struct bpf_map *map;
	unsigned int index;

	index = if_nametoindex(interface);
	if (!index)
		error(1, errno, "interface %s", interface);
	loaded = bpf_object__open_file(object, NULL);
	if (!loaded)
		error(1, errno, "%s", object);
	map = bpf_object__find_map_by_name(loaded, ".rodata.config");
	if (!map || bpf_map__set_initial_value(map, &config, sizeof(config)))
		error(1, errno, "%s has no configuration of %zu bytes", object, sizeof(config));
	if (bpf_object__load(loaded))
		error(1, errno, "%s does not load", object);
	program = bpf_object__find_program_by_name(loaded, "tag");
	if (!program || bpf_xdp_attach(index, bpf_program__fd(program), XDP_FLAGS_DRV_MODE, NULL))
		error(1, errno, "program 'tag' of %s at %s", object, interface);
}

static socklen_t parse(const char *text, struct sockaddr_storage *address)
{
	struct sockaddr_in6 *in6 = (void *)address;
	struct sockaddr_in *in = (void *)address;

	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET, text, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		in->sin_port = htons(PORT);
		return sizeof(*in);
	}
	if (inet_pton(AF_INET6, text, &in6->sin6_addr) != 1)
		error(64, 0, "%s is no address", text);
	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(PORT);
	return sizeof(*in6);
}

/* A socket that sees every packet of the interface: each is cloned for it */
static int open_tap(const char *interface)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = if_nametoindex(interface),
	};
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK, htons(ETH_P_ALL));

	if (fd < 0 || bind(fd, (void *)&address, sizeof(address)))
		error(1, errno, "tap on %s", interface);
	return fd;
}

static size_t length_of(uint32_t sequence)
{
	return HEADER + sequence * 37 % (LARGEST - HEADER);
}

static uint8_t byte_of(uint32_t sequence, size_t i)
{
	return sequence * 7 + i * 13 + i / 256;
}

static void expect(uint32_t sequence, unsigned int which, uint8_t *value)
{
	uint32_t value4 = sequence * 0x9e3779b1U;
	uint64_t value8 = (sequence + 1ULL) * 0x9e3779b97f4a7c15ULL;
	unsigned int i;

	if (which == 0)
		memcpy(value, &value4, 4);
	else if (which == 1)
		memcpy(value, &value8, 8);
	else
		for (i = 0; i < 16; i++)
			value[i] = (sequence >> 8 * (i % 4)) ^ (i * 0x11);
}

static void judge_traits(uint32_t sequence, const struct trait *traits, size_t count)
{
	static const uint16_t length[3] = { 4, 8, 16 };
	unsigned int right = 0, which;
	uint8_t value[16];
	size_t i;

	for (i = 0; i < count; i++) {
		for (which = 0; which < 3; which++)
			if (traits[i].key == keys[which])
				break;
		if (which == 3) {
			counts.wrong++;
			continue;
		}
		expect(sequence, which, value);
		if (traits[i].len != length[which] || memcmp(traits[i].value, value, length[which]))
			counts.wrong++;
		else
			right++;
	}
	if (right == 3 && count == 3)
		counts.complete++;
	else if (!count)
		counts.without++;
	else
		counts.partial++;
}

static bool receive(int fd)
{
	union {
		struct cmsghdr align;
		uint8_t bytes[CMSG_SPACE(3 * sizeof(struct trait)) + 256];
	} control;
	uint8_t payload[LARGEST + 1];
	struct iovec vector = { payload, sizeof(payload) };
	struct msghdr message = {
		.msg_iov = &vector, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct trait traits[3];
	struct cmsghdr *header;
	uint32_t sequence;
	size_t count = 0;
	ssize_t length, i;

	length = recvmsg(fd, &message, MSG_DONTWAIT);
	if (length < 0) {
		/* Also what it says about lack of memory is no end of it */
		if (errno == EAGAIN)
			return false;
		if (errno == ENOMEM || errno == ENOBUFS || errno == EINTR)
			return true;
		error(1, errno, "recvmsg");
	}
	for (header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
		if (header->cmsg_level != SOL_TRAITS || header->cmsg_type != SCM_TRAITS)
			continue;
		count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(struct trait);
		if (count > 3)
			error(1, 0, "%zu traits on one datagram, 3 keys were asked for", count);
		memcpy(traits, CMSG_DATA(header), count * sizeof(struct trait));
	}

	sequence = 0;
	if (length >= (ssize_t)HEADER)
		memcpy(&sequence, payload, HEADER);
	sequence = ntohl(sequence);
	if (length < (ssize_t)HEADER || sequence >= MOST || length != (ssize_t)length_of(sequence)) {
		counts.damaged++;
		return true;
	}
	for (i = HEADER; i < length; i++)
		if (payload[i] != byte_of(sequence, i)) {
			counts.damaged++;
			return true;
		}
	if (arrived[sequence]) {
		counts.twice++;
		return true;
	}
	arrived[sequence] = true;
	counts.received++;
	judge_traits(sequence, traits, count);
	return true;
}

/* Until so many have arrived in all, or nothing comes any more */
static void drain(int receiver, int tap, unsigned int wanted, int silence)
{
	struct pollfd ready = { .fd = receiver, .events = POLLIN };
	static uint8_t frame[2048];

	for (;;) {
		while (receive(receiver))
			;
		while (tap >= 0 && recv(tap, frame, sizeof(frame), 0) >= 0)
			;
		if (counts.received >= wanted || poll(&ready, 1, silence) == 0)
			return;
	}
}

static void transmit(int fd, uint32_t sequence)
{
	uint8_t payload[LARGEST];
	size_t length = length_of(sequence), i;
	uint32_t number = htonl(sequence);

	memcpy(payload, &number, HEADER);
	for (i = HEADER; i < length; i++)
		payload[i] = byte_of(sequence, i);
	if (send(fd, payload, length, 0) == (ssize_t)length)
		counts.sent++;
	else if (errno == ENOMEM || errno == ENOBUFS)
		counts.refused++;
	else
		error(1, errno, "send");
}

static void pass(unsigned int number, const char *from, const char *to, const char *host,
		 const char *interface)
{
	uint64_t mask = 1ULL << keys[0] | 1ULL << keys[1] | 1ULL << keys[2];
	struct sockaddr_storage address;
	int sender, receiver, tap = -1;
	unsigned int i, burst;
	socklen_t length;

	length = parse(host, &address);
	enter(to);
	receiver = socket(address.ss_family, SOCK_DGRAM, 0);
	if (receiver < 0 || bind(receiver, (void *)&address, length))
		error(1, errno, "bind to %s in %s", host, to);
	if (setsockopt(receiver, SOL_TRAITS, TRAITS_RECV, &mask, sizeof(mask)))
		error(1, errno, "asking for the keys %u, %u, %u", keys[0], keys[1], keys[2]);
	if (interface)
		tap = open_tap(interface);

	enter(from);
	sender = socket(address.ss_family, SOCK_DGRAM, 0);
	if (sender < 0)
		error(1, errno, "socket in %s", from);
	/* The route is allocated where waiting is not allowed */
	for (i = 0; connect(sender, (void *)&address, length); i++)
		if ((errno != ENOMEM && errno != ENOBUFS) || i == 1000)
			error(1, errno, "connect to %s in %s", host, from);

	for (i = 0; i < number;) {
		unsigned int wanted = counts.received, before = counts.sent;

		for (burst = 0; burst < BURST && i < number; burst++)
			transmit(sender, i++);
		wanted += counts.sent - before;
		drain(receiver, tap, wanted, BURST_MS);
	}
	drain(receiver, tap, MOST + 1, END_MS);

	printf("sent %u\nrefused %u\nreceived %u\ntwice %u\ndamaged %u\n"
	       "complete %u\nwithout %u\npartial %u\nwrong %u\n",
	       counts.sent, counts.refused, counts.received, counts.twice, counts.damaged,
	       counts.complete, counts.without, counts.partial, counts.wrong);
}

int main(int argc, char **argv)
{
	int number;

	if (argc > 3 && (sscanf(argv[3], "%u,%u,%u", &keys[0], &keys[1], &keys[2]) != 3 ||
			 keys[0] > 63 || keys[1] > 63 || keys[2] > 63))
		error(64, 0, "'%s': three keys, 0 to 63", argv[3]);
	if (argc == 6 && !strcmp(argv[1], "tag")) {
		enter(argv[4]);
		attach(argv[2], argv[5]);
	} else if ((argc == 7 || argc == 8) && !strcmp(argv[1], "pass")) {
		number = atoi(argv[2]);
		if (number < 1 || number > MOST)
			error(64, 0, "'%s': 1 to %d datagrams", argv[2], MOST);
		pass(number, argv[4], argv[5], argv[6], argv[7]);
	} else {
		error(64, 0, "usage: datagrams tag OBJECT KEYS NAMESPACE INTERFACE\n"
			     "       datagrams pass COUNT KEYS SENDER RECEIVER ADDRESS [INTERFACE]");
	}
	return 0;
}
