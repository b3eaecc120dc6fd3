/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_INODE_TRIM_H
#define VFSD_INODE_TRIM_H

#include "worker/csrc/fs/fs.h"

/* Close fds that inodes have not used lately, where handles can hold these inodes: immediately if
 * there are too many fds, otherwise after a second or two. Called between two batches of requests.
 * */
void inode_trim(struct fs *fs);

#endif
