/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * From an inode to an fd that holds it. Where inodes are held by file handles, their fds are a
 * cache: opened when needed, kept while there is room (inode_trim.c). Where handles are signed, an
 * inode is held by its fd until there is no room.
 */
#ifndef VFSD_INODE_FD_H
#define VFSD_INODE_FD_H

#include "worker/csrc/fs/fs.h"

/*
 * An fd of the inode, O_PATH or better, good until this worker's next quiescent point. It may have
 * to become root for that: ask before an op acts as the requesting user.
 * Return: the fd, -ESTALE (the file is gone), or -errno.
 */
int inode_fd(struct fs *fs, const struct inode *inode) must_check;

/* Open the inode, which has a handle that we may open, with `flags` of open(2); the fd is the
 * caller's. Errors as above. */
int inode_fd_open_handle(struct fs *fs, const struct inode *inode, int flags) must_check;

/* An O_PATH fd of an inode, or of a copy of an inode, that has a handle: opened by the handle, here
 * or by the broker. The fd is the caller's. Errors as above. */
int inode_fd_open_path(struct fs *fs, const struct inode *inode) must_check;

/* Do we open handles of files of this mount ourselves? */
bool inode_fd_uses_handles(struct fs *fs, uint64_t mnt_id);

/* Does the broker sign handles of files of this mount? */
bool inode_fd_can_be_signed(const struct fs *fs, uint64_t mnt_id);

/* Do inodes have far more fds than inode_trim() leaves? Then the next inode must do without an fd,
 * even before inode_trim() comes round. */
bool inode_fd_is_scarce(const struct fs *fs);

/* Fds that inodes and files of all workers have given up and that are still to be closed. */
uint64_t inode_fd_unclosed(const struct fs *fs);

/* Is it to be found out whether files of this mount can be held by handles? */
bool inode_fd_is_new_mount(const struct fs *fs, uint64_t mnt_id);

/* Find out by a directory of the mount, whose inode is known, whether handles can hold its files.
 */
void inode_fd_note_mount(struct fs *fs, uint64_t mnt_id, int dir_fd);

/* Is there an fd to spare for one more inode or file? The daemon itself always has some. */
bool inode_fd_has_budget(const struct fs *fs);
/* The same for a request that cannot do without: else -ENFILE for the guest, and a line in the log.
 */
int inode_fd_budget(const struct fs *fs) must_check;

#endif
