/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * How the inode table lies in its memory: what inode_table.c, inode_leave.c, inode_cache.c,
 * inode_hash.[ch], inode_slots.[ch], inode_restore.c, forgotten.c and session_image.c share, and
 * nobody else includes. The theory is in inode_table.c.
 */
#ifndef VFSD_INODE_LAYOUT_H
#define VFSD_INODE_LAYOUT_H

#include "worker/csrc/tables/forgotten_ring.h"
#include "worker/csrc/tables/inode.h"
#include "worker/csrc/tables/mount_table.h"
#include "worker/csrc/tables/owner_lock.h"

#include <sys/stat.h>
#include <time.h>

/* Coarser than any clock that file systems take birth times from. */
#define YOUNG_NS INT64_C(1000000000)

enum {
	ROOT_SLOT = 1, /* the first one, and its nodeid */
	SLOTS_APART = 14,
	RUN_BITS = 10,
	STRIPE_BITS = 10,
	STRIPES = 1 << STRIPE_BITS,
	ROWS_MIN = 16,
	BLOCK_BYTES = 4096,
	BLOCK_SLOTS = BLOCK_BYTES / SLOT_BYTES,
	BLOCK_LEVELS = 3,
	GRANULE = 1 << 16, /* no page of any machine is larger */
};

#define BLOCK_FULL ((UINT64_C(1) << INODE_BLOCK) - 1)

_Static_assert(SLOTS_APART *SLOT_BYTES == sizeof(struct inode), "there is nothing in between");
_Static_assert(INODE_BLOCK == BLOCK_SLOTS / SLOTS_APART, "as many as a page holds");

/* What is known of a page of slots; stays when the page is given back. */
struct inode_block {
	uint64_t used;	     /* a bit for each place that is not free, or does not exist */
	uint32_t generation; /* where slots begin in a page that was given back */
	uint8_t closed_by;   /* worker slot + 1 that gives the page back; nothing is taken here */
	uint8_t is_vacant;   /* the page was given back, and not used since */
};

/* The hash chains of a stripe that are in use: one in each row. */
struct inode_chains {
	uint32_t end;  /* the first bucket that is not in use; 0: see struct inode_resize */
	uint32_t mask; /* of buckets up to `end` */
};

/* A change of how many they are, under way. */
struct inode_resize {
	uint32_t rows;	 /* before it, and RESIZE_* (inode_hash.c) */
	uint32_t moving; /* slot that is being moved from one chain to another; 0: none */
};

/* Bytes from the head of the table to … */
struct inode_parts {
	uint64_t slots;		     /* slot 0, which is none: the next one begins a page */
	uint64_t blocks;	     /* the struct inode_block of each block */
	uint64_t marks;		     /* a byte for each block: inode_trim.c is to visit it */
	uint64_t open[BLOCK_LEVELS]; /* the bits that say where free slots are */
	uint64_t end;
};

struct inode_table {
	uint32_t block_count; /* what there is room for */
	uint32_t blocks_used; /* blocks from here on were never used */
	uint32_t lowest; /* block that slots are taken from as long as there are any; not closed */
	uint32_t free_lock;
	uint32_t in_use;
	uint32_t held;
	uint32_t hand;	   /* of the clock */
	uint32_t fullness; /* enum inode_fullness, to be reported */
	uint32_t reported; /* the same, lately */
	uint64_t reported_at_ns;
	uint64_t missing; /* places of the last block that do not exist */
	struct inode_parts at;
	uint64_t swept_at_ns;
	uint32_t marks; /* counts the blocks that were marked */
	uint32_t root_device;
	uint32_t rows;	    /* that stripes may grow to now */
	uint32_t row_count; /* what there is room for */
	uint32_t rows_lock; /* of the worker that changes `rows` */
	struct mount_table mounts;
	struct forgotten forgotten;
	uint32_t stripes[STRIPES]; /* locks */
	struct inode_chains chains[STRIPES];
	struct inode_resize resizes[STRIPES];
};

/* Where the parts of a table for `capacity` inodes are. */
struct inode_parts inode_table_lay_out(uint32_t capacity);

