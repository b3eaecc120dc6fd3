/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Waiting for work: how long to poll the rings, and sleeping. The theory is in poll.c. */
#ifndef VFSD_POLL_H
#define VFSD_POLL_H

#include "worker/csrc/loop/worker_state.h"

/* Wait until a ring has work, a request came back, or control_fd is readable. */
void poll_wait(struct worker *w);

/* Is control_fd readable? Costs a system call: the loop asks rarely while there is work. */
bool poll_control(struct worker *w);

/* One-time setup of the adaptive budget. */
void poll_init(struct worker *w, int32_t poll_us);

#endif
