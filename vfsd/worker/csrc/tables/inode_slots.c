/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/tables/inode_slots.h"

#include "worker/csrc/tables/inode_layout.h"

struct inode *inode_slots_take(struct inode_table *t, uint32_t worker)
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

void inode_slots_free(void *table, struct reclaim *reclaim, uint32_t slot)
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
