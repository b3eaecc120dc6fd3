/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A lock word in shared memory that names its owner: worker slot + 1, or 0. glibc's robust mutexes
 * cannot be used, because after a raw clone the thread id that glibc has cached is stale.
 *
 * The data under the lock must be consistent after every store, because the owner may be killed at
 * any of them. The pool then clears the words that name the dead slot (owner_lock_bury). Critical
 * sections are a few dozen instructions, so a waiting worker first spins, then yields, then sleeps
 * for longer and longer. Only an open file's own lock is held across a system call, which may take
 * as long as the storage does. Only a guest that uses one file on two queues waits for that lock.
 */
#ifndef VFSD_OWNER_LOCK_H
#define VFSD_OWNER_LOCK_H

#include "transport/csrc/types.h"
#include "transport/csrc/cpu_relax.h"

#include <sched.h>
#include <time.h>

enum {
	OWNER_LOCK_SPINS = 100,
	OWNER_LOCK_YIELDS = 100,
	OWNER_LOCK_SLEEP_MAX_NS = 10 * 1000 * 1000,
};

/* Wait once before the next attempt to take a lock; `tries` counts the attempts so far. */
static inline void owner_lock_wait(unsigned int tries)
{
	unsigned int sleeps = tries - OWNER_LOCK_SPINS - OWNER_LOCK_YIELDS;
	long ns = sleeps < 10 ? 20000L << sleeps : OWNER_LOCK_SLEEP_MAX_NS;

	if (tries < OWNER_LOCK_SPINS)
		cpu_relax();
	else if (tries < OWNER_LOCK_SPINS + OWNER_LOCK_YIELDS)
		sched_yield();
	else
		nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

static inline bool owner_trylock(uint32_t *word, uint32_t slot)
{
	uint32_t expected = 0;

	return __atomic_compare_exchange_n(word, &expected, slot + 1, false, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

static inline void owner_lock(uint32_t *word, uint32_t slot)
{
	for (unsigned int tries = 0; !owner_trylock(word, slot); tries++)
		owner_lock_wait(tries);
}

static inline void owner_unlock(uint32_t *word)
{
	__atomic_store_n(word, 0, __ATOMIC_RELEASE);
}

/* Release the lock if the dead worker of `slot` held it. */
static inline void owner_lock_bury(uint32_t *word, uint32_t slot)
{
	uint32_t expected = slot + 1;

	__atomic_compare_exchange_n(word, &expected, 0, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED);
}

#endif
