/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. nodeid -> host file for every queue's worker, in one memfd, without a lock or a counted
 * reference on the way from nodeid to fd.
 *
 * Layout. A header, hash buckets (slot numbers), slots. A nodeid is slot | generation << 32. The
 * generation of a slot in use is odd; it grows by one when the slot is taken and when it is given
 * up, so a stale nodeid never matches. The root is slot 1 and always nodeid 1. Slot 0 is "none".
 *
 * Readers (inode_table_get) compare the generation and use the slot until their next quiescent
 * point; reclaim.h says why that is safe. A slot's key does not change while it is in use; its fd
 * does only from a borrowed or cached one to another of the same file or to none, and the old one
 * is closed only after a quiescent point of everybody.
 *
 * Writers hold the owner_lock of the key's stripe. lookup_count is raised only under that lock, so
 * FORGET that brings it to zero can decide under the lock that the inode leaves.
 *
 * Identity. The key is (ino, mnt_id, type). It identifies a file that we hold by an fd: a host
 * inode that is held is not freed, so its number cannot be given to another file while it is in the
 * table. Across two system calls, and for a file that nothing holds, a key identifies nothing: the
 * type is in the key because an inode whose type came from one file and whose handle came from the
 * next would let a guest open that file as something else than what it is (entry.c lists every
 * place that looks twice). So a handle that came by a name is compared with the whole key when it
 * is first opened (inode_fd.c), and nothing is done with the file before that. A file that is held
 * by its handle (fhandle.h) may be gone, and its number another's. Whoever got the number was born
 * after we last knew the old one alive. So if the old one was older than YOUNG_NS then, equal birth
 * times mean the same file; if it was young, or nothing is known of births, its handle is compared.
 *
 * Each inode is counted by its mount (mount_table.c), from before it is entered until its slot is
 * free again.
 *
 * Fds. `held` counts the fds that inodes own. Where a handle holds the inode the fd is a cache:
 * opened by whoever needs it, closed by inode_trim.c, a clock that spares what was used since its
 * last round. Nobody's file is to be kept from being deleted on the host by that, so another
 * clock closes what was not used for a second or two, however few there are. It finds them by a
 * mark for each block of slots, which is set before an fd is cached there. An inode may be held by
 * its fd alone although its mount has handles: every inode where the broker opens handles
 * (handle_broker.c), a directory elsewhere. It gets its handle, and the broker's signature, when
 * its fd is to go, and keeps both. fd changes under the stripe's lock and, but for one that takes
 * the place of another (a readable one, open_cache.c, and back), only between -1 and a number; what
 * is closed goes through reclaim.h like everything else.
 *
 * An inode may have neither fd nor handle: its fd was closed ahead of the removal of its name,
 * where the file system renames what an fd holds (silly_rename.c). The guest gets ESTALE for it,
 * and the file, should it still be there, is entered as another inode.
 *
 * Death of a worker at any store:
 * - insert: the slot is filled, then published by one store (bucket head). Before it the slot and
 *   the fd are leaked: the fd is found by the pool's sweep, the slot is lost (104 bytes).
 * - forget: one store unlinks the slot, the next makes the generation even, with retired_by set
 *   before. The next worker in that slot of the worker table finds what was retired and not freed
 *   (inode_table_adopt_retired).
 * - an fd that takes the place of another: not readable, the new one, then whether it is readable;
 *   the one that is in no table is found by the sweep. A repayment by handle that ended before
 *   `lender` is done again by whoever takes the lender over; until then nothing is cached.
 * - a handle that is set later: its length, then is_checked, are stored last; without them there is
 *   none. The fd goes after that, by one store.
 * - the free list: each push and pop ends with one store of its head.
 */
#include "worker/csrc/tables/inode_table.h"

#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/mix.h"
#include "worker/csrc/tables/owner_lock.h"
#include "worker/csrc/tables/table_count.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
	STRIPES = 1024,
	ROOT_SLOT = 1,
	ROOT_NODEID = 1,
	FIRST_SLOT = 2,
	RUN_BITS = 10,
};

/* Coarser than any clock that file systems take birth times from. */
#define YOUNG_NS INT64_C(1000000000)

