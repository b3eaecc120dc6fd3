/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The request objects of a worker. One is taken from a free list, filled from its chain, and given
 * back when its reply is pushed. One that leaves the loop keeps its object.
 */
#ifndef VFSD_REQUESTS_H
#define VFSD_REQUESTS_H

#include "worker/csrc/loop/worker_state.h"

/* Return: NULL when all of them are off the loop. */
struct request *requests_take(struct worker *w);
void requests_give(struct worker *w, struct request *r);
/* Once, so that there is one to take. */
void requests_give_unused(struct worker *w);

/* The request is over with this result (enum op_outcome, but none that leaves the loop): reply,
 * push, give. Its ring may have been stopped meanwhile. */
void requests_finish(struct worker *w, struct request *r, int result);

#endif
