// SPDX-License-Identifier: Apache-2.0
/*
 * traffic SCENARIO...: what a packet costs, in ticks of the time stamp counter.
 *
 * Meant for a guest in which QEMU counts instructions instead of time (-icount
 * shift=0): there a tick is an instruction, of this program and of the kernel.
 * One thread sends a packet and receives it, so that nothing waits and nothing
 * runs beside it but the kernel's own timers.
 *
 * Prints a line for each scenario: name, packets, ticks a packet (the median of
 * CHUNKS measurements), the mean of all of them.
 */
#define _GNU_SOURCE
#include <stdbool.h>
#include <stdlib.h>

#include "common.h"

/* Short pieces, so that the timer interrupt hits few of them, and none counts that
 * it hit: the median leaves them out
 */
#define CHUNKS	100
#define ROUNDS	50
#define WARM_UP	200

#define PAYLOAD	64
#define PORT	4250

static const struct scenario scenarios[] = {
	{ "udp-ipv4", SOCK_DGRAM, "127.0.0.1" },
	{ "udp-ipv6", SOCK_DGRAM, "::1" },
	{ "tcp-ipv4", SOCK_STREAM, "127.0.0.1" },
	{ "tcp-ipv6", SOCK_STREAM, "::1" },
	{ "forward-ipv4", SOCK_DGRAM, "10.78.2.2", "sender", "receiver" },
	{ "forward-ipv6", SOCK_DGRAM, "fd78:2::2", "sender", "receiver" },
};

static void pass(const struct scenario *scenario, int from, int to)
{
	static char out[PAYLOAD], in[PAYLOAD];

	if (send(from, out, sizeof(out), 0) != sizeof(out))
		error(1, errno, "%s: send", scenario->name);
	if (recv(to, in, sizeof(in), MSG_WAITALL) != sizeof(in))
		error(1, errno, "%s: a packet did not come", scenario->name);
}

/* For TCP there and back: the second packet acknowledges the first */
static void rounds(const struct scenario *scenario, int pair[2], int count)
{
	while (count--) {
		pass(scenario, pair[0], pair[1]);
		if (scenario->type == SOCK_STREAM)
			pass(scenario, pair[1], pair[0]);
	}
}

/* Segments that TCP sent so far, 0 for UDP */
static long tcp_segments(const struct scenario *scenario)
{
	char line[512];
	long segments = 0;
	FILE *file;

	if (scenario->type != SOCK_STREAM)
		return 0;
	file = fopen("/proc/net/snmp", "re");
	if (!file)
		error(1, errno, "/proc/net/snmp");
	while (fgets(line, sizeof(line), file))
		sscanf(line, "Tcp: %*d %*d %*d %*d %*d %*d %*d %*d %*d %*d %ld", &segments);
	fclose(file);
	if (!segments)
		error(1, 0, "/proc/net/snmp: no number of TCP segments");
	return segments;
}

static int ascending(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

static void measure(const struct scenario *scenario)
{
	const int a_round = scenario->type == SOCK_STREAM ? 2 : 1;
	long packets = (long)CHUNKS * ROUNDS * a_round, segments;
	uint64_t ticks[CHUNKS], sum = 0;
	int pair[2], i;

	connect_pair(scenario, PORT, pair);
	rounds(scenario, pair, WARM_UP);
	segments = tcp_segments(scenario);
	for (i = 0; i < CHUNKS; i++) {
		uint64_t begin = __rdtsc();

		rounds(scenario, pair, ROUNDS);
		ticks[i] = __rdtsc() - begin;
		sum += ticks[i];
	}
	segments = tcp_segments(scenario) - segments;
	/* A few acknowledgements of their own do no harm, one a packet would */
	if (a_round == 2 && (segments < packets || segments > packets + packets / 50))
		error(1, 0, "%s: %ld segments instead of %ld", scenario->name, segments, packets);
	close(pair[0]);
	close(pair[1]);

	qsort(ticks, CHUNKS, sizeof(ticks[0]), ascending);
	printf("%s\t%ld\t%.2f\t%.2f\n", scenario->name, packets,
	       (ticks[CHUNKS / 2 - 1] + ticks[CHUNKS / 2]) / 2.0 / ROUNDS / a_round,
	       (double)sum / packets);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	size_t i;
	int n;

	for (n = 1; n < argc; n++) {
		bool found = false;

		for (i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++) {
			if (strcmp(argv[n], scenarios[i].name))
				continue;
			measure(&scenarios[i]);
			found = true;
		}
		if (!found)
			error(64, 0, "there is no scenario '%s'", argv[n]);
	}
	return 0;
}
