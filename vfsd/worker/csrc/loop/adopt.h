/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VFSD_ADOPT_H
#define VFSD_ADOPT_H

#include "transport/csrc/types.h"

struct worker;

/*
 * Adopt the device state: map and unmap memory, start and stop rings, use changed eventfds. A ring
 * that is to stop is drained first, for at most `drain_ms`; requests that are left then get EIO.
 * Return: the generation now in force (even), or -errno: -EAGAIN (the supervisor is writing: try
 * again), or the error of guest_memory_update (then no memory is mapped and no ring runs).
 */
int64_t worker_adopt(struct worker *w, uint32_t drain_ms);

/* The generation in force, also after a worker_adopt that could not map memory. */
uint32_t worker_generation(const struct worker *w);

#endif
