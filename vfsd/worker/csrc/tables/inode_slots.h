/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Which slots of the inode table are free, and how their memory is given back to the host. The
 * theory is in inode_slots.c. */
#ifndef VFSD_INODE_SLOTS_H
#define VFSD_INODE_SLOTS_H

#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/reclaim.h"

/* The number of blocks that hold `slots` slots, and the size in bytes of the bits of one level
 * above `blocks` blocks. */
uint32_t inode_slots_blocks(uint32_t slots);
uint64_t inode_slots_level_bytes(uint32_t blocks, unsigned int level);

/* Lay out `slots` slots in zeroed memory. The root's slot is taken from the beginning. */
void inode_slots_init(struct inode_table *t, uint32_t slots);

/* Take a free slot. Return: NULL if the table is full. */
struct inode *inode_slots_take(struct inode_table *t, uint32_t worker);
/* Take the slot with this number. Return: false if there is no such slot, or if it is not free. */
bool inode_slots_take_at(struct inode_table *t, uint32_t worker, uint32_t slot);
/* Free the slot of an inode that has left the table, and close the fd that the inode owns. Both
 * happen after every worker's quiescent point. */
void inode_slots_retire(struct inode_table *t, struct reclaim *reclaim, struct inode *inode);
/* The number of inodes that the table has room for, without the root. */
uint64_t inode_slots_count(const struct inode_table *t);
/* Return: the next slot after `slot` that is not free, or 0. */
uint32_t inode_slots_after(const struct inode_table *t, uint32_t slot);

/* Open the blocks that the former worker in this slot of the worker table had closed when it died.
 * */
void inode_slots_adopt(struct inode_table *t, uint32_t worker);

/* See inode_table_is_empty and inode_table_give_back. */
bool inode_slots_is_empty(const struct inode_table *t, uint32_t block);
uint32_t inode_slots_give_back(struct inode_table *t, uint32_t worker, uint32_t block);

#endif
