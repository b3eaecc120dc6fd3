/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_PAGE_STATE_H
#define VFSD_PAGE_STATE_H

#include "transport/csrc/types.h"

/* Return: true if no page of the file is dirty, and none is being written back. false if this
 * cannot be found out: before Linux 6.5, or for a file of another user without privilege. `fd` is
 * open for reading or writing. */
bool is_written_back(int fd);

#endif
