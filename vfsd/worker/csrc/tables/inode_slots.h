/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Which slots of the inode table are free, and the memory of those that are. The theory is in
 * inode_slots.c. */
#ifndef VFSD_INODE_SLOTS_H
#define VFSD_INODE_SLOTS_H

#include "worker/csrc/tables/inode_layout.h"
#include "worker/csrc/tables/reclaim.h"

/* How many blocks hold this many slots, and the bytes of the bits of one level above them. */
uint32_t inode_slots_blocks(uint32_t slots);
uint64_t inode_slots_level_bytes(uint32_t blocks, unsigned int level);

/* In zeroed memory, for this many slots. The root has its own. */
void inode_slots_init(struct inode_table *t, uint32_t slots);

/* A slot that is nobody else's; NULL: the table is full. */
struct inode *inode_slots_take(struct inode_table *t, uint32_t worker);
/* This very slot. Return: false if there is no such slot, or it is not free. */
bool inode_slots_take_at(struct inode_table *t, uint32_t worker, uint32_t slot);
/* Free the slot of an inode that left the table, and close the fd that it owns, after every
 * worker's quiescent point. */
void inode_slots_retire(struct inode_table *t, struct reclaim *reclaim, struct inode *inode);
/* For how many inodes there is room, the root aside. */
uint64_t inode_slots_count(const struct inode_table *t);
/* The next slot that is not free; 0: there is none. */
uint32_t inode_slots_after(const struct inode_table *t, uint32_t slot);

/* Open what the former worker in this slot had closed. */
void inode_slots_adopt(struct inode_table *t, uint32_t worker);

/* See inode_table_is_empty and inode_table_give_back. */
bool inode_slots_is_empty(const struct inode_table *t, uint32_t block);
uint32_t inode_slots_give_back(struct inode_table *t, uint32_t worker, uint32_t block);

#endif
