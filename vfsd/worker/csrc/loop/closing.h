/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Closing the fds that the tables have retired (reclaim.h), on a thread. Both functions are called
 * between two turns. */
#ifndef VFSD_CLOSING_H
#define VFSD_CLOSING_H

#include "worker/csrc/loop/worker_state.h"

/* Hand the retired fds that may be closed to a thread. */
void closing_begin(struct worker *w);
/* The same, but only if many fds wait or the last call was long ago. */
void closing_begin_if_due(struct worker *w);

#endif
