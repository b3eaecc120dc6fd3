/* SPDX-License-Identifier: Apache-2.0 */
/* Clones of a Python process: with its fd table or with a copy, as a child or as a sibling. */
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

/* As clone_process(), but the child has an fd table of its own, with the same fds. */
int clone_apart(void);

/*
 * As clone_process(), but the new process is a child of the calling process's parent. The kernel
 * writes the pid to *ret_pid before the new process runs: in shared memory the pid is found there
 * if the calling process is killed.
 */
int clone_sibling(int32_t *ret_pid);

/* As os.fork(), but the new process is a child of the calling process's parent. *ret_pidfd is set
 * to a pidfd of the new process, which the caller owns. Return: as clone_process(). */
int fork_sibling(int32_t *ret_pidfd) must_check;

/*
 * For a process that one of these functions has made: choose a stack protector canary of its own
 * and run the Python callable `callable` (a PyObject *). Never returns: the process exits with
 * status 1 if the callable returns or raises.
 */
void clone_process_run(void *callable);

#endif
