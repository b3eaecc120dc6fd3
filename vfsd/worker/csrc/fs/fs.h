/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The file system that one worker serves: everything that an op may see. It contains no ring, no
 * thread and no eventfd. An op that needs one of these says so by its outcome (enum op_outcome).
 * The watchdog has a thread, which an op does not see: the thread only ends a call that takes
 * long.
 *
 * So the ops are a library: fs_init() for a directory and its tables, fs_session_begin(), and
 * ops_run() for each request (tests/native/test_ops.c uses them like that).
 */
#ifndef VFSD_FS_H
#define VFSD_FS_H

#include "transport/csrc/types.h"
#include "worker/csrc/broker/handle_client.h"
#include "worker/csrc/fs/absence.h"
#include "worker/csrc/fs/fs_config.h"
#include "worker/csrc/fs/refusal.h"
#include "worker/csrc/host/credentials.h"
#include "worker/csrc/request/request.h"
#include "worker/csrc/tables/file_table.h"
#include "worker/csrc/tables/inode_table.h"
#include "worker/csrc/tables/reclaim.h"
#include "worker/csrc/tables/worker_table.h"

enum {
	DIR_CACHES = 8,
	DIR_BUFFER = 64 * 1024,
	MOUNT_FACTS = 64,
	OPEN_CACHE = 256,
};

struct watchdog;

/* Directory entries that were read from the kernel and not yet sent to the guest (ops_dir.c). */
struct dir_cache {
	uint64_t fh;
	uint64_t start;	     /* offset before the first entry in buffer; 0: unknown */
	uint64_t position;   /* offset before the first unread entry, which a READDIR asks for */
	uint32_t begin, end; /* unread bytes in buffer */
	uint32_t reads; /* open_file.reads when buffer was filled: the fd has not moved since */
	uint32_t age;
	uint8_t *buffer; /* DIR_BUFFER bytes */
};

/* Facts about a mount, found out once (mount_facts.c). */
struct mount_fact {
	uint64_t mnt_id;     /* of struct inode_key; 0: an unused entry */
	uint32_t departures; /* inode_table_departures() when the facts were found out */
	bool needs_flush;    /* the file system has something to do when a file is closed */
	bool in_memory;	     /* reading never waits for storage */
	bool judges_users;   /* its server may allow root less than other users */
	bool silly_renames;  /* see silly_rename.c */
	bool honest_ctime;   /* see keep_cache.c */
};

/* A remapped security.capability (file_capability.c). */
struct file_capability {
	char name[XATTRMAP_NAME]; /* the name on the host; empty if it is not remapped */
	struct absences absences; /* valid for a value of worker_table.capability_sets */
};

struct fs {
	uint32_t slot;
	int root_fd;
	int proc_self_fd; /* /proc/self/fd, which is also the working directory */
	struct fs_policy policy;
	struct file_capability capability;
	struct absences set_ids; /* valid for a value of worker_table.set_id_modes */

	/* The segments shared with the other workers. */
	struct worker_table *table;
	struct fuse_session *session;
	struct inode_table *inodes;
	struct file_table *files;
	uint32_t root_device; /* the device of the share: inode_key_device() */

	struct handle_client handles;
	struct credentials credentials;
	struct reclaim reclaim;
	struct watchdog *watchdog; /* for calls that rarely wait (lease.h); or NULL */
	uint32_t new_names;	/* consecutive LOOKUPs that found an inode not yet in the table */
	uint64_t fds_max;	/* limit for the fds of inodes and open files */
	uint64_t inode_fds_max; /* above this number of inode fds, cached ones are closed */
	uint64_t trim_at_ns;	/* no trimming before this time (inode_trim.c) */
	uint64_t futile_wait; /* 1 + fds closed at the last futile wait; 0: none yet (inode_fd.c) */
	uint32_t marks_seen;  /* the value of inode_table_marks() that was last seen */
	uint64_t
		sweep_at_ns; /* when idle fds are next given up; 0: there are none (inode_trim.c) */
	uint32_t sweep_block; /* where the current sweep continues; 0: no sweep is under way */

	uint8_t *large_reply; /* REQUEST_LARGE_REPLY bytes */
	struct dir_cache dir_caches[DIR_CACHES];
	uint32_t dir_cache_age;
	uint64_t forgetting[HANDLE_BATCH]; /* nodeids that inode_forget_finish() is to forget */
	uint32_t forgetting_count;
	uint64_t readable[OPEN_CACHE]; /* nodeids of inodes that may keep an fd (open_cache.c) */
	uint32_t readable_next;	       /* the oldest entry of readable */
	struct mount_fact share;       /* of the mount of the share */
	struct mount_fact mounts[MOUNT_FACTS]; /* the other mounts, by mnt_id, direct-mapped */

	uint64_t now_ns;   /* the latest reading of the clock, by the caller of the ops */
	bool gave_up_lock; /* an op gave up a lock, or ended a wait: retry waiting requests now */
	struct refusal refusal; /* the first refusal */
	uint32_t fullness;	/* enum inode_fullness that Python is to log; INODES_FEW: nothing */
};

/* One function per opcode that C implements; see ops_*.c. Result: enum op_outcome. */
typedef int op_fn(struct fs *fs, struct request *r);

/* Is there a refusal that Python has not yet logged? */
static inline bool fs_has_refusal(const struct fs *fs)
{
	return fs->refusal.is_noted && !fs->refusal.is_taken;
}

#endif
