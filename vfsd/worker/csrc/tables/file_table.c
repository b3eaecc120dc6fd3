/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An array of slots with a free list. As in inode_table.c the generation of a slot in use is odd,
 * and every change of several steps ends in one store that publishes the change. If a worker dies
 * between reserving a slot and publishing it, the slot (64 bytes) is lost; the pool's sweep finds
 * its fd.
 *
 * The open files of lock owners are in lists, chosen by a hash of inode and owner. The lists are
 * changed under lock_owners_lock, by one store each. A guest may create a quarter of a million
 * owners; a list then has four of them. The guest chooses the numbers of the owners, so the hash
 * has a secret key: otherwise a guest could choose owners that are all in one list, and every queue
 * would wait for the walk through that list.
 */
#include "worker/csrc/tables/file_table.h"

#include "worker/csrc/host/siphash.h"
#include "worker/csrc/tables/lock_notes.h"
#include "worker/csrc/tables/owner_lock.h"
#include "worker/csrc/tables/table_count.h"

#include <stdlib.h>
#include <sys/random.h>

enum {
	FIRST_SLOT = 1, /* slot 0 means "none" */
	LOCK_OWNER_BITS = 16,
};

struct file_table {
	uint32_t capacity;
	uint32_t next_unused;
	uint32_t free_head;
	uint32_t free_lock;
	uint32_t in_use;
	uint32_t lock_owners_lock;
	uint32_t any_lock_owners; /* 0: lock_owners is all zero, and takes no memory yet */
	uint32_t pad;
	struct siphash_key lock_owner_key; /* random, so that a guest cannot predict the lists */
	uint64_t pad2[2];
	uint32_t lock_owners[1 << LOCK_OWNER_BITS]; /* the first slot of each list */
	struct open_file files[];		    /* struct lock_notes follows the last one */
};

static uint64_t notes_offset(uint32_t capacity)
{
	return sizeof(struct file_table) + (uint64_t)capacity * sizeof(struct open_file);
}

uint64_t file_table_bytes(uint32_t capacity)
{
	return notes_offset(capacity) + lock_notes_bytes(capacity);
}

const struct lock_notes *file_table_peek_lock_notes(const struct file_table *t, uint32_t capacity)
{
	return (const void *)((const uint8_t *)t + notes_offset(capacity));
}

struct lock_notes *file_table_lock_notes(struct file_table *t)
{
	return (void *)((uint8_t *)t + notes_offset(t->capacity));
}

void file_table_init(void *memory, uint32_t capacity)
{
	struct file_table *t = memory;

	if (getrandom(&t->lock_owner_key, sizeof(t->lock_owner_key), 0) !=
	    sizeof(t->lock_owner_key))
		abort(); /* cannot happen: getrandom(2) does not fail for 256 bytes or less */
	t->capacity = capacity;
	t->next_unused = FIRST_SLOT;
	lock_notes_init(file_table_lock_notes(t), capacity);
}

struct open_file *file_table_at(struct file_table *t, uint32_t slot)
{
	return &t->files[slot];
}

const struct open_file *file_table_peek(const struct file_table *t, uint32_t slot)
{
	return &t->files[slot];
}

uint32_t open_file_slot(const struct file_table *t, const struct open_file *file)
{
	return (uint32_t)(file - t->files);
}

uint64_t open_file_fh(const struct file_table *t, const struct open_file *file)
{
	uint64_t generation = __atomic_load_n(&file->generation, __ATOMIC_RELAXED);

	return open_file_slot(t, file) | generation << 32;
}

struct open_file *file_table_get(struct file_table *t, uint64_t fh, uint64_t nodeid)
{
	uint32_t slot = (uint32_t)fh, generation = (uint32_t)(fh >> 32);
	struct open_file *file;

	if (slot < FIRST_SLOT || slot >= t->capacity || !(generation & 1))
		return NULL;
	file = &t->files[slot];
	if (__atomic_load_n(&file->generation, __ATOMIC_ACQUIRE) != generation)
		return NULL;
	/* The nodeid is 0 while CREATE has not set it yet, or if the worker died before that. */
	return nodeid && file->nodeid == nodeid ? file : NULL;
}

struct open_file *file_table_get_regular(struct file_table *t, uint64_t fh, uint64_t nodeid)
{
	struct open_file *file = file_table_get(t, fh, nodeid);

