/* SPDX-License-Identifier: Apache-2.0 */
/* What Python's os module has no function for. */
#ifndef VFSD_PROCESS_H
#define VFSD_PROCESS_H

#include "transport/csrc/types.h"

/* Make this process the parent of descendants whose own parent ended (PR_SET_CHILD_SUBREAPER).
 * Return: 0 or -errno. */
int process_become_subreaper(void);

/* No exec gives this process, or what it creates, more than it has. Return: 0 or -errno. */
int process_no_new_privs(void) must_check;

/*
 * From here on this process is in a mount namespace of its own, which mounts of the host's still
 * reach, with a whole /proc on top of the one that was there. In that one, service managers and
 * containers may have covered files, and hidden the processes of other users. Needs CAP_SYS_ADMIN;
 * the process must have one thread. Return: 0 or -errno.
 */
int process_see_whole_proc(void) must_check;

/* Give back the pages of this program and its libraries that cannot have been written to. They stay
 * in the page cache, and each comes back when it is used. */
void process_forget_code(void);

#endif
