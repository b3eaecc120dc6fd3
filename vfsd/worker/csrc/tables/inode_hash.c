/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/tables/inode_hash.h"

#include "worker/csrc/tables/inode_layout.h"

struct inode *inode_hash_find(struct inode_table *t, uint32_t bucket, struct inode_key key)
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

void inode_hash_link(struct inode_table *t, uint32_t bucket, struct inode *inode)
{
	inode->next = t->buckets[bucket];
	__atomic_store_n(&t->buckets[bucket], slot_of(t, inode), __ATOMIC_RELEASE);
}

void inode_hash_unlink(struct inode_table *t, uint32_t bucket, struct inode *inode)
{
	uint32_t slot = slot_of(t, inode);
	uint32_t *link = &t->buckets[bucket];

	while (*link && *link != slot)
		link = &slot_at(t, *link)->next;
	if (*link)
		__atomic_store_n(link, inode->next, __ATOMIC_RELEASE);
}
