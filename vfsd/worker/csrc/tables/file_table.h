/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The files and directories that the guest has open, shared by all workers: a file opened through
 * one queue can be read through another, under the same fd number (one fd table, CLONE_FILES).
 */
#ifndef VFSD_FILE_TABLE_H
#define VFSD_FILE_TABLE_H

#include "transport/csrc/types.h"
#include "worker/csrc/tables/reclaim.h"
#include "worker/csrc/tables/tables.h"

enum open_file_flag {
	FILE_IS_DIR = 1,
	FILE_NO_NOWAIT = 2,  /* the file system does not know RWF_NOWAIT: reads may always wait */
	FILE_DIRECT = 4,     /* O_DIRECT */
	FILE_SYNC = 8,	     /* O_SYNC or O_DSYNC: writes may take long */
	FILE_IN_MEMORY = 16, /* reads never wait for storage */
	FILE_WRITABLE = 32,
	FILE_NO_FLUSH = 64,	/* the file is on a local file system: FLUSH has nothing to do */
	FILE_FLOCKED = 128,	/* the guest has taken a flock on it */
	FILE_LENDS = 256,	/* an inode borrows fd: see inode_table_repay */
	FILE_ONLY_GROWS = 1024, /* O_APPEND, for a file that opens only with it (chattr +a) */
	FILE_LOCK_OWNER = 512,	/* not opened by the guest: fd holds the record locks of `owner` */
	FILE_APPENDS = 2048,	/* opened with O_APPEND: see is_append() of ops_io.c */
	FILE_WIDE_OFFSETS = 4096,  /* a directory with offsets of 64 bits (ops_dir.c) */
	FILE_MAPPABLE = 8192,	   /* the guest has the file open for reading and writing */
	FILE_WAS_READ = 16384,	   /* the inode has INODE_WAS_READ already */
	FILE_FLOCK_SHARED = 32768, /* with FILE_FLOCKED: the lock is shared */
	FILE_LOCKS_MISSED = 65536, /* with FILE_LOCK_OWNER: not all of its locks are noted */
};

struct open_file {
	uint64_t nodeid;
	uint64_t position; /* a directory's: the offset of the fd; a file's: the offset of LSEEK */
	uint32_t generation; /* odd: in use; fh = slot | generation << 32 */
	int32_t fd;
	uint32_t flags;	    /* enum open_file_flag */
	uint32_t lock;	    /* owner_lock; for directory reads, and for the release of FILE_LENDS */
	uint64_t pinned_by; /* one bit per worker that has requests off its loop that use fd */
	union {
		uint64_t owner;		/* for FILE_LOCK_OWNER: the guest's lock owner */
		uint64_t settled_ctime; /* for a file that OPEN opened: keep_cache.c; or 0 */
	};
	uint32_t next;	     /* in the free list, or in the list of a FILE_LOCK_OWNER */
	uint16_t retired_by; /* slot + 1 of the worker that is to free it */
	uint16_t keep_fd;    /* 1: the inode owns fd, do not close it */
	int32_t open_flags;  /* flags of open(2) by which fd can be opened again */
	union {
		uint32_t reads; /* a directory's: counts how often fd was read or moved */
		uint32_t notes; /* of FILE_LOCK_OWNER: head of its lock notes; 0: it has none */
	};
};

struct file_table;
struct lock_notes;

/* The open file of `fh` if it belongs to `nodeid`; NULL otherwise. Valid until this worker's next
 * quiescent point. */
struct open_file *file_table_get(struct file_table *t, uint64_t fh, uint64_t nodeid);
/* Like file_table_get, but return NULL for a directory as well. */
struct open_file *file_table_get_regular(struct file_table *t, uint64_t fh, uint64_t nodeid);
/* Any open file of this inode that has all these flags, or NULL. Valid until this worker's next
 * quiescent point. Looks at every slot that was ever used. */
struct open_file *file_table_of_inode(struct file_table *t, uint64_t nodeid, uint32_t flags);
/* The next open file, from slot *at on, that has any of these flags; NULL after the last one. Valid
 * until this worker's next quiescent point. */
