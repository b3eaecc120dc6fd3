/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Actors. One worker process serves some rings. Its main thread runs this loop; a few threads run
 * requests that block (offload.c), the kernel reads with O_DIRECT (direct_io.c); Python runs
 * between two calls of serve(). Nobody else pushes to these rings.
 *
 * One turn (turn.c): for each ring take up to BATCH chains, serve each in place and push it. The
 * used index is published after every PUBLISH of them while the driver is awake. One that sleeps
 * costs a system call and an interrupt to wake: that is done when what is left to serve takes about
 * as long as it needs to come back with more, or at the end. Then push what was completed off the
 * loop (deferred.c); close what may be closed, if it is much (closing.c); if there was nothing,
 * wait (poll.c). hiprio comes first in every turn.
 *
 * A request object (requests.c) is taken from a free list, filled from its chain, and returned to
 * the list when its reply is pushed. A request that leaves the loop keeps its object; with none
 * left the rings wait. A request leaves the loop because its op returned that it has to wait: an op
 * sees struct fs and its request, and knows no ring, no thread and no eventfd.
 *
 * Death. From pop to publish a head is marked in flight (vring.c). The worker that takes over
 * (attach) runs every in-flight head again, unless the head's intent (intent.h) knows the result;
 * it also tells the op when it may have happened already (request.replayed). A request that was in
 * flight at two deaths is answered with EIO.
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
	if (w->unshared_untold)
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