struct inode_table {
	uint32_t capacity;    /* slots */
	uint32_t bucket_mask; /* buckets - 1 */
	uint32_t next_unused; /* slots from here on were never used */
	uint32_t free_head;
	uint32_t free_lock;
	uint32_t in_use;
	uint32_t held;
	uint32_t hand;	    /* of the clock */
	uint64_t slots_at;  /* bytes from the head to slot 0 */
	uint64_t cached_at; /* bytes from the head to the marks of blocks with cached fds */
	uint64_t swept_at_ns;
	uint32_t marks; /* counts the blocks that were marked */
	uint32_t root_device;
	struct mount_table mounts;
	uint32_t stripes[STRIPES];
	uint32_t buckets[];
};

static uint32_t bucket_count(uint32_t capacity)
{
	uint32_t count = STRIPES;

	while (count < capacity && count < UINT32_C(1) << 31)
		count *= 2;
	return count;
}

static uint64_t cached_offset(uint32_t capacity)
{
	return sizeof(struct inode_table) + (uint64_t)bucket_count(capacity) * sizeof(uint32_t);
}

static uint64_t slots_offset(uint32_t capacity)
{
	uint64_t bytes = cached_offset(capacity) + capacity / INODE_BLOCK + 1;

	return (bytes + 63) & ~UINT64_C(63);
}

uint64_t inode_table_bytes(uint32_t capacity)
{
	return slots_offset(capacity) + (uint64_t)capacity * sizeof(struct inode);
}

static struct inode *slot_at(const struct inode_table *t, uint32_t slot)
{
	return (struct inode *)((uint8_t *)t + t->slots_at) + slot;
}

static uint32_t slot_of(const struct inode_table *t, const struct inode *inode)
{
	return (uint32_t)(inode - slot_at(t, 0));
}

static uint8_t *mark_of(const struct inode_table *t, uint32_t block)
{
	return (uint8_t *)t + t->cached_at + block;
}

/* A directory of the share's own file system keeps its fd: one that a process of the guest works in
 * must not become stale when it is removed, and it takes no room worth speaking of. */
static bool keeps_fd(const struct inode_table *t, const struct inode *inode)
{
	return S_ISDIR(inode->mode) && (uint32_t)inode->mnt_id == t->root_device;
}

/* This inode is about to own an fd, which is to be given up when it is not used. */
static void note_cached(struct inode_table *t, const struct inode *inode)
{
	uint8_t *mark = mark_of(t, slot_of(t, inode) / INODE_BLOCK);

	if (keeps_fd(t, inode) || __atomic_exchange_n(mark, 1, __ATOMIC_ACQ_REL))
		return;
	__atomic_add_fetch(&t->marks, 1, __ATOMIC_RELAXED);
}

/* The inode numbers of a directory's files are often dense: a run of them lies in neighbouring
 * buckets, which a listing finds in the cache. The runs are scattered. */
static uint32_t bucket_of(const struct inode_table *t, struct inode_key key)
{
	uint64_t h = (key.ino >> RUN_BITS) + key.mnt_id * UINT64_C(0x9e3779b97f4a7c15);

	return (uint32_t)(mix64(h) + key.ino) & t->bucket_mask;
}

static uint32_t *stripe_of(struct inode_table *t, uint32_t bucket)
{
	return &t->stripes[bucket % STRIPES];
}

/* Under the stripe's lock. */
static struct inode *find(struct inode_table *t, uint32_t bucket, struct inode_key key)
{
	uint32_t slot = t->buckets[bucket];

	while (slot) {
		struct inode *inode = slot_at(t, slot);

		if (inode_key_equal(inode_key_of(inode), key))
			return inode;
		slot = inode->next;
	}
	return NULL;
}

static void link_slot(struct inode_table *t, uint32_t bucket, struct inode *inode)
{
	inode->next = t->buckets[bucket];
	__atomic_store_n(&t->buckets[bucket], slot_of(t, inode), __ATOMIC_RELEASE);
}

