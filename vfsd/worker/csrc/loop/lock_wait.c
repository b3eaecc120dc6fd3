/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/lock_wait.h"

#include "worker/csrc/fs/ops.h"
#include "worker/csrc/loop/worker.h"

#include <errno.h>

enum {
	WAITERS_MAX = 192, /* of REQUESTS_MAX: the ring must not run out of request objects */
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

int lock_wait_begin(struct worker *w, struct request *r)
{
	struct lock_waiters *waiters = &w->lock_waiters;

	if (waiters->count == WAITERS_MAX)
		return -ENOLCK;
	intent_waits(r);
	append(&waiters->first, r);
	waiters->count++;
	w->fs.gave_up_lock = false; /* what was given up before the op looked */
	waiters->pause_ns = PAUSE_MIN_NS;
	waiters->retry_at_ns = w->fs.now_ns + PAUSE_MIN_NS;
	return OUTCOME_PENDING;
}

/* A lock was given up here: whoever waits may have it. */
static void hurry(struct worker *w)
{
	w->fs.gave_up_lock = false;
	w->lock_waiters.retry_at_ns = 0;
	w->lock_waiters.pause_ns = PAUSE_MIN_NS;
}

static bool is_interrupted(const struct worker *w, const struct request *r)
{
	for (uint32_t i = 0; i < INTERRUPTS_MAX; i++)
		if (__atomic_load_n(&w->fs.table->interrupts[i], __ATOMIC_RELAXED) == r->in.unique)
			return true;
	return false;
}

static bool is_out_of_time(const struct worker *w, const struct request *r)
{
	return w->fs.now_ns - r->start_ns >= w->fs.policy.lock_wait_ns;
}

static int try_again(struct worker *w, struct request *r)
{
	int outcome;

	if (is_interrupted(w, r))
		return -EINTR;
	outcome = ops_retry(&w->fs, r);
	return outcome == OUTCOME_WAIT && is_out_of_time(w, r) ? -EDEADLK : outcome;
}

/* Take those out for which `outcome` says something else than OUTCOME_WAIT. */
static struct request *end_waits(struct worker *w, const struct worker_ring *ring,
				 int (*outcome)(struct worker *w, struct request *r))
{
	struct lock_waiters *waiters = &w->lock_waiters;
	struct request **link = &waiters->first, *done = NULL;

	while (*link) {
		struct request *r = *link;

		r->result = ring && r->ring != ring ? OUTCOME_WAIT : outcome(w, r);
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

struct request *lock_wait_retry(struct worker *w)
{
	struct lock_waiters *waiters = &w->lock_waiters;

	if (!waiters->first)
		return NULL;
	if (w->fs.gave_up_lock)
		hurry(w);
	if (w->fs.now_ns < waiters->retry_at_ns)
		return NULL;
	waiters->retry_at_ns = w->fs.now_ns + waiters->pause_ns;
	if (waiters->pause_ns < PAUSE_MAX_NS)
		waiters->pause_ns *= 2;
	return end_waits(w, NULL, try_again);
}

/* Not EINTR: without a signal the guest's process would see the kernel's own ERESTARTSYS. */
static int given_up(struct worker *w, struct request *r)
{
	(void)w;
	(void)r;
	return -EDEADLK;
}

struct request *lock_wait_cancel(struct worker *w, const struct worker_ring *ring)
{
	return end_waits(w, ring, given_up);
}

static int given_up_if_lost(struct worker *w, struct request *r)
{
	return request_loses_memory(r, &w->memory) ? -EDEADLK : OUTCOME_WAIT;
}

struct request *lock_wait_cancel_lost(struct worker *w)
{
	return end_waits(w, NULL, given_up_if_lost);
}

int lock_wait_timeout(const struct worker *w)
{
	const struct lock_waiters *waiters = &w->lock_waiters;

	if (!waiters->first)
		return -1;
	return waiters->retry_at_ns <= w->fs.now_ns
		       ? 0
		       : (int)((waiters->retry_at_ns - w->fs.now_ns) / 1000000) + 1;
}
