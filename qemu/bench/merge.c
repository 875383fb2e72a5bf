// SPDX-License-Identifier: Apache-2.0
/*
 * merge OBJECT SENDER RECEIVER INTERFACE ADDRESS KEY: what it costs that GRO has to merge
 * the traits of datagrams, in ticks of the time stamp counter (see traffic.c).
 *
 * SENDER and RECEIVER are network namespaces, INTERFACE the veth at which the latter has
 * ADDRESS. OBJECT is table.bpf.o, which sets the trait KEY, of 8 bytes, there, or only
 * looks at the packets. A send is SEGMENTS datagrams, which GRO joins to one again.
 *
 * The variants take turns. Prints a line for each turn (see print_turn()), with how many datagrams a
 * send became.
 */
#define _GNU_SOURCE
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <stdbool.h>
#include <stdlib.h>

#include "common.h"

#ifndef UDP_GRO
#define UDP_GRO		104
#endif

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
	uint32_t row_at;
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

int main(int argc, char **argv)
{
	struct bpf_object *objects[VARIANTS];
	int from, to, interface, one = 1, segment = LENGTH;
	struct sockaddr_storage address;
	unsigned int turn, round;
	socklen_t length;
	size_t i;

	if (argc != 7)
		error(2, 0, "usage: merge OBJECT SENDER RECEIVER INTERFACE ADDRESS KEY");
	length = parse(argv[5], PORT, &address);

	enter(argv[2]);
	from = socket(address.ss_family, SOCK_DGRAM, 0);
	if (from < 0 || connect(from, (void *)&address, length) ||
	    setsockopt(from, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)))
		error(1, errno, "connect to %s", argv[5]);
	enter(argv[3]);
	interface = if_nametoindex(argv[4]);
	if (!interface)
		error(1, errno, "%s", argv[4]);
	to = socket(address.ss_family, SOCK_DGRAM, 0);
	if (to < 0 || bind(to, (void *)&address, length) ||
	    setsockopt(to, IPPROTO_UDP, UDP_GRO, &one, sizeof(one)))
		error(1, errno, "bind to %s", argv[5]);
	limit(to);

	for (i = 0; i < VARIANTS; i++)
		objects[i] = load(argv[1], &variants[i], strtoul(argv[6], NULL, 10));
	for (turn = 1; turn <= TURNS; turn++) {
		for (i = 0; i < VARIANTS; i++) {
			uint64_t begin;
			long received = 0;

			/* In place of the other one */
			attach(interface, objects[i]);
			for (round = 0; round < WARM_UP; round++)
				pass(from, to);
			begin = __rdtsc();
			for (round = 0; round < ROUNDS; round++)
				received += pass(from, to);
			print_turn(turn, "gro", variants[i].name, ROUNDS * SEGMENTS, __rdtsc() - begin,
				   (double)received / ROUNDS);
		}
	}
	return 0;
}
