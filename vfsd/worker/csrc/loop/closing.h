/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Closing the fds that the tables have retired (reclaim.h), on a thread. Between two turns. */
#ifndef VFSD_CLOSING_H
#define VFSD_CLOSING_H

#include "worker/csrc/loop/worker_state.h"

/* Close what is retired and may be closed. */
void closing_begin(struct worker *w);
/* The same, if it is much or long ago. */
void closing_begin_if_due(struct worker *w);

#endif
