/* SPDX-License-Identifier: Apache-2.0 */
/* Processes that share one fd table. */
#ifndef VFSD_CLONE_PROCESS_H
#define VFSD_CLONE_PROCESS_H

#include "transport/csrc/types.h"

/*
 * As os.fork(), but parent and child share the fd table (CLONE_FILES): an fd that either process
 * opens has the same number in both, and stays open when either of them dies. Call this from Python
 * while the process has one thread.
 * Return: the child's pid, 0 in the child, or -errno.
 */
int clone_process(void);

/*
 * For a process that clone_process() has made: choose a stack protector canary of its own and run
 * the Python callable `callable` (a PyObject *). Never returns: the process exits with status 1 if
 * the callable returns or raises.
 */
void clone_process_run(void *callable);

#endif
