/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * A remapped security.capability. The host's kernel does not know that an attribute of another name
 * gives a capability, so this code does for that attribute what the kernel does for the real one:
 * writing, truncating and changing the owner of a regular file remove the capability.
 */
#ifndef VFSD_FILE_CAPABILITY_H
#define VFSD_FILE_CAPABILITY_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/fs.h"

void file_capability_init(struct file_capability *c, const struct xattrmap *map);

/* Called before a regular file changes: remove its remapped capability. `fd` is the fd of the inode
 * or of an open file. Root is left acting if the attribute had to be looked up. Return: 0 or
 * -errno. */
int file_capability_drop(struct fs *fs, uint64_t nodeid, int fd) must_check;

/* The guest has set the attribute that the host calls `name`. */
void file_capability_set(struct fs *fs, const char *name);

#endif
