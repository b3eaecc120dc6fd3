/* SPDX-License-Identifier: Apache-2.0 */
/* The areas of a split virtqueue in guest memory (virtio 1.2 §2.7), for device and driver. */
#ifndef VFSD_SPLIT_RING_H
#define VFSD_SPLIT_RING_H

#include "transport/csrc/types.h"

enum {
	VRING_SIZE_MAX = 32768, /* entries */
};

/* Bytes of each area. */
struct split_ring {
	uint64_t desc;
	uint64_t avail;
	uint64_t used;
};

/* The areas of a ring of `size` entries. `event_idx`: include the words of VIRTIO_F_EVENT_IDX. */
struct split_ring split_ring_areas(uint32_t size, bool event_idx);

#endif
