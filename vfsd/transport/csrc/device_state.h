/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device as the front-end has set it up, shared by the supervisor (the only writer) and the
 * pool and its workers (readers). It lives in a memfd, so a worker that is created again finds the
 * memory table and the rings without asking another process.
 *
 * `generation` is a sequence lock: odd while the supervisor writes, even and larger afterwards. A
 * worker keeps its own copy (device_state_read), compares generations at every turn of its loop,
 * and is asked over the control channel to acknowledge the generation that it works with. Every fd
 * number here belongs to the sandboxed fd table (the pool received the fd and reported its number
 * to the supervisor). The fd is closed only after every worker has acknowledged a state without it.
 */
#ifndef VFSD_DEVICE_STATE_H
#define VFSD_DEVICE_STATE_H

#include "transport/csrc/types.h"

enum {
	DEVICE_STATE_LAYOUT = 1,  /* increment with every change below */
	DEVICE_REGIONS_MAX = 509, /* vhost-user: the answer to GET_MAX_MEM_SLOTS */
	REQUEST_QUEUES_MAX = 64,
	DEVICE_VRINGS_MAX = REQUEST_QUEUES_MAX + 1, /* the request queues and the hiprio queue */
};

/* One region of guest memory (vhost-user: memory region). Size and offset are in bytes. */
struct device_region {
	uint64_t gpa; /* guest physical address */
	uint64_t size;
	uint64_t uva;	 /* the front-end's own address, as used for the rings */
	uint64_t offset; /* of the region in fd */
	int32_t fd;
	uint32_t pad;
};

/* One virtqueue. Addresses are front-end user addresses (uva). */
struct device_vring {
	uint64_t desc;
	uint64_t avail;
	uint64_t used;
	uint64_t inflight_offset; /* of this queue's region in inflight_fd */
	int32_t inflight_fd;	  /* the front-end's in-flight memfd, -1: our own memory */
	int32_t kick_fd;	  /* -1: none, the ring is polled */
	int32_t call_fd;	  /* -1: none, the driver polls */
	int32_t err_fd;		  /* -1: none */
	uint32_t size;		  /* entries, a power of 2 */
	uint32_t worker;	  /* slot of the worker that serves this vring */
	uint32_t running;	  /* 1: started and enabled; 0: touch nothing */
	uint32_t
		start; /* number of starts, by which a worker notices a stop and start in between */
};

struct device_state {
	uint32_t layout;     /* DEVICE_STATE_LAYOUT */
	uint32_t generation; /* sequence lock, even when stable */
	uint64_t features;   /* virtio feature bits the driver accepted */
	uint32_t region_count;
	uint32_t vring_count;
	struct device_region regions[DEVICE_REGIONS_MAX];
	struct device_vring vrings[DEVICE_VRINGS_MAX];
};

/*
 * Bracket every change; the supervisor is the only writer. `generation` is even and larger than
 * every earlier generation: the supervisor keeps it, and reads nothing back from the shared state.
 */
void device_state_write_begin(struct device_state *shared, uint32_t generation);
void device_state_write_end(struct device_state *shared, uint32_t generation);

/* The generation in force; odd while the supervisor writes. */
uint32_t device_state_generation(const struct device_state *shared);

/* Copy a stable state into `ret`. Return: 0, or -EAGAIN when the writer did not finish in time (it
 * died while it wrote; its successor writes the whole state again). */
int device_state_read(const struct device_state *shared, struct device_state *ret) must_check;

#endif
