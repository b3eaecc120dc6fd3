/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* One entry of the inode table. The theory is in inode_table.c. */
#ifndef VFSD_INODE_H
#define VFSD_INODE_H

#include "transport/csrc/types.h"
#include "worker/csrc/host/fhandle.h"
#include "worker/csrc/host/identity.h"

enum {
	SLOT_BYTES = 8,	    /* a slot's number is its offset in units of this many bytes */
	INODE_BLOCK = 34,   /* slots in a block: the number that fits into a page of 4 KiB */
	LET_GO = UINT8_MAX, /* value of inode.retired_by that stands for no worker: forgotten.c */
};

/* What the guest has done with a file since it looked the file up. */
enum inode_past {
	INODE_WAS_OPENED = 1,	/* the guest opened the file for reading only */
	INODE_WAS_MAPPABLE = 2, /* opened for reading and writing: stores to a mapping need both */
	INODE_WAS_READ = 4,	/* pages of the file may be in the guest's page cache */
	INODE_LOST_A_WRITE = 8, /* a WRITE failed: the page cache may have what the file lacks */
};

/* What workers note about an inode while they serve requests. Everything else in an inode stays the
 * same for a function that gets a `const struct inode *`; the marks may change (inode_marks). */
struct inode_marks {
	uint8_t used;	    /* 1: fd was used since inode_table_next_idle last looked */
	uint8_t is_checked; /* 1: `handle` is known to belong to this file and no other */
	uint8_t past;	    /* enum inode_past */
};

struct inode {
	uint64_t ino;
	uint64_t mnt_id;
	uint64_t lookup_count; /* number of lookups that the guest has not taken back by FORGET */
	uint32_t generation;   /* odd: in use; nodeid = slot | generation << 32 */
	int32_t fd; /* O_PATH, readable, or borrowed; -1: `handle` opens the file, or it is stale */
	uint32_t next; /* slot of the next inode in this hash chain or on the free list */
	union {
		uint32_t lender; /* slot of the open file that owns fd; 0: the inode owns it */
		uint32_t place;	 /* place in the ring of forgotten.c, after the inode was let go */
	};
	uint16_t mode;	    /* S_IFMT bits, which never change */
	uint8_t retired_by; /* slot + 1 of the worker that is to free the inode, or LET_GO */
	uint8_t is_young;   /* 1: another file may have the same birth time: inode_table.c */
	struct inode_marks marks;
	uint8_t is_readable;   /* 1: fd is open for reading; 0: fd is O_PATH */
	int64_t btime;	       /* birth time in ns; 0: unknown, or the file system keeps none */
	struct fhandle handle; /* opens the file when fd is -1 */
	/* Slots from this inode to the directory where the guest saw it last; 0: not known. */
	uint32_t to_parent;
	uint32_t pad;
	uint64_t cached_ctime; /* keep_cache.c; 0: the guest's pages may be of any time */
};

struct inode_table; /* the head of the mapping */

/* The marks, which may be written although the inode is const. */
static inline struct inode_marks *inode_marks(const struct inode *inode)
{
	return (struct inode_marks *)((uintptr_t)inode + offsetof(struct inode, marks));
}

static inline struct inode_key inode_key_of(const struct inode *inode)
{
	return (struct inode_key){inode->ino, inode->mnt_id, inode->mode};
}

#endif
