/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The mounts that known inodes are on, and an fd of each. Part of the inode table's memory; the
 * theory is in mount_table.c. */
#ifndef VFSD_MOUNT_TABLE_H
#define VFSD_MOUNT_TABLE_H

#include "transport/csrc/types.h"
#include "worker/csrc/tables/reclaim.h"

enum {
	MOUNTS_MAX = 1 << 16,
	MOUNT_BUCKETS = 1 << 10,
};

/* What a mount has where it has no fd. */
enum {
	MOUNT_FD_NONE = -1,    /* files of this mount cannot be held by handles */
	MOUNT_FD_UNKNOWN = -2, /* it has not been tried */
};

struct mount {
	uint32_t id;	     /* STATX_MNT_ID */
	int32_t fd;	     /* of a directory on it, or MOUNT_FD_* */
	uint32_t inodes;     /* known ones that are on it */
	uint32_t next;	     /* in the hash chain or on the free list; 0: none */
	uint32_t retired_by; /* worker slot + 1 that is to free it */
};

struct mount_table {
	uint32_t lock;
	uint32_t next_unused;
	uint32_t free_head;
	uint32_t root_id; /* the mount of the share, which nothing counts: it stays */
	int32_t root_fd;  /* as of a struct mount */
	uint32_t held;	  /* fds of the others */
	uint32_t buckets[MOUNT_BUCKETS];
	struct mount mounts[MOUNTS_MAX]; /* 0 is none */
};

/* In zeroed memory. `root_id`: of the mount of the share. */
void mount_table_init(struct mount_table *t, uint32_t root_id);

/* The fd of this mount, good until this worker's next quiescent point; or MOUNT_FD_*. */
int mount_table_fd_below(const struct mount_table *t, uint32_t id);
static inline int mount_table_fd(const struct mount_table *t, uint32_t id)
{
	return id == t->root_id ? __atomic_load_n(&t->root_fd, __ATOMIC_ACQUIRE)
				: mount_table_fd_below(t, id);
}

/* One more inode is on this mount, or one less. Not for the mount of the share. */
void mount_table_enter(struct mount_table *t, uint32_t worker, uint32_t id);
void mount_table_leave(struct mount_table *t, struct reclaim *reclaim, uint32_t id);

/* Set what is MOUNT_FD_UNKNOWN, for as long as inodes are on this mount: an fd, which is the
 * table's then, or MOUNT_FD_NONE. Return: was it unknown? */
bool mount_table_set_fd(struct mount_table *t, uint32_t worker, uint32_t id, int fd);

/* As of inode_table.h and tables.h. */
void mount_table_adopt_retired(struct mount_table *t, struct reclaim *reclaim);
void mount_table_bury(struct mount_table *t, uint32_t slot);
/* Write fds from ret[count] on. Return: count and what was added, also beyond `room`. */
uint64_t mount_table_fds(const struct mount_table *t, int32_t *ret, uint64_t room, uint64_t count);

#endif
