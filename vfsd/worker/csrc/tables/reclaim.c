/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/tables/reclaim.h"

#include "worker/csrc/tables/owner_lock.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum {
	/* A worker whose list is full waits this number of times for the other workers before the
	 * list grows. The wait slows down a guest that floods RELEASE and FORGET on one queue while
	 * it blocks another queue. */
	FULL_WAIT_TURNS = 2000,
	FULL_WAIT_NS = 50 * 1000,
	FLUSH_WAIT_TURNS = 100,
	PAUSE_NS = 1000 * 1000,
};

_Static_assert(!(RECLAIM_MAX & (RECLAIM_MAX - 1)), "thing_at() takes the ring for a power of 2");

void reclaim_close(struct worker_row *row, int fd)
{
	close(fd);
	__atomic_add_fetch(&row->closed_fds, 1, __ATOMIC_RELAXED);
	__atomic_sub_fetch(&row->loose_fds, 1, __ATOMIC_ACQ_REL);
}

void reclaim_init(struct reclaim *r, struct worker_table *workers, uint32_t slot)
{
	r->workers = workers;
	r->slot = slot;
	r->repay_context = NULL;
	r->repay = NULL;
	r->latest = 0;
	r->retired = r->own;
	r->room = RECLAIM_MAX;
	r->first = r->count = r->close_count = 0;
}

/* The entry at position `at` of the ring, counted from the oldest. */
static struct retired *thing_at(const struct reclaim *r, uint32_t at)
{
	return &r->retired[(r->first + at) & (r->room - 1)];
}

static uint64_t *own_epoch(struct reclaim *r)
{
	return &r->workers->rows[r->slot].epoch;
}

