/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/closing.h"

#include "worker/csrc/loop/offload.h"

enum {
	CLOSE_NS = 1000 * 1000, /* close what was retired this often while busy … */
	CLOSE_FROM = 256,	/* … or when so much was … */
	CLOSE_PART = 4,		/* … or one in so many of the fds that there can be */
};

void closing_begin(struct worker *w)
{
	w->closed_at_ns = w->fs.now_ns;
	if (!reclaim_collect(&w->fs.reclaim))
		return;
	offload_close(w->offload, w->fs.reclaim.close, w->fs.reclaim.close_count);
	w->fs.reclaim.close_count = 0;
}

/* Waking a thread costs more than most closes, so fds are closed in batches. By then many files
 * that the guest created are forgotten, and no O_PATH fd need be opened in their place. */
void closing_begin_if_due(struct worker *w)
{
	uint64_t waiting = w->fs.reclaim.count + w->fs.reclaim.close_count;

	if (waiting >= CLOSE_FROM || waiting > w->fs.fds_max / CLOSE_PART ||
	    w->fs.now_ns - w->closed_at_ns >= CLOSE_NS)
		closing_begin(w);
}
