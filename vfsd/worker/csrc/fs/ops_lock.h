/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_OPS_LOCK_H
#define VFSD_OPS_LOCK_H

#include "worker/csrc/fs/fs.h"

/* A guest process has closed the file: release the record locks that `owner` has on it. */
void ops_lock_drop_owner(struct fs *fs, uint64_t nodeid, uint64_t owner);
/* Release the flock on an open file. */
void ops_lock_drop_flock(struct fs *fs, struct open_file *file);
/* The session has ended: release all locks of the guest. The requests of the guest have ended, or
 * belong to a guest that begins the next session without waiting for them. */
void ops_lock_drop_all(struct fs *fs);

#endif
