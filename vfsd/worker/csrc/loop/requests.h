/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * The request objects of a worker. An object is taken from a free list, filled from its chain, and
 * given back when its reply is pushed. A request that leaves the loop keeps its object.
 */
#ifndef VFSD_REQUESTS_H
#define VFSD_REQUESTS_H

#include "worker/csrc/loop/worker_state.h"

/* Return: a free request object; NULL when all objects are off the loop. */
struct request *requests_take(struct worker *w);
void requests_give(struct worker *w, struct request *r);
/* Add one unused object to the free list. Called once at the start, so that the list is not
 * empty. */
void requests_give_unused(struct worker *w);

/* End a request with this result (enum op_outcome, but not an outcome that leaves the loop): write
 * the reply, push the chain, give the object back. The request's ring may have been stopped by
 * now. */
void requests_finish(struct worker *w, struct request *r, int result);

#endif