void reclaim_quiescent(struct reclaim *r)
{
	uint64_t *global = &r->workers->epoch;
	uint64_t now = __atomic_load_n(global, __ATOMIC_ACQUIRE);

	/* An entry of this worker waits for an epoch that no other worker might ever begin. */
	if (r->count && r->latest >= now)
		now = __atomic_add_fetch(global, 1, __ATOMIC_ACQ_REL);
	if (*own_epoch(r) != now)
		__atomic_store_n(own_epoch(r), now, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void reclaim_offline(struct reclaim *r)
{
	__atomic_store_n(own_epoch(r), 0, __ATOMIC_RELEASE);
}

/* The oldest epoch that a worker may still read in; `self` says whether this worker counts. */
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

static bool is_pinned(const struct retired *thing)
{
	return thing->pinned_by && __atomic_load_n(thing->pinned_by, __ATOMIC_ACQUIRE);
}

static void note_loose(struct reclaim *r, int fd)
{
	if (fd >= 0)
		__atomic_add_fetch(&r->workers->rows[r->slot].loose_fds, 1, __ATOMIC_ACQ_REL);
}

static struct retired take_first(struct reclaim *r)
{
	struct retired thing = *thing_at(r, 0);

	r->first = (r->first + 1) & (r->room - 1);
	r->count--;
	return thing;
}

/* Append to a list that has room. */
static void put_last(struct reclaim *r, const struct retired *thing)
{
	*thing_at(r, r->count++) = *thing;
	if (thing->epoch > r->latest)
		r->latest = thing->epoch;
}

static void move_first_to_end(struct reclaim *r)
{
	struct retired thing = take_first(r);

	put_last(r, &thing);
}

/* Give back the memory of a list that has grown, once the list is empty. */
static void shrink_if_empty(struct reclaim *r)
{
	if (r->count || r->retired == r->own)
		return;
	free(r->retired);
	r->retired = r->own;
	r->room = RECLAIM_MAX;
	r->first = 0;
}

/* Return: false if memory is short. */
static bool grow(struct reclaim *r)
{
	struct retired *larger = malloc(2 * (size_t)r->room * sizeof(*larger));

	if (!larger)
		return false;
	for (uint32_t i = 0; i < r->count; i++)
		larger[i] = *thing_at(r, i);
	if (r->retired != r->own)
		free(r->retired);
	r->retired = larger;
	r->room *= 2;
	r->first = 0;
	return true;
}

/* Free an entry's slot. Return: the fd to be closed, or -1. */
static int free_thing(struct reclaim *r, const struct retired *thing)
{
	if (thing->free_slot) {
		note_loose(r, thing->fd); /* before the fd leaves the table */
		thing->free_slot(thing->table, r, thing->slot);
	}
	return thing->fd;
}

static void repay(struct reclaim *r, struct retired *thing)
{
	thing->fd = r->repay(r->repay_context, thing->slot);
	thing->lends = false;
}

/* A lender repays its fd and then waits again: a worker that obtained the fd through the borrowing
 * inode may use it until its next quiescent point. Return: the fd to be closed, or -1. */
static int free_or_repay_first(struct reclaim *r)
{
	struct retired thing = take_first(r);

	if (!thing.lends)
		return free_thing(r, &thing);
	repay(r, &thing);
	reclaim_retire(r, thing);
	return -1;
}

uint32_t reclaim_collect(struct reclaim *r)
{
	uint32_t done = r->close_count, looks = r->count;
	uint64_t oldest;

	if (!r->count)
		return r->close_count;
	oldest = oldest_epoch(r, true);
	for (; looks && done < RECLAIM_CLOSE_BATCH && thing_at(r, 0)->epoch < oldest; looks--) {
		int fd;

		if (is_pinned(thing_at(r, 0))) {
			move_first_to_end(r);
			done++;
			continue;
		}
		done += thing_at(r, 0)->lends;
		fd = free_or_repay_first(r);
		if (fd >= 0) {
			r->close[r->close_count++] = fd;
			done++;
		}
	}
	shrink_if_empty(r);
	return r->close_count;
}

/* May the first entry be freed? Pinned entries are moved to the end first, so that an entry behind
 * them can become the first. */
static bool first_may_go(struct reclaim *r, uint64_t oldest)
{
	for (uint32_t looks = r->count; looks && is_pinned(thing_at(r, 0)); looks--)
		move_first_to_end(r);
	return !is_pinned(thing_at(r, 0)) && thing_at(r, 0)->epoch < oldest;
}

/* Wait for the other workers to pass a quiescent point. This worker does not count, because the
 * calling op holds no pointer into a table. Return: the oldest epoch in which a worker may still
 * read, or 0 if nothing may be freed. */
static uint64_t wait_for_first(struct reclaim *r, uint32_t turns)
{
	for (uint32_t turn = 0; turn < turns; turn++) {
		uint64_t oldest = oldest_epoch(r, false);

		if (first_may_go(r, oldest))
			return oldest;
		__atomic_add_fetch(&r->workers->epoch, 1, __ATOMIC_ACQ_REL);
		nanosleep(&(struct timespec){.tv_nsec = FULL_WAIT_NS}, NULL);
	}
	return 0;
}

/* Close the fds that may be closed now. Return: false if none may. */
static bool make_room(struct reclaim *r, uint32_t turns)
{
	uint64_t oldest = wait_for_first(r, turns);

	for (uint32_t i = 0; i < RECLAIM_CLOSE_BATCH && r->count && first_may_go(r, oldest); i++) {
		int fd = free_or_repay_first(r);

		if (fd >= 0)
			reclaim_close(&r->workers->rows[r->slot], fd);
	}
	return oldest;
}

void reclaim_retire(struct reclaim *r, struct retired thing)
{
	bool has_room = true;

	if (!thing.free_slot)
		note_loose(r, thing.fd);	/* the fd is in no table already */
	while (has_room && r->count == r->room) /* repeats if the list is full of lenders */
		has_room = make_room(r, FULL_WAIT_TURNS) || grow(r);
	/* If memory is short the fd stays open. An entry from a table is marked there as this
	 * worker's, and the next worker in this slot frees it. */
	if (!has_room)
		return;
	/* The store that made the entry stale comes before the load of the epoch. So a worker that
	 * begins a later epoch does not find the entry any more. (The other half of this ordering
	 * is in reclaim_quiescent.) */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	thing.epoch = __atomic_load_n(&r->workers->epoch, __ATOMIC_ACQUIRE);
	put_last(r, &thing);
}

void reclaim_flush(struct reclaim *r)
{
	struct worker_row *row = &r->workers->rows[r->slot];

	reclaim_offline(r); /* otherwise two workers in this function would wait for each other */
	while (r->close_count)
		reclaim_close(row, r->close[--r->close_count]);
	while (r->count && make_room(r, FLUSH_WAIT_TURNS))
		;
	reclaim_quiescent(r);
}

void reclaim_pause(struct reclaim *r)
{
	reclaim_offline(r);
	nanosleep(&(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
	reclaim_quiescent(r);
}
