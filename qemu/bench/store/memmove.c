// SPDX-License-Identifier: GPL-2.0
/*
 * memmove() as a kernel has it, which may not touch vector registers: 8 bytes at a
 * time. libc's would use 32-byte registers and flatter the layouts that move values.
 */
#include <stddef.h>
#include <stdint.h>

/* May alias anything, may lie anywhere */
typedef uint64_t __attribute__((may_alias, aligned(1))) word;

void *memmove(void *to, const void *from, size_t length)
{
	const uint8_t *source = from;
	uint8_t *destination = to;

	if (destination <= source || destination >= source + length) {
		for (; length >= 8; length -= 8, source += 8, destination += 8)
			*(word *)destination = *(const word *)source;
		for (; length; length--)
			*destination++ = *source++;
	} else {
		for (; length >= 8; length -= 8)
			*(word *)(destination + length - 8) = *(const word *)(source + length - 8);
		while (length--)
			destination[length] = source[length];
	}
	return to;
}
