/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. A name becomes a nodeid in two steps. First statx of the name shows which file it is.
 * If the guest knows that file, nothing is opened. Otherwise the file is opened with O_PATH, and
 * statx of that fd fills the entry in the table. Where handles are in use, the handle of the name
 * is read instead of opening the name.
 *
 * Rule. Two looks at a name may see two files. Between two system calls another queue, another
 * guest or the host may put a file of another type in the place of the first, and the file system
 * may give it the same inode number. So every decision about a file is made from values that were
 * read through the fd (or handle) that is then used. A file is opened for I/O only in entry_reopen
 * (entry_open.c), which checks the fd that was opened: it must be a regular file or a directory,
 * and of the inode's type. Devices, FIFOs, sockets and symbolic links are held by O_PATH fds only.
 *
 * Every place that looks twice, what makes it safe, and the test (tests/hostile/test_two_looks.py,
 * unless another file is named):
 * - LOOKUP, and every op that makes a file by name (MKNOD, SYMLINK, MKDIR): attributes first, then
 *   the handle. The type is part of the key in the table, and the first opening of a handle
 *   compares the whole key (inode_fd.c). test_lookup_races_mknod. Where there are no handles
 *   the name is opened, and attributes are read again through that fd.
 *   test_lookup_without_handles_races_mknod
 * - LOOKUP of a file that the guest knows: attributes, then the table. The number may belong to
 *   another file by then, so the key contains the type. test_types_told_match
 * - READDIRPLUS: the names from getdents64, then LOOKUP of each. The type that is reported for a
 *   name is the type in its fuse_entry_out. test_listing_reports_one_type
 * - the mount of a name: attributes, then the handle. The handle must be of the mount that the
 *   attributes named (fhandle_get_on_mount); otherwise the name is opened. test_fhandle.c
 * - CREATE of a name that exists: O_EXCL fails, then LOOKUP and OPEN of that inode, not of the
 *   name; its attributes are read again through the inode. test_create_of_an_existing_device
 * - CREATE, TMPFILE, and a file that gets its label before its name: everything is read through
 *   the fd that created the file. tests/hostile/test_label.py
 * - LINK: the inode's fd is linked, then LOOKUP of the new name. The reply describes the file that
 *   this LOOKUP finds, which need not be the linked file. test_link_races_mknod
 * - a staged name (label.c): the file is made, opened with O_PATH, labelled through that fd, and
 *   renamed. Only the pool knows the name. tests/hostile/test_label.py
 * - SETATTR of the size, xattrs, chmod and READLINK by the name below /proc/self/fd: that name is a
 *   link to the file that the fd holds. The fd number belongs to the inode until the worker's next
 *   quiescent point (reclaim.h). test_size_and_attributes_of_devices
 * - UNLINK and RENAME that were interrupted (lease.c): the name is opened with O_PATH, and its type
 *   is read through that fd. Only a regular file is then opened, to break its delegation.
 *   tests/hostile/test_delegations.py
 * - "..": opened with O_PATH; place and type are read through that fd. A directory that the host
 *   moves out of the share later stays held, like every file that the guest knows. test_escape.py
 * - a request that is run again after a death: a file that exists already must be of the type that
 *   the request makes. The type is read from the entry that is returned.
 *   tests/hostile/test_recovery.py
 * - LOOKUP of "." of an inode that the guest has forgotten: the file is opened by its handle.
 * Mount, number, type and birth time are compared through the fd that the inode then gets
 *   (inode_forget.c). test_lookup_races_mknod
 * - OPEN by a handle that was compared before: the fd is compared once more, since not every file
 *   system can be trusted to return the same file for a handle. test_lookup_races_mknod
 */
#include "worker/csrc/fs/entry.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/mount_handles.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	/* After this number of consecutive LOOKUPs of files that the guest did not know, the next
	 * file is expected to be unknown as well. */
	NEW_NAMES_WORTH = 4,
};

/* Return: true if the guest is to mount this directory as a file system of its own, with its own
 * device number. */
static bool is_submount(const struct fs *fs, const struct inode *parent, const struct statx *st)
{
	return parent && S_ISDIR(st->stx_mode) && entry_announces_mounts(fs) &&
	       identity_key(st).mnt_id != parent->mnt_id;
}

