/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Requests that wait for a lock: their op returned OUTCOME_WAIT (SETLKW).
 *
 * They are tried again now and then instead of blocking a thread each: so they hold up nobody, any
 * number may wait, INTERRUPT and the end of a ring reach them at once, and a worker that takes over
 * from a dead one just tries anew. The price is some milliseconds between the unlock and the lock
 * when the unlock happened on another queue or on the host.
 *
 * A wait is bounded (fs_policy.lock_wait_ns), since Linux' virtio-fs driver sends no INTERRUPT: a
 * guest's process that was killed while it waits stays until its request is answered. It is told
 * EDEADLK, which is what the host would say if it looked for deadlocks among OFD locks; EINTR
 * without a signal would reach the process as errno 512 (fuse_setlk makes it ERESTARTSYS).
 */
#ifndef VFSD_LOCK_WAIT_H
#define VFSD_LOCK_WAIT_H

#include "transport/csrc/types.h"

struct fs;
struct guest_memory;
struct request;
struct worker_ring;

struct lock_waiters {
	struct request *first; /* in order of arrival */
	uint32_t count;
	uint64_t retry_at_ns;
	uint64_t pause_ns;
};

/* Let `r`, whose op has just found the lock taken, wait. Return: OUTCOME_PENDING, or -ENOLCK when
 * too many wait already. */
int lock_wait_begin(struct lock_waiters *waiters, struct fs *fs, struct request *r) must_check;

/* Try those that wait, if it is time or a lock was given up here. Return: those that are done,
 * linked by `next`, with their result. */
struct request *lock_wait_retry(struct lock_waiters *waiters, struct fs *fs);

/* Milliseconds until the next try, -1: nobody waits. */
int lock_wait_timeout(const struct lock_waiters *waiters, const struct fs *fs);

/* Their ring stops: they fail with EDEADLK. Return: as lock_wait_retry. */
struct request *lock_wait_cancel(struct lock_waiters *waiters, struct worker_ring *ring);

/* The same for those whose reply belongs into guest memory that is lost. */
struct request *lock_wait_cancel_lost(struct lock_waiters *waiters, struct guest_memory *memory);

#endif
