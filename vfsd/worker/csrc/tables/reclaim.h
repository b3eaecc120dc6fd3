/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * When may an fd be closed, or a table slot used again, that another worker may just be reading?
 *
 * After every worker has been through a quiescent point: between two batches it holds no pointer
 * into a table and no fd number from one. The worker table has an epoch; a worker at its quiescent
 * point copies it into its row, a worker that goes to sleep writes 0. What is retired in epoch e
 * may be reclaimed when every row is 0 or greater than e. So nothing on the request path counts
 * references, and a guest that releases a file on one queue while it reads it on another gets
 * the old file or EBADF, never somebody else's descriptor.
 *
 * What waits never gets closed early, however much it is. A list that is full gives the other
 * workers a moment and then grows: what it can hold is bounded by the tables' slots and the limit
 * of open files. What is pinned by a request off the loop goes to the end, so a request that hangs
 * holds up nothing but its own file.
 *
 * The pool writes 0 into the row of a dead worker. What that worker had retired and not reclaimed
 * is adopted by the next one in its slot, or, if it is an fd in no table, found by the pool's
 * sweep.
 */
#ifndef VFSD_RECLAIM_H
#define VFSD_RECLAIM_H

#include "transport/csrc/types.h"
#include "worker/csrc/tables/worker_table.h"

struct reclaim;

enum {
	RECLAIM_MAX = 4096, /* things that wait at one worker before its list grows; a power of 2 */
	RECLAIM_CLOSE_BATCH = 64,
};

/* Something that waits: an fd to close, then a slot to free. */
struct retired {
	uint64_t epoch;
	bool lends; /* somebody borrows fd: r->repay first, then it waits once more */
	int32_t fd; /* -1: none */
	uint32_t slot;
	uint64_t *pinned_by; /* not before *pinned_by is 0; NULL: never pinned */
	void (*free_slot)(void *table, struct reclaim *r, uint32_t slot); /* NULL: no slot */
	void *table;
};

/* Return: the fd to be closed of the lender in `slot`, -1 if its borrower keeps it. */
typedef int repay_fn(void *context, uint32_t slot);

struct reclaim {
	struct worker_table *workers;
	uint32_t slot; /* of this worker */
	repay_fn *repay;
	void *repay_context;
	uint64_t latest;	 /* the highest epoch in the list */
	struct retired *retired; /* a ring of `room` things: `own`, or larger and allocated */
	uint32_t room;
	uint32_t first;
	uint32_t count;
	uint32_t close_count;
	int32_t close[RECLAIM_CLOSE_BATCH]; /* ready to be closed, off the request path */
	struct retired own[RECLAIM_MAX];
};

/* `repay` and its context are set afterwards, where something is lent. */
void reclaim_init(struct reclaim *r, struct worker_table *workers, uint32_t slot);
/* This worker holds nothing: between batches. */
void reclaim_quiescent(struct reclaim *r);
/* It holds nothing and will not until reclaim_quiescent: before sleeping. */
void reclaim_offline(struct reclaim *r);
void reclaim_retire(struct reclaim *r, struct retired thing);
/* Close here and now what this worker has retired, and wait a moment for the others to hold nothing
 * of it. For an op that holds no pointer into a table and no fd from one: it must get them again.
 */
void reclaim_flush(struct reclaim *r);
/* The same for a moment in which others close theirs. */
void reclaim_pause(struct reclaim *r);
/* Close one of r->close, or another fd that was counted in row->loose_fds. */
void reclaim_close(struct worker_row *row, int fd);
/* Free what may be freed; fds go to r->close until that is full. Return: fds in r->close. */
uint32_t reclaim_collect(struct reclaim *r);

#endif
