/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_CLOCK_H
#define VFSD_CLOCK_H

#include "transport/csrc/types.h"

#include <time.h>

enum {
	NS_PER_MS = 1000 * 1000,
	NS_PER_SEC = 1000 * 1000 * 1000,
};

/* CLOCK_MONOTONIC, in nanoseconds. */
static inline uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_SEC + (uint64_t)now.tv_nsec;
}

#endif
