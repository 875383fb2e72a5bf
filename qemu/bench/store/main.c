// SPDX-License-Identifier: GPL-2.0
/*
 * Instructions of set, get and delete, for several layouts of a packet's traits.
 *
 * Runs under callgrind, which counts between the marks and writes a file for each
 * measurement, with the label that it is given. What the calls themselves cost is
 * measured with the layout "nothing".
 *
 * Prints the memory that each layout takes: layout, value size, keys, bytes.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <valgrind/callgrind.h>

#include "layout.h"

static const struct layout *const layouts[] = {
	&nothing, &traits, &fixed, &packed,
};

/* The last of each size is as many as a store of 216 bytes holds */
static const struct {
	unsigned int size;
	unsigned int keys;
} contents[] = {
	{ 4, 1 }, { 4, 4 }, { 4, 16 }, { 4, 48 },
	{ 8, 1 }, { 8, 4 }, { 8, 16 }, { 8, 24 },
	{ 16, 1 }, { 16, 4 }, { 16, 12 },
};

static uint64_t memory[256];

/* Keys spread over all 64 numbers */
static unsigned int key(unsigned int i, unsigned int keys)
{
	return i * 64 / keys;
}

static void value_of(unsigned int key, uint8_t *value)
{
	unsigned int i;

	for (i = 0; i < 16; i++)
		value[i] = key * 31 + i;
}

static void fail(const struct layout *layout, unsigned int size,
		 unsigned int keys, const char *what)
{
	fprintf(stderr, "%s: %s, %u keys with values of %u bytes\n",
		layout->name, what, keys, size);
	exit(1);
}

/* A layout that answers wrongly is not worth a figure */
static void check(const struct layout *layout, unsigned int size,
		  unsigned int keys)
{
	uint8_t wanted[16], got[16];
	unsigned int i;

	if (layout == &nothing)
		return;
	for (i = 0; i < keys; i++) {
		value_of(key(i, keys), wanted);
		if (layout->get(memory, layout->limit, key(i, keys), got, size) != (int)size ||
		    memcmp(wanted, got, size))
			fail(layout, size, keys, "not the value that was set");
	}
}

static void fill(const struct layout *layout, unsigned int size,
		 unsigned int keys)
{
	uint8_t value[16];
	unsigned int i;

	layout->init(memory, layout->limit);
	/* From both ends, so that some are inserted before others */
	for (i = 0; i < keys; i++) {
		unsigned int k = key(i % 2 ? keys - 1 - i / 2 : i / 2, keys);

		value_of(k, value);
		if (layout->set(memory, layout->limit, k, value, size))
			fail(layout, size, keys, "a value does not fit");
	}
	check(layout, size, keys);
}

static void dump(const struct layout *layout, unsigned int size,
		 unsigned int keys, const char *operation)
{
	char label[64];

	snprintf(label, sizeof(label), "%s %u %u %s", layout->name, size, keys, operation);
	CALLGRIND_DUMP_STATS_AT(label);
	CALLGRIND_ZERO_STATS;
}

static void measure(const struct layout *layout, unsigned int size,
		    unsigned int keys)
{
	static uint8_t values[64][16], got[16];
	unsigned int i, k;

	for (i = 0; i < keys; i++)
		value_of(key(i, keys), values[i]);
	fill(layout, size, keys);
	CALLGRIND_ZERO_STATS;

	for (i = 0; i < keys; i++) {
		k = key(i, keys);
		CALLGRIND_TOGGLE_COLLECT;
		layout->get(memory, layout->limit, k, got, size);
		CALLGRIND_TOGGLE_COLLECT;
	}
	dump(layout, size, keys, "get");

	for (i = 0; i < keys; i++) {
		k = key(i, keys);
		CALLGRIND_TOGGLE_COLLECT;
		layout->set(memory, layout->limit, k, values[i], size);
		CALLGRIND_TOGGLE_COLLECT;
	}
	dump(layout, size, keys, "replace");

	for (i = 0; i < keys; i++) {
		k = key(i, keys);
		CALLGRIND_TOGGLE_COLLECT;
		layout->del(memory, layout->limit, k, size);
		CALLGRIND_TOGGLE_COLLECT;
		layout->set(memory, layout->limit, k, values[i], size);
	}
	dump(layout, size, keys, "delete");

	for (i = 0; i < keys; i++) {
		k = key(i, keys);
		layout->del(memory, layout->limit, k, size);
		CALLGRIND_TOGGLE_COLLECT;
		layout->set(memory, layout->limit, k, values[i], size);
		CALLGRIND_TOGGLE_COLLECT;
	}
	dump(layout, size, keys, "insert");
	check(layout, size, keys);

	printf("%s\t%u\t%u\t%u\n", layout->name, size, keys, layout->used(memory));
}

int main(void)
{
	unsigned int i, j;

	for (i = 0; i < sizeof(contents) / sizeof(contents[0]); i++)
		for (j = 0; j < sizeof(layouts) / sizeof(layouts[0]); j++)
			measure(layouts[j], contents[i].size, contents[i].keys);
	return 0;
}
