/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * From an inode to an fd of its file. Where handles hold the inodes, the fds are a cache: they are
 * opened when they are needed, and kept while there is room (inode_trim.c). Where handles are
 * signed, an inode is held by its fd until there is no room.
 */
#ifndef VFSD_INODE_FD_H
#define VFSD_INODE_FD_H

#include "worker/csrc/fs/fs.h"

/*
 * An fd of the inode, which is O_PATH or open for reading. It is valid until this worker's next
 * quiescent point. This function may make the worker act as root, so an op calls it before it acts
 * as the requesting user.
 * Return: the fd, -ESTALE (the file is gone), or -errno.
 */
int inode_fd(struct fs *fs, const struct inode *inode) must_check;

/* Open the file of an inode by its handle, with `flags` of open(2). The worker must be allowed to
 * open handles. The caller owns the fd. Errors as above. */
int inode_fd_open_handle(struct fs *fs, const struct inode *inode, int flags) must_check;

/* Open the file of an inode with O_PATH by its handle; the worker or the broker opens it. `inode`
 * may be a copy. The caller owns the fd. Errors as above. */
int inode_fd_open_path(struct fs *fs, const struct inode *inode) must_check;

/* Does the worker itself open handles of files of this mount? */
bool inode_fd_uses_handles(struct fs *fs, uint64_t mnt_id);

/* Does the broker sign handles of files of this mount? */
bool inode_fd_can_be_signed(const struct fs *fs, uint64_t mnt_id);

/* Do inodes have far more fds than inode_trim() leaves them? The next inode then gets no fd, even
 * if inode_trim() has not run yet. */
bool inode_fd_is_scarce(const struct fs *fs);

/* The number of fds that inodes and open files have given up, in all workers, and that are not
 * closed yet. */
uint64_t inode_fd_unclosed(const struct fs *fs);

/* May one more inode or open file have an fd? Some fds are reserved for the daemon itself. */
bool inode_fd_has_budget(const struct fs *fs);
/* Check the budget for a request that cannot be served without an fd. Return: 0; or -ENFILE for the
 * guest, and then a line in the log says so. */
int inode_fd_budget(const struct fs *fs) must_check;

#endif
