/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Found before the header of the same name in the kernel's tools/include, which
 * counts bits in software. The kernel itself runs the processor's instruction
 * wherever there is one, and that is what is measured.
 */
#ifndef _ASM_GENERIC_BITOPS_ARCH_HWEIGHT_H_
#define _ASM_GENERIC_BITOPS_ARCH_HWEIGHT_H_

#include <linux/types.h>

static inline unsigned long __arch_hweight64(__u64 word)
{
	return __builtin_popcountll(word);
}

static inline unsigned int __arch_hweight32(unsigned int word)
{
	return __builtin_popcount(word);
}

static inline unsigned int __arch_hweight16(unsigned int word)
{
	return __builtin_popcount(word & 0xffff);
}

static inline unsigned int __arch_hweight8(unsigned int word)
{
	return __builtin_popcount(word & 0xff);
}

#endif /* _ASM_GENERIC_BITOPS_ARCH_HWEIGHT_H_ */
