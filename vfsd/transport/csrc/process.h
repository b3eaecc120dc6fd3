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

/* Give back the pages of this program and its libraries that cannot have been written to. They stay
 * in the page cache, and each comes back when it is used. */
void process_forget_code(void);

#endif
