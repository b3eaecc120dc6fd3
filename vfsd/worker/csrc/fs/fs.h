/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The file system that one worker serves: all that an op may see. There is no ring, no thread and
 * no eventfd in it. What an op needs of those it returns as its outcome (enum op_outcome).
 * The watchdog has a thread, which an op does not see: it only ends a call that takes long.
 *
 * So the ops are a library: fs_init() for a directory and its tables, fs_session_begin(), and
 * ops_run() for each request (tests/native/test_ops.c does that).
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

/* Directory entries read from the kernel and not yet told (ops_dir.c). */
struct dir_cache {
	uint64_t fh;
	uint64_t start;	     /* offset before the first entry in buffer; 0: not known */
	uint64_t position;   /* … before the first unread entry: the offset it answers */
	uint32_t begin, end; /* unread bytes in buffer */
	uint32_t reads;	     /* open_file.reads when buffer was filled: since then unmoved */
	uint32_t age;
	uint8_t *buffer; /* DIR_BUFFER bytes */
};

/* What is known of a mount, found once (mount_facts.c). */
struct mount_fact {
	uint64_t mnt_id;    /* of struct inode_key; 0: an empty place */
	bool needs_flush;   /* the file system acts when a file is closed */
	bool in_memory;	    /* reading never waits for storage */
	bool judges_users;  /* its server may allow root less than others */
	bool silly_renames; /* see silly_rename.c */
};

/* A remapped security.capability (file_capability.c). */
struct file_capability {
	char name[XATTRMAP_NAME]; /* the host's; empty if it is not remapped */
	struct absences absences; /* worker_table.capability_sets counts */
};

struct fs {
	uint32_t slot;
	int root_fd;
	int proc_self_fd; /* the working directory, too */
	struct fs_policy policy;
	struct file_capability capability;
	struct absences set_ids; /* worker_table.set_id_modes counts */

	/* Shared with the other workers. */
	struct worker_table *table;
	struct fuse_session *session;
	struct inode_table *inodes;
	struct file_table *files;
	uint32_t root_device; /* of the share: inode_key_device() */

	struct handle_client handles;
	struct credentials credentials;
	struct reclaim reclaim;
	struct watchdog *watchdog; /* of calls that seldom wait (lease.h); or NULL */
	uint32_t new_names;	   /* LOOKUPs in a row of files that the guest did not know */
	uint64_t fds_max;	   /* of inodes and open files */
	uint64_t inode_fds_max;	   /* then those that are only cached are closed */
	uint64_t trim_at_ns;	   /* not before (inode_trim.c) */
	uint64_t futile_wait;	   /* fds closed until then, and 1; 0: none yet (inode_fd.c) */
	uint32_t marks_seen;	   /* of inode_table_marks() */
	uint64_t
		sweep_at_ns; /* when idle fds are given up next; 0: there are none (inode_trim.c) */
	uint32_t sweep_block; /* where the sweep under way goes on; 0: none is */

	uint8_t *large_reply; /* REQUEST_LARGE_REPLY */
	struct dir_cache dir_caches[DIR_CACHES];
	uint32_t dir_cache_age;
	uint64_t forgetting[HANDLE_BATCH]; /* nodeids that inode_forget_finish() is to forget */
	uint32_t forgetting_count;
	uint64_t readable[OPEN_CACHE]; /* nodeids that were let keep an fd (open_cache.c) … */
	uint32_t readable_next;	       /* … the oldest of them */
	struct mount_fact mounts[MOUNT_FACTS]; /* by mnt_id, direct-mapped */

	uint64_t now_ns;	/* the latest reading of the clock, by whoever runs the ops */
	bool gave_up_lock;	/* an op did, or ended a wait: what waits here is tried at once */
	struct refusal refusal; /* the first one */
	uint32_t fullness;	/* enum inode_fullness that Python is to log; INODES_FEW: nothing */
};

/* One per opcode with a home in C; see ops_*.c. Result: enum op_outcome. */
typedef int op_fn(struct fs *fs, struct request *r);

/* Is there a refusal that Python has not logged yet? */
static inline bool fs_has_refusal(const struct fs *fs)
{
	return fs->refusal.is_noted && !fs->refusal.is_taken;
}

#endif
