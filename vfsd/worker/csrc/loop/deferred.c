/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/deferred.h"

#include "worker/csrc/loop/direct_io.h"
#include "worker/csrc/loop/offload.h"
#include "worker/csrc/loop/ring.h"

#include <errno.h>

static void hold(struct worker *w, struct request *r)
{
	r->held = true;
	if (r->file)
		file_pin(w->fs.files, w->pins, w->fs.slot, r->file);
	if (r->file2)
		file_pin(w->fs.files, w->pins, w->fs.slot, r->file2);
	if (r->holds_fd)
		__atomic_add_fetch(&w->row->loose_fds, 1, __ATOMIC_ACQ_REL);
}

static void let_go(struct worker *w, struct request *r)
{
	r->held = false;
	if (r->file)
		file_unpin(w->fs.files, w->pins, w->fs.slot, r->file);
	if (r->file2)
		file_unpin(w->fs.files, w->pins, w->fs.slot, r->file2);
	if (r->holds_fd)
		__atomic_sub_fetch(&w->row->loose_fds, 1, __ATOMIC_ACQ_REL);
}

/* Return: OUTCOME_PENDING, or the result if the request was carried out here and now. */
static int take_off(struct worker *w, struct request *r, int outcome)
{
	int result;

	if (outcome == OUTCOME_WAIT)
		return lock_wait_begin(&w->lock_waiters, &w->fs, r);
	hold(w, r);
	if (outcome == OUTCOME_DEFER_READ && direct_io_take(w->direct_io, r, r->offset))
		return OUTCOME_PENDING;
	result = offload_submit(w->offload, r);
	if (result != OUTCOME_PENDING)
		let_go(w, r);
	return result;
}

int deferred_go_on(struct worker *w, struct request *r, int outcome)
{
	do {
		int result = take_off(w, r, outcome);

		if (result || !r->run_again)
			return result;
		r->run_again = r->holds_fd = false;
		outcome = ops_run(&w->fs, r);
	} while (leaves_the_loop(outcome));
	return outcome;
}

/* The request's thread has waited for what the op needs: run the op again. */
static __attribute__((noinline, cold)) void run_again(struct worker *w, struct request *r)
{
	r->run_again = r->holds_fd = false;
	deferred_run(w, r);
}

static void finish_offloaded(struct worker *w, struct request *r)
{
	if (r->held)
		let_go(w, r);
	if (!r->abandoned)
		r->ring->outstanding--;
	r->offloaded = false;
	if (r->run_again && !r->result && !r->abandoned && r->ring_life == r->ring->life)
		run_again(w, r);
	else
		requests_finish(w, r, r->result);
}

/* Requests off the loop point to guest memory: retired memory stays mapped until they all are
 * back. */
void deferred_reap_memory(struct worker *w)
{
	if (!offload_outstanding(w->offload) && !direct_io_outstanding(w->direct_io) &&
	    !w->lock_waiters.count && !w->cold)
		guest_memory_reap(&w->memory);
}

uint32_t deferred_finish(struct worker *w, struct request *r)
{
	struct worker_ring *ring;
	uint32_t count = 0;

	if (!r)
		return 0;
	while (r) {
		struct request *next = r->next;

		finish_offloaded(w, r);
		count++;
		r = next;
	}
	for_each_ring (w, ring)
		if (ring->runs && ring->vring.pending)
			ring_publish(w, ring);
	deferred_reap_memory(w);
	return count;
}

/* A short read may have met the end of the file, or the end of the cached data if the kernel used
 * the page cache in spite of O_DIRECT. */
static bool needs_thread(const struct request *r)
{
	uint64_t wanted = 0;

	if (r->result <= 0)
		return r->result == -EAGAIN || r->result == -EOPNOTSUPP;
	for (uint32_t i = 0; i < r->data_out_count; i++)
		wanted += r->data_out[i].iov_len;
	return (uint64_t)r->result < wanted;
}

/* The direct reads that are over. A read for which the kernel would have to wait continues in a
 * thread. */
static struct request *direct_completed(struct worker *w)
{
	struct request *r = direct_io_completed(w->direct_io), *done = NULL, *next;

	for (; r; r = next) {
		next = r->next;
		if (r->result == -EOPNOTSUPP)
			__atomic_or_fetch(&r->file->flags, FILE_NO_NOWAIT, __ATOMIC_RELAXED);
		if (needs_thread(r) && !r->abandoned) {
			int result = offload_submit(w->offload, r);

			/* The thread may have set r->result by now: do not touch it. */
			if (result == OUTCOME_PENDING)
				continue;
			r->result = result;
		}
		r->next = done;
		done = r;
	}
	return done;
}

uint32_t deferred_completions(struct worker *w)
{
	return deferred_finish(w, offload_completed(w->offload)) +
	       deferred_finish(w, direct_completed(w)) +
	       deferred_finish(w, lock_wait_retry(&w->lock_waiters, &w->fs));
}
