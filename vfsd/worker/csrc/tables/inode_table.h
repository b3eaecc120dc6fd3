/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The inodes the guest knows, shared by all workers in one memfd. The theory is in inode_table.c.
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
 * The inode of `nodeid`, or NULL (stale, never given out, malformed). Valid until this worker's
 * next quiescent point (reclaim.h), even when another worker forgets it before that.
 */
struct inode *inode_table_get(struct inode_table *t, uint64_t nodeid);
uint64_t inode_nodeid(const struct inode_table *t, const struct inode *inode);

/* The inode with `key`, which may have been let go, born at `btime` (ns, 0: unknown), its lookup
 * count raised by one; NULL if it is unknown, or if only a handle can show whether it is the same
 * file. */
struct inode *inode_table_acquire(struct inode_table *t, uint32_t worker, struct inode_key key,
				  int64_t btime);

/* Is an inode with this key known, whether or not it is the same file? */
bool inode_table_knows(struct inode_table *t, uint32_t worker, struct inode_key key);

/*
 * Enter a file under `key`, held by `fd`, with lookup count 1. If another worker entered it
 * first, its inode is returned, the count raised, and *ret_used_fd is false: the caller closes
 * fd. `lender`: file slot that owns fd, or 0 when the inode is to own it. `proof`: the handle of
 * the file, or NULL; an inode of the same key that only its handle holds is this file if the
 * handles are equal, and is held by `fd` then. Else it gives way. Return: NULL when the table is
 * full (ENFILE).
 */
struct inode *inode_table_insert(struct inode_table *t, uint32_t worker, struct inode_key key,
				 int fd, uint32_t lender, const struct fhandle *proof,
				 bool *ret_used_fd);

/* The same for a file that is held by its handle. One of the same key and another handle is gone
 * from the host: it gives way and stays known by its nodeid alone. */
struct inode *inode_table_insert_handle(struct inode_table *t, uint32_t worker,
					struct inode_key key, int64_t btime,
					const struct fhandle *handle);

/*
 * `fd` holds an inode that had none: cache it there. Return: the fd to use, which may be another
 * worker's; `fd` is closed then, or when the inode is forgotten by now, not before our next
 * quiescent point.
 */
int inode_table_cache_fd(struct inode_table *t, struct reclaim *reclaim, const struct inode *inode,
			 int fd);
/* The same for an fd that is open for reading; it takes the place of one that is not. It is closed
 * if it cannot be cached. */
void inode_table_cache_readable(struct inode_table *t, struct reclaim *reclaim,
				const struct inode *inode, int fd);
/* That fd, or -1 if there is none. */
int inode_table_readable_fd(struct inode_table *t, uint32_t worker, const struct inode *inode);
/* Close it if this inode still has it. `path_fd` (O_PATH, or -1) takes its place where no handle
 * holds the inode, and is closed where one does; without either the inode keeps what it has. */
void inode_table_drop_readable(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			       int path_fd);

/* Look at the next inode. Return: it, if it owns an fd that was not used since the last look; else
 * NULL. */
struct inode *inode_table_next_idle(struct inode_table *t);
/*
 * The same for fds that are given up soon, whether they are many or not. Slots are in blocks of
 * INODE_BLOCK, and a block is marked when an fd is cached in it. inode_table_marks() changes when
 * one is marked. inode_table_is_marked(): any is. inode_table_take_mark() takes the next mark from
 * *block on away; false: there is none. inode_table_idle_at() is as inode_table_next_idle() for one
 * place of the block, marks the block again if the fd was used, and spares directories of the
 * share's own file system. inode_table_begin_sweep() returns true to one worker only, and not
 * within `pause_ns` of the last time.
 */
uint32_t inode_table_marks(const struct inode_table *t);
bool inode_table_begin_sweep(struct inode_table *t, uint64_t now_ns, uint64_t pause_ns);
bool inode_table_is_marked(const struct inode_table *t);
bool inode_table_take_mark(struct inode_table *t, uint32_t *block);
struct inode *inode_table_idle_at(struct inode_table *t, uint32_t block, uint32_t place);

/* A block is also marked when nothing is in use there any more. Is that so, and has it memory that
 * can be given back? */
bool inode_table_is_empty(const struct inode_table *t, uint32_t block);
/* Give the memory of this block and of those that follow it back, up to one where something is in
 * use. Return: how many blocks that were. */
uint32_t inode_table_give_back(struct inode_table *t, uint32_t worker, uint32_t block);
/* Give memory of hash chains back, if far fewer inodes are known than there are. Return: is there
 * more? */
bool inode_table_shrink(struct inode_table *t, uint32_t worker);

void inode_table_note_fullness(struct inode_table *t, uint32_t fullness);
/* enum inode_fullness, of what has come up since it was reported; INODES_FEW: nothing. */
uint32_t inode_table_fullness(const struct inode_table *t);
/* Is it to be reported now, and by this worker? *ret is what. Not within a minute of the last time,
 * if that was the same. */
