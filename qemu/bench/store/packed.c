// SPDX-License-Identifier: GPL-2.0
/*
 * The layout of an earlier proposal for packet traits (2025), written anew from its
 * description in the plainest way: two words, bit k of each is half of the size code
 * of key k (2, 4 or 8 bytes), values behind them in key order, 2-byte aligned. It
 * keeps no length and no generation, and does not check what it finds. A value of 16
 * bytes takes two keys, as those who had one would have had to do it.
 */
#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "layout.h"

struct packed {
	uint64_t high;
	uint64_t low;
	uint8_t values[];
};

static unsigned int length(uint64_t high, uint64_t low)
{
	return 2 * __builtin_popcountll(low) + 4 * __builtin_popcountll(high) +
	       2 * __builtin_popcountll(high & low);
}

static unsigned int total(const struct packed *packed)
{
	return length(packed->high, packed->low);
}

static unsigned int offset_of(const struct packed *packed, unsigned int key)
{
	uint64_t below = (1ULL << key) - 1;

	return length(packed->high & below, packed->low & below);
}

static unsigned int size_of(const struct packed *packed, unsigned int key)
{
	unsigned int code = (packed->high >> key & 1) << 1 | (packed->low >> key & 1);

	return code ? 1 << code : 0;
}

static int resize(struct packed *packed, unsigned int limit, unsigned int key,
		  unsigned int size)
{
	unsigned int old = size_of(packed, key), used = total(packed);
	unsigned int offset = offset_of(packed, key);
	uint8_t *value = packed->values + offset;
	uint64_t bit = 1ULL << key;

	if (sizeof(*packed) + used - old + size > limit)
		return -ENOSPC;
	memmove(value + size, value + old, used - offset - old);
	packed->high &= ~bit;
	packed->low &= ~bit;
	if (size >= 4)
		packed->high |= bit;
	if (size == 2 || size == 8)
		packed->low |= bit;
	return 0;
}

static void copy(void *to, const void *from, unsigned int size)
{
	switch (size) {
	case 2:
		memcpy(to, from, 2);
		break;
	case 4:
		memcpy(to, from, 4);
		break;
	case 8:
		memcpy(to, from, 8);
		break;
	}
}

static int set_one(struct packed *packed, unsigned int limit, unsigned int key,
		   const void *value, unsigned int size)
{
	int err;

	if (key >= 64 || (size != 2 && size != 4 && size != 8))
		return -EINVAL;
	if (size_of(packed, key) != size) {
		err = resize(packed, limit, key, size);
		if (err)
			return err;
	}
	copy(packed->values + offset_of(packed, key), value, size);
	return 0;
}

static int get_one(const struct packed *packed, unsigned int key, void *value,
		   unsigned int size)
{
	unsigned int is;

	if (key >= 64)
		return -EINVAL;
	is = size_of(packed, key);
	if (!is)
		return -ENOENT;
	if (is > size)
		return -ENOSPC;
	copy(value, packed->values + offset_of(packed, key), is);
	return is;
}

static int del_one(struct packed *packed, unsigned int limit, unsigned int key)
{
	if (key >= 64)
		return -EINVAL;
	if (!size_of(packed, key))
		return -ENOENT;
	return resize(packed, limit, key, 0);
}

static void packed_init(void *memory, unsigned int limit)
{
	memset(memory, 0, sizeof(struct packed));
}

static int packed_get(const void *memory, unsigned int limit, unsigned int key,
		      void *value, unsigned int size)
{
	int status;

	if (size < 16)
		return get_one(memory, key, value, size);
	status = get_one(memory, key, value, 8);
	if (status < 0)
		return status;
	status = get_one(memory, key + 1, (uint8_t *)value + 8, 8);
	return status < 0 ? status : 16;
}

static int packed_set(void *memory, unsigned int limit, unsigned int key,
		      const void *value, unsigned int size)
{
	int status;

	if (size < 16)
		return set_one(memory, limit, key, value, size);
	status = set_one(memory, limit, key, value, 8);
	if (status < 0)
		return status;
	return set_one(memory, limit, key + 1, (const uint8_t *)value + 8, 8);
}

static int packed_del(void *memory, unsigned int limit, unsigned int key,
		      unsigned int size)
{
	int status = del_one(memory, limit, key);

	if (status < 0 || size < 16)
		return status;
	return del_one(memory, limit, key + 1);
}

static unsigned int packed_used(const void *memory)
{
	return sizeof(struct packed) + total(memory);
}

const struct layout packed = {
	.name = "packed", .limit = 216, .init = packed_init,
	.get = packed_get, .set = packed_set, .del = packed_del,
	.used = packed_used,
};
