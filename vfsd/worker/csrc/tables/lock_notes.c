/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. The kernel forgets the record locks of the guest when the fd table of the sandbox ends.
 * The notes say what the guest knows that it holds. So the next sandbox takes these locks again
 * (session_locks.c), and no two owners have notes that exclude each other.
 *
 * Form. Each lock owner has a list of ranges that do not overlap, as the kernel has. The head of
 * the list holds the change that is under way: a range and what becomes of it. A range covers what
 * it covers until the head says LOCK_NOTES_CHANGED; from then on the change covers its own range,
 * whatever the list says, until the list says the same and the head is settled.
 *
 * Order. The change is noted, the kernel is asked, the list is changed. If the worker dies before
 * the list is changed, the kernel may have granted the change or not. The next request of the same
 * owner asks the kernel again, which is harmless: nobody else changes this owner's locks, so the
 * kernel grants a second time what it has granted. The guest has had no answer yet, and the request
 * is run again.
 *
 * Death. Each change of a list ends in one store. A range that is cut in two is first noted twice
 * in its second half; a range that is taken out is still covered by the change. Changing the list a
 * second time has the same result. A note that was out of every list at a death (24 bytes) is lost
 * until the sandbox ends.
 *
 * Bound. There are as many notes as there may be open files. A lock without a note holds like any
 * other; it is only lost with the sandbox, and the owner is marked (FILE_LOCKS_MISSED).
 */
#include "worker/csrc/tables/lock_notes.h"

#include "worker/csrc/tables/owner_lock.h"

#include <fcntl.h>
#include <stddef.h>

enum {
	FIRST_NOTE = 1,
};

uint64_t lock_notes_bytes(uint32_t capacity)
{
	return sizeof(struct lock_notes) + (uint64_t)capacity * sizeof(struct lock_note);
}

void lock_notes_init(struct lock_notes *n, uint32_t capacity)
{
	n->capacity = capacity;
	n->next_unused = FIRST_NOTE;
}

void lock_notes_bury(struct lock_notes *n, uint32_t worker)
{
	owner_lock_bury(&n->free_lock, worker);
}

/* ---- the free list ---- */

/* Return: the number of a note that is in no list, 0 if all are in use. */
static uint32_t take(struct lock_notes *n, uint32_t worker)
{
	uint32_t number = 0;

	owner_lock(&n->free_lock, worker);
	if (n->free_head) {
		number = n->free_head;
		__atomic_store_n(&n->free_head, n->notes[number].next, __ATOMIC_RELEASE);
	} else if (n->next_unused < n->capacity) {
		number = n->next_unused;
		__atomic_store_n(&n->next_unused, number + 1, __ATOMIC_RELEASE);
	}
	owner_unlock(&n->free_lock);
	return number;
}

static void give(struct lock_notes *n, uint32_t worker, uint32_t number)
{
	owner_lock(&n->free_lock, worker);
	n->notes[number].next = n->free_head;
	__atomic_store_n(&n->free_head, number, __ATOMIC_RELEASE);
	owner_unlock(&n->free_lock);
}

/* ---- lists ---- */

static void set_state(struct lock_note *head, enum lock_note_state state)
{
	__atomic_store_n(&head->state, (uint16_t)state, __ATOMIC_RELEASE);
}

uint32_t lock_notes_begin(struct lock_notes *n, uint32_t worker)
{
	uint32_t number = take(n, worker);

	if (number)
		n->notes[number] = (struct lock_note){.state = LOCK_NOTES_SETTLED};
	return number;
}

/* Take the note that *link names out of its list. */
static void drop(struct lock_notes *n, uint32_t worker, uint32_t *link)
{
	uint32_t number = *link;

	__atomic_store_n(link, n->notes[number].next, __ATOMIC_RELEASE);
	give(n, worker, number);
}