struct open_file *file_table_next(struct file_table *t, uint32_t *at, uint32_t flags);
uint64_t open_file_fh(const struct file_table *t, const struct open_file *file);
struct open_file *file_table_at(struct file_table *t, uint32_t slot);
/* As file_table_at(), for a caller that only reads. */
const struct open_file *file_table_peek(const struct file_table *t, uint32_t slot);
uint32_t open_file_slot(const struct file_table *t, const struct open_file *file);

/* Slots below this number were used at some time. */
uint32_t file_table_slots(const struct file_table *t);

/*
 * For a process that has the table for itself: an open file comes back under the fh that it had in
 * another table, with the values of `file`, which is not a FILE_LOCK_OWNER. Return: false if the fh
 * does not fit the table, or its slot is in use. After the last one, file_table_restore_end() frees
 * the slots below `slots` that are left; an fh that is given out from then on has a generation
 * above `generation`.
 */
bool file_table_restore(struct file_table *t, uint64_t fh, const struct open_file *file);
void file_table_restore_end(struct file_table *t, uint32_t slots, uint32_t generation);

/* Reserve a slot for a file that is about to be opened. The caller passes the slot to
 * file_table_publish or file_table_abandon. Return: NULL when the table is full (ENFILE). */
struct open_file *file_table_reserve(struct file_table *t, uint32_t worker);
/* Publish a reserved slot: the file is open as `fd`, with file->open_flags. Return: its fh. */
uint64_t file_table_publish(struct file_table *t, struct open_file *file, uint64_t nodeid, int fd,
			    uint32_t flags);
void file_table_abandon(struct file_table *t, uint32_t worker, struct open_file *file);

/*
 * End the open file: its fh is stale from here on. The fd is closed after every worker's quiescent
 * point and after the last pin is gone, and, if an inode borrows the fd, after reclaim->repay.
 * Idempotent: a file that has already been released is ignored.
 */
void file_table_release(struct file_table *t, struct reclaim *reclaim, struct open_file *file);

/*
 * The fd of a pinned file stays open even when the file is released. `pins` is this worker's own
 * count per slot (file_pins_create); the file itself has only one bit per worker, which the pool
 * clears when that worker dies. These functions are called from the worker's loop only, not from
 * its threads.
 */
uint16_t *file_pins_create(const struct file_table *t);
void file_pin(struct file_table *t, uint16_t *pins, uint32_t worker, struct open_file *file);
void file_unpin(struct file_table *t, uint16_t *pins, uint32_t worker, struct open_file *file);

/*
 * The private open files that hold the guest's record locks, one for each pair of lock owner and
 * inode. file_table_lock_owner finds the file of a pair. file_table_add_lock_owner enters a
 * reserved slot whose fd is open; if another worker was faster, it returns that worker's file and
 * leaves the slot to the caller (*ret_added is false). file_table_drop_lock_owner removes a file
 * from its list and releases the file.
 */
struct open_file *file_table_lock_owner(struct file_table *t, uint32_t worker, uint64_t nodeid,
					uint64_t owner);
struct open_file *file_table_add_lock_owner(struct file_table *t, uint32_t worker,
					    struct open_file *file, uint64_t nodeid, uint64_t owner,
					    int fd, bool *ret_added);
void file_table_drop_lock_owner(struct file_table *t, struct reclaim *reclaim,
				struct open_file *file);
/* The notes of which ranges the lock owners hold. */
struct lock_notes *file_table_lock_notes(struct file_table *t);
const struct lock_notes *file_table_peek_lock_notes(const struct file_table *t, uint32_t capacity);

/* Free the files that the former worker of this slot had retired when it died. */
void file_table_adopt_retired(struct file_table *t, struct reclaim *reclaim);

/* The FUSE session has ended: release every open file. */
void file_table_reset(struct file_table *t, struct reclaim *reclaim);

/* Return: true if closing the file changes nothing on the host, so that the guest need not wait for
 * it. */
static inline bool open_file_close_is_silent(const struct open_file *file)
{
	return file->flags & (FILE_NO_FLUSH | FILE_IS_DIR) || !(file->flags & FILE_WRITABLE);
}

#endif
