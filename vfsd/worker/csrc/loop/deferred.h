/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Requests that are off the loop: with the thread pool (offload.h), with the kernel (direct_io.h),
 * or waiting for a lock (lock_wait.h). What their op returned says where they go. Their open files
 * are pinned until they come back, here and nowhere else.
 */
#ifndef VFSD_DEFERRED_H
#define VFSD_DEFERRED_H

#include "worker/csrc/fs/ops.h"
#include "worker/csrc/loop/requests.h"
#include "worker/csrc/loop/worker_state.h"

/* The op is to go on off the loop. Where there is no thread it does so here; what was to be run
 * again after a wait is. Return: OUTCOME_PENDING, or the result. */
int deferred_go_on(struct worker *w, struct request *r, int outcome) must_check;

static inline bool leaves_the_loop(int outcome)
{
	return outcome < OUTCOME_PENDING;
}

/* Run the op of a request, and finish the request unless it has left the loop. Inline for the sake
 * of the requests that do not. */
static inline __attribute__((always_inline)) void deferred_run(struct worker *w, struct request *r)
{
	int result = ops_run(&w->fs, r);

	if (__builtin_expect(leaves_the_loop(result), 0))
		result = deferred_go_on(w, r, result);
	if (result != OUTCOME_PENDING) {
		requests_finish(w, r, result);
		return;
	}
	r->offloaded = true;
	r->ring->outstanding++;
	w->row->offloaded++;
}

/* Push what came back. Return: how many. */
uint32_t deferred_completions(struct worker *w);
/* The same for these, which are linked by `next`. */
uint32_t deferred_finish(struct worker *w, struct request *r);

/* Guest memory that was retired is unmapped once no request names it. */
void deferred_reap_memory(struct worker *w);

#endif
