/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What survives a worker about its rings: for each ring of the device its in-flight region and the
 * intents of its heads, in a segment of their own.
 */
#ifndef VFSD_RECORDS_H
#define VFSD_RECORDS_H

#include "transport/csrc/types.h"

struct inflight_region;
struct intent;

/* The head of a ring's record; the in-flight region and the intents follow. */
struct ring_record {
	uint32_t start; /* the start of the ring it belongs to */
	uint32_t pad[15];
};

/* Bytes of the segment; a memfd of this size is sparse. */
uint64_t records_bytes(void);

/* The record of the ring `index`, and what it has. */
struct ring_record *record_of(void *records, uint32_t index);
struct inflight_region *record_inflight(struct ring_record *record);
struct intent *record_intents(struct ring_record *record);
/* All of it becomes zero, and the memory is given back. */
void record_clear(struct ring_record *record);

#endif
