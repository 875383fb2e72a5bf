// SPDX-License-Identifier: GPL-2.0
/* Does nothing: what calling costs, to be taken off the others' figures */
#include "layout.h"

static void nothing_init(void *memory, unsigned int limit)
{
}

static int nothing_get(const void *memory, unsigned int limit, unsigned int key,
		       void *value, unsigned int size)
{
	return size;
}

static int nothing_set(void *memory, unsigned int limit, unsigned int key,
		       const void *value, unsigned int size)
{
	return 0;
}

static int nothing_del(void *memory, unsigned int limit, unsigned int key,
		       unsigned int size)
{
	return 0;
}

static unsigned int nothing_used(const void *memory)
{
	return 0;
}

const struct layout nothing = {
	.name = "nothing", .init = nothing_init, .get = nothing_get,
	.set = nothing_set, .del = nothing_del, .used = nothing_used,
};
