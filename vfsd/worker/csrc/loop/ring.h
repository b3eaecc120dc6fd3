/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The rings of one worker: starting, stopping, taking chains and publishing replies. What survives
 * the worker about each of them is in records.h.
 */
#ifndef VFSD_RING_H
#define VFSD_RING_H

#include "worker/csrc/loop/worker_state.h"

/* Make ring `index` what the adopted device state says; the memory table is in force already.
 * Failures are left in ring->error. */
void ring_adopt(struct worker *w, uint32_t index);

/* True if the adopted state wants this ring stopped, or stopped and started again. */
bool ring_must_stop(const struct worker *w, uint32_t index, const struct device_state *next);
/* Touch it no more, forget what is in flight. */
void ring_stop(struct worker *w, struct worker_ring *ring);
/* It cannot be trusted any more: stop it, tell the front-end through err_fd. */
void ring_break(struct worker_ring *ring, const char *reason);

/* The index of a ring that broke and was not reported yet; -1: there is none. */
int32_t ring_find_broken(const struct worker *w);

/* The next chain: first those a dead worker left, then the driver's. As vring_pop. */
int ring_next(struct worker *w, struct worker_ring *ring, struct request *r) must_check;

/* Publish what was pushed and call the driver if it wants that. */
void ring_publish(struct worker *w, struct worker_ring *ring);

/* Every ring of this worker, running or not, in order of its index. */
#define for_each_ring(w, ring)                                                                    \
	for (uint32_t at_ = 0; at_ < (w)->own_ring_count && ((ring) = (w)->own_rings[at_], true); \
	     at_++)

/* Has the driver (or a dead worker) left something to do? */
bool ring_has_work(const struct worker_ring *ring);

#endif
