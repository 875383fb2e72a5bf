// SPDX-License-Identifier: MIT
/*
 * Many TCP connections, each told apart by the traits that were kept of its SYN, and SYNs of
 * nobody between them.
 */
#define _GNU_SOURCE
#include "CNetworkLab.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* <linux/traits.h>, which this module does not have */
#define SOL_TRAITS	288
#define TRAITS_SYN	4

struct record {
	uint32_t key;
	uint16_t len;
	uint16_t flags;
	uint8_t value[16];
};

#define TOGETHER_MOST	256
#define SECONDS_MOST	30

/* As syn.bpf.c has them */
enum segment { SYN = 1, OTHER = 2 };

static uint64_t mix(uint64_t sum, uint64_t number)
{
	return (sum ^ number) * 0x9e3779b97f4a7c15ULL;
}

/* Are these the values of a segment of this peer's? */
static int are_of(const struct lab_handshakes *handshakes, const struct record *records,
		  const struct sockaddr_storage *peer, enum segment segment)
{
	uint32_t address[4] = {}, value4;
	uint64_t value8;
	uint16_t port;
	int i, good = 0;

	if (peer->ss_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)peer;

		address[2] = htonl(0xffff);
		address[3] = in->sin_addr.s_addr;
		port = ntohs(in->sin_port);
	} else {
		const struct sockaddr_in6 *in6 = (const void *)peer;

		memcpy(address, &in6->sin6_addr, sizeof(address));
		port = ntohs(in6->sin6_port);
	}
	value4 = (uint32_t)port << 16 | segment;
	value8 = mix(mix(mix(value4, address[1]), address[2]), address[3]);

	for (i = 0; i < 3; i++) {
		const struct record *record = &records[i];

		if (record->key == handshakes->keys[0])
			good += record->len == 4 && !memcmp(record->value, &value4, 4);
		else if (record->key == handshakes->keys[1])
			good += record->len == 8 && !memcmp(record->value, &value8, 8);
		else if (record->key == handshakes->keys[2])
			good += record->len == 16 && !memcmp(record->value, address, 16);
	}
	return good == 3;
}

static int look_at(struct lab_handshakes *handshakes, int accepted, const struct sockaddr_storage *peer)
{
	struct record records[64];
	socklen_t length = sizeof(records);

	if (getsockopt(accepted, SOL_TRAITS, TRAITS_SYN, records, &length)) {
		handshakes->failed = "getsockopt";
		return errno;
	}
	if (!length)
		handshakes->of_nothing++;
	else if (length == 3 * sizeof(*records) && are_of(handshakes, records, peer, SYN))
		handshakes->of_syn++;
	else if (length == 3 * sizeof(*records) && are_of(handshakes, records, peer, OTHER))
		handshakes->of_acknowledgment++;
	else
		handshakes->wrong++;
	return 0;
}

/* A connection that ends at once, and leaves nothing behind */
static void abandon(int fd)
{
	struct linger off = { .l_onoff = 1 };

	setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off));
	close(fd);
}

static uint16_t checksum(const void *data, size_t length, uint32_t sum)
{
	const uint16_t *words = data;

	for (; length > 1; length -= 2)
		sum += *words++;
	while (sum >> 16)
		sum = (sum >> 16) + (sum & 0xffff);
	return ~sum;
}

/* What a TCP checksum covers beside the segment, in one order for both versions of IP */
struct pseudo {
	uint8_t from[16];
	uint8_t to[16];
	uint16_t protocol;
	uint16_t length;
	struct tcphdr tcp;
};

