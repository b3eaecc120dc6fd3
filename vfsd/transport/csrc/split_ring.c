/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/split_ring.h"

#include <linux/virtio_ring.h>

struct split_ring split_ring_areas(uint32_t size, bool event_idx)
{
	uint64_t event = event_idx ? sizeof(uint16_t) : 0;

	return (struct split_ring){
		.desc = size * sizeof(struct vring_desc),
		.avail = sizeof(struct vring_avail) + size * sizeof(uint16_t) + event,
		.used = sizeof(struct vring_used) + size * sizeof(struct vring_used_elem) + event,
	};
}