int inode_table_init(void *memory, uint32_t capacity, int root_fd)
{
	struct inode_table *t = memory;
	struct statx st;
	struct inode *root;
	int err = identity_stat_fd(root_fd, &st);

	if (err)
		return err;
	t->capacity = capacity;
	t->bucket_mask = bucket_count(capacity) - 1;
	t->cached_at = cached_offset(capacity);
	t->slots_at = slots_offset(capacity);
	t->next_unused = FIRST_SLOT;
	t->root_device = inode_key_device(identity_key(&st));
	root = slot_at(t, ROOT_SLOT);
	root->ino = identity_key(&st).ino;
	root->mnt_id = identity_key(&st).mnt_id;
	root->mode = (uint16_t)identity_key(&st).type;
	root->fd = root_fd;
	root->lookup_count = 1;
	link_slot(t, bucket_of(t, inode_key_of(root)), root);
	mount_table_init(&t->mounts, inode_key_mount_id(inode_key_of(root)));
	return 0;
}

struct inode *inode_table_get(struct inode_table *t, uint64_t nodeid)
{
	uint32_t slot = (uint32_t)nodeid, generation = (uint32_t)(nodeid >> 32);
	struct inode *inode;

	if (nodeid == ROOT_NODEID)
		return slot_at(t, ROOT_SLOT);
	if (slot < FIRST_SLOT || slot >= t->capacity || !(generation & 1))
		return NULL;
	inode = slot_at(t, slot);
	if (__atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) != generation)
		return NULL;
	return inode;
}

uint64_t inode_nodeid(const struct inode_table *t, const struct inode *inode)
{
	uint64_t generation = __atomic_load_n(&inode->generation, __ATOMIC_RELAXED);

	return slot_of(t, inode) | generation << 32;
}

static bool is_surely(const struct inode *inode, int64_t btime)
{
	if (__atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE) >= 0)
		return true;
	return inode->handle.len && btime && inode->btime == btime && !inode->is_young;
}

struct inode *inode_table_acquire(struct inode_table *t, uint32_t worker, struct inode_key key,
				  int64_t btime)
{
	uint32_t bucket = bucket_of(t, key);
	struct inode *inode;

	owner_lock(stripe_of(t, bucket), worker);
	inode = find(t, bucket, key);
	if (inode && !is_surely(inode, btime))
		inode = NULL;
	if (inode)
		__atomic_add_fetch(&inode->lookup_count, 1, __ATOMIC_RELAXED);
	owner_unlock(stripe_of(t, bucket));
	return inode;
}

static struct inode *take_free_slot(struct inode_table *t, uint32_t worker)
{
	struct inode *inode = NULL;

	owner_lock(&t->free_lock, worker);
	if (t->free_head) {
		inode = slot_at(t, t->free_head);
		__atomic_store_n(&t->free_head, inode->next, __ATOMIC_RELEASE);
	} else if (t->next_unused < t->capacity) {
		inode = slot_at(t, t->next_unused);
		__atomic_store_n(&t->next_unused, t->next_unused + 1, __ATOMIC_RELEASE);
	}
	owner_unlock(&t->free_lock);
	return inode;
}

static void free_slot(void *table, struct reclaim *reclaim, uint32_t slot)
{
	struct inode_table *t = table;
	struct inode *inode = slot_at(t, slot);
	uint32_t mount_id = inode_key_mount_id(inode_key_of(inode));

	inode->fd = -1;
	inode->retired_by = 0;
	if (mount_id != t->mounts.root_id)
		mount_table_leave(&t->mounts, reclaim, mount_id);
	owner_lock(&t->free_lock, reclaim->slot);
	inode->next = t->free_head;
	__atomic_store_n(&t->free_head, slot, __ATOMIC_RELEASE);
	owner_unlock(&t->free_lock);
	__atomic_sub_fetch(&t->in_use, 1, __ATOMIC_RELAXED);
}

static struct inode *enter(struct inode_table *t, uint32_t worker, uint32_t bucket,
			   const struct inode *values)
{
	struct inode *inode = take_free_slot(t, worker);

	if (!inode)
		return NULL;
	if (values->mnt_id >> 32 != t->mounts.root_id)
		mount_table_enter(&t->mounts, worker, (uint32_t)(values->mnt_id >> 32));
	inode->ino = values->ino;
	inode->mnt_id = values->mnt_id;
	inode->mode = values->mode;
	inode->lender = values->lender;
	inode->handle = values->handle;
	inode->btime = values->btime;
	inode->is_young = values->is_young;
	inode->is_checked = 0;
	inode->past = 0;
	inode->is_readable = 0;
	inode->used = 0;
	inode->lookup_count = 1;
	inode->retired_by = 0;
	__atomic_store_n(&inode->fd, values->fd, __ATOMIC_RELEASE);
	__atomic_store_n(&inode->generation, inode->generation + 1, __ATOMIC_RELEASE);
	link_slot(t, bucket, inode);
	__atomic_add_fetch(&t->in_use, 1, __ATOMIC_RELAXED);
	return inode;
}

