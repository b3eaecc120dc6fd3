/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fds of inodes: how they are cached, replaced and given up, and how an inode borrows the fd
 * of an open file. The theory is in inode_table.c.
 */
#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/inode_table.h"
#include "worker/csrc/tables/table_count.h"

#include <string.h>

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
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(own)));
	int use = fd;

	owner_lock(stripe, reclaim->slot);
	if (generation & 1 && own->generation == generation) {
		if (own->fd >= 0) {
			use = own->fd;
		} else if (!own->lender) { /* a lender here: a worker died while it repaid */
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

/* Take the cached fd away from an inode that has a handle. The caller holds the stripe's lock.
 * Return: that fd, or -1. */
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
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(inode)));
	int fd;

	owner_lock(stripe, worker);
	fd = take_cached(t, inode);
	owner_unlock(stripe);
	return fd;
}

/* Let `fd` take the place of the fd that the inode owns. The caller holds the stripe's lock.
 * Return: the fd that the inode had, or -1. */
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
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(own)));
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
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(inode)));
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
	stripe = stripe_of(t, hash_of(inode_key_of(inode)));
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

/* Give its handle to an inode that has no handle. The caller holds the stripe's lock. The length
 * and is_checked are stored last, because they show other workers that the handle is there. */
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

struct inode *inode_table_next_idle(struct inode_table *t)
{
	uint32_t at = __atomic_fetch_add(&t->hand, 1, __ATOMIC_RELAXED);
	uint32_t block = at / INODE_BLOCK % blocks_used(t), place = at % INODE_BLOCK;
	uint32_t slot = slot_in(block, place);
	struct inode *inode = slot_at(t, slot);

	if (!is_taken(t, slot) || !owns_fd(inode))
		return NULL;
	return __atomic_exchange_n(&inode->marks.used, 0, __ATOMIC_RELAXED) ? NULL : inode;
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
	uint32_t slot = slot_in(block, place);
	struct inode *inode = slot_at(t, slot);

	if (!is_taken(t, slot) || !owns_fd(inode) || keeps_fd(t, inode))
		return NULL;
	if (!__atomic_exchange_n(&inode->marks.used, 0, __ATOMIC_RELAXED))
		return inode;
	note_cached(t, inode);
	return NULL;
}

void inode_table_give_handle(struct inode_table *t, uint32_t worker, struct inode *inode,
			     uint32_t generation, int fd, int64_t btime,
			     const struct fhandle *handle)
{
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(inode)));

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

void inode_table_give_up_fd(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid)
{
	struct inode *inode = inode_table_get(t, nodeid);
	uint32_t *stripe;
	int fd = -1;

	if (!inode || nodeid == ROOT_SLOT)
		return;
	stripe = stripe_of(t, hash_of(inode_key_of(inode)));
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

/* ---- borrowed fds ---- */

/* Lock the stripe of an inode that borrows from this lender. Return: the inode; or NULL if it does
 * not borrow from the lender, and then nothing is locked. */
static struct inode *lock_borrower(struct inode_table *t, uint32_t worker, uint64_t nodeid,
				   uint32_t lender)
{
	struct inode *inode = inode_table_get(t, nodeid);
	uint32_t *stripe;

	if (!inode)
		return NULL;
	stripe = stripe_of(t, hash_of(inode_key_of(inode)));
	owner_lock(stripe, worker);
	if (inode->generation == (uint32_t)(nodeid >> 32) && inode->lender == lender)
		return inode;
	owner_unlock(stripe);
	return NULL;
}

/* Record that the fd was repaid, and release the lock that lock_borrower() took. */
static void unlock_borrower(struct inode_table *t, struct inode *inode)
{
	__atomic_store_n(&inode->lender, 0, __ATOMIC_RELEASE);
	owner_unlock(stripe_of(t, hash_of(inode_key_of(inode))));
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
