/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_SESSION_LOCKS_H
#define VFSD_SESSION_LOCKS_H

#include "worker/csrc/fs/session_inodes.h"

/* Take the flock again that the guest had on this file. */
void session_flock(struct restore *r, struct open_file *file);
/* Take the record locks of the guest again. The tables of inodes and files are complete. */
void session_record_locks(struct restore *r);

#endif