/* Under the stripe's lock. */
static void unlink_slot(struct inode_table *t, uint32_t bucket, struct inode *inode)
{
	uint32_t slot = slot_of(t, inode);
	uint32_t *link = &t->buckets[bucket];

	while (*link && *link != slot)
		link = &slot_at(t, *link)->next;
	if (*link)
		__atomic_store_n(link, inode->next, __ATOMIC_RELEASE);
}

bool inode_table_knows(struct inode_table *t, uint32_t worker, struct inode_key key)
{
	uint32_t bucket = bucket_of(t, key);
	bool known;

	owner_lock(stripe_of(t, bucket), worker);
	known = find(t, bucket, key) != NULL;
	owner_unlock(stripe_of(t, bucket));
	return known;
}

/* Under the stripe's lock. Return: does a handle hold this inode, or nothing any more? */
static bool has_no_fd(const struct inode *inode)
{
	return __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE) < 0;
}

struct inode *inode_table_insert(struct inode_table *t, uint32_t worker, struct inode_key key,
				 int fd, uint32_t lender, const struct fhandle *proof,
				 bool *ret_used_fd)
{
	struct inode values = {.ino = key.ino,
			       .mnt_id = key.mnt_id,
			       .mode = (uint16_t)key.type,
			       .fd = fd,
			       .lender = lender};
	uint32_t bucket = bucket_of(t, key);
	struct inode *inode;

	owner_lock(stripe_of(t, bucket), worker);
	inode = find(t, bucket, key);
	*ret_used_fd = !inode || has_no_fd(inode);
	if (inode && has_no_fd(inode) &&
	    (lender || inode->lender || !proof || !fhandle_equal(&inode->handle, proof))) {
		unlink_slot(t, bucket, inode);
		inode = NULL;
	}
	if (inode) {
		if (*ret_used_fd) {
			note_cached(t, inode);
			inode->is_readable = 0;
			__atomic_store_n(&inode->fd, fd, __ATOMIC_RELEASE);
		}
		__atomic_add_fetch(&inode->lookup_count, 1, __ATOMIC_RELAXED);
	} else {
		inode = enter(t, worker, bucket, &values);
	}
	owner_unlock(stripe_of(t, bucket));
	if (!inode)
		*ret_used_fd = false;
	if (*ret_used_fd && !lender) {
		note_cached(t, inode);
		__atomic_add_fetch(&t->held, 1, __ATOMIC_RELAXED);
	}
	return inode;
}

static bool is_young(int64_t btime)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return btime > (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - YOUNG_NS;
}

struct inode *inode_table_insert_handle(struct inode_table *t, uint32_t worker,
					struct inode_key key, int64_t btime,
					const struct fhandle *handle)
{
	struct inode values = {.ino = key.ino,
			       .mnt_id = key.mnt_id,
			       .mode = (uint16_t)key.type,
			       .fd = -1,
			       .btime = btime,
			       .is_young = is_young(btime),
			       .handle = *handle};
	uint32_t bucket = bucket_of(t, key);
	struct inode *inode;

	owner_lock(stripe_of(t, bucket), worker);
	inode = find(t, bucket, key);
	if (inode && !fhandle_equal(&inode->handle, handle) &&
	    (inode->handle.len || has_no_fd(inode))) {
		unlink_slot(t, bucket, inode);
		inode = NULL;
	}
	if (inode) {
		inode->btime = btime;
		inode->is_young = values.is_young;
		__atomic_add_fetch(&inode->lookup_count, 1, __ATOMIC_RELAXED);
	} else {
		inode = enter(t, worker, bucket, &values);
	}
	owner_unlock(stripe_of(t, bucket));
	return inode;
}

/* ---- cached fds ---- */

static void retire_fd(struct reclaim *reclaim, int fd)
{
	if (fd >= 0)
		reclaim_retire(reclaim, (struct retired){.fd = fd});
}

