/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the layouts that are compared have in common. Each takes values of 4, 8
 * and 16 bytes under keys 0 to 63, in a piece of memory whose size it is told.
 */
#ifndef LAYOUT_H
#define LAYOUT_H

struct layout {
	const char *name;
	/* Bytes of memory that it may use */
	unsigned int limit;
	void (*init)(void *memory, unsigned int limit);
	int (*get)(const void *memory, unsigned int limit, unsigned int key,
		   void *value, unsigned int size);
	int (*set)(void *memory, unsigned int limit, unsigned int key,
		   const void *value, unsigned int size);
	/* size is that of the value */
	int (*del)(void *memory, unsigned int limit, unsigned int key,
		   unsigned int size);
	/* Bytes of memory in use */
	unsigned int (*used)(const void *memory);
};

extern const struct layout nothing, traits, fixed, packed;

#endif /* LAYOUT_H */
