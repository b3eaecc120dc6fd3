/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One split virtqueue, driver side (virtio 1.2 §2.7). It knows nothing of what travels through it.
 * The theory is at the top of driver_ring.c.
 */
#ifndef VFSD_DRIVER_RING_H
#define VFSD_DRIVER_RING_H

#include "transport/csrc/split_ring.h"
#include "transport/csrc/types.h"

enum {
	DRIVER_RING_DESC_BYTES = 16, /* one entry of a table */
	DRIVER_RING_BROKEN = -1000,  /* the device wrote what cannot be: `reason` says what */
};

/* Guest memory as the driver sees it: one mapping, at `gpa` for the device. */
struct driver_memory {
	uint8_t *addr;
	uint64_t size;
	uint64_t gpa;
};

/* One descriptor to be. */
struct driver_segment {
	void *addr;
	uint32_t len;
};

/* A buffer for the device: `readable` segments, then `writable` ones. */
struct driver_chain {
	const struct driver_segment *segments;
	uint32_t readable;
	uint32_t writable;
	/* Room in guest memory for the whole chain as an indirect table. NULL: use the ring's own
	 * descriptors, one for each segment. */
	void *table;
	uint32_t token; /* comes back with the used element */
};

struct driver_used {
	uint32_t token;
	uint32_t len; /* bytes the device says it wrote */
};

struct driver_ring_config {
	struct driver_memory memory;
	uint32_t size;
	bool event_idx;
	int kick_fd;
	uint64_t desc; /* offsets in guest memory */
	uint64_t avail;
	uint64_t used;
};

struct driver_head;
struct vring_desc;
struct vring_avail;
struct vring_used;

struct driver_ring {
	struct driver_memory memory;
	uint32_t size;
	bool event_idx;
	int kick_fd;
	uint16_t avail_idx; /* next entry to write */
	uint16_t published; /* avail.idx as the device sees it */
	uint16_t last_used; /* next used element to take */
	uint16_t free_head;
	uint32_t free_count;
	uint32_t outstanding; /* chains with the device */
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	struct driver_head *heads; /* ours: the device cannot write here */
	const char *reason;	   /* why it broke */
};

/* Return: 0, -EINVAL for a layout that does not fit, -ENOMEM. */
int driver_ring_init(struct driver_ring *r, const struct driver_ring_config *config) must_check;
void driver_ring_deinit(struct driver_ring *r);

/* Offer a chain; the device sees it after driver_ring_kick(). Return: 0, or -ENOSPC when there are
 * not enough free descriptors. */
int driver_ring_add(struct driver_ring *r, const struct driver_chain *chain) must_check;

/* Publish what was added, and kick if the device wants it. Return: 1 kicked, 0 no need. */
int driver_ring_kick(struct driver_ring *r);

/* Is there a used element to take? */
bool driver_ring_is_used(const struct driver_ring *r);

/* Take the next used element. Return: 1; 0 if there is none; DRIVER_RING_BROKEN. */
int driver_ring_take(struct driver_ring *r, struct driver_used *ret) must_check;

/* Ask for a call at the next used element. Return: true if one is there already: go on. */
bool driver_ring_enable_calls(struct driver_ring *r) must_check;
void driver_ring_disable_calls(struct driver_ring *r);

#endif
