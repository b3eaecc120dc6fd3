/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The mounts of the inodes that the guest knows, and an fd of each mount. The table is part of the
 * inode table's memory; the theory is in mount_table.c. */
#ifndef VFSD_MOUNT_TABLE_H
#define VFSD_MOUNT_TABLE_H

#include "transport/csrc/types.h"
#include "worker/csrc/tables/reclaim.h"

enum {
	MOUNTS_MAX = 1 << 16,
	MOUNT_BUCKETS = 1 << 10,
};

/* Values of mount.fd for a mount that has no fd. */
enum {
	MOUNT_FD_NONE = -1,    /* files of this mount cannot be held by handles */
	MOUNT_FD_UNKNOWN = -2, /* opening the mount has not been tried */
};

struct mount {
	uint32_t id;	     /* STATX_MNT_ID */
	int32_t fd;	     /* of a directory on the mount, or MOUNT_FD_* */
	uint32_t inodes;     /* number of inodes on the mount that the guest knows */
	uint32_t next;	     /* in the hash chain or on the free list; 0: none */
	uint32_t retired_by; /* slot + 1 of the worker that is to free it */
};

struct mount_table {
	uint32_t lock;
	uint32_t next_unused;
	uint32_t free_head;
	uint32_t root_id;    /* the mount of the share; it stays, so its inodes are not counted */
	int32_t root_fd;     /* like the fd of a struct mount */
	uint32_t held;	     /* number of fds of the other mounts */
	uint32_t departures; /* counts the mounts of which the guest has forgotten the last inode */
	uint32_t buckets[MOUNT_BUCKETS];
	struct mount mounts[MOUNTS_MAX]; /* index 0 means "none" */
};

/* Called in zeroed memory. `root_id` is the mount id of the share. */
void mount_table_init(struct mount_table *t, uint32_t root_id);

/* The fd of this mount, valid until this worker's next quiescent point; or MOUNT_FD_*. */
int mount_table_fd_below(const struct mount_table *t, uint32_t id);
static inline int mount_table_fd(const struct mount_table *t, uint32_t id)
{
	return id == t->root_id ? __atomic_load_n(&t->root_fd, __ATOMIC_ACQUIRE)
				: mount_table_fd_below(t, id);
}

/* Count an inode more, or an inode less, on this mount. Not called for the mount of the share. */
void mount_table_enter(struct mount_table *t, uint32_t worker, uint32_t id);
void mount_table_leave(struct mount_table *t, struct reclaim *reclaim, uint32_t id);

/* Replace MOUNT_FD_UNKNOWN, for as long as inodes are on this mount, by an fd (the table takes
 * ownership) or by MOUNT_FD_NONE. Return: was it MOUNT_FD_UNKNOWN? */
bool mount_table_set_fd(struct mount_table *t, uint32_t worker, uint32_t id, int fd);

/* The functions inode_table_adopt_retired, inode_table_bury and inode_table_fds call these for the
 * mounts. */
void mount_table_adopt_retired(struct mount_table *t, struct reclaim *reclaim);
void mount_table_bury(struct mount_table *t, uint32_t slot);
/* Write the fds of the mounts to `ret`, beginning at ret[count]. Return: `count` plus the number of
 * fds, which may be more than `room`. */
uint64_t mount_table_fds(const struct mount_table *t, int32_t *ret, uint64_t room, uint64_t count);

#endif
