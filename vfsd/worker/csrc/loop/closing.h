/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Closing the fds that the tables have retired (reclaim.h), on a thread. Both functions are called
 * between two turns. */
#ifndef VFSD_CLOSING_H
#define VFSD_CLOSING_H

#include "worker/csrc/loop/worker_state.h"

/* Hand the retired fds that may be closed to a thread. */
void closing_begin(struct worker *w);
/* Like closing_begin, but do nothing if few fds wait and the last call was a short time ago. */
void closing_begin_if_due(struct worker *w);

#endif
