/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* One turn of the loop: the requests that its rings have. */
#ifndef VFSD_TURN_H
#define VFSD_TURN_H

#include "worker/csrc/loop/worker_state.h"

/* Serve up to a batch of chains. Return: how many. */
uint32_t turn_ring(struct worker *w, struct worker_ring *ring);
/* The same for each ring that runs, hiprio first. */
uint32_t turn_rings(struct worker *w);

#endif
