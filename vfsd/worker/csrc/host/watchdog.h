/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A watchdog for system calls that the loop makes and that rarely wait.
 *
 * unlinkat(2), renameat(2), linkat(2), fchmodat(2) and similar calls wait until a program on the
 * host has given back a delegation of the file (lease.h). No flag makes these calls return instead,
 * and nothing shows beforehand that they will wait. But a signal ends that wait, and the call has
 * then changed nothing. So a thread looks at the loop now and then, and sends the loop a signal
 * when one of these calls takes too long: the call fails with EINTR, and the op waits off the loop
 * (lease_wait_*). Where the call waits for something else, a disk or a server that does not answer,
 * the signal changes nothing. A FUSE server may answer EINTR when it is interrupted, but only if it
 * has done nothing.
 */
#ifndef VFSD_WATCHDOG_H
#define VFSD_WATCHDOG_H

#include "transport/csrc/types.h"

struct watchdog;

/* Create a watchdog for the system calls of the calling thread. Return: NULL if memory is short. */
struct watchdog *watchdog_create(void);

/* A system call begins. If `dog` is NULL, no watchdog interrupts the call. */
void watchdog_begin(struct watchdog *dog);
/* The system call has returned `result` and set errno. Return: `result`, or -errno. No signal
 * arrives after this function has returned. */
int watchdog_end(struct watchdog *dog, int result) must_check;

#endif
