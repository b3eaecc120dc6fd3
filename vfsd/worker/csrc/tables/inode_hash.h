/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Key -> inode: the hash chains of the inode table. All of this under the lock of the bucket's
 * stripe; the theory is in inode_table.c. */
#ifndef VFSD_INODE_HASH_H
#define VFSD_INODE_HASH_H

#include "worker/csrc/tables/inode_table.h"

struct inode *inode_hash_find(struct inode_table *t, uint32_t bucket, struct inode_key key);
void inode_hash_link(struct inode_table *t, uint32_t bucket, struct inode *inode);
void inode_hash_unlink(struct inode_table *t, uint32_t bucket, struct inode *inode);

#endif
