/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_CLOCK_H
#define VFSD_CLOCK_H

#include "transport/csrc/types.h"

#include <time.h>

/* CLOCK_MONOTONIC, in nanoseconds. */
static inline uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

#endif