	return file && !(file->flags & FILE_IS_DIR) ? file : NULL;
}

struct open_file *file_table_of_inode(struct file_table *t, uint64_t nodeid, uint32_t flags)
{
	uint32_t end = __atomic_load_n(&t->next_unused, __ATOMIC_ACQUIRE);

	for (uint32_t slot = FIRST_SLOT; slot < end && slot < t->capacity; slot++) {
		struct open_file *file = &t->files[slot];

		if (__atomic_load_n(&file->generation, __ATOMIC_ACQUIRE) & 1 &&
		    __atomic_load_n(&file->nodeid, __ATOMIC_ACQUIRE) == nodeid &&
		    (__atomic_load_n(&file->flags, __ATOMIC_RELAXED) & flags) == flags)
			return file;
	}
	return NULL;
}

struct open_file *file_table_reserve(struct file_table *t, uint32_t worker)
{
	struct open_file *file = NULL;

	owner_lock(&t->free_lock, worker);
	if (t->free_head) {
		file = &t->files[t->free_head];
		__atomic_store_n(&t->free_head, file->next, __ATOMIC_RELEASE);
	} else if (t->next_unused < t->capacity) {
		file = &t->files[t->next_unused];
		__atomic_store_n(&t->next_unused, t->next_unused + 1, __ATOMIC_RELEASE);
	}
	owner_unlock(&t->free_lock);
	return file;
}

static void push_free(struct file_table *t, uint32_t worker, struct open_file *file)
{
	owner_lock(&t->free_lock, worker);
	file->next = t->free_head;
	__atomic_store_n(&t->free_head, open_file_slot(t, file), __ATOMIC_RELEASE);
	owner_unlock(&t->free_lock);
}

uint64_t file_table_publish(struct file_table *t, struct open_file *file, uint64_t nodeid, int fd,
			    uint32_t flags)
{
	file->nodeid = nodeid;
	file->position = 0;
	file->flags = flags;
	file->pinned_by = 0;
	file->lock = 0;
	file->retired_by = 0;
	file->keep_fd = 0;
	file->owner = 0;
	file->fd = fd;
	__atomic_store_n(&file->generation, file->generation + 1, __ATOMIC_RELEASE);
	__atomic_add_fetch(&t->in_use, 1, __ATOMIC_RELAXED);
	return open_file_fh(t, file);
}

void file_table_abandon(struct file_table *t, uint32_t worker, struct open_file *file)
{
	push_free(t, worker, file);
}

static void free_slot(void *table, struct reclaim *reclaim, uint32_t slot)
{
	struct file_table *t = table;
	struct open_file *file = &t->files[slot];

	if (file->flags & FILE_LOCK_OWNER)
		lock_notes_end(file_table_lock_notes(t), reclaim->slot, &file->notes);
	file->fd = -1;
	file->retired_by = 0;
	push_free(t, reclaim->slot, file);
	__atomic_sub_fetch(&t->in_use, 1, __ATOMIC_RELAXED);
}

static void retire(struct file_table *t, struct reclaim *reclaim, struct open_file *file)
{
	reclaim_retire(reclaim,
		       (struct retired){.fd = file->keep_fd ? -1 : file->fd,
					.lends = file->flags & FILE_LENDS && reclaim->repay,
					.slot = open_file_slot(t, file),
					.pinned_by = &file->pinned_by,
					.free_slot = free_slot,
					.table = t});
}

/* Two queues may release the same file at once; only one of them ends it. Return: true for that
 * one. */
