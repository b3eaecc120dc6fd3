/* SPDX-License-Identifier: Apache-2.0 */
/* What is in the fd table that the pool and its workers share. */
#ifndef VFSD_DESCRIPTORS_H
#define VFSD_DESCRIPTORS_H

#include "transport/csrc/types.h"

/*
 * Find what is open below `end` and not noted in `known`, a byte per number: descriptors_note()
 * notes the fds of a table. No file system is asked, so none that hangs holds this up.
 * Return: how many there are; the first `room` of them are in ret.
 */
uint32_t descriptors_others(const uint8_t *known, int32_t end, int32_t *ret, uint32_t room);
void descriptors_note(uint8_t *known, int32_t end, const int32_t *fds, uint64_t count);

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
