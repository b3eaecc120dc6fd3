/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* One turn of the loop: serve the requests that the rings have. */
#ifndef VFSD_TURN_H
#define VFSD_TURN_H

#include "worker/csrc/loop/worker_state.h"

/* Serve up to BATCH chains of a ring. Return: their number. */
uint32_t turn_ring(struct worker *w, struct worker_ring *ring);
/* Serve up to BATCH chains of each ring that runs; hiprio comes first. Return: the number of
 * chains. */
uint32_t turn_rings(struct worker *w);

#endif