int inode_table_cache_fd(struct inode_table *t, struct reclaim *reclaim, const struct inode *inode,
			 int fd)
{
	struct inode *own = slot_at(t, slot_of(t, inode));
	uint32_t generation = __atomic_load_n(&own->generation, __ATOMIC_ACQUIRE);
	uint32_t *stripe = stripe_of(t, bucket_of(t, inode_key_of(own)));
	int use = fd;

	owner_lock(stripe, reclaim->slot);
	if (generation & 1 && own->generation == generation) {
		if (own->fd >= 0) {
			use = own->fd;
		} else if (!own->lender) { /* else: repaid by half, and whoever did that died */
			note_cached(t, own);
			own->is_readable = 0;
			__atomic_store_n(&own->fd, fd, __ATOMIC_RELEASE);
			__atomic_add_fetch(&t->held, 1, __ATOMIC_RELAXED);
			fd = -1;
		}
	}
	owner_unlock(stripe);
	retire_fd(reclaim, fd);
	return use;
}

/* With the stripe of this cached inode locked. Return: the fd that it had, or -1. */
static int take_cached(struct inode_table *t, struct inode *inode)
{
	int fd = inode->fd;

	if (!(inode->generation & 1) || !inode->handle.len || inode->lender || fd < 0)
		return -1;
	inode->is_readable = 0;
	__atomic_store_n(&inode->fd, -1, __ATOMIC_RELEASE);
	__atomic_sub_fetch(&t->held, 1, __ATOMIC_RELAXED);
	return fd;
}

static int lock_and_take_cached(struct inode_table *t, uint32_t worker, struct inode *inode)
{
	uint32_t *stripe = stripe_of(t, bucket_of(t, inode_key_of(inode)));
	int fd;

	owner_lock(stripe, worker);
	fd = take_cached(t, inode);
	owner_unlock(stripe);
	return fd;
}

/* Under the stripe's lock: put another fd into the place of the one that the inode owns, if it has
 * one. Return: that one, or -1. */
static int replace_fd(struct inode_table *t, struct inode *inode, int fd, bool is_readable)
{
	int old = inode->fd;

	note_cached(t, inode);
	if (old < 0)
		__atomic_add_fetch(&t->held, 1, __ATOMIC_RELAXED);
	inode->is_readable = 0;
	__atomic_store_n(&inode->fd, fd, __ATOMIC_RELEASE);
	__atomic_store_n(&inode->is_readable, is_readable, __ATOMIC_RELEASE);
	return old;
}

void inode_table_cache_readable(struct inode_table *t, struct reclaim *reclaim,
				const struct inode *inode, int fd)
{
	struct inode *own = slot_at(t, slot_of(t, inode));
	uint32_t *stripe = stripe_of(t, bucket_of(t, inode_key_of(own)));
	int old = fd;

	owner_lock(stripe, reclaim->slot);
	if (own->generation & 1 && !own->lender && !own->is_readable &&
	    (own->fd >= 0 || own->handle.len))
		old = replace_fd(t, own, fd, true);
	owner_unlock(stripe);
	retire_fd(reclaim, old);
}

int inode_table_readable_fd(struct inode_table *t, uint32_t worker, const struct inode *inode)
{
	uint32_t *stripe = stripe_of(t, bucket_of(t, inode_key_of(inode)));
	int fd;

	if (!__atomic_load_n(&inode->is_readable, __ATOMIC_RELAXED))
		return -1;
	owner_lock(stripe, worker);
	fd = inode->is_readable ? inode->fd : -1;
	owner_unlock(stripe);
	return fd;
}

void inode_table_drop_readable(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			       int path_fd)
{
	struct inode *inode = inode_table_get(t, nodeid);
	uint32_t *stripe;
	int old = -1;

	if (!inode) {
		retire_fd(reclaim, path_fd);
		return;
	}
	stripe = stripe_of(t, bucket_of(t, inode_key_of(inode)));
	owner_lock(stripe, reclaim->slot);
	if (inode->generation == (uint32_t)(nodeid >> 32) && inode->is_readable) {
		old = take_cached(t, inode);
		if (old < 0 && path_fd >= 0) {
			old = replace_fd(t, inode, path_fd, false);
			path_fd = -1;
		}
	}
	owner_unlock(stripe);
	retire_fd(reclaim, old);
	retire_fd(reclaim, path_fd);
}

/* Give an inode that has none its handle, under the stripe's lock. What says that it is there comes
 * last. */
