/* SPDX-License-Identifier: Apache-2.0 */
/* What is in the fd table that the pool and its workers share. */
#ifndef VFSD_DESCRIPTORS_H
#define VFSD_DESCRIPTORS_H

#include "transport/csrc/types.h"

/*
 * Find the fds below `end` that belong to no file system: sockets, eventfds, epoll instances. An
 * op never opens one of these, so whatever is found was made by the pool or by zmq.
 * Return: how many there are; the first `room` of them are in ret.
 */
uint32_t descriptors_anonymous(int32_t end, int32_t *ret, uint32_t room);

/* Are both fds the same open file description (one a duplicate of the other)? False in doubt. */
bool descriptors_same(int32_t one, int32_t other);

#endif
