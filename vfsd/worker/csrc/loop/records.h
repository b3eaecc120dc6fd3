/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The records of rings, which survive a worker: for each ring of the device its in-flight region
 * and the intents of its heads. All records are in one shared segment.
 */
#ifndef VFSD_RECORDS_H
#define VFSD_RECORDS_H

#include "transport/csrc/types.h"

struct inflight_region;
struct intent;

/* The head of a ring's record; the in-flight region and the intents follow. */
struct ring_record {
	uint32_t start; /* device_vring.start when the record was begun; else the record is stale */
	uint32_t pad[15];
};

/* Bytes of the segment; a memfd of this size is sparse. */
uint64_t records_bytes(void);

/* The record of the ring `index`, and the two parts of a record. */
struct ring_record *record_of(void *records, uint32_t index);
struct inflight_region *record_inflight(struct ring_record *record);
struct intent *record_intents(struct ring_record *record);
/* Set the whole record to zero and give its memory back. */
void record_clear(struct ring_record *record);

#endif
