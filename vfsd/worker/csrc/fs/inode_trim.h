/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_INODE_TRIM_H
#define VFSD_INODE_TRIM_H

#include "worker/csrc/fs/fs.h"

/* Close fds of inodes that were not used lately, where handles can hold these inodes: at once if
 * there are too many, else soon. Between two batches. */
void inode_trim(struct fs *fs);

#endif
