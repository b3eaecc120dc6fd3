/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_MIX_H
#define VFSD_MIX_H

#include "transport/csrc/types.h"

/* The finalizer of splitmix64: each bit of the result depends on each of `h`, and no two h have the
 * same result. No secret: a guest can choose what collides where bits are left out. */
static inline uint64_t mix64(uint64_t h)
{
	h = (h ^ (h >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	h = (h ^ (h >> 27)) * UINT64_C(0x94d049bb133111eb);
	return h ^ (h >> 31);
}

#endif
