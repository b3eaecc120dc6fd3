/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/inflight.h"
#include "transport/csrc/ring_words.h"

#include <stdlib.h>
#include <string.h>

static bool is_inflight(const struct inflight_desc *desc)
{
	return __atomic_load_n(&desc->inflight, __ATOMIC_RELAXED) == 1;
}

uint64_t inflight_region_bytes(uint32_t size)
{
	uint64_t bytes = sizeof(struct inflight_region) + size * sizeof(struct inflight_desc);

	return (bytes + 63) & ~UINT64_C(63);
}

static void settle_batch(struct inflight_region *r, uint32_t size, uint16_t used_idx)
{
	uint16_t batch = (uint16_t)(used_idx - load16(&r->used_idx));
	uint16_t head = load16(&r->last_batch_head);

	for (uint16_t i = 0; i < batch && head < size; i++) {
		r->desc[head].inflight = 0;
		head = load16(&r->desc[head].next);
	}
	r->used_idx = used_idx;
}

void inflight_settle(struct inflight_region *r, uint32_t size, uint16_t used_idx)
{
	if (load16(&r->version) != 1 || load16(&r->desc_num) != size) {
		memset(r, 0, inflight_region_bytes(size));
		r->version = 1;
		r->desc_num = (uint16_t)size;
		r->used_idx = used_idx;
	}
	if (load16(&r->used_idx) != used_idx)
		settle_batch(r, size, used_idx);
}

struct arrival {
	uint64_t counter;
	uint16_t head;
};

static int by_counter(const void *a, const void *b)
{
	const struct arrival *left = a, *right = b;

	return (left->counter > right->counter) - (left->counter < right->counter);
}

uint32_t inflight_heads(const struct inflight_region *r, uint32_t size, uint16_t *ret,
			uint64_t *ret_highest)
{
	struct arrival *arrivals = malloc(size * sizeof(*arrivals));
	uint32_t count = 0;

	if (!arrivals)
		abort(); /* only at attach, never per request: the pool creates the worker again */
	for (uint32_t i = 0; i < size; i++)
		if (is_inflight(&r->desc[i])) {
			uint64_t counter = __atomic_load_n(&r->desc[i].counter, __ATOMIC_RELAXED);

			arrivals[count++] = (struct arrival){counter, (uint16_t)i};
		}
	qsort(arrivals, count, sizeof(*arrivals), by_counter);
	for (uint32_t i = 0; i < count; i++)
		ret[i] = arrivals[i].head;
	*ret_highest = count ? arrivals[count - 1].counter : 0;
	free(arrivals);
	return count;
}
