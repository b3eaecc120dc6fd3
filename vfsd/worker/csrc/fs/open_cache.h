/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Files that the guest opens for reading again and again, as compilers and interpreters do: from
 * the third time on their OPEN duplicates an fd instead of opening the file.
 *
 * What shares an open file description must not care: readers do not, since each READ says its
 * offset. Not shared are files of file systems where opening or closing means more than that (NFS;
 * overlayfs, where what was opened before a copy-up stays the old file), with other flags than
 * O_RDONLY, or where flocks are the host's, which belong to a description.
 *
 * The fd takes the place of the inode's own (inode_table.c). A worker lets OPEN_CACHE inodes keep
 * theirs and drops the oldest for the next, so that few deleted files are held. The list is only
 * its own: what a dead worker's inodes keep is closed when the guest forgets them or fds become
 * scarce.
 */
#ifndef VFSD_OPEN_CACHE_H
#define VFSD_OPEN_CACHE_H

#include "worker/csrc/fs/fs.h"

/* May opening `inode` with these flags (of open(2)) be shared? */
bool open_cache_may_share(struct fs *fs, const struct inode *inode, int flags);
/* Return: a new fd of the file, open for reading; -1 if there is none to duplicate. */
int open_cache_get(struct fs *fs, const struct inode *inode);
/* `fd`, opened for reading, stays the caller's. */
void open_cache_note_opened(struct fs *fs, const struct inode *inode, int fd);

#endif