static void set_handle(struct inode *inode, int64_t btime, const struct fhandle *handle)
{
	inode->btime = btime;
	inode->is_young = !btime || is_young(btime);
	inode->handle.type = handle->type;
	inode->handle.mac = handle->mac;
	memcpy(inode->handle.bytes, handle->bytes, sizeof(handle->bytes));
	__atomic_store_n(&inode->handle.len, handle->len, __ATOMIC_RELEASE);
	inode_table_note_checked(inode);
}

static bool owns_fd(const struct inode *inode)
{
	return __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1 &&
	       __atomic_load_n(&inode->fd, __ATOMIC_RELAXED) >= 0 &&
	       !__atomic_load_n(&inode->lender, __ATOMIC_RELAXED);
}

struct inode *inode_table_next_idle(struct inode_table *t)
{
	uint32_t end = __atomic_load_n(&t->next_unused, __ATOMIC_ACQUIRE);
	uint32_t at = __atomic_fetch_add(&t->hand, 1, __ATOMIC_RELAXED) % end;
	struct inode *inode = slot_at(t, at);

	if (at < FIRST_SLOT || !owns_fd(inode))
		return NULL;
	return __atomic_exchange_n(&inode->used, 0, __ATOMIC_RELAXED) ? NULL : inode;
}

uint32_t inode_table_marks(const struct inode_table *t)
{
	return __atomic_load_n(&t->marks, __ATOMIC_RELAXED);
}

bool inode_table_begin_sweep(struct inode_table *t, uint64_t now_ns, uint64_t pause_ns)
{
	uint64_t last = __atomic_load_n(&t->swept_at_ns, __ATOMIC_RELAXED);

	if (now_ns < last + pause_ns)
		return false;
	return __atomic_compare_exchange_n(&t->swept_at_ns, &last, now_ns, false, __ATOMIC_RELAXED,
					   __ATOMIC_RELAXED);
}

static uint32_t blocks_used(const struct inode_table *t)
{
	return __atomic_load_n(&t->next_unused, __ATOMIC_ACQUIRE) / INODE_BLOCK + 1;
}

bool inode_table_is_marked(const struct inode_table *t)
{
	return memchr(mark_of(t, 0), 1, blocks_used(t));
}

bool inode_table_take_mark(struct inode_table *t, uint32_t *block)
{
	uint32_t end = blocks_used(t);

	for (; *block < end; ++*block)
		if (*mark_of(t, *block) &&
		    __atomic_exchange_n(mark_of(t, *block), 0, __ATOMIC_ACQ_REL))
			return true;
	return false;
}

struct inode *inode_table_idle_at(struct inode_table *t, uint32_t block, uint32_t place)
{
	uint32_t at = block * INODE_BLOCK + place;
	struct inode *inode = slot_at(t, at);

	if (at < FIRST_SLOT || at >= t->capacity || !owns_fd(inode) || keeps_fd(t, inode))
		return NULL;
	if (!__atomic_exchange_n(&inode->used, 0, __ATOMIC_RELAXED))
		return inode;
	note_cached(t, inode);
	return NULL;
}

void inode_table_give_handle(struct inode_table *t, uint32_t worker, struct inode *inode,
			     uint32_t generation, int fd, int64_t btime,
			     const struct fhandle *handle)
{
	uint32_t *stripe = stripe_of(t, bucket_of(t, inode_key_of(inode)));

	owner_lock(stripe, worker);
	if (generation & 1 && inode->generation == generation && inode->fd == fd &&
	    !inode->lender && !inode->handle.len)
		set_handle(inode, btime, handle);
	owner_unlock(stripe);
}

bool inode_table_drop_fd(struct inode_table *t, struct reclaim *reclaim, struct inode *inode)
{
	int fd = lock_and_take_cached(t, reclaim->slot, inode);

	retire_fd(reclaim, fd);
	return fd >= 0;
}

void inode_table_let_go(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid)
{
	struct inode *inode = inode_table_get(t, nodeid);
	uint32_t *stripe;
	int fd = -1;

	if (!inode || nodeid == ROOT_NODEID)
		return;
	stripe = stripe_of(t, bucket_of(t, inode_key_of(inode)));
	owner_lock(stripe, reclaim->slot);
	if (inode->generation == (uint32_t)(nodeid >> 32) && !inode->lender && inode->fd >= 0) {
		fd = inode->fd;
		inode->is_readable = 0;
		__atomic_store_n(&inode->fd, -1, __ATOMIC_RELEASE);
		__atomic_sub_fetch(&t->held, 1, __ATOMIC_RELAXED);
	}
	owner_unlock(stripe);
	retire_fd(reclaim, fd);
}

