/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/tables/inode_restore.h"

#include "worker/csrc/tables/inode_hash.h"
#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/inode_slots.h"
#include "worker/csrc/tables/inode_table.h"

#include <string.h>

bool inode_restore_knows_layout(const struct inode_table *t, uint32_t capacity)
{
	struct inode_parts parts = inode_table_lay_out(capacity);

	return !memcmp(&t->at, &parts, sizeof(parts)) &&
	       t->block_count == inode_slots_blocks(capacity) && blocks_used(t) <= t->block_count;
}

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

uint32_t inode_restore_generation(const struct inode_table *t)
{
	uint32_t largest = 0;

	for (uint32_t block = 0; block < blocks_used(t); block++) {
		const struct inode_block *b = block_at(t, block);

		largest = larger(largest, b->generation);
		for (uint32_t place = 0; place < INODE_BLOCK && !b->is_vacant; place++)
			largest = larger(largest, slot_at(t, slot_in(block, place))->generation);
	}
	return largest;
}

struct inode *inode_restore(struct inode_table *t, uint32_t worker, uint64_t nodeid,
			    const struct inode *values, const struct inode *parent)
{
	uint32_t slot = (uint32_t)nodeid, generation = (uint32_t)(nodeid >> 32);
	uint64_t hash = hash_of(inode_key_of(values));
	uint32_t mount_id = inode_key_mount_id(inode_key_of(values));
	struct inode *inode;

	if (slot == ROOT_SLOT || !(generation & 1) || !inode_slots_take_at(t, worker, slot))
		return NULL;
	inode = slot_at(t, slot);
	*inode = *values;
	inode->generation = generation;
	inode->next = inode->lender = inode->retired_by = 0;
	if (parent)
		inode_table_note_parent(inode, parent);
	if (mount_id != t->mounts.root_id)
		mount_table_enter(&t->mounts, worker, mount_id);
	if (inode->fd >= 0) {
		note_cached(t, inode);
		t->held++;
	}
	t->in_use++;
	owner_lock(stripe_of(t, hash), worker);
	inode_hash_link(t, hash, inode);
	inode_hash_linked(t, worker, hash);
	owner_unlock(stripe_of(t, hash));
	return inode;
}

void inode_restore_end(struct inode_table *t, uint32_t generation)
{
	uint32_t even = generation + (generation & 1);

	for (uint32_t block = 0; block < blocks_used(t); block++)
		block_at(t, block)->generation = even;
	t->first_generation = even;
}
