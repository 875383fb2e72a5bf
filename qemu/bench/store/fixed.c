// SPDX-License-Identifier: GPL-2.0
/*
 * A slot of the largest size for each key: nothing is looked up and nothing moves.
 * As fast as it gets, and no packet has that much room.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "layout.h"

struct fixed {
	uint8_t size[64];	/* 0: absent */
	uint8_t value[64][16];
};

static void copy(void *to, const void *from, unsigned int size)
{
	switch (size) {
	case 4:
		memcpy(to, from, 4);
		break;
	case 8:
		memcpy(to, from, 8);
		break;
	case 16:
		memcpy(to, from, 16);
		break;
	}
}

static void fixed_init(void *memory, unsigned int limit)
{
	struct fixed *fixed = memory;

	memset(fixed->size, 0, sizeof(fixed->size));
}

static int fixed_get(const void *memory, unsigned int limit, unsigned int key,
		     void *value, unsigned int size)
{
	const struct fixed *fixed = memory;

	if (key >= 64)
		return -EINVAL;
	if (!fixed->size[key])
		return -ENOENT;
	if (fixed->size[key] > size)
		return -ENOSPC;
	copy(value, fixed->value[key], fixed->size[key]);
	return fixed->size[key];
}

static int fixed_set(void *memory, unsigned int limit, unsigned int key,
		     const void *value, unsigned int size)
{
	struct fixed *fixed = memory;

	if (key >= 64 || (size != 4 && size != 8 && size != 16))
		return -EINVAL;
	fixed->size[key] = size;
	copy(fixed->value[key], value, size);
	return 0;
}

static int fixed_del(void *memory, unsigned int limit, unsigned int key,
		     unsigned int size)
{
	struct fixed *fixed = memory;

	if (key >= 64)
		return -EINVAL;
	if (!fixed->size[key])
		return -ENOENT;
	fixed->size[key] = 0;
	return 0;
}

static unsigned int fixed_used(const void *memory)
{
	return sizeof(struct fixed);
}

const struct layout fixed = {
	.name = "fixed", .limit = sizeof(struct fixed), .init = fixed_init,
	.get = fixed_get, .set = fixed_set, .del = fixed_del,
	.used = fixed_used,
};
