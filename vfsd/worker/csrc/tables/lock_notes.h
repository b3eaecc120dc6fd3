/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Which ranges of files the guest has locked (fcntl), for the next sandbox, which takes these locks
 * again. The theory is in lock_notes.c.
 */
#ifndef VFSD_LOCK_NOTES_H
#define VFSD_LOCK_NOTES_H

#include "transport/csrc/types.h"

enum lock_note_state {
	LOCK_NOTES_SETTLED, /* the ranges are what the owner holds */
	LOCK_NOTES_TRIED,   /* the kernel is asked for the change; it may have happened */
	LOCK_NOTES_CHANGED, /* the change has happened; the ranges may not show all of it yet */
};

/* A range of one lock owner; or the head of its list, which has the change under way. */
struct lock_note {
	uint64_t start, end; /* the first and the last byte */
	uint32_t next;	     /* of the list, or of the free list; a head's: the first range */
	int16_t type;	     /* F_RDLCK, F_WRLCK; of a change F_UNLCK as well */
	uint16_t state;	     /* of a head: enum lock_note_state */
};

struct lock_notes {
	uint32_t capacity;
	uint32_t next_unused;
	uint32_t free_head;
	uint32_t free_lock;
	struct lock_note notes[]; /* number 0 means "none" */
};

uint64_t lock_notes_bytes(uint32_t capacity);
/* Lay the notes out in zeroed memory of that size. */
void lock_notes_init(struct lock_notes *n, uint32_t capacity);
void lock_notes_bury(struct lock_notes *n, uint32_t worker);

/* The list of a new lock owner. Return: the number of its head; 0 if all notes are in use. */
uint32_t lock_notes_begin(struct lock_notes *n, uint32_t worker);
/* Give all notes of a lock owner back; *head becomes 0. If the worker dies on the way, this is
 * called again. */
void lock_notes_end(struct lock_notes *n, uint32_t worker, uint32_t *head);

/*
 * A change of one owner's locks; the caller has a lock on the owner. lock_notes_try() comes before
 * the kernel is asked. Then comes lock_notes_refused(), or lock_notes_change(), which returns false
 * if a range could not be noted because all notes are in use.
 */
void lock_notes_try(struct lock_notes *n, uint32_t head, uint64_t start, uint64_t end, int type);
void lock_notes_refused(struct lock_notes *n, uint32_t head);
bool lock_notes_change(struct lock_notes *n, uint32_t worker, uint32_t head);

/* The head of an owner's list. */
const struct lock_note *lock_notes_head(const struct lock_notes *n, uint32_t head);
/* For a reader of notes that may hold anything: the note of this number, NULL if there is none. */
const struct lock_note *lock_notes_peek(const struct lock_notes *n, uint32_t number,
					uint32_t capacity);

#endif