bool inode_table_take_fullness(struct inode_table *t, uint64_t now_ns, uint32_t *ret);

/* `handle` is of the file that `fd` is: the inode that was seen with this generation and fd, and no
 * handle, has that handle from now on. `btime`: ns, 0: unknown. */
void inode_table_give_handle(struct inode_table *t, uint32_t worker, struct inode *inode,
			     uint32_t generation, int fd, int64_t btime,
			     const struct fhandle *handle);
/* Close the fd of an inode that has a handle. Return: had it one? */
bool inode_table_drop_fd(struct inode_table *t, struct reclaim *reclaim, struct inode *inode);
/* Close the fd of an inode that has nothing else, ahead of the removal of its last name: it is
 * stale from then on, and no other file is taken for it, until inode_table_cache_fd() gives it one.
 */
void inode_table_give_up_fd(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid);
/* Fds that inodes and mounts own. */
uint64_t inode_table_held(const struct inode_table *t);

static inline void inode_table_touch(const struct inode *inode)
{
	if (!__atomic_load_n(&inode->used, __ATOMIC_RELAXED))
		__atomic_store_n((uint8_t *)&inode->used, 1, __ATOMIC_RELAXED);
}

/* Return: had all of these (enum inode_past) happened before? */
static inline bool inode_table_has_past(const struct inode *inode, uint8_t past)
{
	return (__atomic_load_n(&inode->past, __ATOMIC_ACQUIRE) & past) == past;
}

static inline void inode_table_note(const struct inode *inode, enum inode_past past)
{
	if (!inode_table_has_past(inode, (uint8_t)past))
		__atomic_or_fetch((uint8_t *)&inode->past, (uint8_t)past, __ATOMIC_RELEASE);
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

/* Return: was this its first opening? */
static inline bool inode_table_note_opened(const struct inode *inode)
{
	return !(__atomic_fetch_or((uint8_t *)&inode->past, INODE_WAS_OPENED, __ATOMIC_RELAXED) &
		 INODE_WAS_OPENED);
}

/* Can its fd be replaced by a readable one? Not by one of a file that another file's handle may
 * have led to, and not where the fd is borrowed. */
static inline bool inode_table_may_cache_readable(const struct inode *inode)
{
	return __atomic_load_n(&inode->handle.len, __ATOMIC_ACQUIRE)
		       ? __atomic_load_n(&inode->is_checked, __ATOMIC_ACQUIRE)
		       : !__atomic_load_n(&inode->lender, __ATOMIC_ACQUIRE);
}

/* It has a handle, which is known to be its own, not another file's. */
static inline bool inode_table_is_checked(const struct inode *inode)
{
	return __atomic_load_n(&inode->is_checked, __ATOMIC_ACQUIRE) &&
	       __atomic_load_n(&inode->handle.len, __ATOMIC_ACQUIRE);
}

static inline void inode_table_note_checked(const struct inode *inode)
{
	__atomic_store_n((uint8_t *)&inode->is_checked, 1, __ATOMIC_RELEASE);
}

/* The fd that handles of this mount are opened through, or MOUNT_FD_* (mount_table.h). */
int inode_table_mount_fd(const struct inode_table *t, uint64_t mnt_id);
/* As mount_table_set_fd. */
bool inode_table_set_mount_fd(struct inode_table *t, uint32_t worker, uint64_t mnt_id, int fd);

/*
 * Take `count` lookups back (saturating). At zero the inode leaves the table, or is let go if it
 * has a handle and the guest may ask for it (forgotten.c); its slot and fd are reclaimed after
 * every worker's quiescent point. The root is never forgotten.
 */
void inode_table_forget(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			uint64_t count);
/* The same, but at zero an inode that only lacks a handle to be let go is left to the caller, who
 * gives it one if that can be had, and forgets it again with count 0. Return: is it? */
bool inode_table_forget_later(struct inode_table *t, struct reclaim *reclaim, uint64_t nodeid,
			      uint64_t count);

/*
 * The open file `lender` is about to close the fd that this inode borrows: hold the inode by
 * `path_fd` (O_PATH, or -1 if none could be had) from now on. Return: true if the inode took what
 * it was given: path_fd, or with path_fd == -1 the lender's fd, which then must not be closed.
 */
bool inode_table_repay(struct inode_table *t, uint32_t worker, uint64_t nodeid, uint32_t lender,
		       int path_fd);

/* The same, by the file's handle: the inode holds no fd then. Return: true if it was owed. */
bool inode_table_repay_handle(struct inode_table *t, uint32_t worker, uint64_t nodeid,
			      uint32_t lender, const struct fhandle *handle);

/* Free what the former worker in this slot had retired when it died. */
void inode_table_adopt_retired(struct inode_table *t, struct reclaim *reclaim);

/* Forget everything but the root: the FUSE session ended. */
void inode_table_reset(struct inode_table *t, struct reclaim *reclaim);

#endif
