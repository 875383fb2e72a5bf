// SPDX-License-Identifier: MIT
#include "CTraits.h"

#include <sys/socket.h>

size_t ctraits_cmsg_align(size_t length)
{
	return CMSG_ALIGN(length);
}

size_t ctraits_cmsg_space(size_t length)
{
	return CMSG_SPACE(length);
}

size_t ctraits_cmsg_len(size_t length)
{
	return CMSG_LEN(length);
}

/* The layout that the Swift sources take for granted */

_Static_assert(sizeof(struct trait) == 24, "a record is 24 bytes");
_Static_assert(_Alignof(struct trait) == 4, "a record needs 4-byte alignment at most");
_Static_assert(offsetof(struct trait, key) == 0, "key");
_Static_assert(offsetof(struct trait, len) == 4, "len");
_Static_assert(offsetof(struct trait, flags) == 6, "flags");
_Static_assert(offsetof(struct trait, value) == 8, "value");
_Static_assert(sizeof(((struct trait *)0)->value) == TRAITS_VALUE_MAX, "value");
_Static_assert(TRAITS_VALUE_MAX == 16, "largest value");
_Static_assert(TRAITS_KEYS_MAX == 64, "a mask is 64 bits");
_Static_assert(TRAITS_NAME_MAX == 31, "longest name");
_Static_assert(SOL_TRAITS == 288 && TRAITS_RECV == 1 && SCM_TRAITS == 1,
	       "numbers that are part of the kernel's ABI");
_Static_assert(TRAITS_FAMILY_VERSION == 1, "the version that is spoken here");

_Static_assert(offsetof(struct cmsghdr, cmsg_len) == 0, "cmsg_len");
_Static_assert(offsetof(struct cmsghdr, cmsg_level) == sizeof(size_t), "cmsg_level");
_Static_assert(offsetof(struct cmsghdr, cmsg_type) == sizeof(size_t) + 4, "cmsg_type");
_Static_assert(sizeof(((struct cmsghdr *)0)->cmsg_len) == sizeof(size_t), "cmsg_len");