/* The structs have no padding, and every field is written, because the guest gets all of their
 * bytes. */
_Static_assert(sizeof(struct fuse_entry_out) == 5 * 8 + sizeof(struct fuse_attr), "padding");
_Static_assert(sizeof(struct fuse_attr) == 6 * 8 + 10 * 4, "padding");

static int fill(const struct fs *fs, const struct inode *parent, struct inode *inode,
		const struct statx *st, struct fuse_entry_out *ret)
{
	if (parent)
		inode_table_note_parent(inode, parent);
	ret->nodeid = inode_nodeid(fs->inodes, inode);
	ret->generation = 0;
	entry_timeout(&fs->policy.entry_timeout, &ret->entry_valid, &ret->entry_valid_nsec);
	entry_timeout(&fs->policy.attr_timeout, &ret->attr_valid, &ret->attr_valid_nsec);
	entry_attr(fs, st, &ret->attr);
	if (is_submount(fs, parent, st))
		ret->attr.flags |= FUSE_ATTR_SUBMOUNT;
	return 0;
}

/* Enter the file that `fd` holds. *ret_used_fd is true if the inode has taken fd; otherwise the
 * caller keeps it. */
static int enter(struct fs *fs, const struct inode *parent, int fd, uint32_t lender,
		 const struct fhandle *proof, const struct statx *st, struct fuse_entry_out *ret,
		 bool *ret_used_fd)
{
	struct inode *inode = inode_table_insert(fs->inodes, fs->slot, identity_key(st), fd, lender,
						 proof, ret_used_fd);

	if (!inode)
		return -ENFILE;
	inode_table_note_birth(inode, identity_birth_time(st));
	return fill(fs, parent, inode, st, ret);
}

int entry_from_fd(struct fs *fs, const struct inode *parent, int fd, uint32_t lender,
		  struct fuse_entry_out *ret, const struct inode **ret_inode)
{
	struct inode *inode;
	struct statx st;
	bool used_fd;
	int err = identity_stat_fd(fd, &st);

	if (err)
		return err;
	inode = inode_table_insert(fs->inodes, fs->slot, identity_key(&st), fd, lender, NULL,
				   &used_fd);
	if (!inode)
		return -ENFILE;
	*ret_inode = inode;
	inode_table_note_birth(inode, identity_birth_time(&st));
	return fill(fs, parent, inode, &st, ret);
}

/* Enter the file of an O_PATH fd. The inode takes the fd, or the fd is closed. */
static int enter_owned(struct fs *fs, const struct inode *parent, int path_fd,
		       const struct fhandle *proof, const struct statx *st,
		       struct fuse_entry_out *ret)
{
	bool used_fd = false;
	int err = enter(fs, parent, path_fd, 0, proof, st, ret, &used_fd);

	if (!used_fd)
		close(path_fd);
	return err;
}

/* Enter the file of an O_PATH fd, and let its handle hold the inode. The fd is only cached. */
static int enter_handle(struct fs *fs, const struct inode *parent, int path_fd,
			const struct fhandle *handle, const struct statx *st,
			struct fuse_entry_out *ret)
{
	struct inode *inode;

	inode = inode_table_insert_handle(fs->inodes, fs->slot, identity_key(st),
					  identity_birth_time(st), handle);
	if (!inode) {
		close(path_fd);
		return -ENFILE;
	}
	inode_table_note_checked(inode); /* handle and st were read through the same fd */
	inode_table_cache_fd(fs->inodes, &fs->reclaim, inode, path_fd);
	return fill(fs, parent, inode, st, ret);
}

/* Enter the file of an O_PATH fd while fds are scarce: a signed handle is to hold the inode, and
 * the fd is closed. */
static int enter_signed(struct fs *fs, const struct inode *parent, int path_fd,
			const struct statx *st, struct fuse_entry_out *ret)
{
	struct handle_signature signature;
	int mount_fd = inode_table_mount_fd(fs->inodes, identity_key(st).mnt_id);
	int err = handle_client_sign(&fs->handles, mount_fd, &path_fd, 1, &signature);
	struct fhandle handle;
	struct inode *inode;

	if ((err || signature.error) && !inode_fd_budget(fs))
		return enter_owned(fs, parent, path_fd, NULL, st, ret);
	close(path_fd);
	if (err || signature.error)
		return -ENFILE;
	handle = handle_of_signature(&signature);
	inode = inode_table_insert_handle(fs->inodes, fs->slot, identity_key(st), signature.btime,
					  &handle);
	if (!inode)
		return -ENFILE;
	inode_table_note_checked(inode); /* handle and st were read through the same fd */
	return fill(fs, parent, inode, st, ret);
}

