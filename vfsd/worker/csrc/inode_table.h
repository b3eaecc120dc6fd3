/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The inodes the guest knows, shared by all workers in one memfd. The theory is in inode_table.c.
 */
#ifndef VFSD_INODE_TABLE_H
#define VFSD_INODE_TABLE_H

#include "transport/csrc/types.h"
#include "worker/csrc/reclaim.h"
#include "worker/csrc/tables.h"

#include <sys/types.h>

/* What tells one host file from another. */
struct inode_key {
	uint64_t ino;
	uint64_t mnt_id;
};

struct inode {
	uint64_t ino;
	uint64_t mnt_id;
	uint64_t lookup_count; /* what FORGET takes back */
	uint32_t generation;   /* odd: in use; nodeid = slot | generation << 32 */
	int32_t fd;	       /* O_PATH, or borrowed from an open file */
	uint32_t next;	       /* slot of the next inode in this hash chain or on the free list */
	uint32_t mode;	       /* S_IFMT bits, which never change */
	uint32_t lender;       /* slot of the open file that fd belongs to; 0: the inode owns fd */
	uint32_t retired_by;   /* worker slot + 1 that is to free it */
};

struct inode_table; /* the head of the mapping */

/*
 * The inode of `nodeid`, or NULL (stale, never given out, malformed). Valid until this worker's
 * next quiescent point (reclaim.h), even when another worker forgets it meanwhile.
 */
struct inode *inode_table_get(struct inode_table *t, uint64_t nodeid);
uint64_t inode_nodeid(const struct inode_table *t, const struct inode *inode);

/* The inode with `key`, its lookup count raised by one; NULL if unknown. */
struct inode *inode_table_acquire(struct inode_table *t, uint32_t worker, struct inode_key key);

/*
 * Enter a file under `key`, held by `fd`, with lookup count 1. If another worker entered it
 * meanwhile that one is returned, its count raised, and *ret_used_fd is false: the caller closes
 * fd. `lender`: file slot that owns fd, or 0 when the inode is to own it.
 * Return: NULL when the table is full (ENFILE).
 */
struct inode *inode_table_insert(struct inode_table *t, uint32_t worker, struct inode_key key,
				 mode_t mode, int fd, uint32_t lender, bool *ret_used_fd);

/* Take `count` lookups back (saturating). At zero the inode leaves the table; its slot and fd are
 * reclaimed after every worker's quiescent point. The root is never forgotten. */
void inode_table_forget(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			uint64_t count);

/*
 * The open file `lender` is about to close the fd that this inode borrows: hold the inode by
 * `path_fd` (O_PATH, or -1 if none could be had) from now on. Return: true if the inode took what
 * it was given: path_fd, or with path_fd == -1 the lender's fd, which then must not be closed.
 */
bool inode_table_repay(struct inode_table *t, uint32_t worker, uint64_t nodeid, uint32_t lender,
		       int path_fd);

/* Free what the former worker in this slot had retired when it died. */
void inode_table_adopt_retired(struct inode_table *t, struct reclaim *reclaim);

/* Forget everything but the root: the FUSE session ended. */
void inode_table_reset(struct inode_table *t, struct reclaim *reclaim);

#endif
