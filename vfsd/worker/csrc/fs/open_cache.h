/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Files that the guest opens for reading again and again, as compilers and interpreters do: from
 * the third time on, OPEN duplicates an fd instead of opening the file.
 *
 * Users of a shared open file description must not depend on its state. Readers do not, since each
 * READ gives its offset. A description is not shared on a file system where opening or closing has
 * more effects (NFS; overlayfs, where a file that was opened before a copy-up stays the old file),
 * with other flags than O_RDONLY, or where flocks are taken on the host, because a flock belongs to
 * a description.
 *
 * The fd takes the place of the inode's own fd (inode_table.c). A worker lets OPEN_CACHE inodes
 * keep such an fd and drops the oldest for the next, so that few deleted files are held. The list
 * belongs to one worker: fds that a dead worker's inodes keep are closed when the guest forgets the
 * inodes or when fds become scarce.
 */
#ifndef VFSD_OPEN_CACHE_H
#define VFSD_OPEN_CACHE_H

#include "worker/csrc/fs/fs.h"

/* May an open of `inode` with these flags (of open(2)) share an open file description? */
bool open_cache_may_share(struct fs *fs, const struct inode *inode, int flags);
/* Return: a new fd of the file, open for reading; -1 if there is no fd to duplicate. */
int open_cache_get(struct fs *fs, const struct inode *inode);
/* The file was opened for reading as `fd`; the caller keeps the fd. */
void open_cache_note_opened(struct fs *fs, const struct inode *inode, int fd);

#endif
