/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. A handle is opened through an fd of its mount, and that fd keeps the mount busy on the
 * host. So a mount below the share has an fd only as long as the guest knows an inode on the mount.
 * The fd for the mount of the share itself stays.
 *
 * A mount is identified by its mount id alone: the subvolumes of a btrfs have different device
 * numbers but share one mount, and the handles of all of them are opened through the fd of that
 * mount. The kernel gives a mount id to another mount when nothing holds the first mount; so what
 * is known of a mount is forgotten with the mount's last inode. What a worker knows of a mount
 * (mount_facts.c) is valid for a value of `departures`.
 *
 * Readers (mount_table_fd) take no lock: an entry that left its chain, and the fd in the entry, are
 * used again only after every worker's quiescent point (reclaim.h). Writers hold the table's only
 * lock.
 *
 * Counting. An inode is counted before it enters the inode table, and until no worker can look at
 * it any more. A worker that dies within the few stores between the two leaves the count too high:
 * that mount keeps its fd as long as the sandbox lives. The count is never too low.
 *
 * Death elsewhere: before an entry leaves its chain it is marked with the worker that is to free
 * it; if that worker dies, the next worker in its slot frees the entry (mount_table_adopt_retired).
 * An entry that was taken from the free list and is in no chain is lost (20 bytes).
 */
#include "worker/csrc/tables/mount_table.h"

#include "worker/csrc/tables/owner_lock.h"

enum {
	FIRST_MOUNT = 1,
};

void mount_table_init(struct mount_table *t, uint32_t root_id)
{
	t->next_unused = FIRST_MOUNT;
	t->root_id = root_id;
	t->root_fd = MOUNT_FD_UNKNOWN;
}

static uint32_t *bucket_of(struct mount_table *t, uint32_t id)
{
	return &t->buckets[id % MOUNT_BUCKETS];
}

/* Return: the index of the mount in `mounts`, or 0. */
static uint32_t find(const struct mount_table *t, uint32_t id)
{
	uint32_t at = __atomic_load_n(&t->buckets[id % MOUNT_BUCKETS], __ATOMIC_ACQUIRE);

	while (at && t->mounts[at].id != id)
		at = __atomic_load_n(&t->mounts[at].next, __ATOMIC_ACQUIRE);
	return at;
}

int mount_table_fd_below(const struct mount_table *t, uint32_t id)
{
	uint32_t at = find(t, id);

	return at ? __atomic_load_n(&t->mounts[at].fd, __ATOMIC_ACQUIRE) : MOUNT_FD_UNKNOWN;
}

static uint32_t take_free(struct mount_table *t)
{
	uint32_t at = t->free_head;

	if (at) {
		__atomic_store_n(&t->free_head, t->mounts[at].next, __ATOMIC_RELEASE);
	} else if (t->next_unused < MOUNTS_MAX) {
		at = t->next_unused;
		t->mounts[at].fd = MOUNT_FD_UNKNOWN; /* set before a reader finds it */
		__atomic_store_n(&t->next_unused, at + 1, __ATOMIC_RELEASE);
	}
	return at;
}

static void add(struct mount_table *t, uint32_t id)
{
	uint32_t at = take_free(t);
	struct mount *mount = &t->mounts[at];

	if (!at)
		return;
	mount->id = id;
	mount->inodes = 1;
	mount->retired_by = 0;
	mount->next = *bucket_of(t, id);
	__atomic_store_n(bucket_of(t, id), at, __ATOMIC_RELEASE);
}

void mount_table_enter(struct mount_table *t, uint32_t worker, uint32_t id)
{
	uint32_t at;

	owner_lock(&t->lock, worker);
	at = find(t, id);
	if (at)
		t->mounts[at].inodes++;
	else
		add(t, id);
	owner_unlock(&t->lock);
}

bool mount_table_set_fd(struct mount_table *t, uint32_t worker, uint32_t id, int fd)
{
	int *place = NULL;
	uint32_t at;
	bool set;

	owner_lock(&t->lock, worker);
	at = find(t, id);
	if (id == t->root_id)
		place = &t->root_fd;
	else if (at)
		place = &t->mounts[at].fd;
	set = place && *place == MOUNT_FD_UNKNOWN;
	if (set)
		__atomic_store_n(place, fd, __ATOMIC_RELEASE);
	owner_unlock(&t->lock);
	if (set && fd >= 0 && id != t->root_id)
		__atomic_add_fetch(&t->held, 1, __ATOMIC_RELAXED);
	return set;
}

/* ---- leaving ---- */

static void free_mount(void *table, struct reclaim *reclaim, uint32_t at)
{
	struct mount_table *t = table;
	struct mount *mount = &t->mounts[at];

	if (mount->fd >= 0)
		__atomic_sub_fetch(&t->held, 1, __ATOMIC_RELAXED);
	mount->fd = MOUNT_FD_UNKNOWN;
	mount->retired_by = 0;
	owner_lock(&t->lock, reclaim->slot);
	mount->next = t->free_head;
	__atomic_store_n(&t->free_head, at, __ATOMIC_RELEASE);
	owner_unlock(&t->lock);
}

static void retire(struct mount_table *t, struct reclaim *reclaim, uint32_t at)
{
	reclaim_retire(reclaim, (struct retired){.fd = t->mounts[at].fd,
						 .slot = at,
						 .free_slot = free_mount,
						 .table = t});
}

/* The caller holds the lock. */
static void take_out(struct mount_table *t, uint32_t worker, uint32_t at)
{
	struct mount *mount = &t->mounts[at];
	uint32_t *link = bucket_of(t, mount->id);

	__atomic_store_n(&mount->retired_by, worker + 1, __ATOMIC_RELEASE);
	__atomic_add_fetch(&t->departures, 1, __ATOMIC_RELEASE);
	while (*link && *link != at)
		link = &t->mounts[*link].next;
	if (*link)
		__atomic_store_n(link, mount->next, __ATOMIC_RELEASE);
}

void mount_table_leave(struct mount_table *t, struct reclaim *reclaim, uint32_t id)
{
	uint32_t at;
	bool is_last;

	owner_lock(&t->lock, reclaim->slot);
	at = find(t, id);
	is_last = at && t->mounts[at].inodes && !--t->mounts[at].inodes;
	if (is_last)
		take_out(t, reclaim->slot, at);
	owner_unlock(&t->lock);
	if (is_last)
		retire(t, reclaim, at);
}

void mount_table_adopt_retired(struct mount_table *t, struct reclaim *reclaim)
{
	for (uint32_t at = FIRST_MOUNT; at < t->next_unused; at++) {
		bool ours;

		owner_lock(&t->lock, reclaim->slot);
		ours = t->mounts[at].retired_by == reclaim->slot + 1;
		if (ours)
			take_out(t, reclaim->slot, at); /* the entry may still be in its chain */
		owner_unlock(&t->lock);
		if (ours)
			retire(t, reclaim, at);
	}
}

void mount_table_bury(struct mount_table *t, uint32_t slot)
{
	owner_lock_bury(&t->lock, slot);
}

uint64_t mount_table_fds(const struct mount_table *t, int32_t *ret, uint64_t room, uint64_t count)
{
	for (uint32_t at = 0; at < t->next_unused; at++) {
		int fd = at ? t->mounts[at].fd : t->root_fd;

		if (fd < 0)
			continue;
		if (count < room)
			ret[count] = fd;
		count++;
	}
	return count;
}
