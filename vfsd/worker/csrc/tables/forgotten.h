/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The inodes that the guest has forgotten most recently. They are kept in the inode table's memory;
 * the theory is in forgotten.c. */
#ifndef VFSD_FORGOTTEN_H
#define VFSD_FORGOTTEN_H

#include "worker/csrc/tables/forgotten_ring.h"
#include "worker/csrc/tables/inode.h"
#include "worker/csrc/tables/reclaim.h"

/* Has this inode been let go? The answer lasts while the caller holds the lock of the inode's
 * stripe; without the lock it may be out of date at once. */
static inline bool forgotten_is_let_go(const struct inode *inode)
{
	return !(__atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1) &&
	       __atomic_load_n(&inode->retired_by, __ATOMIC_ACQUIRE) == LET_GO;
}

/* Did a worker die while it let go of this inode or called it back? The lock matters as for
 * forgotten_is_let_go. */
static inline bool forgotten_is_half(const struct inode *inode)
{
	return __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1 &&
	       __atomic_load_n(&inode->retired_by, __ATOMIC_ACQUIRE) == LET_GO;
}

/* Let go of an inode that has a handle and that the caller has seen with this generation. Nothing
 * happens if a worker has looked the inode up since then. */
void forgotten_let_go(struct inode_table *t, struct reclaim *reclaim, struct inode *inode,
		      uint32_t generation);

/* Make this inode known to the guest again, under the nodeid that it had. The caller holds the lock
 * of the inode's stripe and has raised the lookup count. */
void forgotten_revive(struct inode_table *t, struct inode *inode);

/* Copy the inode of `nodeid` into *ret if that inode has been let go. Return: true if it has. */
bool forgotten_find(struct inode_table *t, uint32_t worker, uint64_t nodeid, struct inode *ret);
/* Bring back the inode that forgotten_find has just found; another worker may have looked it up by
 * now. Return: the inode, with its lookup count raised by one; NULL if it has left the table. */
struct inode *forgotten_recall(struct inode_table *t, uint32_t worker, uint64_t nodeid);

/* Remove the inodes that were let go first, while the table has few free slots. Called between two
 * batches of requests. */
void forgotten_make_room(struct inode_table *t, struct reclaim *reclaim);
/* Remove this inode if it has been let go. */
void forgotten_remove(struct inode_table *t, struct reclaim *reclaim, struct inode *inode);

#endif
