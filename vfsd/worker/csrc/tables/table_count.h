/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A count of the entries in a shared table. An entry is published first and counted afterwards, so
 * a worker that dies between these two steps leaves the count too low for ever, and even below
 * zero if the table is otherwise empty. Limits and operators may use the count as an estimate;
 * nothing else may depend on it.
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
