// SPDX-License-Identifier: Apache-2.0
/*
 * merge OBJECT SENDER RECEIVER INTERFACE ADDRESS KEY: what it costs that GRO has to merge
 * the traits of datagrams, in ticks of the time stamp counter (see traffic.c).
 *
 * SENDER and RECEIVER are network namespaces, INTERFACE the veth at which the latter has
 * ADDRESS. OBJECT is table.bpf.o, which sets the trait KEY, of 8 bytes, there, or only
 * looks at the packets. A send is SEGMENTS datagrams, which GRO joins to one again.
 *
 * Prints a line for each variant: name, datagrams, ticks a datagram (the median of CHUNKS
 * measurements), how many datagrams a send became. The variants take turns.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <error.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <x86intrin.h>

#ifndef UDP_GRO
#define UDP_GRO		104
#endif

#define CHUNKS		60
#define ROUNDS		4
#define WARM_UP		20
#define SEGMENTS	40
#define LENGTH		100
#define PORT		4251

/* As in table.bpf.c */
struct table {
	uint32_t port, kind, rows, removes;
	struct {
		uint32_t id, size;
	} keys[16];
	struct {
		uint8_t is_set[16];
		uint8_t values[16][16];
	} cells[32];
};

static const struct variant {
	const char *name;
	uint32_t rows;
	bool is_set, differs, removes;
} variants[] = {
	{ "without", 1, false, false },
	{ "removed", 1, true, false, true },
	{ "equal", 1, true, false },
	{ "different", 2, true, true },
};

#define VARIANTS (sizeof(variants) / sizeof(variants[0]))

struct measurement {
	struct bpf_object *object;
	uint64_t ticks[CHUNKS];
	long received;
};

static void enter(const char *namespace)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/run/netns/%s", namespace);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || setns(fd, CLONE_NEWNET))
		error(1, errno, "network namespace %s", path);
	close(fd);
}

static struct bpf_object *load(const char *path, const struct variant *variant, uint32_t key)
{
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_map *map;
	struct table table = { .port = PORT, .rows = variant->rows, .removes = variant->removes };

	if (!object)
		error(1, errno, "%s", path);
	table.keys[0].id = key;
	table.keys[0].size = 8;
	for (uint32_t row = 0; row < variant->rows; row++) {
		table.cells[row].is_set[0] = variant->is_set;
		memset(table.cells[row].values[0], variant->differs ? 1 + row : 1, 8);
	}
	map = bpf_object__find_map_by_name(object, ".rodata.table");
	if (!map || bpf_map__set_initial_value(map, &table, sizeof(table)))
		error(1, errno, "%s: the table does not fit", path);
	if (bpf_object__load(object))
		error(1, errno, "%s", path);
	return object;
}

static void attach(int interface, struct bpf_object *object)
{
	struct bpf_program *program = bpf_object__next_program(object, NULL);

	if (bpf_xdp_attach(interface, bpf_program__fd(program), XDP_FLAGS_DRV_MODE, NULL))
		error(1, errno, "the program cannot be attached");
}

static long pass(int from, int to)
{
	static char out[SEGMENTS * LENGTH], in[SEGMENTS * LENGTH];
	ssize_t length, left = sizeof(out);
	long count = 0;

	if (send(from, out, sizeof(out), 0) != sizeof(out))
		error(1, errno, "send");
	for (; left > 0; left -= length, count++) {
		length = recv(to, in, sizeof(in), 0);
		if (length <= 0)
			error(1, errno, "a datagram did not come");
	}
	return count;
}

static int ascending(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	struct measurement measurements[VARIANTS] = {};
	struct timeval second = { .tv_sec = 5 };
	int from, to, interface, one = 1, segment = LENGTH;
	size_t i, chunk, round;

	if (argc != 7)
		error(2, 0, "usage: merge OBJECT SENDER RECEIVER INTERFACE ADDRESS KEY");
	if (inet_pton(AF_INET, argv[5], &address.sin_addr) != 1)
		error(2, 0, "%s is no IPv4 address", argv[5]);

	enter(argv[2]);
	from = socket(AF_INET, SOCK_DGRAM, 0);
	if (from < 0 || connect(from, (void *)&address, sizeof(address)) ||
	    setsockopt(from, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)))
		error(1, errno, "connect to %s", argv[5]);
	enter(argv[3]);
	interface = if_nametoindex(argv[4]);
	if (!interface)
		error(1, errno, "%s", argv[4]);
	to = socket(AF_INET, SOCK_DGRAM, 0);
	if (to < 0 || bind(to, (void *)&address, sizeof(address)) ||
	    setsockopt(to, IPPROTO_UDP, UDP_GRO, &one, sizeof(one)) ||
	    setsockopt(to, SOL_SOCKET, SO_RCVTIMEO, &second, sizeof(second)))
		error(1, errno, "bind to %s", argv[5]);

	for (i = 0; i < VARIANTS; i++)
		measurements[i].object = load(argv[1], &variants[i], strtoul(argv[6], NULL, 10));
	for (chunk = 0; chunk < CHUNKS; chunk++) {
		for (i = 0; i < VARIANTS; i++) {
			uint64_t begin;

			/* In place of the other one */
			attach(interface, measurements[i].object);
			for (round = 0; round < WARM_UP; round++)
				pass(from, to);
			begin = __rdtsc();
			for (round = 0; round < ROUNDS; round++)
				measurements[i].received += pass(from, to);
			measurements[i].ticks[chunk] = __rdtsc() - begin;
		}
	}
	for (i = 0; i < VARIANTS; i++) {
		struct measurement *m = &measurements[i];

		qsort(m->ticks, CHUNKS, sizeof(m->ticks[0]), ascending);
		printf("%s\t%d\t%.2f\t%.2f\n", variants[i].name, CHUNKS * ROUNDS * SEGMENTS,
		       (m->ticks[CHUNKS / 2 - 1] + m->ticks[CHUNKS / 2]) / 2.0 / ROUNDS / SEGMENTS,
		       (double)m->received / CHUNKS / ROUNDS);
	}
	return 0;
}
