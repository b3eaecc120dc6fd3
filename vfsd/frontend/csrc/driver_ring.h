/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One split virtqueue, driver side (virtio 1.2 §2.7), without knowledge of the requests in it. The
 * theory is at the top of driver_ring.c.
 */
#ifndef VFSD_DRIVER_RING_H
#define VFSD_DRIVER_RING_H

#include "transport/csrc/split_ring.h"
#include "transport/csrc/types.h"

enum {
	DRIVER_RING_DESC_BYTES = 16, /* one entry of a table */
	DRIVER_RING_BROKEN = -1000,  /* the device wrote an impossible value: see `reason` */
};

/* Guest memory as the driver sees it: one mapping, at address `gpa` for the device. */
struct driver_memory {
	uint8_t *addr;
	uint64_t size;
	uint64_t gpa;
};

/* One segment of a chain; it becomes one descriptor. */
struct driver_segment {
	void *addr;
	uint32_t len;
};

/* A buffer for the device: first `readable` segments, then `writable` segments. */
struct driver_chain {
	const struct driver_segment *segments;
	uint32_t readable;
	uint32_t writable;
	/* Room in guest memory for the whole chain as an indirect table. NULL: use descriptors of
	 * the ring, one for each segment. */
	void *table;
	uint32_t token; /* returned with the used element */
};

struct driver_used {
	uint32_t token;
	uint32_t len; /* bytes that the device wrote, as it says */
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
	uint32_t outstanding; /* chains that the device has */
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	struct driver_head *heads; /* in our memory: the device cannot write here */
	const char *reason;	   /* why the ring is broken */
};

/* Return: 0, -EINVAL for a layout that does not fit, -ENOMEM. */
int driver_ring_init(struct driver_ring *r, const struct driver_ring_config *config) must_check;
void driver_ring_deinit(struct driver_ring *r);

/* Offer a chain; the device sees it after driver_ring_kick(). Return: 0, or -ENOSPC when there are
 * not enough free descriptors. */
int driver_ring_add(struct driver_ring *r, const struct driver_chain *chain) must_check;

/* Publish the added chains, and kick if the device wants it. Return: 1 if it was kicked, else 0. */
int driver_ring_kick(struct driver_ring *r);

/* Is there a used element to take? */
bool driver_ring_is_used(const struct driver_ring *r);

/* Take the next used element. Return: 1; 0 if there is none; DRIVER_RING_BROKEN. */
int driver_ring_take(struct driver_ring *r, struct driver_used *ret) must_check;

/* Ask for a call at the next used element. Return: true if an element is there already (do not
 * sleep). */
bool driver_ring_enable_calls(struct driver_ring *r) must_check;
void driver_ring_disable_calls(struct driver_ring *r);

#endif
