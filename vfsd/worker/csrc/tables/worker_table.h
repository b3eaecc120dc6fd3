/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One row per worker slot, and the FUSE session they all serve; shared by the pool (which creates
 * and buries workers), the workers, and the supervisor (which reads counters and believes none).
 *
 * Each row has one writer, the worker in that slot, so counters need no atomic read-modify-write
 * and share no cache line; a reader tolerates values of different moments.
 */
#ifndef VFSD_WORKER_TABLE_H
#define VFSD_WORKER_TABLE_H

#include "transport/csrc/types.h"
#include "transport/csrc/device_state.h"
#include "transport/csrc/fuse_newer.h"

enum {
	WORKER_TABLE_LAYOUT = 1,
	WORKER_SLOTS_MAX = REQUEST_QUEUES_MAX,
	WORKER_PRIVATE_FDS_MAX = 32,
	INTERRUPTS_MAX = 1024,
	LATENCY_BUCKETS = 24, /* bucket i: below 2^i * 256 ns; the last one: everything above */
};

struct op_counter {
	uint64_t count;
	uint64_t errors; /* replies with an errno */
	uint64_t bytes;	 /* of file data, read or written */
	uint64_t ns;	 /* time spent, all requests together */
	uint32_t latency[LATENCY_BUCKETS];
};

struct vring_counter {
	uint64_t requests;
	uint64_t batches; /* used index publications */
	uint64_t calls;	  /* writes to the call eventfd */
	uint64_t kicks;	  /* wake-ups by the kick eventfd */
	uint64_t bad_chains;
};

struct worker_row {
	uint64_t epoch;	    /* see reclaim.h; 0: holds no reference to any table */
	int32_t pid;	    /* in the pool's pid namespace; 0: nobody */
	uint32_t starts;    /* how often this slot was filled */
	uint64_t sleeps;    /* poll(2) calls that could block */
	uint64_t spins_ns;  /* polling without finding anything; others may have had the CPU */
	uint64_t offloaded; /* requests that left the loop */
	int32_t private_fds[WORKER_PRIVATE_FDS_MAX]; /* zmq's: closed by the pool after a death */
	uint32_t private_fd_count;
	uint32_t loose_fds;  /* atomic: fds in no table that this worker will close itself */
	uint32_t closed_fds; /* atomic: how many of these this slot's workers have closed */
	uint32_t pad;
	struct op_counter ops[FUSE_OPCODE_MAX];
	uint64_t guard[8]; /* keeps the neighbour's first cache line apart */
};

/* What INIT agreed on. Written by the worker that served INIT, read by all; `ready` last. */
struct fuse_session {
	uint32_t ready; /* 1 between INIT and DESTROY */
	uint32_t minor;
	uint64_t flags;	  /* as agreed: flags | flags2 << 32 */
	uint64_t offered; /* what the guest offered, likewise */
	uint32_t number;  /* counts the sessions */
	uint32_t pad;
};

struct worker_table {
	uint32_t layout;
	uint32_t slots;
	uint64_t epoch; /* see reclaim.h */
	struct fuse_session session;
	/* The latest requests that the guest interrupted. A worker looks every few milliseconds, so
	 * a burst must fit: when a guest ends all its processes, each may interrupt a request. */
	uint64_t interrupts[INTERRUPTS_MAX];
	uint32_t interrupt_count;
	uint32_t pad[11];
	uint64_t set_id_modes;	  /* counts the modes that set_id.h is about */
	uint64_t capability_sets; /* counts what file_capability.h is about */
	char staging[64];	  /* how names of label.h begin; set once, a secret */
	struct vring_counter vrings[DEVICE_VRINGS_MAX];
	struct worker_row rows[WORKER_SLOTS_MAX];
};

/* Once, in zeroed memory. */
void worker_table_init(struct worker_table *t, uint32_t slots);
/* The worker in `slot` is dead: it holds nothing any more. After its private fds were closed. */
void worker_table_bury(struct worker_table *t, uint32_t slot);

/*
 * For the pool's sweep (sweep.py): begin a new epoch. From when on a worker "held nothing at some
 * time since that epoch began", an fd that was in no table before is not its either.
 */
uint64_t worker_table_new_epoch(struct worker_table *t);
bool worker_table_held_nothing(const struct worker_table *t, uint32_t slot, uint64_t epoch);

#endif
