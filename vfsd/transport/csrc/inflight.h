/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The in-flight record of one split virtqueue, in the layout of vhost-user's "Inflight I/O
 * tracking", so that the same code serves our own memory and a front-end's memfd.
 *
 * The record outlives the worker. Completing a batch is: for each chain `next` and
 * `last_batch_head`, then used.idx in guest memory, then `inflight = 0` for each, then `used_idx`.
 * Whatever prefix of this sequence was done when the worker died, inflight_settle() finishes it.
 */
#ifndef VFSD_INFLIGHT_H
#define VFSD_INFLIGHT_H

#include "transport/csrc/types.h"

struct inflight_desc {
	uint8_t inflight;
	uint8_t pad[5];
	uint16_t next;
	uint64_t counter;
};

struct inflight_region {
	uint64_t features;
	uint16_t version; /* 0: never used; else 1 */
	uint16_t desc_num;
	uint16_t last_batch_head;
	uint16_t used_idx;
	struct inflight_desc desc[];
};

/* Bytes of the region of a ring of `size` entries, rounded up to 64. */
uint64_t inflight_region_bytes(uint32_t size);

/* Make the region describe a ring of `size` entries whose used index is `used_idx`, and finish the
 * batch that a dead worker began. */
void inflight_settle(struct inflight_region *r, uint32_t size, uint16_t used_idx);

/* Write the heads in flight, oldest first, into ret (room for `size`), and the highest counter.
 * Return: the number of heads. */
uint32_t inflight_heads(const struct inflight_region *r, uint32_t size, uint16_t *ret,
			uint64_t *ret_highest);

#endif
