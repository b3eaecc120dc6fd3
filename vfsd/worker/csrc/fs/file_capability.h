/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A remapped security.capability: the host's kernel does not know that the attribute it is kept
 * under gives anybody a capability, so what it does for the real one is done here. Writing,
 * truncating and changing the owner of a regular file takes it away.
 */
#ifndef VFSD_FILE_CAPABILITY_H
#define VFSD_FILE_CAPABILITY_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/fs.h"

void file_capability_init(struct file_capability *c, const struct xattrmap *map);

/* Before a regular file changes: drop its remapped capability. `fd` is the inode's or an open
 * file's. Leaves root acting if there is anything to be asked. Return: 0 or -errno. */
int file_capability_drop(struct fs *fs, uint64_t nodeid, int fd) must_check;

/* The guest has set the attribute that the host calls `name`. */
void file_capability_set(struct fs *fs, const char *name);

#endif
