/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A watchdog for system calls that the loop makes and that seldom wait.
 *
 * No flag makes unlinkat(2), renameat(2), linkat(2), fchmodat(2) and their like return instead of
 * waiting until a program on the host has given back a delegation of the file (lease.h), and
 * nothing says beforehand that they will wait. But that wait ends at a signal, and nothing has
 * happened then. So a thread looks at the loop now and then, and sends the loop a signal when one
 * of these calls takes too long: the call fails with EINTR, and the op waits off the loop
 * (lease_wait_*). Where the call waits for something else, a disk or a server that does not answer,
 * the signal changes nothing. A FUSE server may answer EINTR when it is interrupted, and only if it
 * has done nothing.
 */
#ifndef VFSD_WATCHDOG_H
#define VFSD_WATCHDOG_H

#include "transport/csrc/types.h"

struct watchdog;

/* For the calls of this thread. Return: NULL without memory. */
struct watchdog *watchdog_create(void);

/* A call begins. `dog` may be NULL: nobody watches. */
void watchdog_begin(struct watchdog *dog);
/* The call has returned `result`, and errno. Return: result, or -errno. No signal comes later. */
int watchdog_end(struct watchdog *dog, int result) must_check;

#endif
