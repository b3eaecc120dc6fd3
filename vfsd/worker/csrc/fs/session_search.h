/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_SESSION_SEARCH_H
#define VFSD_SESSION_SEARCH_H

#include "worker/csrc/fs/session_inodes.h"

/* Look for the inodes in r->wanted, and mark those that are found. */
void session_search(struct restore *r);

#endif
