/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The inodes that the guest knows, shared by all workers in one memfd. The theory is in
 * inode_table.c.
 */
#ifndef VFSD_INODE_TABLE_H
#define VFSD_INODE_TABLE_H

#include "transport/csrc/types.h"
#include "worker/csrc/tables/inode.h"
#include "worker/csrc/tables/mount_table.h"
#include "worker/csrc/tables/reclaim.h"
#include "worker/csrc/tables/tables.h"

#include <sys/types.h>

/*
 * The inode of `nodeid`, or NULL if the nodeid is stale, malformed or was never given out. The
 * pointer is valid until this worker's next quiescent point (reclaim.h), even if another worker
 * forgets the inode before that.
 */
struct inode *inode_table_get(struct inode_table *t, uint64_t nodeid);
uint64_t inode_nodeid(const struct inode_table *t, const struct inode *inode);

/* Look up the inode of a file with this key and birth time (ns; 0: unknown). An inode that has been
 * let go is found as well, and comes back. Return: the inode, with its lookup count raised by one;
 * NULL if the table has no such inode, or if only a handle can show whether the inode is that of
 * the same file. */
struct inode *inode_table_acquire(struct inode_table *t, uint32_t worker, struct inode_key key,
				  int64_t btime);

/* Return: true if the table has an inode with this key, which may be the inode of another file. */
bool inode_table_knows(struct inode_table *t, uint32_t worker, struct inode_key key);

/*
 * Enter a file that `fd` holds, under `key` and with lookup count 1. If another worker has entered
 * the file first, that worker's inode is returned with its count raised, and *ret_used_fd is
 * false: the caller closes fd.
 *
 * `lender`: the slot of the open file that owns fd; 0: the inode is to own fd. `proof`: the handle
 * of the file, or NULL. If the table has an inode with the same key that is held by a handle only,
 * the two handles are compared. With equal handles that inode is the file's, and fd holds it from
 * then on. Otherwise that inode loses its key to the new one.
 *
 * Return: NULL when the table is full (ENFILE).
 */
struct inode *inode_table_insert(struct inode_table *t, uint32_t worker, struct inode_key key,
				 int fd, uint32_t lender, const struct fhandle *proof,
				 bool *ret_used_fd);

/* Enter a file that is held by its handle; otherwise like inode_table_insert. An inode with the
 * same key and another handle is that of a file that the host has deleted: it loses its key to the
 * new inode, and the guest reaches it by its nodeid only. */
struct inode *inode_table_insert_handle(struct inode_table *t, uint32_t worker,
					struct inode_key key, int64_t btime,
					const struct fhandle *handle);

/*
 * Cache `fd` in an inode that had no fd. Return: the fd to use. That is another worker's fd if
 * that worker was faster. In this case, and if the inode has been forgotten by now, `fd` is
 * closed, but not before this worker's next quiescent point.
 */
int inode_table_cache_fd(struct inode_table *t, struct reclaim *reclaim, const struct inode *inode,
			 int fd);
/* Cache an fd that is open for reading. It takes the place of an fd that is not. It is closed if it
 * cannot be cached. */
void inode_table_cache_readable(struct inode_table *t, struct reclaim *reclaim,
				const struct inode *inode, int fd);
/* Return: the inode's fd if that is open for reading, otherwise -1. */
int inode_table_readable_fd(struct inode_table *t, uint32_t worker, const struct inode *inode);
/* Close the readable fd of this inode, if the inode still has one and also has a handle. Without a
 * handle `path_fd` (O_PATH, or -1) takes the place of the readable fd; if path_fd is -1 the inode
 * keeps its readable fd. A path_fd that is not used is closed. */
void inode_table_drop_readable(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			       int path_fd);

/* Look at the next inode. Return: that inode if it owns an fd that was not used since the last
 * look; otherwise NULL. */
