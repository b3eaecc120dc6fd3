/* SPDX-License-Identifier: Apache-2.0 */
/* Look through the fd table that the pool and its workers share. */
#ifndef VFSD_DESCRIPTORS_H
#define VFSD_DESCRIPTORS_H

#include "transport/csrc/types.h"

/*
 * Find the open fds below `end` that are not noted in `known`, which has a byte per fd number;
 * descriptors_note() notes the fds of a table there. No file system is asked, so a file system that
 * hangs cannot block this function. Return: the number of fds found; the first `room` of them are
 * in ret.
 */
uint32_t descriptors_others(const uint8_t *known, int32_t end, int32_t *ret, uint32_t room);
void descriptors_note(uint8_t *known, int32_t end, const int32_t *fds, uint64_t count);

/*
 * Mark an fd by clearing its close-on-exec flag. All fds are opened with that flag set, and no
 * process that shares the table executes a program. So if a marked number is no longer marked, the
 * fd was closed, and if the number is open, it has been used again. Return: false if the fd is not
 * open.
 */
bool descriptors_mark(int32_t fd);
bool descriptors_is_marked(int32_t fd);
/* Safe even if the fd was closed and its number has been used again. */
void descriptors_unmark(int32_t fd);

#endif