/* The hash rows, each with a chain of every stripe, come after the head. */
#define ROWS_AT ((sizeof(struct inode_table) + GRANULE - 1) / GRANULE * GRANULE)

static inline void *at_offset(const struct inode_table *t, uint64_t bytes)
{
	return (uint8_t *)t + bytes;
}

static inline struct inode *slot_at(const struct inode_table *t, uint32_t slot)
{
	return at_offset(t, t->at.slots + (uint64_t)slot * SLOT_BYTES);
}

static inline uint32_t slot_of(const struct inode_table *t, const struct inode *inode)
{
	return (uint32_t)(((uint64_t)inode - (uint64_t)at_offset(t, t->at.slots)) / SLOT_BYTES);
}

static inline uint32_t slot_in(uint32_t block, uint32_t place)
{
	return ROOT_SLOT + block * BLOCK_SLOTS + place * SLOTS_APART;
}

static inline uint32_t block_of(uint32_t slot)
{
	return (slot - ROOT_SLOT) / BLOCK_SLOTS;
}

static inline uint32_t place_of(uint32_t slot)
{
	return (slot - ROOT_SLOT) % BLOCK_SLOTS / SLOTS_APART;
}

static inline struct inode_block *block_at(const struct inode_table *t, uint32_t block)
{
	return (struct inode_block *)at_offset(t, t->at.blocks) + block;
}

static inline uint32_t blocks_used(const struct inode_table *t)
{
	return __atomic_load_n(&t->blocks_used, __ATOMIC_ACQUIRE);
}

/* Is it a slot that is not free? `slot`: any number. */
static inline bool is_taken(const struct inode_table *t, uint32_t slot)
{
	uint32_t block = block_of(slot), place = place_of(slot);

	return block < blocks_used(t) && (slot - ROOT_SLOT) % BLOCK_SLOTS == place * SLOTS_APART &&
	       __atomic_load_n(&block_at(t, block)->used, __ATOMIC_ACQUIRE) >> place & 1;
}

static inline uint8_t *mark_of(const struct inode_table *t, uint32_t block)
{
	return (uint8_t *)at_offset(t, t->at.marks) + block;
}

/* inode_trim.c is to visit the block: an fd is cached there, or nothing is in use. */
static inline void mark_block(struct inode_table *t, uint32_t block)
{
	if (!__atomic_exchange_n(mark_of(t, block), 1, __ATOMIC_ACQ_REL))
		__atomic_add_fetch(&t->marks, 1, __ATOMIC_RELAXED);
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
	if (!keeps_fd(t, inode))
		mark_block(t, block_of(slot_of(t, inode)));
}

/* The inode numbers of a directory's files are often dense: a run of them lies in neighbouring
 * chains, which a listing finds in the cache. The runs are scattered. */
static inline uint64_t hash_of(struct inode_key key)
{
	uint64_t run = ((key.ino >> RUN_BITS) + (key.mnt_id << 20) + (key.mnt_id >> 32)) *
		       UINT64_C(0x9e3779b97f4a7c15);

	return (run ^ run >> 32) + key.ino;
}

static inline uint32_t *stripe_of(struct inode_table *t, uint64_t hash)
{
	return &t->stripes[hash % STRIPES];
}

static inline bool owns_fd(const struct inode *inode)
{
	return __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE) & 1 &&
	       __atomic_load_n(&inode->fd, __ATOMIC_RELAXED) >= 0 &&
	       !__atomic_load_n(&inode->lender, __ATOMIC_RELAXED);
}

/* Until it is reported (inode_table_take_fullness). */
static inline void note_fullness(struct inode_table *t, uint32_t fullness)
{
	if (fullness > __atomic_load_n(&t->fullness, __ATOMIC_RELAXED))
		__atomic_store_n(&t->fullness, fullness, __ATOMIC_RELAXED);
}

static inline bool is_young(int64_t btime)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return btime > (int64_t)now.tv_sec * 1000000000 + now.tv_nsec - YOUNG_NS;
}

#endif