/* Enter the file of an O_PATH fd, where handles are signed when fds become scarce. The table may
 * have an inode with the same key that only its handle holds. The handle of the file shows whether
 * that inode is the file's. */
static int enter_until_scarce(struct fs *fs, const struct inode *parent, int path_fd,
			      const struct statx *st, struct fuse_entry_out *ret)
{
	struct inode_key key = identity_key(st);
	struct fhandle proof;

	if (inode_fd_is_scarce(fs) && inode_fd_can_be_signed(fs, key.mnt_id))
		return enter_signed(fs, parent, path_fd, st, ret);
	if (inode_table_knows(fs->inodes, fs->slot, key) && !fhandle_get(path_fd, "", &proof))
		return enter_owned(fs, parent, path_fd, &proof, st, ret);
	return enter_owned(fs, parent, path_fd, NULL, st, ret);
}

/* Take back the lookup that `ret` reports. */
static void take_back(struct fs *fs, const struct fuse_entry_out *ret)
{
	inode_table_forget(fs->inodes, &fs->reclaim, ret->nodeid, 1);
}

/*
 * Enter the first directory that the guest looks up on a mount. The directory also shows whether
 * handles work on that mount. The table keeps this fact only while the guest knows an inode on the
 * mount. So the directory is entered first, and is held by its fd.
 */
static int enter_first_of_mount(struct fs *fs, const struct inode *parent, int path_fd,
				const struct statx *st, struct fuse_entry_out *ret)
{
	bool used_fd = false;
	int err = enter(fs, parent, path_fd, 0, NULL, st, ret, &used_fd);

	if (!err)
		mount_handles_find_out(fs, identity_key(st).mnt_id, path_fd);
	if (!used_fd)
		close(path_fd);
	if (err || fs->policy.file_handles != FILE_HANDLES_MANDATORY ||
	    inode_fd_uses_handles(fs, identity_key(st).mnt_id))
		return err;
	take_back(fs, ret);
	return -EOPNOTSUPP;
}

/* Enter the file of an O_PATH fd in the way that the policy and its mount require. The inode takes
 * path_fd, or path_fd is closed. */
static int enter_path_fd(struct fs *fs, const struct inode *parent, int path_fd,
			 const struct statx *st, struct fuse_entry_out *ret)
{
	struct fhandle handle;
	int err = -EOPNOTSUPP;

	if (S_ISDIR(st->stx_mode) && mount_handles_are_unknown(fs, identity_key(st).mnt_id))
		return enter_first_of_mount(fs, parent, path_fd, st, ret);
	if (fs->policy.file_handles == FILE_HANDLES_SIGNED)
		return enter_until_scarce(fs, parent, path_fd, st, ret);
	if (inode_fd_uses_handles(fs, identity_key(st).mnt_id))
		err = fhandle_get(path_fd, "", &handle);
	if (!err)
		return enter_handle(fs, parent, path_fd, &handle, st, ret);
	/* A file system with handles may have files without a handle. */
	if (err == -EOPNOTSUPP && fs->policy.file_handles != FILE_HANDLES_MANDATORY)
		return enter_owned(fs, parent, path_fd, NULL, st, ret);
	close(path_fd);
	return err;
}

int entry_from_path_fd(struct fs *fs, const struct inode *parent, int path_fd,
		       struct fuse_entry_out *ret)
{
	struct statx st;
	int err = identity_stat_fd(path_fd, &st);

	if (!err)
		return enter_path_fd(fs, parent, path_fd, &st, ret);
	close(path_fd);
	return err;
}

/* Return: true if a file of this mode gets an fd at its LOOKUP. A directory does: most directories
 * are used soon, and a process of the guest may have it as its working directory, which must not
 * become stale when it is removed. While fds are scarce, a directory has only its handle. */
static bool gets_fd(const struct fs *fs, mode_t mode)
{
	return S_ISDIR(mode) && inode_table_held(fs->inodes) < fs->inode_fds_max &&
	       inode_fd_has_budget(fs);
}

