/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/reclaim.h"

#include "worker/csrc/owner_lock.h"

#include <time.h>
#include <unistd.h>

enum {
	/* A full list waits this long for the others before it closes all the same. Only a guest
	 * that floods RELEASE and FORGET while it blocks another queue gets here, and all it can
	 * confuse is its own open files. */
	FULL_WAIT_TURNS = 2000,
	FULL_WAIT_NS = 50 * 1000,
};

void reclaim_close(uint32_t *loose_fds, int fd)
{
	close(fd);
	__atomic_sub_fetch(loose_fds, 1, __ATOMIC_ACQ_REL);
}

void reclaim_init(struct reclaim *r, struct worker_table *workers, uint32_t slot)
{
	r->workers = workers;
	r->slot = slot;
	r->worker = NULL;
	r->repay = NULL;
	r->first = r->count = r->close_count = 0;
}

static uint64_t *own_epoch(struct reclaim *r)
{
	return &r->workers->rows[r->slot].epoch;
}

void reclaim_quiescent(struct reclaim *r)
{
	uint64_t *global = &r->workers->epoch;
	uint64_t now = __atomic_load_n(global, __ATOMIC_ACQUIRE);

	/* Something of ours waits for an epoch that nobody else may ever begin. */
	if (r->count && r->retired[(r->first + r->count - 1) % RECLAIM_MAX].epoch >= now)
		now = __atomic_add_fetch(global, 1, __ATOMIC_ACQ_REL);
	if (*own_epoch(r) != now)
		__atomic_store_n(own_epoch(r), now, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void reclaim_offline(struct reclaim *r)
{
	__atomic_store_n(own_epoch(r), 0, __ATOMIC_RELEASE);
}

/* The oldest epoch a worker may still read in; `self` tells whether we count. */
static uint64_t oldest_epoch(const struct reclaim *r, bool self)
{
	uint64_t oldest = UINT64_MAX;

	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	for (uint32_t i = 0; i < r->workers->slots && i < WORKER_SLOTS_MAX; i++) {
		uint64_t epoch = __atomic_load_n(&r->workers->rows[i].epoch, __ATOMIC_ACQUIRE);

		if ((self || i != r->slot) && epoch && epoch < oldest)
			oldest = epoch;
	}
	return oldest;
}

static bool may_go(const struct retired *thing, uint64_t oldest)
{
	return thing->epoch < oldest &&
	       (!thing->pinned_by || !__atomic_load_n(thing->pinned_by, __ATOMIC_ACQUIRE));
}

static void note_loose(struct reclaim *r, int fd)
{
	if (fd >= 0)
		__atomic_add_fetch(&r->workers->rows[r->slot].loose_fds, 1, __ATOMIC_ACQ_REL);
}

static struct retired take_first(struct reclaim *r)
{
	struct retired thing = r->retired[r->first];

	r->first = (r->first + 1) % RECLAIM_MAX;
	r->count--;
	return thing;
}

/* Return: the fd to be closed, or -1. */
static int free_thing(struct reclaim *r, const struct retired *thing)
{
	if (thing->free_slot) {
		note_loose(r, thing->fd); /* before it leaves the table */
		thing->free_slot(thing->table, r->slot, thing->slot);
	}
	return thing->fd;
}

static void repay(struct reclaim *r, struct retired *thing)
{
	thing->fd = r->repay(r->worker, thing->slot);
	thing->lends = false;
}

/* A lender repays and waits once more: whoever found its fd through the borrower may use that until
 * his next quiescent point. Return: the fd to be closed, or -1. */
static int free_or_repay_first(struct reclaim *r)
{
	struct retired thing = take_first(r);

	if (!thing.lends)
		return free_thing(r, &thing);
	repay(r, &thing);
	reclaim_retire(r, thing);
	return -1;
}

/* Whoever still uses it. */
static int free_first_now(struct reclaim *r)
{
	struct retired thing = take_first(r);

	if (thing.lends)
		repay(r, &thing);
	return free_thing(r, &thing);
}

uint32_t reclaim_collect(struct reclaim *r)
{
	uint32_t repaid = 0;
	uint64_t oldest;

	if (!r->count)
		return r->close_count;
	oldest = oldest_epoch(r, true);
	/* In order: one that is pinned by a long request holds the later ones up, which is bounded
	 * by the request's length and keeps the list a ring. */
	while (r->count && r->close_count + repaid < RECLAIM_CLOSE_BATCH &&
	       may_go(&r->retired[r->first], oldest)) {
		int fd;

		repaid += r->retired[r->first].lends;
		fd = free_or_repay_first(r);
		if (fd >= 0)
			r->close[r->close_count++] = fd;
	}
	return r->close_count;
}

/* Wait for the others, not for ourselves: we are called from an op that holds no other pointer.
 * Return: the oldest epoch in which somebody may still read. */
static uint64_t wait_for_first(struct reclaim *r)
{
	for (uint32_t turn = 0; turn < FULL_WAIT_TURNS; turn++) {
		uint64_t oldest = oldest_epoch(r, false);

		if (may_go(&r->retired[r->first], oldest))
			return oldest;
		__atomic_add_fetch(&r->workers->epoch, 1, __ATOMIC_ACQ_REL);
		nanosleep(&(struct timespec){.tv_nsec = FULL_WAIT_NS}, NULL);
	}
	return 0;
}

/* Room at any price: close here what may be closed, or else what has waited for longest. */
static void make_room(struct reclaim *r)
{
	uint64_t oldest = wait_for_first(r);

	for (uint32_t i = 0; i < RECLAIM_CLOSE_BATCH; i++) {
		int fd;

		if (oldest && !may_go(&r->retired[r->first], oldest))
			break;
		fd = oldest ? free_or_repay_first(r) : free_first_now(r);
		if (fd >= 0)
			reclaim_close(&r->workers->rows[r->slot].loose_fds, fd);
	}
}

void reclaim_retire(struct reclaim *r, struct retired thing)
{
	if (!thing.free_slot)
		note_loose(r, thing.fd); /* it is in no table even now */
	while (r->count == RECLAIM_MAX)	 /* more than once if it is full of lenders */
		make_room(r);
	/* The store that made it stale comes before the look at the epoch: whoever begins a later
	 * one does not find it any more. (reclaim_quiescent has the other half.) */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	thing.epoch = __atomic_load_n(&r->workers->epoch, __ATOMIC_ACQUIRE);
	r->retired[(r->first + r->count) % RECLAIM_MAX] = thing;
	r->count++;
}
