/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. A name becomes a nodeid in two steps. statx of the name says which file the name is; if
 * the guest knows that file, nothing is opened. A file that the guest does not know is opened with
 * O_PATH, and statx of that fd fills the table. Where handles are in use the name is asked for its
 * handle instead of being opened.
 *
 * Rule. Two looks at a name are two files: between two system calls another queue, another guest
 * or the host may put a file of another type in its place, and the file system may give that file
 * the same inode number. So what is decided about a file is decided by what was read through the
 * very fd (or handle) that is then used, and a file is opened for I/O only in entry_reopen
 * (entry_open.c): the fd that was opened must be of the type that the inode has, a regular file or
 * a directory. Devices, FIFOs, sockets and symbolic links are only ever held by O_PATH.
 *
 * Every place that looks twice, what makes it safe, and the test (tests/hostile/test_two_looks.py,
 * unless another file is named):
 * - LOOKUP, and every op that makes a file by name (MKNOD, SYMLINK, MKDIR): attributes first, then
 *   the handle. The type is part of the key in the table, and the first opening of a handle
 *   compares the whole key (inode_fd.c). test_lookup_races_mknod. Where there are no handles
 *   the name is opened, and attributes are read again through that fd.
 *   test_lookup_without_handles_races_mknod
 * - LOOKUP of a file that the guest knows: attributes, then the table. The number may have become
 *   another file's in between: the key has the type. test_types_told_match
 * - READDIRPLUS: what getdents64 returned, then LOOKUP. The type that is reported for a name is
 *   the one of its entry. test_listing_reports_one_type
 * - the mount of a name: attributes, then the handle. The handle must be of the mount that the
 *   attributes named (fhandle_get_on_mount); else the name is opened. test_fhandle.c
 * - CREATE of a name that exists: O_EXCL fails, then LOOKUP and OPEN of that inode, not of the
 *   name; its attributes are read again through the inode. test_create_of_an_existing_device
 * - CREATE, TMPFILE, and a file that gets its label before its name: everything is read through
 *   the fd that created the file. tests/hostile/test_label.py
 * - LINK: the inode's fd is linked, then LOOKUP of the new name, which is an entry of its own
 *   whatever it is. test_link_races_mknod
 * - a staged name (label.c): made, then opened with O_PATH, labelled through that fd and renamed.
 * The name is a secret of the pool. tests/hostile/test_label.py
 * - SETATTR of the size, xattrs, chmod and READLINK by the name below /proc/self/fd: that name is a
 *   link to the file which the fd holds; the number stays the inode's until the worker's next
 *   quiescent point (reclaim.h). test_size_and_attributes_of_devices
 * - UNLINK and RENAME that were interrupted (lease.c): the name is opened with O_PATH, and what it
 *   is is read through that fd. Only a regular file is opened, to break its delegation.
 *   tests/hostile/test_delegations.py
 * - "..": opened with O_PATH; where it is and what it is are read through that fd. What the host
 *   moves out of the share later is held like everything that the guest knew. test_escape.py
 * - a request that is run again after a death: what exists must be of the type that the request
 *   makes, by the entry that is returned. tests/hostile/test_recovery.py
 * - LOOKUP of "." of what the guest has forgotten: opened by its handle; mount, number, type and
 *   birth time are compared through the fd that is then the inode's (inode_forget.c).
 *   test_lookup_races_mknod
 * - OPEN by a handle that was compared before: the fd is compared once more, since not every file
 *   system keeps its word about handles. test_lookup_races_mknod
 */
#include "worker/csrc/fs/entry.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	NEW_NAMES_WORTH =
		4, /* LOOKUPs of unknown files in a row before the next is guessed to be one */
};

/* The guest mounts such a directory as a file system of its own, with its own device number. */
static bool is_submount(const struct fs *fs, const struct inode *parent, const struct statx *st)
{
	return parent && S_ISDIR(st->stx_mode) && entry_announces_mounts(fs) &&
	       identity_key(st).mnt_id != parent->mnt_id;
}

/* Every field is written, and there is nothing between them: the guest gets these bytes. */
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

/* Enter the file that `fd` is, without owning fd yet: *ret_used_fd says whether the inode holds it
 * now. */
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

/* The same for an fd that becomes the inode's or is closed. */
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

/* The same for an O_PATH fd whose file has a handle: the fd is only cached. */
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
	inode_table_note_checked(inode); /* the handle is of the very fd that st is of */
	inode_table_cache_fd(fs->inodes, &fs->reclaim, inode, path_fd);
	return fill(fs, parent, inode, st, ret);
}