uint64_t inode_table_held(const struct inode_table *t)
{
	return table_count(&t->held) + table_count(&t->mounts.held);
}

/* ---- mounts ---- */

int inode_table_mount_fd(const struct inode_table *t, uint64_t mnt_id)
{
	return mount_table_fd(&t->mounts, (uint32_t)(mnt_id >> 32));
}

bool inode_table_set_mount_fd(struct inode_table *t, uint32_t worker, uint64_t mnt_id, int fd)
{
	return mount_table_set_fd(&t->mounts, worker, (uint32_t)(mnt_id >> 32), fd);
}

/* ---- leaving ---- */

static void retire(struct inode_table *t, struct reclaim *reclaim, struct inode *inode)
{
	if (!inode->lender && inode->fd >= 0)
		__atomic_sub_fetch(&t->held, 1, __ATOMIC_RELAXED);
	reclaim_retire(reclaim, (struct retired){.fd = inode->lender ? -1 : inode->fd,
						 .slot = slot_of(t, inode),
						 .free_slot = free_slot,
						 .table = t});
}

/* Under the stripe's lock, of an inode that nobody looks at any more. */
static void take_out(struct inode_table *t, uint32_t worker, uint32_t bucket, struct inode *inode)
{
	__atomic_store_n(&inode->retired_by, (uint8_t)(worker + 1), __ATOMIC_RELEASE);
	unlink_slot(t, bucket, inode);
	__atomic_store_n(&inode->generation, inode->generation + 1, __ATOMIC_RELEASE);
}

/* Take the inode out if nobody looks at it any more. Return: true if this call did. */
static bool leave(struct inode_table *t, uint32_t worker, struct inode *inode, uint32_t generation)
{
	uint32_t bucket = bucket_of(t, inode_key_of(inode));
	bool left = false;

	owner_lock(stripe_of(t, bucket), worker);
	if (inode->generation == generation &&
	    !__atomic_load_n(&inode->lookup_count, __ATOMIC_ACQUIRE)) {
		take_out(t, worker, bucket, inode);
		left = true;
	}
	owner_unlock(stripe_of(t, bucket));
	return left;
}

/* Subtract, but not below zero: a guest that forgets too much harms nobody. Return: what is left.
 */
