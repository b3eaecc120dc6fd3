/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_UNKNOWN_FILE_H
#define VFSD_UNKNOWN_FILE_H

#include "worker/csrc/fs/fs.h"

#include <errno.h>

/* A request of the inode `nodeid` names a file that is not open, or that belongs to another inode.
 * Return: -ESTALE if the inode is unknown too, because both were lost with a sandbox; or -EBADF. */
static inline int unknown_file(const struct fs *fs, uint64_t nodeid)
{
	return inode_table_get(fs->inodes, nodeid) ? -EBADF : -ESTALE;
}

#endif
