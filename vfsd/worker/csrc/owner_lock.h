/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A lock word in shared memory that names its owner: worker slot + 1, or 0. glibc's robust mutexes
 * cannot be used (after a raw clone its cached thread id is stale).
 *
 * What it protects must be consistent after every store, because the owner may be killed at any
 * of them; the pool then clears the words that name the dead slot (owner_lock_bury). Sections are
 * a few dozen instructions, so waiting is spinning, then yielding. Only an open file's own lock is
 * held across a system call; who waits for that is the guest that uses one file on two queues.
 */
#ifndef VFSD_OWNER_LOCK_H
#define VFSD_OWNER_LOCK_H

#include "transport/csrc/types.h"

#include <sched.h>

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#else
	__asm__ volatile("" ::: "memory");
#endif
}

static inline void owner_lock(uint32_t *word, uint32_t slot)
{
	for (unsigned int tries = 0;; tries++) {
		uint32_t expected = 0;

		if (__atomic_compare_exchange_n(word, &expected, slot + 1, false, __ATOMIC_ACQUIRE,
						__ATOMIC_RELAXED))
			return;
		if (tries < 100)
			cpu_relax();
		else
			sched_yield();
	}
}

static inline void owner_unlock(uint32_t *word)
{
	__atomic_store_n(word, 0, __ATOMIC_RELEASE);
}

/* Release the word if the dead `slot` held it. */
static inline void owner_lock_bury(uint32_t *word, uint32_t slot)
{
	uint32_t expected = slot + 1;

	__atomic_compare_exchange_n(word, &expected, 0, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

#endif
