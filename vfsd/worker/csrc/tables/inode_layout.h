/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The layout of the inode table in its memory. Only the parts of the table include this header:
 * inode_table.c, inode_leave.c, inode_cache.c, inode_hash.[ch], inode_slots.[ch], inode_restore.c,
 * forgotten.c and session_image.c. The theory is in inode_table.c.
 */
#ifndef VFSD_INODE_LAYOUT_H
#define VFSD_INODE_LAYOUT_H

#include "worker/csrc/tables/forgotten_ring.h"
#include "transport/csrc/clock.h"
#include "worker/csrc/tables/inode.h"
#include "worker/csrc/tables/mount_table.h"
#include "worker/csrc/tables/owner_lock.h"

#include <sys/stat.h>
#include <time.h>

/* An age beyond which no other file can have the same birth time. It is longer than a tick of any
 * clock from which file systems take birth times. */
#define YOUNG_NS NS_PER_SEC

enum {
	ROOT_SLOT = 1,	  /* the first slot; the root's nodeid is the same number */
	SLOTS_APART = 15, /* in units of SLOT_BYTES: from one slot to the next */
	RUN_BITS = 10,	  /* 2^RUN_BITS consecutive inode numbers lie in neighbouring chains */
	STRIPE_BITS = 10,
	STRIPES = 1 << STRIPE_BITS,
	ROWS_MIN = 16,
	BLOCK_BYTES = 4096,
	BLOCK_SLOTS = BLOCK_BYTES / SLOT_BYTES,
	BLOCK_LEVELS = 3,
	GRANULE = 1 << 16, /* the largest page size of any machine, in bytes */
};

#define BLOCK_FULL ((UINT64_C(1) << INODE_BLOCK) - 1)

_Static_assert(SLOTS_APART *SLOT_BYTES == sizeof(struct inode), "no gap between two slots");
_Static_assert(INODE_BLOCK == BLOCK_SLOTS / SLOTS_APART, "a block fills a page");

/* The state of a block, which is a page of slots. This struct is kept when the page itself is given
 * back to the host. */
struct inode_block {
	uint64_t used;	     /* one bit for each place; 1: not free, or beyond the end */
	uint32_t generation; /* the generation with which slots go on after a give-back */
	uint8_t closed_by;   /* slot + 1 of the worker that gives the page back; 0: open */
	uint8_t is_vacant;   /* 1: the page was given back, and no slot was taken since */
};

/* The hash chains of a stripe that are in use. A stripe has one chain in each of its rows. */
struct inode_chains {
	uint32_t end;  /* the first bucket that is not in use; 0: a resize is under way */
	uint32_t mask; /* leads from a hash to a bucket, which may be `end` or higher */
};

/* A change of the number of a stripe's chains that is under way. */
struct inode_resize {
	uint32_t rows;	 /* number of rows before the change, and RESIZE_GROW (inode_hash.c) */
	uint32_t moving; /* the slot that is being moved from one chain to another; 0: none */
};

/* The parts of the table, as offsets in bytes from the table's head. */
struct inode_parts {
	uint64_t slots;		     /* of slot 0, which is not used; slot 1 begins a page */
	uint64_t blocks;	     /* of an array with the struct inode_block of each block */
	uint64_t marks;		     /* of a byte for each block; 1: inode_trim.c is to visit it */
	uint64_t open[BLOCK_LEVELS]; /* of the bits that say which blocks have free slots */
	uint64_t end;		     /* the size of the table */
};

struct inode_table {
	uint32_t block_count; /* number of blocks that the table has room for */
	uint32_t blocks_used; /* blocks from this number on were never used */
	uint32_t lowest;      /* the block to take slots from; it is never a closed block */
	uint32_t free_lock;   /* protects the bits of free slots, and `lowest` */
	uint32_t in_use;      /* inodes, also those that were let go (table_count.h) */
	uint32_t held;	      /* number of fds that inodes own (table_count.h) */
	uint32_t hand;	      /* the next slot that inode_table_next_idle looks at */
	uint32_t fullness;    /* enum inode_fullness that is to be reported */
	uint32_t reported;    /* enum inode_fullness that was reported last */
	uint64_t reported_at_ns;
	uint64_t missing; /* a bit for each place of the last block that is beyond the end */
	struct inode_parts at;
	uint64_t swept_at_ns; /* when inode_table_begin_sweep last returned true */
	uint32_t marks;	      /* counts the times that a block was marked */
	uint32_t root_device;
	uint32_t rows;		   /* number of rows that stripes may grow to now */
	uint32_t row_count;	   /* number of rows that the table has room for */
	uint32_t rows_lock;	   /* held by the worker that changes `rows` */
	uint32_t first_generation; /* of a slot that was never taken; even */
	struct mount_table mounts;
	struct forgotten forgotten;
	uint32_t stripes[STRIPES]; /* locks */
	struct inode_chains chains[STRIPES];
	struct inode_resize resizes[STRIPES];
};

/* The offsets of the parts of a table for `capacity` inodes. */
struct inode_parts inode_table_lay_out(uint32_t capacity);

/* The offset in bytes of the hash rows, which come after the head. Each row has one chain of every
 * stripe. */
#define ROWS_AT ((sizeof(struct inode_table) + GRANULE - 1) / GRANULE * GRANULE)

/* The table is const for a function that does not change its head; what follows the head may
 * change. By way of an integer the cast would cost CREATE 3 % of its instructions. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wcast-qual"
static inline void *at_offset(const struct inode_table *t, uint64_t bytes)
{
	return (uint8_t *)t + bytes;
}
#pragma GCC diagnostic pop

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

/* Return: true if `slot`, which may be any number, is a slot of the table and is not free. */
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

/* Ask for a visit of this block by inode_trim.c, because an fd is cached in the block or because
 * none of its slots is in use. */
static inline void mark_block(struct inode_table *t, uint32_t block)
{
	if (!__atomic_exchange_n(mark_of(t, block), 1, __ATOMIC_ACQ_REL))
		__atomic_add_fetch(&t->marks, 1, __ATOMIC_RELAXED);
}

/* A directory of the share's own file system keeps its fd. A process of the guest may have such a
 * directory as its working directory, which must not become stale when it is removed. The fd costs
 * little memory. */
static inline bool keeps_fd(const struct inode_table *t, const struct inode *inode)
{
	return S_ISDIR(inode->mode) && (uint32_t)inode->mnt_id == t->root_device;
}

/* Called before an inode gets an fd of its own, so that inode_trim.c closes the fd when it is no
 * longer used. */
static inline void note_cached(struct inode_table *t, const struct inode *inode)
{
	if (!keeps_fd(t, inode))
		mark_block(t, block_of(slot_of(t, inode)));
}

/* The files of a directory often have consecutive inode numbers. A run of consecutive numbers lies
 * in neighbouring chains, which a listing of the directory finds in the CPU's cache. Different runs
 * are scattered over the table. */
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

/* Remember how full the table is, until that is reported (inode_table_take_fullness). */
static inline void note_fullness(struct inode_table *t, uint32_t fullness)
{
	if (fullness > __atomic_load_n(&t->fullness, __ATOMIC_RELAXED))
		__atomic_store_n(&t->fullness, fullness, __ATOMIC_RELAXED);
}

/* Return: true if the file was born so lately that another file may have the same birth time. */
static inline bool is_young(int64_t btime)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return btime > (int64_t)now.tv_sec * NS_PER_SEC + now.tv_nsec - YOUNG_NS;
}

#endif
