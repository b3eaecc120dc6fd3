/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Actors. A worker process serves some of the device's rings. Its main thread runs this loop; a few
 * threads run requests that block (offload.c); the kernel carries out reads with O_DIRECT
 * (direct_io.c); Python runs between two calls of serve(). Only the main thread pushes to these
 * rings.
 *
 * One turn (turn.c): for each ring take up to BATCH chains, serve each chain in place and push it.
 * While the driver is awake, the used index is published after every PUBLISH chains. Waking a
 * driver that sleeps costs a system call and an interrupt: the worker wakes the driver when serving
 * the rest takes about as long as the driver needs to come back with more requests, or at the end
 * of the turn. Then push the requests that were completed off the loop (deferred.c); close retired
 * fds, if there are many (closing.c); if there was nothing to do, wait (poll.c). hiprio comes first
 * in every turn.
 *
 * A request object (requests.c) is taken from a free list, filled from its chain, and returned to
 * the list when its reply is pushed. A request that leaves the loop keeps its object; while no
 * object is free, the rings wait. A request leaves the loop when its op returns that it has to
 * wait: an op sees struct fs and its request, and knows nothing of rings, threads and eventfds.
 *
 * Death. From pop to publish a head is marked in flight (vring.c). The worker that takes over
 * (attach) runs every in-flight head again, unless the head's intent (intent.h) holds the result;
 * request.replayed shows the op that it may have happened already. A request that was in flight at
 * two deaths is answered with EIO, if a request can have caused these deaths (worker_row.faulted).
 * A request is not blamed for a kill -9, however often it was in flight.
 *
 * Quiescence (reclaim.h). Between two turns this worker holds no pointer into a shared table; off
 * the loop (Python, poll(2)) it is offline. Requests off the loop pin their open files.
 */
#include "worker/csrc/loop/serve.h"

#include "worker/csrc/fs/inode_forget.h"
#include "worker/csrc/fs/inode_trim.h"
#include "worker/csrc/loop/closing.h"
#include "worker/csrc/loop/deferred.h"
#include "worker/csrc/loop/poll.h"
#include "worker/csrc/loop/ring.h"
#include "worker/csrc/loop/turn.h"

enum {
	CONTROL_NS = 1000 * 1000, /* look at control_fd this often while busy */
};

static bool control_wanted(struct worker *w)
{
	if (w->control_ready || fs_has_refusal(&w->fs) || w->fs.fullness ||
	    device_state_generation(w->device) != w->adopted->generation)
		return true;
	if (w->fs.now_ns - w->control_at_ns < CONTROL_NS)
		return false;
	w->control_at_ns = w->fs.now_ns;
	return poll_control(w);
}

static int reason_to_return(struct worker *w)
{
	if (w->cold)
		return SERVE_COLD;
	if (w->any_broken && ring_find_broken(w) >= 0)
		return SERVE_BROKEN;
	if (w->unshared_due)
		return SERVE_UNSHARED;
	return control_wanted(w) ? SERVE_CONTROL : 0;
}

int serve(struct worker *w)
{
	int reason;

	reclaim_quiescent(&w->fs.reclaim);
	w->control_at_ns = 0;
	for (;;) {
		uint32_t done = turn_rings(w) + deferred_completions(w);

		if (w->fs.forgetting_count)
			inode_forget_finish(&w->fs);
		reason = reason_to_return(w);
		if (reason)
			break;
		reclaim_quiescent(&w->fs.reclaim);
		closing_begin_if_due(w);
		inode_trim(&w->fs); /* after that: slots become free there */
		if (!done)
			poll_wait(w);
	}
	w->control_ready = false;
	reclaim_offline(&w->fs.reclaim);
	return reason;
}
