/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * FORGET, and what brings a forgotten inode back (forgotten.c). An inode that the guest may ask for
 * again needs a handle. One that has none yet gets it now: from the kernel, or signed by the
 * broker, which is asked for many at once, at the end of a turn.
 */
#ifndef VFSD_INODE_FORGET_H
#define VFSD_INODE_FORGET_H

#include "worker/csrc/fs/fs.h"

/* The guest takes `count` lookups of `nodeid` back. */
void inode_forget(struct fs *fs, uint64_t nodeid, uint64_t count);

/* Finish what inode_forget() began in this turn: before this worker's next quiescent point. */
void inode_forget_finish(struct fs *fs);

/*
 * The inode of a nodeid that the guest has forgotten, with a lookup count for the caller: its file
 * was opened by its handle, and is the same. It may become root for that.
 * Return: 0; -ESTALE (nothing is known of it any more, or its file is gone), or -errno.
 */
int inode_recall(struct fs *fs, uint64_t nodeid, const struct inode **ret) must_check;

#endif
