// SPDX-License-Identifier: GPL-2.0
/* The series' own store, the kernel's file as it is: net/traits/store.c */
#include <store.c>

#include "layout.h"

static void traits_init(void *memory, unsigned int limit)
{
	traits_store_init(memory, limit, 1);
}

static int traits_get(const void *memory, unsigned int limit, unsigned int key,
		      void *value, unsigned int size)
{
	return traits_store_get(memory, limit, key, value, size);
}

static int traits_set(void *memory, unsigned int limit, unsigned int key,
		      const void *value, unsigned int size)
{
	return traits_store_set(memory, limit, key, value, size);
}

static int traits_del(void *memory, unsigned int limit, unsigned int key,
		      unsigned int size)
{
	return traits_store_del(memory, limit, key);
}

static unsigned int traits_used(const void *memory)
{
	return ((const struct traits_store *)memory)->used;
}

const struct layout traits = {
	.name = "traits", .limit = TRAITS_STORE_MAX, .init = traits_init,
	.get = traits_get, .set = traits_set, .del = traits_del,
	.used = traits_used,
};
