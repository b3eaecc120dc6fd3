/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/loop/records.h"

#include "transport/csrc/device_state.h"
#include "transport/csrc/inflight.h"
#include "transport/csrc/page.h"
#include "transport/csrc/vring.h"
#include "worker/csrc/request/intent.h"

#include <string.h>
#include <sys/mman.h>

static uint64_t intents_offset(void)
{
	return sizeof(struct ring_record) + inflight_region_bytes(VRING_SIZE_MAX);
}

static uint64_t record_bytes(void)
{
	uint64_t bytes = intents_offset() + VRING_SIZE_MAX * sizeof(struct intent);

	return (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1);
}

uint64_t records_bytes(void)
{
	return record_bytes() * DEVICE_VRINGS_MAX;
}

struct ring_record *record_of(void *records, uint32_t index)
{
	return (struct ring_record *)(void *)((uint8_t *)records + record_bytes() * index);
}

struct inflight_region *record_inflight(struct ring_record *record)
{
	return (void *)(record + 1);
}

struct intent *record_intents(struct ring_record *record)
{
	return (void *)((uint8_t *)record + intents_offset());
}

void record_clear(struct ring_record *record)
{
	if (madvise(record, record_bytes(), MADV_REMOVE) < 0)
		memset(record, 0, record_bytes());
}