/* A SYN from somewhere in 10.99.0.0/16 or fd99::/64, where nobody is */
static int send_syn_of_nobody(int raw, const struct lab_handshakes *handshakes, uint32_t number)
{
	const struct sockaddr_in *to4 = handshakes->to;
	const struct sockaddr_in6 *to6 = handshakes->to;
	int is4 = to4->sin_family == AF_INET;
	struct pseudo pseudo = {
		.protocol = htons(IPPROTO_TCP),
		.length = htons(sizeof(struct tcphdr)),
		.tcp = {
			.source = htons(1024 + number % 60000),
			.seq = htonl(number * 0x9e3779b1U),
			.doff = sizeof(struct tcphdr) / 4,
			.syn = 1,
			.window = htons(65535),
		},
	};
	uint32_t host = htonl(0x0a630000 | (1 + number * 7 % 65000));
	struct {
		union {
			struct iphdr ip4;
			struct ip6_hdr ip6;
		};
		struct tcphdr room;
	} packet = {};
	struct sockaddr_in6 there6 = { .sin6_family = AF_INET6 };
	struct sockaddr_in there4 = { .sin_family = AF_INET };
	size_t header = is4 ? sizeof(packet.ip4) : sizeof(packet.ip6);

	if (is4) {
		memcpy(pseudo.from, &host, 4);
		memcpy(pseudo.to, &to4->sin_addr, 4);
		packet.ip4.version = 4;
		packet.ip4.ihl = 5;
		packet.ip4.ttl = 64;
		packet.ip4.protocol = IPPROTO_TCP;
		packet.ip4.saddr = host;
		packet.ip4.daddr = to4->sin_addr.s_addr;
		there4.sin_addr = to4->sin_addr;
		pseudo.tcp.dest = to4->sin_port;
	} else {
		pseudo.from[0] = 0xfd;
		pseudo.from[1] = 0x99;
		memcpy(pseudo.from + 12, &host, 4);
		memcpy(pseudo.to, &to6->sin6_addr, 16);
		packet.ip6.ip6_flow = htonl(6U << 28);
		packet.ip6.ip6_plen = htons(sizeof(struct tcphdr));
		packet.ip6.ip6_nxt = IPPROTO_TCP;
		packet.ip6.ip6_hlim = 64;
		memcpy(&packet.ip6.ip6_src, pseudo.from, 16);
		packet.ip6.ip6_dst = to6->sin6_addr;
		there6.sin6_addr = to6->sin6_addr;
		pseudo.tcp.dest = to6->sin6_port;
	}
	pseudo.tcp.check = checksum(&pseudo, sizeof(pseudo), 0);
	memcpy((uint8_t *)&packet + header, &pseudo.tcp, sizeof(pseudo.tcp));

	if (sendto(raw, &packet, header + sizeof(pseudo.tcp), 0,
		   is4 ? (void *)&there4 : (void *)&there6, is4 ? sizeof(there4) : sizeof(there6)) < 0)
		return errno;
	return 0;
}

static int connect_some(struct lab_handshakes *handshakes, int *ends, unsigned int count, unsigned int done)
{
	const struct sockaddr *to = handshakes->to;
	unsigned int i;

	for (i = 0; i < count; i++) {
		const uint8_t *from = handshakes->from;
		int yes = 1;

		from += (done + i) % handshakes->from_count * handshakes->address_length;
		ends[i] = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		if (ends[i] < 0) {
			handshakes->failed = "socket";
			return errno;
		}
		/* The port may be that of a connection from another address */
		setsockopt(ends[i], IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof(yes));
		if (bind(ends[i], (const void *)from, handshakes->address_length)) {
			handshakes->failed = "bind";
			return errno;
		}
		if (connect(ends[i], to, handshakes->address_length) && errno != EINPROGRESS) {
			handshakes->failed = "connect";
			return errno;
		}
	}
	return 0;
}

static int accept_some(struct lab_handshakes *handshakes, unsigned int count)
{
	struct pollfd waiting = { .fd = handshakes->listener, .events = POLLIN };
	struct sockaddr_storage peer;

	while (count) {
		socklen_t length = sizeof(peer);
		int accepted = accept4(handshakes->listener, (void *)&peer, &length, SOCK_CLOEXEC);
		int error;

		if (accepted < 0) {
			handshakes->failed = "accept";
			if (errno != EAGAIN)
				return errno;
			if (poll(&waiting, 1, SECONDS_MOST * 1000) <= 0)
				return ETIMEDOUT;
			continue;
		}
		error = look_at(handshakes, accepted, &peer);
		abandon(accepted);
		if (error)
			return error;
		count--;
	}
	return 0;
}

int lab_connect_many(struct lab_handshakes *handshakes)
{
	const struct sockaddr *to = handshakes->to;
	int ends[TOGETHER_MOST], raw = -1, error = 0;
	unsigned int i, done = 0, sent = 0;

	if (!handshakes->together || handshakes->together > TOGETHER_MOST || !handshakes->from_count)
		return EINVAL;
	if (handshakes->flood) {
		raw = socket(to->sa_family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
		if (raw < 0) {
			handshakes->failed = "raw socket";
			return errno;
		}
	}
	while (done < handshakes->count && !error) {
		unsigned int count = handshakes->count - done;

		if (count > handshakes->together)
			count = handshakes->together;
		for (i = 0; i < handshakes->flood && !error; i++) {
			handshakes->failed = "SYN of nobody";
			error = send_syn_of_nobody(raw, handshakes, sent++);
		}
		for (i = 0; i < count; i++)
			ends[i] = -1;
		if (!error)
			error = connect_some(handshakes, ends, count, done);
		if (!error)
			error = accept_some(handshakes, count);
		for (i = 0; i < count; i++) {
			if (ends[i] >= 0)
				abandon(ends[i]);
		}
		done += count;
	}
	if (raw >= 0)
		close(raw);
	return error;
}
