/* SPDX-License-Identifier: Apache-2.0 */
/* How inodes leave the inode table: by FORGET, at the end of the session, and when a worker takes
 * over what a dead worker had begun. The theory is in inode_table.c. */
#include "worker/csrc/tables/forgotten.h"
#include "worker/csrc/tables/inode_hash.h"
#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/inode_slots.h"
#include "worker/csrc/tables/inode_table.h"

/* Take out an inode that has no lookups left. The caller holds the stripe's lock. */
static void take_out(struct inode_table *t, uint32_t worker, uint64_t hash, struct inode *inode)
{
	__atomic_store_n(&inode->retired_by, (uint8_t)(worker + 1), __ATOMIC_RELEASE);
	inode_hash_unlink(t, hash, inode);
	__atomic_store_n(&inode->generation, inode->generation + 1, __ATOMIC_RELEASE);
}

/* Take the inode out if it still has this generation and has no lookups left. Return: true if this
 * call took it out. */
static bool leave(struct inode_table *t, uint32_t worker, struct inode *inode, uint32_t generation)
{
	uint64_t hash = hash_of(inode_key_of(inode));
	bool left = false;

	owner_lock(stripe_of(t, hash), worker);
	if (inode->generation == generation &&
	    !__atomic_load_n(&inode->lookup_count, __ATOMIC_ACQUIRE)) {
		take_out(t, worker, hash, inode);
		left = true;
	}
	owner_unlock(stripe_of(t, hash));
	return left;
}

/* Subtract from the lookup count, but not below zero, since a guest may send a FORGET with a count
 * that is too high. Return: the lookups that are left. */
static uint64_t take_lookups(struct inode *inode, uint64_t count)
{
	uint64_t old = __atomic_load_n(&inode->lookup_count, __ATOMIC_RELAXED);
	uint64_t left;

	do {
		left = old > count ? old - count : 0;
	} while (!__atomic_compare_exchange_n(&inode->lookup_count, &old, left, true,
					      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
	return left;
}

/* May the guest ask for this inode again after forgetting it (forgotten.c)? */
static bool is_exported(const struct inode_table *t, const struct reclaim *reclaim,
			const struct inode *inode)
{
	return reclaim->workers->session.flags & FUSE_EXPORT_SUPPORT &&
	       inode_key_mount_id(inode_key_of(inode)) == t->mounts.root_id;
}

static bool has_handle(const struct inode *inode)
{
	return __atomic_load_n(&inode->handle.len, __ATOMIC_ACQUIRE);
}

static void remove_forgotten(struct inode_table *t, struct reclaim *reclaim, struct inode *inode,
			     uint32_t generation)
{
	if (leave(t, reclaim->slot, inode, generation))
		inode_slots_retire(t, reclaim, inode);
}

/* Mark the inode with this worker. If this worker dies before it forgets the inode again, the next
 * worker in its slot removes the inode. */
static void mark_as_ours(struct inode_table *t, uint32_t worker, struct inode *inode,
			 uint32_t generation)
{
	uint32_t *stripe = stripe_of(t, hash_of(inode_key_of(inode)));

	owner_lock(stripe, worker);
	if (inode->generation == generation)
		__atomic_store_n(&inode->retired_by, (uint8_t)(worker + 1), __ATOMIC_RELEASE);
	owner_unlock(stripe);
}

/* Return: true if the inode is left to the caller. Inline, because FORGET is often half of the cost
 * of a file. */
static inline __attribute__((always_inline)) bool
forget(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid, uint64_t count, bool later)
{
	struct inode *inode = nodeid == ROOT_SLOT ? NULL : inode_table_get(t, nodeid);
	uint32_t generation = (uint32_t)(nodeid >> 32);

	if (!inode || take_lookups(inode, count))
		return false;
	if (!is_exported(t, reclaim, inode)) {
		remove_forgotten(t, reclaim, inode, generation);
		return false;
	}
	if (has_handle(inode)) {
		forgotten_let_go(t, reclaim, inode, generation);
		return false;
	}
	if (later)
		mark_as_ours(t, reclaim->slot, inode, generation);
	else
		remove_forgotten(t, reclaim, inode, generation);
	return later;
}

void inode_table_forget(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			uint64_t count)
{
	(void)forget(t, reclaim, nodeid, count, false);
}

bool inode_table_forget_later(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			      uint64_t count)
{
	return forget(t, reclaim, nodeid, count, true);
}

void inode_table_reset(struct inode_table *t, struct reclaim *reclaim)
{
	for (uint32_t slot = ROOT_SLOT; (slot = inode_slots_after(t, slot));) {
		struct inode *inode = slot_at(t, slot);

		if (__atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1) {
			take_lookups(inode, UINT64_MAX);
			remove_forgotten(t, reclaim, inode, inode->generation);
		} else {
			forgotten_remove(t, reclaim, inode);
		}
	}
}

/*
 * Is this worker to free the inode, which bears a mark of a dead worker? The former worker in this
 * slot may have died after it set retired_by and before it stored the new generation. Then the
 * removal is completed, unless the file has been looked up since. This needs the stripe's lock,
 * because a worker that forgets the inode again sets its own mark. Only workers in this slot set
 * this slot's mark; so if the inode has the mark under the lock, the key is still the key whose
 * lock was taken. The same is done for an inode that any worker had begun to let go: under the
 * lock no living worker is in the middle of that.
 */
static bool adopt(struct inode_table *t, uint32_t worker, struct inode *inode)
{
	uint64_t hash = hash_of(inode_key_of(inode));
	bool ours, is_half;

	owner_lock(stripe_of(t, hash), worker);
	is_half = forgotten_is_half(inode) && hash == hash_of(inode_key_of(inode));
	ours = is_half || __atomic_load_n(&inode->retired_by, __ATOMIC_RELAXED) == worker + 1;
	if (is_half)
		__atomic_store_n(&inode->lender, 0, __ATOMIC_RELEASE);
	if (ours && inode->generation & 1) {
		ours = !__atomic_load_n(&inode->lookup_count, __ATOMIC_ACQUIRE);
		if (ours)
			take_out(t, worker, hash, inode);
		else
			__atomic_store_n(&inode->retired_by, 0, __ATOMIC_RELAXED);
	}
	owner_unlock(stripe_of(t, hash));
	return ours;
}

static bool may_be_ours(const struct inode *inode, uint32_t worker)
{
	return __atomic_load_n(&inode->retired_by, __ATOMIC_RELAXED) == worker + 1 ||
	       forgotten_is_half(inode);
}

void inode_table_adopt_retired(struct inode_table *t, struct reclaim *reclaim)
{
	for (uint32_t slot = ROOT_SLOT; (slot = inode_slots_after(t, slot));) {
		struct inode *inode = slot_at(t, slot);

		if (may_be_ours(inode, reclaim->slot) && adopt(t, reclaim->slot, inode))
			inode_slots_retire(t, reclaim, inode);
		else if (owns_fd(inode)) /* the dead worker may have taken the block's mark */
			note_cached(t, inode);
	}
	inode_slots_adopt(t, reclaim->slot);
	mount_table_adopt_retired(&t->mounts, reclaim);
}
