/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The latest inodes that the guest has forgotten. Part of the inode table's memory; the theory is
 * in forgotten.c. */
#ifndef VFSD_FORGOTTEN_H
#define VFSD_FORGOTTEN_H

#include "worker/csrc/tables/forgotten_ring.h"
#include "worker/csrc/tables/inode.h"
#include "worker/csrc/tables/reclaim.h"

/* With the stripe of this inode locked; else, it was a moment ago. */
static inline bool forgotten_is_let_go(const struct inode *inode)
{
	return !(__atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1) &&
	       __atomic_load_n(&inode->retired_by, __ATOMIC_ACQUIRE) == LET_GO;
}

/* Likewise: did a worker die while it let go of this inode, or called it back? */
static inline bool forgotten_is_half(const struct inode *inode)
{
	return __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1 &&
	       __atomic_load_n(&inode->retired_by, __ATOMIC_ACQUIRE) == LET_GO;
}

/* Let go of the inode that was seen with this generation and has a handle, unless somebody has
 * looked it up by now. */
void forgotten_let_go(struct inode_table *t, struct reclaim *reclaim, struct inode *inode,
		      uint32_t generation);

/* With its stripe locked, and its lookup count raised: the guest knows this inode again, by the
 * nodeid that it had. */
void forgotten_revive(struct inode_table *t, struct inode *inode);

/* Copy the inode of `nodeid` if that is let go. Return: is it? */
bool forgotten_find(struct inode_table *t, uint32_t worker, uint64_t nodeid, struct inode *ret);
/* The inode itself, which was just found and may have been looked up by somebody else, its lookup
 * count raised by one; NULL if it has left the table. */
struct inode *forgotten_recall(struct inode_table *t, uint32_t worker, uint64_t nodeid);

/* Remove the oldest ones while the table has few free slots. Between two batches. */
void forgotten_make_room(struct inode_table *t, struct reclaim *reclaim);
/* Remove this one if it is let go. */
void forgotten_remove(struct inode_table *t, struct reclaim *reclaim, struct inode *inode);

#endif
