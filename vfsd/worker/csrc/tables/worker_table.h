/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One row per worker slot, and the FUSE session that all workers serve. The table is shared by the
 * pool, which starts workers and cleans up after dead workers, and by the workers. The supervisor
 * keeps the fd of the table for the next sandbox and does not read the table.
 *
 * Each row has one writer, the worker in that slot, so counters need no atomic read-modify-write
 * and share no cache line. A reader must expect values from different moments.
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
	LATENCY_BUCKETS = 24, /* bucket i: below 2^i * 256 ns; the last bucket: everything above */
};

struct op_counter {
	uint64_t count;
	uint64_t errors; /* number of replies with an errno */
	uint64_t bytes;	 /* bytes of file data, read or written */
	uint64_t ns;	 /* time spent on all requests together */
	uint32_t latency[LATENCY_BUCKETS];
};

struct vring_counter {
	uint64_t requests;
	uint64_t batches; /* number of publications of the used index */
	uint64_t calls;	  /* number of writes to the call eventfd */
	uint64_t kicks;	  /* number of wake-ups by a kick eventfd */
	uint64_t bad_chains;
};

struct worker_row {
	uint64_t epoch;	    /* see reclaim.h; 0: the worker holds no reference to any table */
	int32_t pid;	    /* in the pool's pid namespace; 0: the slot has no worker */
	uint32_t starts;    /* number of workers that were started in this slot */
	uint64_t sleeps;    /* number of poll(2) calls that could block */
	uint64_t spins_ns;  /* polling that found nothing; another process may have had the CPU */
	uint64_t offloaded; /* number of requests that left the loop */
	int32_t private_fds[WORKER_PRIVATE_FDS_MAX]; /* fds of zmq: the pool closes them */
	uint32_t private_fd_count;
	uint32_t loose_fds;  /* atomic: fds in no table that this worker will close itself */
	uint32_t closed_fds; /* atomic: loose fds closed by the workers of this slot */
	/* 1: a request may have caused the death of the last worker that served here. The pool
	 * writes this before it creates the next worker (fault_budget.py). */
	uint32_t faulted;
	struct op_counter ops[FUSE_OPCODE_MAX];
	uint64_t guard[8]; /* keeps the first cache line of the next row apart */
};

/* The result of INIT. Written by the worker that served INIT, read by all workers; `ready` is
 * written last. */
struct fuse_session {
	uint32_t ready; /* 1 between INIT and DESTROY, otherwise 0 */
	uint32_t minor;
	uint64_t flags;	  /* the flags agreed on: flags | flags2 << 32 */
	uint64_t offered; /* the flags that the guest offered: flags | flags2 << 32 */
	uint32_t number;  /* counts the FUSE sessions */
	uint32_t pad;
};

struct worker_table {
	uint32_t layout;
	uint32_t slots;
	uint64_t epoch; /* see reclaim.h */
	struct fuse_session session;
	/* The latest requests that the guest interrupted. A worker looks at the array every few
	 * milliseconds, so a burst must fit: when a guest ends all its processes, each may
	 * interrupt a request. */
	uint64_t interrupts[INTERRUPTS_MAX];
	uint32_t interrupt_count;
	uint32_t pad[11];
	uint64_t set_id_modes;	  /* counts the changes of mode that set_id.h is about */
	uint64_t capability_sets; /* counts the set capabilities that file_capability.h is about */
	char staging[64];	  /* the prefix of the staged names of label.h; set once, secret */
	struct vring_counter vrings[DEVICE_VRINGS_MAX];
	struct worker_row rows[WORKER_SLOTS_MAX];
};

/* Lay the table out, once, in zeroed memory. */
void worker_table_init(struct worker_table *t, uint32_t slots);
/* The worker in `slot` is dead, and holds no reference any more. Called after its private fds were
 * closed. */
void worker_table_bury(struct worker_table *t, uint32_t slot);

/*
 * Begin a new epoch, for the pool's sweep (sweep.py). Once a worker has passed a quiescent point in
 * this epoch, it cannot be holding an fd that was in no table before the epoch began.
 */
uint64_t worker_table_new_epoch(struct worker_table *t);
bool worker_table_held_nothing(const struct worker_table *t, uint32_t slot, uint64_t epoch);

#endif
