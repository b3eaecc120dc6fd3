/* SPDX-License-Identifier: Apache-2.0 */
/* Processes that share one fd table. */
#ifndef VFSD_CLONE_PROCESS_H
#define VFSD_CLONE_PROCESS_H

#include "transport/csrc/types.h"

/*
 * As os.fork(), but parent and child share the fd table (CLONE_FILES): an fd that either opens has
 * the same number in both, and outlives whichever of them dies. Call it from Python while the
 * process has one thread.
 * Return: the child's pid, 0 in the child, or -errno.
 */
int clone_process(void);

#endif
