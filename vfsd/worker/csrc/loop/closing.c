/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/closing.h"

#include "worker/csrc/loop/offload.h"

enum {
	/* While the worker is busy, retired fds are closed when the first of these limits is
	 * reached. */
	CLOSE_NS = 1000 * 1000, /* the time since the last call */
	CLOSE_FROM = 256,	/* the number of fds that wait */
	CLOSE_PART = 4,		/* the same number as a fraction of the maximum of fds: 1/4 */
};

void closing_begin(struct worker *w)
{
	w->closed_at_ns = w->fs.now_ns;
	if (!reclaim_collect(&w->fs.reclaim))
		return;
	offload_close(w->offload, w->fs.reclaim.close, w->fs.reclaim.close_count);
	w->fs.reclaim.close_count = 0;
}

/* Waking a thread costs more than most closes, so fds are closed in batches. By the time of a batch
 * the guest has forgotten many of the files that it created, and for a forgotten file no O_PATH fd
 * has to be opened in place of the closed fd. */
void closing_begin_if_due(struct worker *w)
{
	uint64_t waiting = w->fs.reclaim.count + w->fs.reclaim.close_count;

	if (waiting >= CLOSE_FROM || waiting > w->fs.fds_max / CLOSE_PART ||
	    w->fs.now_ns - w->closed_at_ns >= CLOSE_NS)
		closing_begin(w);
}
