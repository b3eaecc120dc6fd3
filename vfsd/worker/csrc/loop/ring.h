/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The rings of one worker: starting, stopping, taking chains and publishing replies. What survives
 * the worker about each ring is in records.h.
 */
#ifndef VFSD_RING_H
#define VFSD_RING_H

#include "worker/csrc/loop/worker_state.h"

/* Bring ring `index` into the adopted device state; the memory table is in force already. The
 * reason of a failure is left in ring->error. */
void ring_adopt(struct worker *w, uint32_t index);

/* True if the next state wants this ring stopped, or stopped and started again. */
bool ring_must_stop(const struct worker *w, uint32_t index, const struct device_state *next);
/* Stop the ring: do not touch it any more, and forget which of its requests are in flight. */
void ring_stop(struct worker *w, struct worker_ring *ring);
/* Stop a ring that cannot be trusted any more, and signal the front-end through err_fd. */
void ring_break(struct worker_ring *ring, const char *reason);

/* The index of a ring that broke and was not reported yet; -1: there is none. */
int32_t ring_find_broken(const struct worker *w);

/* Take the next chain: first the chains that a dead worker left, then new chains of the driver.
 * Return: as vring_pop. */
int ring_next(struct worker *w, struct worker_ring *ring, struct request *r) must_check;

/* Publish the chains that were pushed, and call the driver if the driver wants that. */
void ring_publish(struct worker *w, struct worker_ring *ring);

/* Every ring of this worker, running or not, in order of its index. */
#define for_each_ring(w, ring)                                                                    \
	for (uint32_t at_ = 0; at_ < (w)->own_ring_count && ((ring) = (w)->own_rings[at_], true); \
	     at_++)

/* Has the driver (or a dead worker) left something to do? */
bool ring_has_work(const struct worker_ring *ring);

#endif