struct inode *inode_table_next_idle(struct inode_table *t);
/*
 * The following functions find fds that were not used for a short time, so that they are given up
 * soon, however few fds there are. Slots are in blocks of INODE_BLOCK, and a block is marked when
 * an fd is cached in one of its slots.
 *
 * inode_table_marks() returns a number that changes whenever a block is marked.
 * inode_table_begin_sweep() returns true to one worker only, and only if at least `pause_ns` have
 * passed since it last returned true. inode_table_is_marked() returns true if any block is marked.
 * inode_table_take_mark() finds the next marked block from *block on, and clears its mark; it
 * returns false if there is none. inode_table_idle_at() does for one place of a block what
 * inode_table_next_idle() does for the next inode; but it marks the block again if the fd was
 * used, and spares directories of the share's own file system.
 */
uint32_t inode_table_marks(const struct inode_table *t);
bool inode_table_begin_sweep(struct inode_table *t, uint64_t now_ns, uint64_t pause_ns);
bool inode_table_is_marked(const struct inode_table *t);
bool inode_table_take_mark(struct inode_table *t, uint32_t *block);
struct inode *inode_table_idle_at(struct inode_table *t, uint32_t block, uint32_t place);

/* A block is also marked when the last of its slots becomes free. Return: true if no slot of this
 * block is in use, and its memory has not been given back yet. */
bool inode_table_is_empty(const struct inode_table *t, uint32_t block);
/* Give the memory of this block and of those that follow back to the host, up to a block in which a
 * slot is in use. Return: the number of these blocks. */
uint32_t inode_table_give_back(struct inode_table *t, uint32_t worker, uint32_t block);
/* Give memory of hash chains back to the host, if there are far more chains than the inodes need.
 * Return: true if more memory can be given back by another call. */
bool inode_table_shrink(struct inode_table *t, uint32_t worker);

void inode_table_note_fullness(struct inode_table *t, uint32_t fullness);
/* Return: the highest enum inode_fullness since the last report; INODES_FEW: there is nothing to
 * report. */
uint32_t inode_table_fullness(const struct inode_table *t);
/* Return: true if this worker is to report the fullness *ret now. The same fullness, or a lower
 * one, is not reported twice within a minute. */
bool inode_table_take_fullness(struct inode_table *t, uint64_t now_ns, uint32_t *ret);

/* Give an inode its handle. `handle` belongs to the file that `fd` holds. Nothing happens unless
 * the inode still has this generation and this fd, owns the fd, and has no handle. `btime`: birth
 * time in ns; 0: unknown. */
void inode_table_give_handle(struct inode_table *t, uint32_t worker, struct inode *inode,
			     uint32_t generation, int fd, int64_t btime,
			     const struct fhandle *handle);
/* Close the fd of an inode that has a handle. Return: true if the inode had an fd of its own. */
bool inode_table_drop_fd(struct inode_table *t, struct reclaim *reclaim, struct inode *inode);
/* Close the fd of an inode that has no handle, ahead of the removal of the file's last name. The
 * inode is stale from then on, until inode_table_cache_fd() gives it an fd. No other file is taken
 * for this inode. */
void inode_table_give_up_fd(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid);
/* Return: the number of fds that inodes and mounts own (an estimate: table_count.h). */
uint64_t inode_table_held(const struct inode_table *t);

static inline void inode_table_touch(const struct inode *inode)
{
	if (!__atomic_load_n(&inode->marks.used, __ATOMIC_RELAXED))
		__atomic_store_n(&inode_marks(inode)->used, 1, __ATOMIC_RELAXED);
}

/* Return: true if all of these (enum inode_past) have happened. */
static inline bool inode_table_has_past(const struct inode *inode, uint8_t past)
{
	return (__atomic_load_n(&inode->marks.past, __ATOMIC_ACQUIRE) & past) == past;
}

static inline void inode_table_note(const struct inode *inode, enum inode_past past)
{
	if (!inode_table_has_past(inode, (uint8_t)past))
		__atomic_or_fetch(&inode_marks(inode)->past, (uint8_t)past, __ATOMIC_RELEASE);
}

static inline uint64_t inode_table_cached_ctime(const struct inode *inode)
{
	return __atomic_load_n(&inode->cached_ctime, __ATOMIC_RELAXED);
}

/* A note, as inode_marks are. */
static inline void inode_table_note_cached_ctime(const struct inode *inode, uint64_t ctime)
{
	uintptr_t at = (uintptr_t)inode + offsetof(struct inode, cached_ctime);

	__atomic_store_n((uint64_t *)at, ctime, __ATOMIC_RELAXED);
}

