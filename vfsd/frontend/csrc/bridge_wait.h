/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* How a bridge waits for the kernel's requests and the device's replies. The theory is in
 * bridge_wait.c. */
#ifndef VFSD_BRIDGE_WAIT_H
#define VFSD_BRIDGE_WAIT_H

#include "frontend/csrc/fuse_bridge.h"

/* Watch the fds of the bridge's config. The caller has set b->epoll_fd to -1. Return: 0 or -errno;
 * in both cases bridge_wait_deinit() closes what was opened. */
int bridge_wait_init(struct bridge *b) must_check;
void bridge_wait_deinit(struct bridge *b);

/* Wait until there is something to do. `room`: the bridge can take another request. *more: there
 * may be a request to read. Return: 0 or enum bridge_end. */
int bridge_wait(struct bridge *b, bool room, bool *more) must_check;

#endif
