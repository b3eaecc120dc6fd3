/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The locks of a lost sandbox are taken again before any worker serves the guest. A lock that a
 * program of the host has taken by now is lost.
 *
 * Of an owner whose locks were being changed, the tables do not say whether the change has
 * happened. If it gave something up, another owner may hold that by now, and know it. So all other
 * owners come first. Then this owner gets what it had before, if that is still free: the
 * request is in flight, and is run again. If a part of it is not free, the change has happened, and
 * that is what the owner gets.
 *
 * If the fd of an owner has come from the former sandbox (an upgrade), its locks have come with the
 * fd. The kernel grants them once more to the same fd, and so they are noted in the same way.
 */
#include "worker/csrc/fs/session_locks.h"

#include "worker/csrc/fs/record_lock.h"

#include <sys/file.h>

void session_flock(struct restore *r, struct open_file *file)
{
	bool is_shared = file->flags & FILE_FLOCK_SHARED;

	if (!(file->flags & FILE_FLOCKED) ||
	    !flock(file->fd, (is_shared ? LOCK_SH : LOCK_EX) | LOCK_NB))
		return;
	file->flags &= ~(uint32_t)(FILE_FLOCKED | FILE_FLOCK_SHARED);
	session_note_loss_of(r, inode_table_get(r->fs->inodes, file->nodeid), LOSS_LOCK, 0);
}

/* ---- record locks ---- */

/* The locks of one owner. */
struct owner {
	uint64_t nodeid, owner;
	uint64_t first, end;	  /* records of what it held, in the image */
	struct image_lock change; /* under way, or zero */
	struct open_file *file;	  /* its open file in this sandbox, or NULL */
	bool is_lost;		  /* some of its locks are */
};

static bool read_lock(const struct restore *r, uint64_t at, struct image_lock *ret)
{
	if (at >= r->image.locks.count)
		return false;
	session_image_lock(&r->image, at, ret);
	return true;
}

/* The owner whose records begin at *at. Return: false after the last one. */
static bool next_owner(const struct restore *r, uint64_t *at, struct owner *ret)
{
	struct image_lock lock;

	if (!read_lock(r, *at, &lock))
		return false;
	*ret = (struct owner){.nodeid = lock.nodeid, .owner = lock.owner, .first = *at, .end = *at};
	for (; read_lock(r, *at, &lock); ++*at) {
		if (lock.nodeid != ret->nodeid || lock.owner != ret->owner)
			break;
		if (lock.state == IMAGE_LOCK_HELD)
			ret->end = *at + 1;
		else if (lock.state == IMAGE_LOCK_MISSED)
			ret->is_lost = true;
		else
			ret->change = lock;
	}
	return true;
}

/* Take a range again, if there is anything of it. Return: false if it cannot be had. */
static bool take(struct restore *r, struct owner *o, uint64_t start, uint64_t end, int type)
{
	struct record_lock lock = {type, start, end};

	if (start > end)
		return true;
	if (end > INT64_MAX)
		return false;
	if (!o->file && record_lock_owner(r->fs, o->nodeid, o->owner, &o->file))
		return false;
	return !record_lock_set(r->fs, o->file, &lock);
}

static uint64_t smaller(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* The part of a range that the change under way leaves alone. */
static void take_around(struct restore *r, struct owner *o, const struct image_lock *range)
{
	const struct image_lock *change = &o->change;

	if (range->start < change->start)
		o->is_lost |= !take(r, o, range->start, smaller(range->end, change->start - 1),
				    range->type);
	if (range->end > change->end)
		o->is_lost |=
			!take(r, o, larger(range->start, change->end + 1), range->end, range->type);
}

static void take_changed(struct restore *r, struct owner *o)
{
	const struct image_lock *change = &o->change;
	bool has_happened = change->state == IMAGE_LOCK_CHANGED;
	struct image_lock range;

	for (uint64_t i = o->first; i < o->end && read_lock(r, i, &range); i++) {
		take_around(r, o, &range);
		if (!has_happened && !take(r, o, larger(range.start, change->start),
					   smaller(range.end, change->end), range.type))
			has_happened = true;
	}
	if (has_happened && !take(r, o, change->start, change->end, change->type))
		o->is_lost = true;
}

static void take_all(struct restore *r, struct owner *o)
{
	struct image_lock range;

	for (uint64_t i = o->first; i < o->end && read_lock(r, i, &range); i++)
		o->is_lost |= !take(r, o, range.start, range.end, range.type);
}

/* An owner whose fd has come has lost nothing, noted or not. */
static void find_kept(struct restore *r, struct owner *o)
{
	o->file = file_table_lock_owner(r->fs->files, r->fs->slot, o->nodeid, o->owner);
	if (o->file && o->is_lost) {
		o->is_lost = false;
		__atomic_or_fetch(&o->file->flags, FILE_LOCKS_MISSED, __ATOMIC_RELAXED);
	}
}

static void restore_owners(struct restore *r, bool changing)
{
	struct owner o;
	uint64_t at = 0;

	while (next_owner(r, &at, &o)) {
		if ((o.change.state != 0) != changing)
			continue;
		find_kept(r, &o);
		if (changing)
			take_changed(r, &o);
		else
			take_all(r, &o);
		if (o.is_lost)
			session_note_loss_of(r, inode_table_get(r->fs->inodes, o.nodeid), LOSS_LOCK,
					     0);
	}
}

void session_record_locks(struct restore *r)
{
	restore_owners(r, false);
	restore_owners(r, true);
}
