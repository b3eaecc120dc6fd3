/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * One split virtqueue, device side (virtio 1.2 §2.7). The theory is at the top of vring.c.
 */
#ifndef VFSD_VRING_H
#define VFSD_VRING_H

#include "transport/csrc/types.h"
#include "transport/csrc/device_state.h"
#include "transport/csrc/guest_memory.h"
#include "transport/csrc/inflight.h"
#include "transport/csrc/split_ring.h"

#include <sys/uio.h>

enum {
	CHAIN_SEGMENTS_MAX = 1024, /* in one direction: IOV_MAX of preadv2(2) */

	VRING_BROKEN = -1000, /* the ring itself is unusable: stop it */
	CHAIN_BAD = -1001,    /* this chain is unusable: see bad_chain.h */
};

/* A descriptor chain after translation. Neighbouring pieces are merged; no piece is empty. */
struct chain {
	uint32_t head;
	uint32_t readable_count;
	uint32_t writable_count;
	uint64_t readable_len; /* bytes */
	uint64_t writable_len;
	struct iovec readable[CHAIN_SEGMENTS_MAX];
	struct iovec writable[CHAIN_SEGMENTS_MAX];
};

struct vring_desc;
struct vring_avail;
struct vring_used;

struct vring {
	uint32_t index;
	uint32_t size; /* 0: not attached */
	bool event_idx;
	bool indirect;
	bool call_due;	     /* after an attach: earlier signals are unknown */
	uint16_t last_avail; /* next avail entry to take */
	uint16_t used_idx;   /* as published */
	uint16_t pending;    /* pushed, not yet published */
	uint16_t signalled;  /* used_idx when the need for a call was last decided */
	struct vring_desc *desc;
	struct vring_avail *avail;
	struct vring_used *used;
	struct inflight_region *inflight;
	uint64_t counter;   /* order of arrival, for the in-flight record */
	const char *reason; /* why the ring is broken */
};

/* Find the ring in memory. To be called again when the memory table has changed. Return: 0, or
 * -EINVAL when the addresses, sizes or alignments are not usable. */
int vring_map(struct vring *v, const struct device_vring *device, struct guest_memory *memory,
	      uint64_t features) must_check;

/*
 * Take over the ring as it is: settle the in-flight record (vhost-user: Inflight I/O tracking) and
 * write the heads that are in flight into `ret_heads` (room for v->size) in order of arrival.
 * Return: the number of heads.
 */
uint32_t vring_attach(struct vring *v, struct inflight_region *inflight, uint16_t *ret_heads);

/* Take the next chain. Return: 1; 0 if there is none; VRING_BROKEN; CHAIN_BAD (ret->head is set).
 */
int vring_pop(struct vring *v, struct guest_memory *memory, struct chain *ret) must_check;

/* Bring what the next vring_pop reads, and some of what the pop after it reads, from the driver's
 * cache. To be called before work that takes a while. The loads only warm the cache; their values
 * are not used. */
void vring_prefetch(const struct vring *v, struct guest_memory *memory);

/* Translate the chain at ret->head again: a chain that was in flight when a worker died. */
int vring_repop(struct vring *v, struct guest_memory *memory, struct chain *ret) must_check;

/* The number of entries that the driver has published and we have not taken. */
uint16_t vring_available(const struct vring *v);

/* Complete `head` with `len` bytes written; visible after vring_publish. */
void vring_push(struct vring *v, uint32_t head, uint32_t len);

/* Would publishing the pushed entries lead to a call, as far as the ring shows now? */
bool vring_driver_sleeps(const struct vring *v);

/* Publish the pushed entries. Return: true if the driver wants a call. */
bool vring_publish(struct vring *v);

/* Ask for kicks. Return: true if an entry arrived before kicks were enabled (serve it instead of
 * sleeping). */
bool vring_enable_kicks(struct vring *v) must_check;
void vring_disable_kicks(struct vring *v);

#endif
