/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * How the inode table lies in its memory: what inode_table.c and inode_cache.c share, and nobody
 * else includes. The theory is in inode_table.c.
 */
#ifndef VFSD_INODE_LAYOUT_H
#define VFSD_INODE_LAYOUT_H

#include "worker/csrc/tables/inode_table.h"
#include "worker/csrc/host/mix.h"
#include "worker/csrc/tables/owner_lock.h"

#include <sys/stat.h>
#include <time.h>

/* Coarser than any clock that file systems take birth times from. */
#define YOUNG_NS INT64_C(1000000000)

enum {
	STRIPES = 1024,
	ROOT_SLOT = 1,
	ROOT_NODEID = 1,
	FIRST_SLOT = 2,
	RUN_BITS = 10,
};

struct inode_table {
	uint32_t capacity;    /* slots */
	uint32_t bucket_mask; /* buckets - 1 */
	uint32_t next_unused; /* slots from here on were never used */
	uint32_t free_head;
	uint32_t free_lock;
	uint32_t in_use;
	uint32_t held;
	uint32_t hand;	    /* of the clock */
	uint64_t slots_at;  /* bytes from the head to slot 0 */
	uint64_t cached_at; /* bytes from the head to the marks of blocks with cached fds */
	uint64_t swept_at_ns;
	uint32_t marks; /* counts the blocks that were marked */
	uint32_t root_device;
	struct mount_table mounts;
	uint32_t stripes[STRIPES];
	uint32_t buckets[];
};

static inline struct inode *slot_at(const struct inode_table *t, uint32_t slot)
{
	return (struct inode *)((uint8_t *)t + t->slots_at) + slot;
}

static inline uint32_t slot_of(const struct inode_table *t, const struct inode *inode)
{
	return (uint32_t)(inode - slot_at(t, 0));
}

static inline uint8_t *mark_of(const struct inode_table *t, uint32_t block)
{
	return (uint8_t *)t + t->cached_at + block;
}

/* A directory of the share's own file system keeps its fd: one that a process of the guest works in
 * must not become stale when it is removed, and it takes no room worth speaking of. */
static inline bool keeps_fd(const struct inode_table *t, const struct inode *inode)
{
	return S_ISDIR(inode->mode) && (uint32_t)inode->mnt_id == t->root_device;
}

/* This inode is about to own an fd, which is to be given up when it is not used. */
static inline void note_cached(struct inode_table *t, const struct inode *inode)
{
	uint8_t *mark = mark_of(t, slot_of(t, inode) / INODE_BLOCK);

	if (keeps_fd(t, inode) || __atomic_exchange_n(mark, 1, __ATOMIC_ACQ_REL))
		return;
	__atomic_add_fetch(&t->marks, 1, __ATOMIC_RELAXED);
}

/* The inode numbers of a directory's files are often dense: a run of them lies in neighbouring
 * buckets, which a listing finds in the cache. The runs are scattered. */
static inline uint32_t bucket_of(const struct inode_table *t, struct inode_key key)
{
	uint64_t h = (key.ino >> RUN_BITS) + key.mnt_id * UINT64_C(0x9e3779b97f4a7c15);

	return (uint32_t)(mix64(h) + key.ino) & t->bucket_mask;
}

static inline uint32_t *stripe_of(struct inode_table *t, uint32_t bucket)
{
	return &t->stripes[bucket % STRIPES];
}

static inline bool owns_fd(const struct inode *inode)
{
	return __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1 &&
	       __atomic_load_n(&inode->fd, __ATOMIC_RELAXED) >= 0 &&
	       !__atomic_load_n(&inode->lender, __ATOMIC_RELAXED);
}

static inline bool is_young(int64_t btime)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return btime > (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - YOUNG_NS;
}

#endif