static int open_to_enter(struct fs *fs, int dir_fd, const char *name)
{
	/* Where handles are signed, the budget does not matter: enter_until_scarce() closes the fd
	 * if there are too many. */
	int fd = fs->policy.file_handles == FILE_HANDLES_SIGNED ? 0 : inode_fd_budget(fs);

	if (!fd)
		fd = entry_open_path(dir_fd, name);
	/* The user that created the file may be unable to search the directory. */
	if (fd == -EACCES && !credentials_root(&fs->credentials))
		fd = entry_open_path(dir_fd, name);
	return fd;
}

static int lookup_by_fd(struct fs *fs, const struct inode *parent, int dir_fd, const char *name,
			struct fuse_entry_out *ret)
{
	int fd = open_to_enter(fs, dir_fd, name);

	return fd < 0 ? fd : entry_from_path_fd(fs, parent, fd, ret);
}

/* LOOKUP of a directory that was created just now. No inode in the table can be that of this
 * directory, so its handle is not needed for a comparison. inode_trim() gets the handle later if it
 * closes the fd. */
static int lookup_created(struct fs *fs, const struct inode *parent, int dir_fd, const char *name,
			  struct fuse_entry_out *ret)
{
	int fd = open_to_enter(fs, dir_fd, name);
	struct statx st;
	int err;

	if (fd < 0)
		return fd;
	err = identity_stat_fd(fd, &st);
	if (!err)
		return enter_owned(fs, parent, fd, NULL, &st, ret);
	close(fd);
	return err;
}

/* LOOKUP of a name whose file the guest does not know. The attributes of the file were read
 * already. No fd is opened if a handle can hold the inode. */
static int lookup_unknown(struct fs *fs, const struct inode *parent, int dir_fd, const char *name,
			  const struct statx *st, struct fuse_entry_out *ret)
{
	struct inode_key key = identity_key(st);
	struct fhandle handle;
	struct inode *inode;
	int err;

	if (key.mnt_id != parent->mnt_id || !inode_fd_uses_handles(fs, key.mnt_id) ||
	    gets_fd(fs, st->stx_mode))
		return lookup_by_fd(fs, parent, dir_fd, name, ret);
	err = fhandle_get_on_mount(dir_fd, name, inode_key_mount_id(key), &handle);
	if (err == -EOPNOTSUPP || err == -EXDEV)
		return lookup_by_fd(fs, parent, dir_fd, name, ret);
	if (err)
		return err;
	inode = inode_table_insert_handle(fs->inodes, fs->slot, key, identity_birth_time(st),
					  &handle);
	if (!inode)
		return -ENFILE;
	fill(fs, parent, inode, st, ret);
	if (inode_fd_uses_handles(fs, key.mnt_id))
		return 0;
	/* The guest has just forgotten `parent`, which was the last inode of the mount. */
	take_back(fs, ret);
	return -ESTALE;
}

int entry_lookup_new(struct fs *fs, const struct inode *parent, const char *name, mode_t type,
		     struct fuse_entry_out *ret)
{
	int dir_fd = inode_fd(fs, parent);
	struct statx st;
	int err;

	if (dir_fd < 0)
		return dir_fd;
	if (gets_fd(fs, type))
		return lookup_created(fs, parent, dir_fd, name, ret);
	if (!inode_fd_uses_handles(fs, parent->mnt_id))
		return lookup_by_fd(fs, parent, dir_fd, name, ret);
	err = identity_stat_name(dir_fd, name, &st);
	if (err == -EACCES && !credentials_root(&fs->credentials))
		err = identity_stat_name(dir_fd, name, &st);
	return err ? err : lookup_unknown(fs, parent, dir_fd, name, &st, ret);
}

/* LOOKUP of a name whose file is expected to be unknown to the guest, because the files of the
 * previous LOOKUPs were. The file is opened immediately, which saves the statx of the name if the
 * expectation is right. */
