/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* One inode in its slot of the inode table. The theory is in inode_table.c. */
#ifndef VFSD_INODE_H
#define VFSD_INODE_H

#include "transport/csrc/types.h"
#include "worker/csrc/host/fhandle.h"
#include "worker/csrc/host/identity.h"

enum {
	SLOT_BYTES = 8,	    /* slots are numbered by where they begin, in these units */
	INODE_BLOCK = 36,   /* slots; as many as fit a page of 4 KiB */
	LET_GO = UINT8_MAX, /* in inode.retired_by, where no worker is named */
};

/* What the guest has done with a file since it knows the file. */
enum inode_past {
	INODE_WAS_OPENED = 1,	/* for reading only */
	INODE_WAS_MAPPABLE = 2, /* opened for reading and writing: stores to a mapping need both */
	INODE_WAS_READ = 4,	/* so pages of it may be in the guest's page cache */
};

struct inode {
	uint64_t ino;
	uint64_t mnt_id;
	uint64_t lookup_count; /* what FORGET takes back */
	uint32_t generation;   /* odd: in use; nodeid = slot | generation << 32 */
	int32_t fd;	       /* O_PATH, readable, or borrowed; -1: see handle, or stale */
	uint32_t next;	       /* slot of the next inode in this hash chain or on the free list */
	union {
		uint32_t lender; /* slot of the open file that owns fd; 0: the inode does */
		uint32_t place;	 /* of an inode that is let go (forgotten.c) */
	};
	uint16_t mode;	       /* S_IFMT bits, which never change */
	uint8_t retired_by;    /* worker slot + 1 that is to free it, or LET_GO */
	uint8_t used;	       /* fd was, since inode_table_next_idle looked */
	uint8_t is_young;      /* another file may have its birth time: see inode_table.c */
	uint8_t is_checked;    /* its handle is known to be its own, not another file's */
	uint8_t past;	       /* enum inode_past */
	uint8_t is_readable;   /* fd is not O_PATH but open for reading */
	int64_t btime;	       /* ns; 0: unknown, or the file system has none */
	struct fhandle handle; /* holds it where fd does not */
	/* Slots from this inode to the directory where the guest saw it last; 0: not known. */
	uint32_t to_parent;
	uint32_t pad;
};

struct inode_table; /* the head of the mapping */

static inline struct inode_key inode_key_of(const struct inode *inode)
{
	return (struct inode_key){inode->ino, inode->mnt_id, inode->mode};
}

#endif
