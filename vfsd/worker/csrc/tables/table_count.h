/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * How many of something a shared table holds. Entries are published first and counted then, so a
 * worker that dies in between leaves the count too low, for good and below zero if there is nothing
 * else: what is read is a measure for limits and operators, and nothing else may rest on it.
 */
#ifndef VFSD_TABLE_COUNT_H
#define VFSD_TABLE_COUNT_H

#include "transport/csrc/types.h"

static inline uint64_t table_count(const uint32_t *count)
{
	uint32_t found = __atomic_load_n(count, __ATOMIC_RELAXED);

	return found > INT32_MAX ? 0 : found;
}

#endif
