/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Which slots of the inode table are free. The theory is in inode_table.c. */
#ifndef VFSD_INODE_SLOTS_H
#define VFSD_INODE_SLOTS_H

#include "worker/csrc/tables/inode_table.h"

/* A slot that is nobody else's; NULL: the table is full. */
struct inode *inode_slots_take(struct inode_table *t, uint32_t worker);
/* As free_slot of struct retired. */
void inode_slots_free(void *table, struct reclaim *reclaim, uint32_t slot);

#endif
