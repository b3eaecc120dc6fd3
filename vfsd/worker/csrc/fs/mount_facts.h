/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_MOUNT_FACTS_H
#define VFSD_MOUNT_FACTS_H

#include "worker/csrc/fs/fs.h"

/* The facts about the mount of this inode; they are looked up once per mount. */
const struct mount_fact *mount_fact_of(struct fs *fs, const struct inode *inode);

#endif