void lock_notes_end(struct lock_notes *n, uint32_t worker, uint32_t *head)
{
	uint32_t number = *head;

	if (!number)
		return;
	while (n->notes[number].next)
		drop(n, worker, &n->notes[number].next);
	__atomic_store_n(head, 0, __ATOMIC_RELEASE);
	give(n, worker, number);
}

static bool add(struct lock_notes *n, uint32_t worker, struct lock_note *after,
		struct lock_note values)
{
	uint32_t number = take(n, worker);

	if (!number)
		return false;
	values.next = after->next;
	n->notes[number] = values;
	__atomic_store_n(&after->next, number, __ATOMIC_RELEASE);
	return true;
}

/* ---- a change ---- */

void lock_notes_try(struct lock_notes *n, uint32_t head, uint64_t start, uint64_t end, int type)
{
	struct lock_note *h = &n->notes[head];

	h->start = start;
	h->end = end;
	h->type = (int16_t)type;
	set_state(h, LOCK_NOTES_TRIED);
}

void lock_notes_refused(struct lock_notes *n, uint32_t head)
{
	set_state(&n->notes[head], LOCK_NOTES_SETTLED);
}

/* Take the change's range away from a range that begins before it. */
static bool cut_end(struct lock_notes *n, uint32_t worker, const struct lock_note *change,
		    struct lock_note *range)
{
	struct lock_note rest = *range;
	bool noted = true;

	rest.start = change->end + 1;
	if (range->end > change->end)
		noted = add(n, worker, range, rest);
	__atomic_store_n(&range->end, change->start - 1, __ATOMIC_RELEASE);
	return noted;
}

static bool overlaps(const struct lock_note *a, const struct lock_note *b)
{
	return a->start <= b->end && b->start <= a->end;
}

/* Leave no range in the list that overlaps the change. */
static bool make_room(struct lock_notes *n, uint32_t worker, struct lock_note *change)
{
	uint32_t *link = &change->next;
	bool noted = true;

	while (*link) {
		struct lock_note *range = &n->notes[*link];

		if (overlaps(range, change)) {
			if (range->start < change->start) {
				noted &= cut_end(n, worker, change, range);
			} else if (range->end > change->end) {
				__atomic_store_n(&range->start, change->end + 1, __ATOMIC_RELEASE);
			} else {
				drop(n, worker, link);
				continue;
			}
		}
		link = &range->next;
	}
	return noted;
}

/* Extend a range that ends or begins beside the change. Return: false if there is none. */
static bool extend_neighbour(struct lock_notes *n, const struct lock_note *change)
{
	for (uint32_t at = change->next; at; at = n->notes[at].next) {
		struct lock_note *range = &n->notes[at];

		if (range->type != change->type)
			continue;
		if (range->end + 1 == change->start) {
			__atomic_store_n(&range->end, change->end, __ATOMIC_RELEASE);
			return true;
		}
		if (change->end + 1 == range->start) {
			__atomic_store_n(&range->start, change->start, __ATOMIC_RELEASE);
			return true;
		}
	}
	return false;
}

bool lock_notes_change(struct lock_notes *n, uint32_t worker, uint32_t head)
{
	struct lock_note *change = &n->notes[head];
	bool noted;

	set_state(change, LOCK_NOTES_CHANGED);
	noted = make_room(n, worker, change);
	if (change->type != F_UNLCK && !extend_neighbour(n, change)) {
		struct lock_note range = *change;

		range.state = LOCK_NOTES_SETTLED;
		noted &= add(n, worker, change, range);
	}
	set_state(change, LOCK_NOTES_SETTLED);
	return noted;
}

/* ---- reading ---- */

const struct lock_note *lock_notes_head(const struct lock_notes *n, uint32_t head)
{
	return &n->notes[head];
}

const struct lock_note *lock_notes_peek(const struct lock_notes *n, uint32_t number,
					uint32_t capacity)
{
	return number >= FIRST_NOTE && number < capacity ? &n->notes[number] : NULL;
}
