/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. The table leads the worker of every queue from a nodeid to the file on the host. It is
 * in one memfd. No lock is taken and no reference is counted on the way from the nodeid to the fd.
 *
 * Layout. A head; the heads of the hash chains (inode_hash.c); the state of each block of slots;
 * the blocks (inode_slots.c). The segment has the size of the largest table that is allowed, but
 * takes memory only for the parts that are in use. A nodeid is slot | generation << 32. The
 * generation of a slot in use is odd. It grows by one when the slot is taken and by one when the
 * slot is given up, so a stale nodeid never matches. The first generation is a random number: a
 * guest that exports the share hands its nodeids out in file handles, and brings them back to a
 * table that never gave them out. The root is in slot 1 and always has nodeid 1. Slot 0 means
 * "none".
 *
 * Readers (inode_table_get) check that the slot is taken, compare the generation, and then use the
 * slot until their next quiescent point; reclaim.h says why that is safe. The key of a slot in use
 * does not change. Its fd changes only from a borrowed or cached fd to another fd of the same
 * file, or to -1; the old fd is closed only after every worker's quiescent point.
 *
 * Writers hold the owner_lock of the key's stripe. lookup_count is raised only under that lock, so
 * a FORGET that brings it to zero can decide under the lock that the inode leaves the table.
 *
 * Identity. The key is (ino, mnt_id, type). While an fd holds a file, its key identifies it: the
 * host does not free an inode that is held, so the number cannot be given to another file while
 * the inode is in the table. A key does not identify a file that nothing holds, and it does not
 * identify a file across two system calls. The type is in the key because an inode with the type
 * of one file and the handle of the next file would let a guest open the next file as something
 * else (entry.c lists every place that looks twice). So a handle that was found by a name is
 * compared with the whole key when it is first opened (inode_fd.c), and the file is not used
 * before that.
 *
 * A file that only its handle (fhandle.h) holds may have been deleted, and its number given to
 * another file. That other file was born after this table last knew that the old file was alive.
 * So if the old file was older than YOUNG_NS at that time, equal birth times mean the same file.
 * If the old file was younger, or if the file system keeps no birth times, the handles are
 * compared.
 *
 * Place. An inode also knows the directory in which the guest saw it last, and, where the file is
 * entered by its fd, when it was born. Nothing in the table depends on these: they are hints by
 * which a file is found again after every fd of the sandbox was lost (session_restore.c), and what
 * they lead to is compared with the key then. So they are stored without a lock.
 *
 * An inode that the guest has forgotten may stay in the table, held by its handle only
 * (forgotten.c).
 *
 * Each mount counts its inodes (mount_table.c). An inode is counted before it is entered, and
 * until its slot is free again.
 *
 * Fds. `held` counts the fds that inodes own. Where a handle holds the inode, its fd is a cache.
 * The worker that needs the fd opens it. inode_trim.c closes fds by the clock algorithm: it spares
 * an fd that was used since the last round. But a cached fd must not keep a deleted file alive on
 * the host. So a second clock closes every fd that was not used for a second or two, however few
 * fds there are. The second clock finds fds by a mark for each block of slots; the mark is set
 * before an fd is cached in the block.
 *
 * An inode may be held by an fd only although its mount has handles. Where the broker opens
 * handles (handle_broker.c), that is so for every inode; elsewhere for directories. Such an inode
 * gets its handle, with the broker's signature, when its fd is to be closed, and keeps the handle
 * from then on.
 *
 * `fd` changes under the stripe's lock. It changes only between -1 and a number, except where a
 * readable fd takes the place of an O_PATH fd (open_cache.c) or the reverse. An fd that is to be
 * closed is retired (reclaim.h).
 *
 * An inode may have neither fd nor handle. Its fd was closed before its name was removed, on a
 * file system that renames a removed file that an fd still holds (silly_rename.c). The guest gets
 * ESTALE for this inode. If the file still exists, it is entered as another inode.
 *
 * Death of a worker at any store:
 * - insert: the slot is filled, and then published by one store to the head of its chain. A worker
 *   that dies before that store leaks the slot and the fd. The pool's sweep finds the fd; the slot
 *   is lost (120 bytes).
 * - forget: one store sets retired_by, the next takes the slot out of its chain, and the last
 *   makes the generation even. The next worker in that slot of the worker table finds the inodes
 *   that were retired and not freed (inode_table_adopt_retired).
 * - an fd that replaces another: is_readable is cleared, the new fd is stored, and is_readable is
 *   set if the new fd is readable. The fd that is in no table is found by the sweep. If a worker
 *   dies in a repayment by handle before it clears `lender`, the worker that takes the lender over
 *   repays again; until then no fd is cached.
 * - a handle that is set later: its length, and then is_checked, are stored last; until then the
 *   inode counts as one without a handle. The fd is removed after that, by one store.
 * - chains and free slots: see inode_hash.c and inode_slots.c.
 */
#include "worker/csrc/tables/inode_table.h"

