/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Requests that are off the loop: with the thread pool (offload.h), with the kernel (direct_io.h),
 * or waiting for a lock (lock_wait.h). The value that a request's op returned says where the
 * request goes. Only this module pins the open files of such requests, until the requests come
 * back.
 */
#ifndef VFSD_DEFERRED_H
#define VFSD_DEFERRED_H

#include "worker/csrc/fs/ops.h"
#include "worker/csrc/loop/requests.h"
#include "worker/csrc/loop/worker_state.h"

/* Continue an op off the loop, as its outcome says. If no thread can be had, the op continues here,
 * and an op that asked to be run again after its wait is run again. Return: OUTCOME_PENDING, or the
 * result. */
int deferred_go_on(struct worker *w, struct request *r, int outcome) must_check;

static inline bool leaves_the_loop(int outcome)
{
	return outcome < OUTCOME_PENDING;
}

/* Run the op of a request, and finish the request unless it has left the loop. The function is
 * inline to make requests fast that do not leave the loop. */
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

/* Push the requests that came back. Return: their number. */
uint32_t deferred_completions(struct worker *w);
/* Push the requests of this list, which is linked by `next`. Return: their number. */
uint32_t deferred_finish(struct worker *w, struct request *r);

/* Unmap retired guest memory if no request points to it any more. */
void deferred_reap_memory(struct worker *w);

#endif
