/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * From a name or a descriptor to what LOOKUP, CREATE, MKDIR … reply: an inode with its lookup count
 * raised, and a filled fuse_entry_out.
 */
#ifndef VFSD_ENTRY_H
#define VFSD_ENTRY_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/fs.h"

#include <sys/stat.h>

/* Are mounts in the share mounts in the guest? */
bool entry_announces_mounts(const struct fs *fs);
uint64_t entry_foreign_number(const struct fs *fs, uint64_t ino, uint32_t device);
/*
 * The inode number that the guest gets for `ino` of a file system with this device number
 * (inode_key_device). A guest to which no mounts are announced sees all of them as one file system,
 * in which two files must not have one number: a file that is not on the share's own file system
 * gets a number of our making.
 */
static inline uint64_t entry_number(const struct fs *fs, uint64_t ino, uint32_t device)
{
	return device == fs->root_device ? ino : entry_foreign_number(fs, ino, device);
}

/* fuse_attr with flags 0; `entry_*` add FUSE_ATTR_SUBMOUNT where it belongs. */
void entry_attr(const struct fs *fs, const struct statx *st, struct fuse_attr *ret);
/* The blocks of 512 bytes that are reported to the guest. */
uint64_t entry_blocks(const struct fs *fs, const struct statx *st);
static inline void entry_timeout(const struct fs_timeout *timeout, uint64_t *ret_sec,
				 uint32_t *ret_nsec)
{
	*ret_sec = timeout->sec;
	*ret_nsec = timeout->nsec;
}

/* LOOKUP of one component. Return: 0 or -errno; on success the guest owns one more lookup. */
int entry_lookup(struct fs *fs, const struct inode *parent, const char *name,
		 struct fuse_entry_out *ret) must_check;
/* The same for a name that was created just now, of this type (S_IFMT; 0: whatever it is): it
 * cannot be known, so it is not looked for among what is. */
int entry_lookup_new(struct fs *fs, const struct inode *parent, const char *name, mode_t type,
		     struct fuse_entry_out *ret) must_check;
/* For a file that was created open: identity from the same fd, which the inode borrows from the
 * open file `lender` until that is released. */
int entry_from_fd(struct fs *fs, const struct inode *parent, int fd, uint32_t lender,
		  struct fuse_entry_out *ret, const struct inode **ret_inode) must_check;
/* For an O_PATH fd, which becomes the inode's or is closed. `parent` may be NULL. */
int entry_from_path_fd(struct fs *fs, const struct inode *parent, int path_fd,
		       struct fuse_entry_out *ret) must_check;

/* LOOKUP of a name just listed with inode number `ino` and `type` (S_IFMT; 0: not known): known or
 * not is decided by these, which saves an unknown file one statx. */
int entry_lookup_dirent(struct fs *fs, const struct inode *parent, const char *name, uint64_t ino,
			mode_t type, struct fuse_entry_out *ret) must_check;
/* One more lookup of an inode the guest knows. Return: 0 or -errno (-ESTALE: just forgotten). */
int entry_again(struct fs *fs, const struct inode *inode, struct fuse_entry_out *ret) must_check;
/* New attributes for an entry that names this inode. Return: 0 or -errno. */
int entry_refresh(struct fs *fs, const struct inode *inode, struct fuse_entry_out *ret) must_check;

/*
 * Open the file of an inode with `flags`. What was opened is a regular file or a directory, as the
 * inode says; nothing becomes a controlling terminal, nothing waits for a peer. Return: the fd,
 * -ENXIO (the inode is of another type), -ESTALE (the file is of another type than the inode), or
 * -errno (-ENFILE when no fd is to be had).
 */
int entry_reopen(struct fs *fs, const struct inode *inode, int flags) must_check;

/* dir/name opened O_PATH, never following. Return: the fd, or -errno (-ENFILE when no fd is to be
 * had). */
int entry_open_path(int dir_fd, const char *name) must_check;

#endif