/* The guest has just seen the inode in this directory. */
static inline void inode_table_note_parent(struct inode *inode, const struct inode *parent)
{
	uint32_t slots = (uint32_t)(((uintptr_t)parent - (uintptr_t)inode) / SLOT_BYTES);

	__atomic_store_n(&inode->to_parent, slots, __ATOMIC_RELAXED);
}

/* The file of this inode, which an fd holds, was born at `btime` (ns, 0: unknown). */
static inline void inode_table_note_birth(struct inode *inode, int64_t btime)
{
	__atomic_store_n(&inode->btime, btime, __ATOMIC_RELAXED);
}

/* Return: true if the file was not opened before. */
static inline bool inode_table_note_opened(const struct inode *inode)
{
	return !(__atomic_fetch_or(&inode_marks(inode)->past, INODE_WAS_OPENED, __ATOMIC_RELAXED) &
		 INODE_WAS_OPENED);
}

/* May a readable fd take the place of the inode's fd? It may not where the handle that was opened
 * could belong to another file, and not where the fd is borrowed. */
static inline bool inode_table_may_cache_readable(const struct inode *inode)
{
	return __atomic_load_n(&inode->handle.len, __ATOMIC_ACQUIRE)
		       ? __atomic_load_n(&inode->marks.is_checked, __ATOMIC_ACQUIRE)
		       : !__atomic_load_n(&inode->lender, __ATOMIC_ACQUIRE);
}

/* Return: true if the inode has a handle that is known to belong to this file and no other. */
static inline bool inode_table_is_checked(const struct inode *inode)
{
	return __atomic_load_n(&inode->marks.is_checked, __ATOMIC_ACQUIRE) &&
	       __atomic_load_n(&inode->handle.len, __ATOMIC_ACQUIRE);
}

static inline void inode_table_note_checked(const struct inode *inode)
{
	__atomic_store_n(&inode_marks(inode)->is_checked, 1, __ATOMIC_RELEASE);
}

/* Return: the fd through which handles of this mount are opened, or MOUNT_FD_* (mount_table.h). */
int inode_table_mount_fd(const struct inode_table *t, uint64_t mnt_id);
/* See mount_table_set_fd. */
bool inode_table_set_mount_fd(struct inode_table *t, uint32_t worker, uint64_t mnt_id, int fd);
/* How often the guest has forgotten the last inode of a mount. While this number stays the same, a
 * mount id and a device number are those of the same mount. */
uint32_t inode_table_departures(const struct inode_table *t);

/*
 * Take `count` lookups back, but not more than there are. When none are left, the inode leaves the
 * table; or, if it has a handle and the guest may ask for it again, it is let go (forgotten.c).
 * Its slot and fd are reclaimed after every worker's quiescent point. The root is never forgotten.
 */
void inode_table_forget(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			uint64_t count);
/* Like inode_table_forget, except for an inode without lookups that would be let go if it had a
 * handle. Return: true for such an inode, which then stays in the table. The caller gives it a
 * handle if the file has one, and calls inode_table_forget with a count of 0. */
bool inode_table_forget_later(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			      uint64_t count);

/*
 * The open file `lender` is about to close the fd that this inode borrows. Let `path_fd` (O_PATH,
 * or -1 if no such fd could be opened) hold the inode from now on. Return: true if the inode took
 * path_fd, or, with path_fd == -1, the lender's fd, which then must not be closed.
 */
bool inode_table_repay(struct inode_table *t, uint32_t worker, uint64_t nodeid, uint32_t lender,
		       int path_fd);

/* Like inode_table_repay, but let the file's handle hold the inode, which then has no fd. Return:
 * true if the inode borrowed from `lender`. */
bool inode_table_repay_handle(struct inode_table *t, uint32_t worker, uint64_t nodeid,
			      uint32_t lender, const struct fhandle *handle);

/* Free the inodes that the former worker in this slot had retired when it died. */
void inode_table_adopt_retired(struct inode_table *t, struct reclaim *reclaim);

/* The FUSE session has ended: forget every inode but the root. */
void inode_table_reset(struct inode_table *t, struct reclaim *reclaim);

#endif
