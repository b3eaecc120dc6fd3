/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The files and directories the guest has open, shared by all workers: a file opened through one
 * queue is read through another, under the same fd number (one fd table, CLONE_FILES).
 */
#ifndef VFSD_FILE_TABLE_H
#define VFSD_FILE_TABLE_H

#include "transport/csrc/types.h"
#include "worker/csrc/tables/reclaim.h"
#include "worker/csrc/tables/tables.h"

enum open_file_flag {
	FILE_IS_DIR = 1,
	FILE_NO_NOWAIT = 2,  /* its file system does not know RWF_NOWAIT: reads may always wait */
	FILE_DIRECT = 4,     /* O_DIRECT */
	FILE_SYNC = 8,	     /* O_SYNC or O_DSYNC: writes may take long */
	FILE_IN_MEMORY = 16, /* reads never wait */
	FILE_WRITABLE = 32,
	FILE_NO_FLUSH = 64,	/* a local file system: FLUSH has nothing to do */
	FILE_FLOCKED = 128,	/* flock was taken on it */
	FILE_LENDS = 256,	/* an inode borrows fd: see inode_table_repay */
	FILE_ONLY_GROWS = 1024, /* O_APPEND of a file that cannot be opened otherwise (chattr +a) */
	FILE_LOCK_OWNER = 512,	/* not the guest's: fd holds the record locks of `owner` */
	FILE_APPENDS = 2048,	/* opened with O_APPEND: see is_append() of ops_io.c */
	FILE_WIDE_OFFSETS = 4096, /* a directory with offsets of 64 bits (ops_dir.c) */
	FILE_MAPPABLE = 8192,	  /* the guest has it open for reading and writing */
	FILE_WAS_READ = 16384,	  /* the inode has INODE_WAS_READ already */
};

struct open_file {
	uint64_t nodeid;
	uint64_t position;   /* of a directory: the offset the fd stands at; else: of LSEEK */
	uint32_t generation; /* odd: in use; fh = slot | generation << 32 */
	int32_t fd;
	uint32_t flags;	     /* enum open_file_flag */
	uint32_t lock;	     /* owner_lock: directory reads; FILE_LENDS: release */
	uint64_t pinned_by;  /* bit per worker that has requests off its loop that use fd */
	uint64_t owner;	     /* FILE_LOCK_OWNER: the guest's lock owner */
	uint32_t next;	     /* free list; FILE_LOCK_OWNER: the list of those */
	uint32_t retired_by; /* worker slot + 1 that is to free it */
	uint32_t keep_fd;    /* 1: fd is the inode's now, do not close it */
	uint32_t reads;	     /* of a directory: counts the times fd was read or moved */
};

struct file_table;

/* The open file of `fh` if it belongs to `nodeid`; NULL otherwise. Valid until this worker's next
 * quiescent point. */
struct open_file *file_table_get(struct file_table *t, uint64_t fh, uint64_t nodeid);
/* The same for a file that is not a directory. */
struct open_file *file_table_get_regular(struct file_table *t, uint64_t fh, uint64_t nodeid);
/* Any open file of this inode that has all these flags, likewise; looks at all slots that were ever
 * used. */
struct open_file *file_table_of_inode(struct file_table *t, uint64_t nodeid, uint32_t flags);
uint64_t open_file_fh(const struct file_table *t, const struct open_file *file);
struct open_file *file_table_at(struct file_table *t, uint32_t slot);
uint32_t open_file_slot(const struct file_table *t, const struct open_file *file);

/* A slot for a file about to be opened: file_table_publish it, or file_table_abandon it.
 * Return: NULL when the table is full (ENFILE). */
struct open_file *file_table_reserve(struct file_table *t, uint32_t worker);
/* The file is open under `fd`. Return: its fh. */
uint64_t file_table_publish(struct file_table *t, struct open_file *file, uint64_t nodeid, int fd,
			    uint32_t flags);
void file_table_abandon(struct file_table *t, uint32_t worker, struct open_file *file);

/*
 * End `fh`: its number is stale from here on. The fd is closed after every worker's quiescent point
 * and the last pin, and after reclaim->repay if an inode borrows it. Idempotent: a stale fh is
 * ignored.
 */
void file_table_release(struct file_table *t, struct reclaim *reclaim, struct open_file *file);

/*
 * The fd of a pinned file stays open even when the file is released. `pins` is this worker's own
 * count (file_pins_create); the file itself only has a bit per worker, which the pool clears when
 * that worker dies. To be called from the worker's loop, not from its threads.
 */
uint16_t *file_pins_create(const struct file_table *t);
void file_pin(struct file_table *t, uint16_t *pins, uint32_t worker, struct open_file *file);
void file_unpin(struct file_table *t, uint16_t *pins, uint32_t worker, struct open_file *file);

/*
 * The private open files that hold the guest's record locks, one for each lock owner and inode.
 * file_table_lock_owner finds one; file_table_add_lock_owner enters a reserved slot whose fd is
 * open, or, if another worker was faster, returns that one's and leaves the slot to the caller
 * (*ret_added is false). file_table_drop_lock_owner takes it out and releases it.
 */
struct open_file *file_table_lock_owner(struct file_table *t, uint32_t worker, uint64_t nodeid,
					uint64_t owner);
struct open_file *file_table_add_lock_owner(struct file_table *t, uint32_t worker,
					    struct open_file *file, uint64_t nodeid, uint64_t owner,
					    int fd, bool *ret_added);
void file_table_drop_lock_owner(struct file_table *t, struct reclaim *reclaim,
				struct open_file *file);

/* Free what the former worker in this slot had retired when it died. */
void file_table_adopt_retired(struct file_table *t, struct reclaim *reclaim);

/* Close everything: the FUSE session ended. */
void file_table_reset(struct file_table *t, struct reclaim *reclaim);

/* Closing it changes nothing on the host that the guest would have to wait for. */
static inline bool open_file_close_is_silent(const struct open_file *file)
{
	return file->flags & (FILE_NO_FLUSH | FILE_IS_DIR) || !(file->flags & FILE_WRITABLE);
}

#endif
