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

/* Return: true if a mount within the share is a mount of its own in the guest as well. */
bool entry_announces_mounts(const struct fs *fs);
uint64_t entry_foreign_number(const struct fs *fs, uint64_t ino, uint32_t device);
/*
 * The inode number that the guest gets for `ino` of a file system with this device number
 * (inode_key_device). A guest to which no mounts are announced sees all of them as one file
 * system, in which two files must not have the same number. So a file that is not on the share's
 * own file system gets a computed number in place of its own.
 */
static inline uint64_t entry_number(const struct fs *fs, uint64_t ino, uint32_t device)
{
	return device == fs->root_device ? ino : entry_foreign_number(fs, ino, device);
}

/* Fill a fuse_attr, with flags 0. The functions that reply with an entry add FUSE_ATTR_SUBMOUNT for
 * the root of a mount. */
void entry_attr(const struct fs *fs, const struct statx *st, struct fuse_attr *ret);
/* The blocks of 512 bytes that are reported to the guest. */
uint64_t entry_blocks(const struct fs *fs, const struct statx *st);
static inline void entry_timeout(const struct fs_timeout *timeout, uint64_t *ret_sec,
				 uint32_t *ret_nsec)
{
	*ret_sec = timeout->sec;
	*ret_nsec = timeout->nsec;
}

/* LOOKUP of one component. Return: 0, and the inode's lookup count is raised by one; or -errno. */
int entry_lookup(struct fs *fs, const struct inode *parent, const char *name,
		 struct fuse_entry_out *ret) must_check;
/* LOOKUP of a name that was created just now with this type (S_IFMT; 0: any type). The guest cannot
 * know the file yet, so the inode table is not searched. */
int entry_lookup_new(struct fs *fs, const struct inode *parent, const char *name, mode_t type,
		     struct fuse_entry_out *ret) must_check;
/* The entry of a file that was created and opened in one step. The file's identity is read through
 * `fd`. The inode borrows `fd` from the open file `lender` until that file is released. */
int entry_from_fd(struct fs *fs, const struct inode *parent, int fd, uint32_t lender,
		  struct fuse_entry_out *ret, const struct inode **ret_inode) must_check;
/* The entry of the file that an O_PATH fd holds. The inode takes the fd over, or the fd is closed.
 * `parent` may be NULL. */
int entry_from_path_fd(struct fs *fs, const struct inode *parent, int path_fd,
		       struct fuse_entry_out *ret) must_check;

/* LOOKUP of a name that was listed just now with inode number `ino` and type `type` (S_IFMT; 0:
 * unknown). Number and type show whether the guest knows the file, which saves one statx for a file
 * that the guest does not know. */
int entry_lookup_dirent(struct fs *fs, const struct inode *parent, const char *name, uint64_t ino,
			mode_t type, struct fuse_entry_out *ret) must_check;
/* Look up an inode again that the guest knows. Return: 0 or -errno (-ESTALE: another worker has
 * forgotten the inode). */
int entry_again(struct fs *fs, const struct inode *inode, struct fuse_entry_out *ret) must_check;
/* Read the attributes again for an entry that names this inode. Return: 0 or -errno. */
int entry_refresh(struct fs *fs, const struct inode *inode, struct fuse_entry_out *ret) must_check;

/*
 * Open the file of an inode with `flags`. The file that was opened is a regular file or a
 * directory, and of the same type as the inode. The call makes no device the controlling terminal,
 * and does not wait for another process. Return: the fd; -ENXIO (the inode is of another type);
 * -ESTALE (the file is of another type than the inode); or -errno (-ENFILE if no fd is free).
 */
int entry_reopen(struct fs *fs, const struct inode *inode, int flags) must_check;
/* The same; *ret has the attributes of the file since it is open. */
int entry_reopen_stat(struct fs *fs, const struct inode *inode, int flags,
		      struct stat *ret) must_check;

/* Open dir/name with O_PATH; a symbolic link is not followed. Return: the fd, or -errno (-ENFILE if
 * no fd is free). */
int entry_open_path(int dir_fd, const char *name) must_check;

#endif
