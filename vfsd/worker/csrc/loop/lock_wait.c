/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/lock_wait.h"

#include "transport/csrc/clock.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/request/intent.h"

#include <errno.h>

enum {
	WAITERS_MAX = 192, /* less than REQUESTS_MAX: rings must not run out of request objects */
	PAUSE_MIN_NS = 1000 * 1000,
	PAUSE_MAX_NS = 16 * 1000 * 1000,
};

static void append(struct request **list, struct request *r)
{
	while (*list)
		list = &(*list)->next;
	r->next = NULL;
	*list = r;
}

int lock_wait_begin(struct lock_waiters *waiters, struct fs *fs, struct request *r)
{
	if (waiters->count == WAITERS_MAX)
		return -ENOLCK;
	intent_waits(r);
	append(&waiters->first, r);
	waiters->count++;
	fs->gave_up_lock = false; /* a lock that was given up before the op looked does not count */
	waiters->pause_ns = PAUSE_MIN_NS;
	waiters->retry_at_ns = fs->now_ns + PAUSE_MIN_NS;
	return OUTCOME_PENDING;
}

/* This worker gave up a lock: try all waiting requests now, since one of them may want that
 * lock. */
static void hurry(struct lock_waiters *waiters, struct fs *fs)
{
	fs->gave_up_lock = false;
	waiters->retry_at_ns = 0;
	waiters->pause_ns = PAUSE_MIN_NS;
}

static bool is_interrupted(const struct fs *fs, const struct request *r)
{
	for (uint32_t i = 0; i < INTERRUPTS_MAX; i++)
		if (__atomic_load_n(&fs->table->interrupts[i], __ATOMIC_RELAXED) == r->in.unique)
			return true;
	return false;
}

static bool is_out_of_time(const struct fs *fs, const struct request *r)
{
	return fs->now_ns - r->start_ns >= fs->policy.lock_wait_ns;
}

/* `context`: struct fs. */
static int try_again(void *context, struct request *r)
{
	struct fs *fs = context;
	int outcome;

	if (is_interrupted(fs, r))
		return -EINTR;
	outcome = ops_retry(fs, r);
	return outcome == OUTCOME_WAIT && is_out_of_time(fs, r) ? -EDEADLK : outcome;
}

/* Remove the requests for which `outcome` returns anything but OUTCOME_WAIT. Return: these
 * requests, linked by `next`. */
static struct request *end_waits(struct lock_waiters *waiters,
				 int (*outcome)(void *context, struct request *r), void *context)
{
	struct request **link = &waiters->first, *done = NULL;

	while (*link) {
		struct request *r = *link;

		r->result = outcome(context, r);
		if (r->result == OUTCOME_WAIT) {
			link = &r->next;
			continue;
		}
		*link = r->next;
		waiters->count--;
		append(&done, r);
	}
	return done;
}

struct request *lock_wait_retry(struct lock_waiters *waiters, struct fs *fs)
{
	if (!waiters->first)
		return NULL;
	if (fs->gave_up_lock)
		hurry(waiters, fs);
	if (fs->now_ns < waiters->retry_at_ns)
		return NULL;
	waiters->retry_at_ns = fs->now_ns + waiters->pause_ns;
	if (waiters->pause_ns < PAUSE_MAX_NS)
		waiters->pause_ns *= 2;
	return end_waits(waiters, try_again, fs);
}

/* Not EINTR: without a signal the guest's process would see the kernel's own ERESTARTSYS.
 * `context`: struct worker_ring. */
static int given_up(void *context, struct request *r)
{
	return r->ring == context ? -EDEADLK : OUTCOME_WAIT;
}

struct request *lock_wait_cancel(struct lock_waiters *waiters, struct worker_ring *ring)
{
	return end_waits(waiters, given_up, ring);
}

/* `context`: struct guest_memory. */
static int given_up_if_lost(void *context, struct request *r)
{
	return request_loses_memory(r, context) ? -EDEADLK : OUTCOME_WAIT;
}

struct request *lock_wait_cancel_lost(struct lock_waiters *waiters, struct guest_memory *memory)
{
	return end_waits(waiters, given_up_if_lost, memory);
}

int lock_wait_timeout(const struct lock_waiters *waiters, const struct fs *fs)
{
	if (!waiters->first)
		return -1;
	return waiters->retry_at_ns <= fs->now_ns
		       ? 0
		       : (int)((waiters->retry_at_ns - fs->now_ns) / NS_PER_MS) + 1;
}