/* The same where fds are scarce: a signed handle is to hold the inode. */
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
	inode_table_note_checked(inode); /* the handle is of the very fd that st is of */
	return fill(fs, parent, inode, st, ret);
}

/* The same where handles are signed when fds become scarce. An inode of this key may be held by its
 * handle alone by now: the file's own handle shows whether it is this file. */
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

/* Take back that `ret` was entered. */
static void take_back(struct fs *fs, const struct fuse_entry_out *ret)
{
	inode_table_forget(fs->inodes, &fs->reclaim, ret->nodeid, 1);
}

/*
 * The same for the first directory that is seen of a mount: what is found out by the directory is
 * known as long as the guest knows an inode on that mount, so the directory is entered first, and
 * held by its fd.
 */
static int enter_first_of_mount(struct fs *fs, const struct inode *parent, int path_fd,
				const struct statx *st, struct fuse_entry_out *ret)
{
	bool used_fd = false;
	int err = enter(fs, parent, path_fd, 0, NULL, st, ret, &used_fd);

	if (!err)
		inode_fd_note_mount(fs, identity_key(st).mnt_id, path_fd);
	if (!used_fd)
		close(path_fd);
	if (err || fs->policy.file_handles != FILE_HANDLES_MANDATORY ||
	    inode_fd_uses_handles(fs, identity_key(st).mnt_id))
		return err;
	take_back(fs, ret);
	return -EOPNOTSUPP;
}

/* path_fd becomes the inode's or is closed. */
static int enter_path_fd(struct fs *fs, const struct inode *parent, int path_fd,
			 const struct statx *st, struct fuse_entry_out *ret)
{
	struct fhandle handle;
	int err = -EOPNOTSUPP;

	if (S_ISDIR(st->stx_mode) && inode_fd_is_new_mount(fs, identity_key(st).mnt_id))
		return enter_first_of_mount(fs, parent, path_fd, st, ret);
	if (fs->policy.file_handles == FILE_HANDLES_SIGNED)
		return enter_until_scarce(fs, parent, path_fd, st, ret);
	if (inode_fd_uses_handles(fs, identity_key(st).mnt_id))
		err = fhandle_get(path_fd, "", &handle);
	if (!err)
		return enter_handle(fs, parent, path_fd, &handle, st, ret);
	/* Not every file of a file system need have one. */
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

/* A directory gets its fd at once: most are used, and one that the guest works in must not become
 * stale when it is removed. Not when fds are scarce: then its handle must do. */
static bool gets_fd(const struct fs *fs, mode_t mode)
{
	return S_ISDIR(mode) && inode_table_held(fs->inodes) < fs->inode_fds_max &&
	       inode_fd_has_budget(fs);
}

static int open_to_enter(struct fs *fs, int dir_fd, const char *name)
{
	/* Where handles are signed the fd is closed at once if there are too many. */
	int fd = fs->policy.file_handles == FILE_HANDLES_SIGNED ? 0 : inode_fd_budget(fs);

	if (!fd)
		fd = entry_open_path(dir_fd, name);
	/* Created as a user who may not search the directory. */
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

/* The same for a directory that was created just now: nobody knows it, so there is no handle to
 * compare with its; inode_trim() asks for that if it must. */
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

/* As entry_lookup_new, for a name whose attributes are known: without an fd where that can be. */
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
	/* The guest has forgotten `parent`, and with it the mount. */
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

/* A guess that the file is new to the guest, because the latest ones were: open it at once, which
 * saves the statx of the name where the guess is right. */
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
		/* Nobody opens its handle any more: it is to be held by an fd again. */
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
	/* An inode that only its handle holds may be known: attributes show whether. */
	if (!inode && fs->policy.file_handles == FILE_HANDLES_SIGNED &&
	    inode_table_knows(fs->inodes, fs->slot, key))
		return entry_lookup(fs, parent, name, ret);
	if (!inode)
		return entry_lookup_new(fs, parent, name, 0, ret);
	dir_fd = inode_fd(fs, parent);
	err = dir_fd < 0 ? dir_fd : identity_stat_name(dir_fd, name, &st);
	if (!err && inode_key_equal(identity_key(&st), inode_key_of(inode)))
		return fill(fs, parent, inode, &st, ret);
	/* Replaced since it was listed, or something is mounted there. */
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
