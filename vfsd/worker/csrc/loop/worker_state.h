/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* The state of a worker process: its rings, threads and polling, and the file system that it
 * serves. */
#ifndef VFSD_WORKER_STATE_H
#define VFSD_WORKER_STATE_H

#include "transport/csrc/types.h"
#include "transport/csrc/device_state.h"
#include "transport/csrc/guest_memory.h"
#include "transport/csrc/vring.h"
#include "worker/csrc/fs/fs.h"
#include "worker/csrc/loop/lock_wait.h"
#include "worker/csrc/request/request.h"

enum {
	REQUESTS_MAX = 256, /* request objects of one worker: 1 in the loop, the rest off it */
};

struct direct_io;
struct intent;
struct offload;

struct worker_ring {
	struct vring vring;
	struct device_vring device; /* as adopted */
	struct intent *intents;	    /* one intent per descriptor head */
	void *frontend_inflight;    /* mapping of the front-end's record */
	uint64_t frontend_inflight_len;
	uint16_t *replay; /* heads that were in flight at the attach */
	uint32_t replay_count;
	uint32_t replay_next;
	uint32_t life; /* counts the ring's starts and stops; the reply of a request with an older
			* value is dropped */
	uint32_t outstanding; /* requests of this ring off the loop */
	bool runs;
	bool broken_unreported;
	bool call_blocks; /* call_fd is not O_NONBLOCK */
	const char *error;
};

struct worker {
	struct fs fs; /* all that the ops see */
	int control_fd;

	struct device_state *device;	 /* shared */
	struct device_state *adopted;	 /* our copy of the state in force */
	struct device_state *next_state; /* room to read the next state */
	struct worker_row *row;
	uint16_t *pins; /* requests in the thread pool by file slot */
	uint8_t *records;

	struct guest_memory memory;
	bool divert_due; /* abandoned requests may still write to `memory` */
	struct worker_ring *rings[DEVICE_VRINGS_MAX];	  /* by index; NULL: of another worker */
	struct worker_ring *own_rings[DEVICE_VRINGS_MAX]; /* those of this worker, hiprio first */
	uint32_t own_ring_count;
	struct offload *offload;
	struct direct_io *direct_io; /* or NULL */
	struct request *requests;    /* REQUESTS_MAX of them */
	uint32_t requests_used; /* the first ones of `requests`; the others are still untouched */
	struct request *free_requests;
	struct request *cold; /* a request that waits for Python, or NULL */
	bool any_broken;      /* some ring has broken_unreported */
	/* Chains that point outside of guest memory, to be reported to Python. */
	bool unshared_due;	 /* a report is due */
	uint64_t unshared_gpa;	 /* the guest address to report */
	uint64_t unshared_count; /* the number of these chains since the last report */
	uint64_t unshared_at_ns; /* the time of the last report */
	struct lock_waiters lock_waiters;
	uint8_t *cold_arg;
	uint32_t cold_len;

	char *payload; /* REQUEST_PAYLOAD_MAX + 1 */

	/* Adaptive polling (poll.c). */
	int32_t poll_us;
	uint64_t idle_gap_ns;	   /* running mean of how long the rings were empty */
	uint64_t polled_gap_ns;	   /* mean of the gaps that polling ended */
	uint64_t slept_gap_ns;	   /* mean of the gaps that were slept through */
	uint64_t slept_at_ns;	   /* when a gap was last slept through */
	uint64_t no_spin_until_ns; /* until then polling does not pay, or another thread wants the
				    * CPU */
	uint64_t poll_pause_ns;	   /* how long the next miss pauses polling */
	uint64_t closed_at_ns;	   /* when retired fds were last closed */
	uint64_t control_at_ns;	   /* when control_fd was last looked at while busy */
	bool control_ready;	   /* poll(2) saw control_fd readable */
};

#endif
