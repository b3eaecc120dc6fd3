/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* From a key to its inode: the hash chains of the inode table. A chain is chosen by hash_of(key).
 * The theory is in inode_hash.c. */
#ifndef VFSD_INODE_HASH_H
#define VFSD_INODE_HASH_H

#include "worker/csrc/tables/inode_layout.h"

/* The size in bytes of the chains' heads, for at most `capacity` inodes. */
uint64_t inode_hash_bytes(uint32_t capacity);
/* Lay the chains out in zeroed memory. */
void inode_hash_init(struct inode_table *t, uint32_t capacity);
void inode_hash_bury(struct inode_table *t, uint32_t worker);

/* The caller of each of the following functions holds the lock of stripe_of(hash). */

/* The bucket of a hash, where the stripe's mask leads to a bucket that is not in use. */
uint32_t inode_hash_fold(struct inode_table *t, uint64_t hash);

static inline uint32_t *inode_hash_head(const struct inode_table *t, uint32_t bucket)
{
	return (uint32_t *)at_offset(t, ROWS_AT) + bucket;
}

/* The head of the chain of this hash. */
static inline uint32_t *inode_hash_chain(struct inode_table *t, uint64_t hash)
{
	const struct inode_chains *chains = &t->chains[hash % STRIPES];
	uint32_t bucket = (uint32_t)hash & chains->mask;

	if (__builtin_expect(bucket >= chains->end, 0))
		bucket = inode_hash_fold(t, hash);
	return inode_hash_head(t, bucket);
}

static inline struct inode *inode_hash_find(struct inode_table *t, uint64_t hash,
					    struct inode_key key)
{
	uint32_t slot = *inode_hash_chain(t, hash);

	while (slot) {
		struct inode *inode = slot_at(t, slot);

		if (inode_key_equal(inode_key_of(inode), key))
			return inode;
		slot = inode->next;
	}
	return NULL;
}

/* Take a slot out of the chain that begins at *link, if it is in that chain. */
static inline void inode_hash_remove(struct inode_table *t, uint32_t *link, uint32_t slot)
{
	while (*link && *link != slot)
		link = &slot_at(t, *link)->next;
	if (*link)
		__atomic_store_n(link, slot_at(t, slot)->next, __ATOMIC_RELEASE);
}

static inline void inode_hash_push(struct inode_table *t, uint32_t *head, uint32_t slot)
{
	__atomic_store_n(&slot_at(t, slot)->next, *head, __ATOMIC_RELEASE);
	__atomic_store_n(head, slot, __ATOMIC_RELEASE);
}

static inline void inode_hash_unlink(struct inode_table *t, uint64_t hash,
				     const struct inode *inode)
{
	inode_hash_remove(t, inode_hash_chain(t, hash), slot_of(t, inode));
}

static inline void inode_hash_link(struct inode_table *t, uint64_t hash, const struct inode *inode)
{
	inode_hash_push(t, inode_hash_chain(t, hash), slot_of(t, inode));
}

/* Called after an inode was linked: split a chain if the table has too few chains by now. */
void inode_hash_grow(struct inode_table *t, uint32_t worker, uint64_t hash);
static inline void inode_hash_linked(struct inode_table *t, uint32_t worker, uint64_t hash)
{
	uint32_t end = __atomic_load_n(&t->rows, __ATOMIC_RELAXED) * STRIPES;
	uint32_t in_use = __atomic_load_n(&t->in_use, __ATOMIC_RELAXED);

	if (__builtin_expect(t->chains[hash % STRIPES].end < end || in_use >= end, 0))
		inode_hash_grow(t, worker, hash);
}

/* See inode_table_shrink. The caller holds no lock. */
bool inode_hash_shrink(struct inode_table *t, uint32_t worker);

#endif
