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

/*
 * Mark an fd: its close-on-exec flag is off. All fds are opened with it on, and nobody here
 * executes anything: so a number that is not marked any more was closed, and used again if it is
 * open. Return: false if it is not open.
 */
bool descriptors_mark(int32_t fd);
bool descriptors_is_marked(int32_t fd);
/* Harmless for who has the number meanwhile. */
void descriptors_unmark(int32_t fd);

#endif