#include "worker/csrc/host/identity.h"
#include "worker/csrc/tables/forgotten.h"
#include "worker/csrc/tables/inode_hash.h"
#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/inode_slots.h"
#include "worker/csrc/tables/table_count.h"
#include "worker/csrc/tables/tables.h"

#include <sys/stat.h>

enum {
	CACHE_LINE = 64,
};

_Static_assert((uint64_t)(INODE_CAPACITY_MAX / INODE_BLOCK + 1) * BLOCK_SLOTS <= UINT32_MAX,
	       "each slot has a number");

#define REPORT_PAUSE_NS (UINT64_C(60) * NS_PER_SEC)

static uint64_t add_part(uint64_t *at, uint64_t bytes, uint64_t align)
{
	uint64_t begin = (*at + align - 1) / align * align;

	*at = begin + bytes;
	return begin;
}

/* A part whose memory is given back in pages begins at a page. */
struct inode_parts inode_table_lay_out(uint32_t capacity)
{
	uint32_t blocks = inode_slots_blocks(capacity);
	struct inode_parts parts = {.end = ROWS_AT};

	add_part(&parts.end, inode_hash_bytes(capacity), GRANULE);
	parts.marks = add_part(&parts.end, blocks, CACHE_LINE);
	parts.blocks =
		add_part(&parts.end, (uint64_t)blocks * sizeof(struct inode_block), CACHE_LINE);
	for (unsigned int level = 0; level < BLOCK_LEVELS; level++)
		parts.open[level] =
			add_part(&parts.end, inode_slots_level_bytes(blocks, level), CACHE_LINE);
	parts.slots = add_part(&parts.end, (uint64_t)blocks * BLOCK_BYTES, GRANULE) - SLOT_BYTES;
	return parts;
}

uint64_t inode_table_bytes(uint32_t capacity)
{
	return inode_table_lay_out(capacity).end;
}

enum {
	/* Even, and at most half of the largest number: each slot can be taken 2^30 times. */
	GENERATION_START = 0x7ffffffe,
};

int inode_table_init(void *memory, uint32_t capacity, int root_fd)
{
	struct inode_table *t = memory;
	struct statx st;
	struct inode *root;
	int err = identity_stat_fd(root_fd, &st);

	if (err)
		return err;
	t->at = inode_table_lay_out(capacity);
	inode_slots_init(t, capacity);
	inode_hash_init(t, capacity);
	t->root_device = inode_key_device(identity_key(&st));
	root = slot_at(t, ROOT_SLOT);
	root->ino = identity_key(&st).ino;
	root->mnt_id = identity_key(&st).mnt_id;
	root->mode = (uint16_t)identity_key(&st).type;
	root->fd = root_fd;
	root->lookup_count = 1;
	inode_hash_link(t, hash_of(inode_key_of(root)), root);
	mount_table_init(&t->mounts, inode_key_mount_id(inode_key_of(root)));
	return 0;
}

void inode_table_number_from(void *memory, uint32_t random)
{
	struct inode_table *t = memory;

	t->first_generation = random & GENERATION_START;
}

struct inode *inode_table_get(struct inode_table *t, uint64_t nodeid)
{
	uint32_t slot = (uint32_t)nodeid, generation = (uint32_t)(nodeid >> 32);
	struct inode *inode;

	if (nodeid == ROOT_SLOT)
		return slot_at(t, ROOT_SLOT);
	if (!(generation & 1) || !is_taken(t, slot))
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

/* Return: true if the inode is certainly that of a file with the same key, born at `btime`. */
static bool is_surely(const struct inode *inode, int64_t btime)
{
	if (__atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE) >= 0)
		return true;
	return inode->handle.len && btime && inode->btime == btime && !inode->is_young;
}

/* Count a lookup of an inode that is in its chain. The caller holds the stripe's lock. */
static void look_up(struct inode_table *t, struct inode *inode)
{
	__atomic_add_fetch(&inode->lookup_count, 1, __ATOMIC_RELAXED);
	if (__builtin_expect(inode->retired_by == LET_GO, 0))
		forgotten_revive(t, inode);
}

struct inode *inode_table_acquire(struct inode_table *t, uint32_t worker, struct inode_key key,
				  int64_t btime)
{
	uint64_t hash = hash_of(key);
	struct inode *inode;

	owner_lock(stripe_of(t, hash), worker);
	inode = inode_hash_find(t, hash, key);
	if (inode && !is_surely(inode, btime))
		inode = NULL;
	if (inode)
		look_up(t, inode);
	owner_unlock(stripe_of(t, hash));
	return inode;
}

static struct inode *enter(struct inode_table *t, uint32_t worker, uint64_t hash,
			   const struct inode *values)
{
	struct inode *inode = inode_slots_take(t, worker);

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
	inode->marks = (struct inode_marks){0};
	inode->to_parent = 0;
	inode->cached_ctime = 0;
	inode->is_readable = 0;
	inode->lookup_count = 1;
	inode->retired_by = 0;
	__atomic_store_n(&inode->fd, values->fd, __ATOMIC_RELEASE);
	__atomic_store_n(&inode->generation, inode->generation + 1, __ATOMIC_RELEASE);
	inode_hash_link(t, hash, inode);
	inode_hash_linked(t, worker, hash);
	__atomic_add_fetch(&t->in_use, 1, __ATOMIC_RELAXED);
	return inode;
}

