/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* What one worker process owns. */
#ifndef VFSD_WORKER_H
#define VFSD_WORKER_H

#include "transport/csrc/types.h"
#include "transport/csrc/device_state.h"
#include "transport/csrc/guest_memory.h"
#include "transport/csrc/vring.h"
#include "worker/csrc/broker/handle_client.h"
#include "worker/csrc/fs/file_capability.h"
#include "worker/csrc/host/credentials.h"
#include "worker/csrc/loop/direct_io.h"
#include "worker/csrc/loop/lock_wait.h"
#include "worker/csrc/loop/offload.h"
#include "worker/csrc/loop/serve.h"
#include "worker/csrc/request/request.h"
#include "worker/csrc/tables/file_table.h"
#include "worker/csrc/tables/inode_table.h"
#include "worker/csrc/tables/reclaim.h"
#include "worker/csrc/tables/worker_table.h"

enum {
	REQUESTS_MAX = 256, /* request objects of one worker: 1 in the loop, the rest off it */
	DIR_CACHES = 8,
	DIR_BUFFER = 64 * 1024,
	MOUNT_FACTS = 64,
	OPEN_CACHE = 256,
};

struct worker_ring {
	struct vring vring;
	struct device_vring device; /* as adopted */
	struct intent *intents;	    /* one per head */
	void *frontend_inflight;    /* mapping of the front-end's record */
	uint64_t frontend_inflight_len;
	uint16_t *replay; /* heads that were in flight at the attach */
	uint32_t replay_count;
	uint32_t replay_next;
	uint32_t life; /* counts its starts and stops: who belongs to an earlier one is late */
	uint32_t outstanding; /* requests of this ring off the loop */
	bool runs;
	bool broken_unreported;
	bool call_blocks; /* call_fd is not O_NONBLOCK */
	const char *error;
};

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
	uint64_t mnt_id;  /* of struct inode_key; 0: an empty place */
	bool needs_flush; /* the file system acts when a file is closed */
	bool in_memory;	  /* reading never waits for storage */
};

struct worker {
	uint32_t slot;
	int root_fd;
	int proc_self_fd;
	int control_fd;
	struct fs_policy policy;
	struct file_capability capability;
	struct absences set_ids; /* worker_table.set_id_modes counts */

	struct device_state *device;	 /* shared */
	struct device_state *adopted;	 /* our copy: in force */
	struct device_state *next_state; /* room to read the next one */
	struct worker_table *table;
	struct worker_row *row;
	struct fuse_session *session;
	struct inode_table *inodes;
	uint32_t root_device; /* of the share: inode_key_device() */
	struct file_table *files;
	struct handle_client handles;
	uint32_t new_names;	/* LOOKUPs in a row of files that the guest did not know */
	uint64_t fds_max;	/* of inodes and open files */
	uint64_t inode_fds_max; /* then those that are only cached are closed */
	uint64_t trim_at_ns;	/* not before (inode_trim.c) */
	uint64_t futile_wait;	/* fds closed until then, and 1; 0: none yet (inode_fd.c) */
	uint16_t *pins;		/* requests in the thread pool by file slot */
	uint8_t *records;
	uint32_t marks_seen; /* of inode_table_marks() */
	uint64_t
		sweep_at_ns; /* when idle fds are given up next; 0: there are none (inode_trim.c) */
	uint32_t sweep_block; /* where the sweep under way goes on; 0: none is */

	struct guest_memory memory;
	bool divert_due; /* requests that were abandoned may still write to it */
	struct worker_ring *rings[DEVICE_VRINGS_MAX];	  /* by index; NULL: not ours */
	struct worker_ring *own_rings[DEVICE_VRINGS_MAX]; /* the same without gaps, hiprio first */
	uint32_t own_ring_count;
	struct credentials credentials;
	struct reclaim reclaim;
	struct offload *offload;
	struct direct_io *direct_io; /* or NULL */
	struct request *requests;    /* REQUESTS_MAX of them */
	uint32_t requests_used;	     /* the first ones; the others are still untouched */
	struct request *free_requests;
	struct request *cold;	 /* waits for Python */
	bool any_broken;	 /* some ring has broken_unreported */
	bool unshared_untold;	 /* a chain named memory outside of guest memory … */
	uint64_t unshared_gpa;	 /* … there */
	uint64_t unshared_count; /* such chains since that was told … */
	uint64_t unshared_at_ns; /* … at this time */
	struct lock_waiters lock_waiters;
	uint8_t *cold_arg;
	uint32_t cold_len;

	char *payload;	      /* REQUEST_PAYLOAD_MAX + 1 */
	uint8_t *large_reply; /* REQUEST_LARGE_REPLY */
	struct dir_cache dir_caches[DIR_CACHES];
	uint32_t dir_cache_age;
	uint64_t readable[OPEN_CACHE]; /* nodeids that were let keep an fd (open_cache.c) … */
	uint32_t readable_next;	       /* … the oldest of them */
	struct mount_fact mounts[MOUNT_FACTS]; /* by mnt_id, direct-mapped */

	/* Adaptive polling (poll.c). */
	int32_t poll_us;
	uint64_t idle_gap_ns;	   /* running mean of how long the rings were empty */
	uint64_t polled_gap_ns;	   /* the same of those that polling ended … */
	uint64_t slept_gap_ns;	   /* … and that were slept through */
	uint64_t slept_at_ns;	   /* the latest of these */
	uint64_t no_spin_until_ns; /* polling did not pay, or the CPU is wanted by somebody else */
	uint64_t poll_pause_ns;	   /* how long the next miss pauses it */
	uint64_t now_ns;	   /* the latest reading of the clock */
	uint64_t closed_at_ns;	   /* when retired fds were last closed */
	uint64_t control_at_ns;	   /* when control_fd was last looked at while busy */
	bool control_ready;	   /* poll(2) saw control_fd readable */
	struct refusal refusal;	   /* the first one */
	bool gave_up_lock; /* an op did, or ended a wait: those that wait here try at once */
};

/* Close what is retired and may be closed, on a thread. Between two batches. */
void worker_close_retired(struct worker *w);

#endif
