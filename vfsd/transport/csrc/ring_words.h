/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The 16-bit words of a ring and of its in-flight record, which the guest or the front-end may
 * write at any time: a value is loaded once, then bounded, then used.
 */
#ifndef VFSD_RING_WORDS_H
#define VFSD_RING_WORDS_H

#include "transport/csrc/types.h"

static inline uint16_t load16(const void *at)
{
	return __atomic_load_n((const uint16_t *)at, __ATOMIC_RELAXED);
}

static inline void store16(void *at, uint16_t value)
{
	__atomic_store_n((uint16_t *)at, value, __ATOMIC_RELAXED);
}

/* virtio 1.2 §2.7.7.1: has the index passed `event` on its way from `old` to `now`? */
static inline bool index_passed(uint16_t event, uint16_t now, uint16_t old)
{
	return (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

#endif