static uint64_t take_lookups(struct inode *inode, uint64_t count)
{
	uint64_t old = __atomic_load_n(&inode->lookup_count, __ATOMIC_RELAXED);
	uint64_t new;

	do {
		new = old > count ? old - count : 0;
	} while (!__atomic_compare_exchange_n(&inode->lookup_count, &old, new, true,
					      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
	return new;
}

void inode_table_forget(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			uint64_t count)
{
	struct inode *inode;

	if (nodeid == ROOT_NODEID)
		return;
	inode = inode_table_get(t, nodeid);
	if (!inode || take_lookups(inode, count))
		return;
	if (leave(t, reclaim->slot, inode, (uint32_t)(nodeid >> 32)))
		retire(t, reclaim, inode);
}

/* The inode with its stripe locked, if it borrows from this lender; else NULL, nothing is locked.
 */
static struct inode *lock_borrower(struct inode_table *t, uint32_t worker, uint64_t nodeid,
				   uint32_t lender)
{
	struct inode *inode = inode_table_get(t, nodeid);
	uint32_t *stripe;

	if (!inode)
		return NULL;
	stripe = stripe_of(t, bucket_of(t, inode_key_of(inode)));
	owner_lock(stripe, worker);
	if (inode->generation == (uint32_t)(nodeid >> 32) && inode->lender == lender)
		return inode;
	owner_unlock(stripe);
	return NULL;
}

/* What was borrowed is repaid; unlocks what lock_borrower() locked. */
static void unlock_borrower(struct inode_table *t, struct inode *inode)
{
	__atomic_store_n(&inode->lender, 0, __ATOMIC_RELEASE);
	owner_unlock(stripe_of(t, bucket_of(t, inode_key_of(inode))));
}

bool inode_table_repay(struct inode_table *t, uint32_t worker, uint64_t nodeid, uint32_t lender,
		       int path_fd)
{
	struct inode *inode = lock_borrower(t, worker, nodeid, lender);

	if (!inode)
		return false;
	note_cached(t, inode);
	if (path_fd >= 0)
		__atomic_store_n(&inode->fd, path_fd, __ATOMIC_RELEASE);
	__atomic_add_fetch(&t->held, 1, __ATOMIC_RELAXED);
	unlock_borrower(t, inode);
	return true;
}

bool inode_table_repay_handle(struct inode_table *t, uint32_t worker, uint64_t nodeid,
			      uint32_t lender, const struct fhandle *handle)
{
	struct inode *inode = lock_borrower(t, worker, nodeid, lender);

	if (!inode)
		return false;
	set_handle(inode, 0, handle);
	__atomic_store_n(&inode->fd, -1, __ATOMIC_RELEASE);
	unlock_borrower(t, inode);
	return true;
}

void inode_table_reset(struct inode_table *t, struct reclaim *reclaim)
{
	uint32_t end = __atomic_load_n(&t->next_unused, __ATOMIC_ACQUIRE);

	for (uint32_t slot = FIRST_SLOT; slot < end; slot++) {
		struct inode *inode = slot_at(t, slot);

		if (__atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1)
			inode_table_forget(t, reclaim, inode_nodeid(t, inode), UINT64_MAX);
	}
}

/*
 * Is this inode, marked by the former worker in our slot, ours to free? It may have died between
 * retired_by and the new generation: then finish, if nobody has looked the file up meanwhile. Under
 * the lock, because whoever forgets it again marks it as his. Nobody else sets our mark, so with
 * the mark the key is still the one whose lock we took.
 */
static bool adopt(struct inode_table *t, uint32_t worker, struct inode *inode)
{
	uint32_t bucket = bucket_of(t, inode_key_of(inode));
	bool ours;

	owner_lock(stripe_of(t, bucket), worker);
	ours = __atomic_load_n(&inode->retired_by, __ATOMIC_RELAXED) == worker + 1;
	if (ours && inode->generation & 1) {
		ours = !__atomic_load_n(&inode->lookup_count, __ATOMIC_ACQUIRE);
		if (ours)
			take_out(t, worker, bucket, inode);
		else
			__atomic_store_n(&inode->retired_by, 0, __ATOMIC_RELAXED);
	}
	owner_unlock(stripe_of(t, bucket));
	return ours;
}

void inode_table_adopt_retired(struct inode_table *t, struct reclaim *reclaim)
{
	uint32_t end = __atomic_load_n(&t->next_unused, __ATOMIC_ACQUIRE);

	for (uint32_t slot = FIRST_SLOT; slot < end; slot++) {
		struct inode *inode = slot_at(t, slot);

		if (__atomic_load_n(&inode->retired_by, __ATOMIC_RELAXED) == reclaim->slot + 1 &&
		    adopt(t, reclaim->slot, inode))
			retire(t, reclaim, inode);
		else if (owns_fd(inode)) /* the mark may have been taken by one who died */
			note_cached(t, inode);
	}
	mount_table_adopt_retired(&t->mounts, reclaim);
}

void inode_table_bury(void *memory, uint32_t slot)
{
	struct inode_table *t = memory;

	owner_lock_bury(&t->free_lock, slot);
	mount_table_bury(&t->mounts, slot);
	for (uint32_t i = 0; i < STRIPES; i++)
		owner_lock_bury(&t->stripes[i], slot);
}

uint64_t inode_table_fds(const void *memory, int32_t *ret, uint64_t room)
{
	const struct inode_table *t = memory;
	uint64_t count = 0;

	for (uint32_t slot = ROOT_SLOT; slot < t->next_unused; slot++) {
		const struct inode *inode = slot_at(t, slot);
		bool holds = inode->generation & 1 || inode->retired_by || slot == ROOT_SLOT;

		if (!holds || inode->lender || inode->fd < 0)
			continue;
		if (count < room)
			ret[count] = inode->fd;
		count++;
	}
	return mount_table_fds(&t->mounts, ret, room, count);
}

uint64_t inode_table_count(const void *memory)
{
	const struct inode_table *t = memory;

	return table_count(&t->in_use);
}
