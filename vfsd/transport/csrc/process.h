/* SPDX-License-Identifier: Apache-2.0 */
/* What Python's os module has no function for. */
#ifndef VFSD_PROCESS_H
#define VFSD_PROCESS_H

#include "transport/csrc/types.h"

/* Make this process the parent of descendants whose own parent ended (PR_SET_CHILD_SUBREAPER).
 * Return: 0 or -errno. */
int process_become_subreaper(void);

#endif