static bool end(struct open_file *file, uint32_t generation)
{
	return __atomic_compare_exchange_n(&file->generation, &generation, generation + 1, false,
					   __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void mark(struct open_file *file, const struct reclaim *reclaim)
{
	__atomic_store_n(&file->retired_by, (uint16_t)(reclaim->slot + 1), __ATOMIC_RELEASE);
}

/* A file that lends its fd is marked with this worker before the file ends; otherwise, if this
 * worker dies, no other worker would find out that the fd must be repaid. Both steps are done under
 * the lock, so that the mark names the worker that ends the file. */
static bool end_lender(struct open_file *file, uint32_t generation, const struct reclaim *reclaim)
{
	bool ended;

	owner_lock(&file->lock, reclaim->slot);
	if (__atomic_load_n(&file->generation, __ATOMIC_ACQUIRE) == generation)
		mark(file, reclaim);
	ended = end(file, generation);
	owner_unlock(&file->lock);
	return ended;
}

void file_table_release(struct file_table *t, struct reclaim *reclaim, struct open_file *file)
{
	uint32_t generation = __atomic_load_n(&file->generation, __ATOMIC_ACQUIRE);

	if (!(generation & 1))
		return;
	if (file->flags & FILE_LENDS) {
		if (!end_lender(file, generation, reclaim))
			return;
	} else {
		if (!end(file, generation))
			return;
		mark(file, reclaim);
	}
	retire(t, reclaim, file);
}

uint16_t *file_pins_create(const struct file_table *t)
{
	return calloc(t->capacity, sizeof(uint16_t));
}

void file_pin(struct file_table *t, uint16_t *pins, uint32_t worker, struct open_file *file)
{
	if (!pins[open_file_slot(t, file)]++)
		__atomic_or_fetch(&file->pinned_by, UINT64_C(1) << worker, __ATOMIC_ACQ_REL);
}

void file_unpin(struct file_table *t, uint16_t *pins, uint32_t worker, struct open_file *file)
{
	if (!--pins[open_file_slot(t, file)])
		__atomic_and_fetch(&file->pinned_by, ~(UINT64_C(1) << worker), __ATOMIC_ACQ_REL);
}

static uint32_t *lock_owners_of(struct file_table *t, uint64_t nodeid, uint64_t owner)
{
	uint64_t words[] = {nodeid, owner};
	uint64_t hash = siphash(&t->lock_owner_key, words, sizeof(words));

	return &t->lock_owners[hash >> (64 - LOCK_OWNER_BITS)];
}

/* The caller holds lock_owners_lock. */
static struct open_file *find_lock_owner(struct file_table *t, uint64_t nodeid, uint64_t owner)
{
	uint32_t slot = *lock_owners_of(t, nodeid, owner);

	while (slot) {
		struct open_file *file = &t->files[slot];

		if (file->nodeid == nodeid && file->owner == owner)
			return file;
		slot = file->next;
	}
	return NULL;
}

struct open_file *file_table_lock_owner(struct file_table *t, uint32_t worker, uint64_t nodeid,
					uint64_t owner)
{
	struct open_file *file;

	if (!__atomic_load_n(&t->any_lock_owners, __ATOMIC_ACQUIRE))
		return NULL;
	owner_lock(&t->lock_owners_lock, worker);
	file = find_lock_owner(t, nodeid, owner);
	owner_unlock(&t->lock_owners_lock);
	return file;
}

struct open_file *file_table_add_lock_owner(struct file_table *t, uint32_t worker,
					    struct open_file *file, uint64_t nodeid, uint64_t owner,
					    int fd, bool *ret_added)
{
	uint32_t *first = lock_owners_of(t, nodeid, owner);
	struct open_file *other;

	owner_lock(&t->lock_owners_lock, worker);
	other = find_lock_owner(t, nodeid, owner);
	*ret_added = !other;
	if (!other) {
		file->notes = lock_notes_begin(file_table_lock_notes(t), worker);
		file_table_publish(t, file, nodeid, fd,
				   FILE_LOCK_OWNER | (file->notes ? 0 : FILE_LOCKS_MISSED));
		file->owner = owner;
		file->next = *first;
		__atomic_store_n(&t->any_lock_owners, 1, __ATOMIC_RELEASE);
		__atomic_store_n(first, open_file_slot(t, file), __ATOMIC_RELEASE);
	}
	owner_unlock(&t->lock_owners_lock);
	return other ? other : file;
}

void file_table_drop_lock_owner(struct file_table *t, struct reclaim *reclaim,
				struct open_file *file)
{
	uint32_t slot = open_file_slot(t, file);
	uint32_t *link = lock_owners_of(t, file->nodeid, file->owner);
	bool found;

	owner_lock(&t->lock_owners_lock, reclaim->slot);
	while (*link && *link != slot)
		link = &t->files[*link].next;
	found = *link;
	if (found)
		__atomic_store_n(link, file->next, __ATOMIC_RELEASE);
	owner_unlock(&t->lock_owners_lock);
	if (found)
		file_table_release(t, reclaim, file);
}

/* ---- coming back in another table ---- */

bool file_table_restore(struct file_table *t, uint64_t fh, const struct open_file *file)
{
	uint32_t slot = (uint32_t)fh, generation = (uint32_t)(fh >> 32);
	struct open_file *own;

	if (slot < FIRST_SLOT || slot >= t->capacity || !(generation & 1))
		return false;
	own = &t->files[slot];
	if (own->generation)
		return false;
	*own = *file;
	own->generation = generation;
	t->in_use++;
	return true;
}

void file_table_restore_end(struct file_table *t, uint32_t slots, uint32_t generation)
{
	t->next_unused = slots < FIRST_SLOT    ? FIRST_SLOT
			 : slots < t->capacity ? slots
					       : t->capacity;
	for (uint32_t slot = t->next_unused; --slot >= FIRST_SLOT;) {
		struct open_file *file = &t->files[slot];

		if (file->generation & 1)
			continue;
		file->generation = generation + (generation & 1);
		file->fd = -1;
		push_free(t, 0, file);
	}
}

uint32_t file_table_slots(const struct file_table *t)
{
	return __atomic_load_n(&t->next_unused, __ATOMIC_ACQUIRE);
}

struct open_file *file_table_next(struct file_table *t, uint32_t *at, uint32_t flags)
{
	uint32_t slot = *at < FIRST_SLOT ? FIRST_SLOT : *at;

	for (; slot < file_table_slots(t); slot++) {
		struct open_file *file = &t->files[slot];

		if (!(__atomic_load_n(&file->generation, __ATOMIC_ACQUIRE) & 1) ||
		    !(__atomic_load_n(&file->flags, __ATOMIC_RELAXED) & flags))
			continue;
		*at = slot + 1;
		return file;
	}
	return NULL;
}

void file_table_reset(struct file_table *t, struct reclaim *reclaim)
{
	owner_lock(&t->lock_owners_lock, reclaim->slot);
	for (uint32_t i = 0; t->any_lock_owners && i < 1 << LOCK_OWNER_BITS; i++)
		__atomic_store_n(&t->lock_owners[i], 0, __ATOMIC_RELEASE);
	__atomic_store_n(&t->any_lock_owners, 0, __ATOMIC_RELEASE);
	owner_unlock(&t->lock_owners_lock);
	for (uint32_t slot = FIRST_SLOT; slot < file_table_slots(t); slot++)
		file_table_release(t, reclaim, &t->files[slot]);
}

void file_table_adopt_retired(struct file_table *t, struct reclaim *reclaim)
{
	for (uint32_t slot = FIRST_SLOT; slot < file_table_slots(t); slot++) {
		struct open_file *file = &t->files[slot];

		/* The generation must be read before retired_by: a worker that ends a lender sets
		 * the mark before the generation. */
		if (__atomic_load_n(&file->generation, __ATOMIC_ACQUIRE) & 1)
			continue;
		if (__atomic_load_n(&file->retired_by, __ATOMIC_ACQUIRE) == reclaim->slot + 1)
			retire(t, reclaim, file);
	}
}

void file_table_bury(void *memory, uint32_t slot)
{
	struct file_table *t = memory;

	owner_lock_bury(&t->free_lock, slot);
	owner_lock_bury(&t->lock_owners_lock, slot);
	lock_notes_bury(file_table_lock_notes(t), slot);
	for (uint32_t i = FIRST_SLOT; i < t->next_unused; i++) {
		owner_lock_bury(&t->files[i].lock, slot);
		__atomic_and_fetch(&t->files[i].pinned_by, ~(UINT64_C(1) << slot),
				   __ATOMIC_ACQ_REL);
	}
}

uint64_t file_table_fds(const void *memory, int32_t *ret, uint64_t room)
{
	const struct file_table *t = memory;
	uint64_t count = 0;

	for (uint32_t slot = FIRST_SLOT; slot < t->next_unused; slot++) {
		const struct open_file *file = &t->files[slot];

		if (!(file->generation & 1 || file->retired_by) || file->fd < 0)
			continue;
		if (count < room)
			ret[count] = file->fd;
		count++;
	}
	return count;
}

uint64_t file_table_count(const void *memory)
{
	const struct file_table *t = memory;

	return table_count(&t->in_use);
}