bool inode_table_knows(struct inode_table *t, uint32_t worker, struct inode_key key)
{
	uint64_t hash = hash_of(key);
	bool known;

	owner_lock(stripe_of(t, hash), worker);
	known = inode_hash_find(t, hash, key) != NULL;
	owner_unlock(stripe_of(t, hash));
	return known;
}

/* Return: true if a handle holds this inode, or if nothing holds it any more. The caller holds the
 * stripe's lock. */
static bool has_no_fd(const struct inode *inode)
{
	return __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE) < 0;
}

static bool is_lent(const struct inode *inode)
{
	return inode->lender && !forgotten_is_let_go(inode);
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
	uint64_t hash = hash_of(key);
	struct inode *inode;

	owner_lock(stripe_of(t, hash), worker);
	inode = inode_hash_find(t, hash, key);
	*ret_used_fd = !inode || has_no_fd(inode);
	if (inode && has_no_fd(inode) &&
	    (lender || is_lent(inode) || !proof || !fhandle_equal(&inode->handle, proof))) {
		inode_hash_unlink(t, hash, inode);
		inode = NULL;
	}
	if (inode) {
		look_up(t, inode);
		if (*ret_used_fd) {
			note_cached(t, inode);
			inode->is_readable = 0;
			__atomic_store_n(&inode->fd, fd, __ATOMIC_RELEASE);
		}
	} else {
		inode = enter(t, worker, hash, &values);
	}
	owner_unlock(stripe_of(t, hash));
	if (!inode)
		*ret_used_fd = false;
	if (*ret_used_fd && !lender) {
		note_cached(t, inode);
		__atomic_add_fetch(&t->held, 1, __ATOMIC_RELAXED);
	}
	return inode;
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
	uint64_t hash = hash_of(key);
	struct inode *inode;

	owner_lock(stripe_of(t, hash), worker);
	inode = inode_hash_find(t, hash, key);
	if (inode && !fhandle_equal(&inode->handle, handle) &&
	    (inode->handle.len || has_no_fd(inode))) {
		inode_hash_unlink(t, hash, inode);
		inode = NULL;
	}
	if (inode) {
		inode->btime = btime;
		inode->is_young = values.is_young;
		look_up(t, inode);
	} else {
		inode = enter(t, worker, hash, &values);
	}
	owner_unlock(stripe_of(t, hash));
	return inode;
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

uint32_t inode_table_departures(const struct inode_table *t)
{
	return __atomic_load_n(&t->mounts.departures, __ATOMIC_ACQUIRE);
}

void inode_table_bury(void *memory, uint32_t slot)
{
	struct inode_table *t = memory;

	owner_lock_bury(&t->free_lock, slot);
	owner_lock_bury(&t->forgotten.lock, slot);
	mount_table_bury(&t->mounts, slot);
	inode_hash_bury(t, slot);
}

uint64_t inode_table_fds(const void *memory, int32_t *ret, uint64_t room)
{
	const struct inode_table *t = memory;
	uint64_t count = 0;

	for (uint32_t slot = ROOT_SLOT; slot; slot = inode_slots_after(t, slot)) {
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

bool inode_table_is_empty(const struct inode_table *t, uint32_t block)
{
	return inode_slots_is_empty(t, block);
}

uint32_t inode_table_give_back(struct inode_table *t, uint32_t worker, uint32_t block)
{
	return inode_slots_give_back(t, worker, block);
}

bool inode_table_shrink(struct inode_table *t, uint32_t worker)
{
	return inode_hash_shrink(t, worker);
}

void inode_table_note_fullness(struct inode_table *t, uint32_t fullness)
{
	note_fullness(t, fullness);
}

uint32_t inode_table_fullness(const struct inode_table *t)
{
	return __atomic_load_n(&t->fullness, __ATOMIC_RELAXED);
}

bool inode_table_take_fullness(struct inode_table *t, uint64_t now_ns, uint32_t *ret)
{
	uint64_t last = __atomic_load_n(&t->reported_at_ns, __ATOMIC_RELAXED);

	*ret = inode_table_fullness(t);
	if (*ret <= __atomic_load_n(&t->reported, __ATOMIC_RELAXED) &&
	    now_ns < last + REPORT_PAUSE_NS)
		return false;
	if (!__atomic_compare_exchange_n(&t->reported_at_ns, &last, now_ns, false, __ATOMIC_RELAXED,
					 __ATOMIC_RELAXED))
		return false;
	__atomic_store_n(&t->reported, *ret, __ATOMIC_RELAXED);
	__atomic_store_n(&t->fullness, INODES_FEW, __ATOMIC_RELAXED);
	return *ret != INODES_FEW;
}

uint64_t inode_table_count(const void *memory)
{
	const struct inode_table *t = memory;

	uint64_t in_use = table_count(&t->in_use), let_go = table_count(&t->forgotten.count);

	return in_use > let_go ? in_use - let_go : 0;
}
