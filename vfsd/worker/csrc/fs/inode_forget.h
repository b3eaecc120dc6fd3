/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * FORGET, and how a forgotten inode comes back (forgotten.c). An inode that the guest may ask for
 * again needs a handle. An inode without a handle gets one when it is forgotten: from the kernel,
 * or from the broker, which signs many handles at once at the end of a turn.
 */
#ifndef VFSD_INODE_FORGET_H
#define VFSD_INODE_FORGET_H

#include "worker/csrc/fs/fs.h"

/* The guest takes `count` lookups of `nodeid` back. */
void inode_forget(struct fs *fs, uint64_t nodeid, uint64_t count);

/* Complete the FORGETs that inode_forget() began in this turn. Called before this worker's next
 * quiescent point. */
void inode_forget_finish(struct fs *fs);

/*
 * Bring back the inode of a nodeid that the guest has forgotten. Its file is opened by its handle,
 * and compared with the inode. This function may make the worker act as root. Return: 0, with the
 * inode in *ret and its lookup count raised by one for the caller; -ESTALE (the inode has left the
 * table, or its file is gone); or -errno.
 */
int inode_recall(struct fs *fs, uint64_t nodeid, const struct inode **ret) must_check;

#endif
