/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VFSD_ADOPT_H
#define VFSD_ADOPT_H

#include "transport/csrc/types.h"

struct worker;

/*
 * Take the device state over: map and unmap memory, start and stop rings, adopt changed eventfds.
 * A stopped ring is drained first, for at most `drain_ms`; what is left gets EIO.
 * Return: the generation now in force (even), or -errno: -EAGAIN (the supervisor is writing: try
 * again), or what guest_memory_update says (no memory is mapped then and no ring runs).
 */
int64_t worker_adopt(struct worker *w, uint32_t drain_ms);

/* The generation in force, also after a worker_adopt that could not map memory. */
uint32_t worker_generation(const struct worker *w);

#endif
