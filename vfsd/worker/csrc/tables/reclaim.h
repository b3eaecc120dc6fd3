/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * When may an fd be closed, or a table slot be used again, that another worker may be reading at
 * this moment?
 *
 * The answer: after every worker has passed a quiescent point. Between two batches a worker holds
 * no pointer into a table and no fd number from a table. The worker table has an epoch; a worker at
 * its quiescent point copies the epoch into its row, and a worker that goes to sleep writes 0. What
 * is retired in epoch e may be reclaimed when every row is 0 or greater than e. So nothing on the
 * request path counts references, and a guest that releases a file on one queue while it reads the
 * file on another gets the old file or EBADF, never another file's descriptor.
 *
 * A retired fd is never closed early, however many of them wait. A worker whose list is full gives
 * the other workers a moment, and then the list grows: its size is bounded by the tables' slots and
 * the limit of open files. An entry that is pinned by a request off the loop is moved to the end of
 * the list, so a request that hangs holds up only its own file.
 *
 * The pool writes 0 into the row of a dead worker. What that worker had retired and not reclaimed
 * is adopted by the next worker in its slot; an fd that is in no table is found by the pool's
 * sweep.
 */
#ifndef VFSD_RECLAIM_H
#define VFSD_RECLAIM_H

#include "transport/csrc/types.h"
#include "worker/csrc/tables/worker_table.h"

struct reclaim;

enum {
	RECLAIM_MAX = 4096, /* entries of a worker's list before it grows; a power of 2 */
	RECLAIM_CLOSE_BATCH = 64,
};

/* An entry of the list: an fd to close, and then a slot to free. */
struct retired {
	uint64_t epoch;
	bool lends; /* an inode borrows fd: r->repay is called first, then the entry waits again */
	int32_t fd; /* -1: no fd */
	uint32_t slot;
	uint64_t *pinned_by; /* the entry waits until *pinned_by is 0; NULL: never pinned */
	void (*free_slot)(void *table, struct reclaim *r, uint32_t slot); /* NULL: no slot */
	void *table;
};

/* Repay the fd of the lender in `slot`. Return: the fd to be closed, or -1 if the borrower keeps
 * it. */
typedef int repay_fn(void *context, uint32_t slot);

struct reclaim {
	struct worker_table *workers;
	uint32_t slot; /* the slot of this worker */
	repay_fn *repay;
	void *repay_context;
	uint64_t latest;	 /* the highest epoch in the list */
	struct retired *retired; /* a ring of `room` entries: `own`, or a larger, allocated one */
	uint32_t room;
	uint32_t first;
	uint32_t count;
	uint32_t close_count;
	int32_t close[RECLAIM_CLOSE_BATCH]; /* fds to be closed off the request path */
	struct retired own[RECLAIM_MAX];
};

/* The caller sets `repay` and its context afterwards, if fds can be lent. */
void reclaim_init(struct reclaim *r, struct worker_table *workers, uint32_t slot);
/* A quiescent point: this worker holds no pointer or fd from a table. Called between batches. */
void reclaim_quiescent(struct reclaim *r);
/* This worker holds no pointer or fd from a table, and gets none until reclaim_quiescent. Called
 * before sleeping. */
void reclaim_offline(struct reclaim *r);
void reclaim_retire(struct reclaim *r, struct retired thing);
/* Close immediately what this worker has retired, and wait a moment until the other workers hold
 * none of it. For an op that holds no pointer into a table and no fd from a table: such an op must
 * look them up again afterwards. */
void reclaim_flush(struct reclaim *r);
/* Wait for the moment that other workers need to close what they have retired. The caller holds no
 * pointer or fd from a table, as for reclaim_flush. */
void reclaim_pause(struct reclaim *r);
/* Close an fd of r->close, or another fd that is counted in row->loose_fds. */
void reclaim_close(struct worker_row *row, int fd);
/* Free the entries that may be freed; their fds go to r->close until that is full. Return: the
 * number of fds in r->close. */
uint32_t reclaim_collect(struct reclaim *r);

#endif
