/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_MIX_H
#define VFSD_MIX_H

#include "transport/csrc/types.h"

/* The finalizer of splitmix64: each bit of the result depends on each bit of `h`, and no two values
 * of `h` have the same result. The function is not secret: where only some bits of the result are
 * used, a guest can choose values that collide. */
static inline uint64_t mix64(uint64_t h)
{
	h = (h ^ (h >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	h = (h ^ (h >> 27)) * UINT64_C(0x94d049bb133111eb);
	return h ^ (h >> 31);
}

#endif
