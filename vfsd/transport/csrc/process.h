/* SPDX-License-Identifier: Apache-2.0 */
/* System calls for which Python's os module has no function. */
#ifndef VFSD_PROCESS_H
#define VFSD_PROCESS_H

#include "transport/csrc/types.h"

/* Make this process the parent of its descendants whose own parent has ended
 * (PR_SET_CHILD_SUBREAPER). Return: 0 or -errno. */
int process_become_subreaper(void);

/* Have `signal` sent to this process when the thread that has created it ends
 * (PR_SET_PDEATHSIG). Return: 0 or -errno. */
int process_watch_parent(int signal) must_check;

/* No exec gives this process, or what it creates, more than it has now. Return: 0 or -errno. */
int process_no_new_privs(void) must_check;

/*
 * Give this process a mount namespace of its own, which later mounts of the host still reach, with
 * a complete /proc on top of the earlier /proc. In the earlier /proc service managers and
 * containers may have covered files and hidden the processes of other users. Needs CAP_SYS_ADMIN;
 * the process must have one thread. Return: 0 or -errno.
 */
int process_see_whole_proc(void) must_check;

/* Do two fds of this process belong to the same open file, as after dup(2)? False where the kernel
 * lacks kcmp(2). */
bool process_is_same_file(int fd, int other);

/* Give back the pages of this program and its libraries that cannot have been written to. The pages
 * stay in the page cache, and each of them is mapped again when it is used. */
void process_forget_code(void);

#endif
