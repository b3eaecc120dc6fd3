/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Requests that wait for a lock: their op returned OUTCOME_WAIT (SETLKW).
 *
 * Waiting requests are tried again now and then instead of each blocking a thread. So a waiting
 * request does not hold up other requests, the number of waiting requests does not depend on the
 * number of threads, INTERRUPT and the end of a ring reach a waiting request at once, and a worker
 * that takes over from a dead worker just tries again. The price is a delay of some milliseconds
 * between the unlock and the lock when the unlock happened on another queue or on the host.
 *
 * A wait is bounded (fs_policy.lock_wait_ns), since Linux' virtio-fs driver does not send
 * INTERRUPT: a process of the guest that is killed while it waits stays until its request is
 * answered. After the bound the answer is EDEADLK, which the host would return if it looked for
 * deadlocks among OFD locks. EINTR without a signal would reach the process as errno 512
 * (fuse_setlk makes it ERESTARTSYS).
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

/* Let the request `r` wait; its op has just found the lock taken. Return: OUTCOME_PENDING, or
 * -ENOLCK when too many requests wait already. */
int lock_wait_begin(struct lock_waiters *waiters, struct fs *fs, struct request *r) must_check;

/* Try the waiting requests again, if it is time or this worker gave up a lock. Return: the requests
 * that are done, linked by `next`, with their result. */
struct request *lock_wait_retry(struct lock_waiters *waiters, struct fs *fs);

/* Milliseconds until the next try; -1 if no request waits. */
int lock_wait_timeout(const struct lock_waiters *waiters, const struct fs *fs);

/* A ring stops: end its waits with EDEADLK. Return: the requests, as lock_wait_retry. */
struct request *lock_wait_cancel(struct lock_waiters *waiters, struct worker_ring *ring);

/* Guest memory is lost: end the waits of the requests that point to it, with EDEADLK. Return: the
 * requests, as lock_wait_retry. */
struct request *lock_wait_cancel_lost(struct lock_waiters *waiters, struct guest_memory *memory);

#endif