static int lookup_guessed_new(struct fs *fs, const struct inode *parent, int dir_fd,
			      const char *name, struct fuse_entry_out *ret)
{
	struct inode *inode;
	int fd = entry_open_path(dir_fd, name);
	struct statx st;
	int err;

	if (fd < 0) {
		fs->new_names = 0;
		return fd;
	}
	err = identity_stat_fd(fd, &st);
	inode = err ? NULL
		    : inode_table_acquire(fs->inodes, fs->slot, identity_key(&st),
					  identity_birth_time(&st));
	if (!err && !inode)
		return enter_path_fd(fs, parent, fd, &st, ret);
	close(fd);
	fs->new_names = 0;
	return err ? err : fill(fs, parent, inode, &st, ret);
}

int entry_lookup(struct fs *fs, const struct inode *parent, const char *name,
		 struct fuse_entry_out *ret)
{
	int dir_fd = inode_fd(fs, parent);
	struct inode *inode;
	struct statx st;
	int err;

	if (dir_fd < 0)
		return dir_fd;
	if (fs->new_names >= NEW_NAMES_WORTH && fs->policy.file_handles < FILE_HANDLES_PREFER &&
	    inode_fd_has_budget(fs))
		return lookup_guessed_new(fs, parent, dir_fd, name, ret);
	err = identity_stat_name(dir_fd, name, &st);
	if (err)
		return err;
	inode = inode_table_acquire(fs->inodes, fs->slot, identity_key(&st),
				    identity_birth_time(&st));
	if (inode && fs->handles.is_gone && __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE) < 0) {
		/* The broker has gone, so this handle cannot be opened: let an fd hold the file. */
		inode_table_forget(fs->inodes, &fs->reclaim, inode_nodeid(fs->inodes, inode), 1);
		inode = NULL;
	}
	fs->new_names = inode ? 0 : fs->new_names + 1;
	return inode ? fill(fs, parent, inode, &st, ret)
		     : lookup_unknown(fs, parent, dir_fd, name, &st, ret);
}

int entry_lookup_dirent(struct fs *fs, const struct inode *parent, const char *name, uint64_t ino,
			mode_t type, struct fuse_entry_out *ret)
{
	struct inode_key key = {.ino = ino, .mnt_id = parent->mnt_id, .type = type};
	struct inode *inode;
	struct statx st;
	int dir_fd, err;

	if (!type || inode_fd_uses_handles(fs, parent->mnt_id))
		return entry_lookup(fs, parent, name, ret);
	inode = inode_table_acquire(fs->inodes, fs->slot, key, 0);
	/* The table may have an inode that only its handle holds. Only the attributes show whether
	 * it is that of the same file. */
	if (!inode && fs->policy.file_handles == FILE_HANDLES_SIGNED &&
	    inode_table_knows(fs->inodes, fs->slot, key))
		return entry_lookup(fs, parent, name, ret);
	if (!inode)
		return entry_lookup_new(fs, parent, name, 0, ret);
	dir_fd = inode_fd(fs, parent);
	err = dir_fd < 0 ? dir_fd : identity_stat_name(dir_fd, name, &st);
	if (!err && inode_key_equal(identity_key(&st), inode_key_of(inode)))
		return fill(fs, parent, inode, &st, ret);
	/* The file was replaced since it was listed, or a file system is mounted there. */
	inode_table_forget(fs->inodes, &fs->reclaim, inode_nodeid(fs->inodes, inode), 1);
	return err ? err : entry_lookup(fs, parent, name, ret);
}

int entry_again(struct fs *fs, const struct inode *inode, struct fuse_entry_out *ret)
{
	struct inode *same;
	struct statx st;
	int fd = inode_fd(fs, inode);
	int err = fd < 0 ? fd : identity_stat_fd(fd, &st);

	if (err)
		return err;
	same = inode_table_acquire(fs->inodes, fs->slot, inode_key_of(inode),
				   identity_birth_time(&st));
	if (same == inode)
		return fill(fs, NULL, same, &st, ret);
	if (same)
		inode_table_forget(fs->inodes, &fs->reclaim, inode_nodeid(fs->inodes, same), 1);
	return -ESTALE;
}

int entry_refresh(struct fs *fs, const struct inode *inode, struct fuse_entry_out *ret)
{
	uint32_t flags = ret->attr.flags;
	struct statx st;
	int fd = inode_fd(fs, inode);
	int err = fd < 0 ? fd : identity_stat_fd(fd, &st);

	if (err)
		return err;
	entry_attr(fs, &st, &ret->attr);
	ret->attr.flags = flags;
	return 0;
}
