/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SYMLINK, MKNOD, MKDIR, LINK, UNLINK, RMDIR, RENAME, RENAME2.
 *
 * An op that creates a file, a whiteout included, acts as the requesting user, so the host's kernel
 * decides on owner, group, quota and default ACLs. An op that removes or moves a file acts as root,
 * because the guest's kernel has checked permissions.
 *
 * A request that was in flight when its worker died (r->replayed) may have been done already. For
 * such a request "exists already" means that it was done, and so does "does not exist" if the op
 * removes.
 */
#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/label.h"
#include "worker/csrc/fs/lease.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/requester.h"
#include "worker/csrc/fs/silly_rename.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/proc_fd.h"
#include "worker/csrc/host/watchdog.h"
#include "worker/csrc/request/intent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* The checks that every creating op makes before it creates anything. One of them is that an fd for
 * the new inode is free, unless a handle will hold the inode. */
static int creation_allowed(struct fs *fs, const struct request *r, const struct inode *parent,
			    uint32_t umask)
{
	int err = request_need_room(r, sizeof(struct fuse_entry_out));

	if (!err && !inode_fd_uses_handles(fs, parent->mnt_id))
		err = inode_fd_budget(fs);
	return err ? err : requester_act(fs, r, umask);
}

/* ---- creating ---- */

/*
 * Reply with the entry of a name that was created if `err` is 0. After a worker's death "it exists"
 * is also success, if the file has the type (S_IFMT) wanted.
 */
static int reply_created(struct fs *fs, struct request *r, const struct inode *parent,
			 const char *name, mode_t type, int err)
{
	struct fuse_entry_out *ret = REQUEST_REPLY(r, struct fuse_entry_out);

	if (!err) {
		err = entry_lookup_new(fs, parent, name, type, ret);
		return err ? err : (int)sizeof(*ret);
	}
	if (err != -EEXIST || !r->replayed)
		return err;
	err = credentials_root(&fs->credentials);
	if (!err)
		err = entry_lookup(fs, parent, name, ret);
	if (err)
		return err;
	if ((ret->attr.mode & S_IFMT) == type)
		return (int)sizeof(*ret);
	inode_table_forget(fs->inodes, &fs->reclaim, ret->nodeid, 1);
	return -EEXIST;
}

static int make_directory(const struct request *r, int dir_fd, const char *name)
{
	mode_t mode = REQUEST_ARG(r, struct fuse_mkdir_in)->mode;

	return mkdirat(dir_fd, name, mode) < 0 ? -errno : 0;
}

int op_mkdir(struct fs *fs, struct request *r)
{
	const struct fuse_mkdir_in *in = REQUEST_ARG(r, struct fuse_mkdir_in);
	const struct inode *parent = inode_table_get(fs->inodes, r->in.nodeid);
	int dir_fd = parent ? inode_fd(fs, parent) : -ESTALE;
	int err;

	if (dir_fd < 0)
		return dir_fd;
	err = creation_allowed(fs, r, parent, in->umask);
	if (err)
		return err;
	err = label_make(fs, r, dir_fd, r->name, make_directory);
	return reply_created(fs, r, parent, r->name, S_IFDIR, err);
}

/* Get a device number from the 32-bit form of FUSE. */
static dev_t decode_device(uint32_t rdev)
{
	return makedev((rdev & 0xfff00) >> 8, (rdev & 0xff) | (rdev >> 12 & 0xfff00));
}

static int make_node(const struct request *r, int dir_fd, const char *name)
{
	const struct fuse_mknod_in *in = REQUEST_ARG(r, struct fuse_mknod_in);

	return mknodat(dir_fd, name, in->mode, decode_device(in->rdev)) < 0 ? -errno : 0;
}

/* A regular file can get its label before it gets its name. */
static int make_labelled_regular(struct fs *fs, const struct request *r, int dir_fd)
{
	mode_t mode = REQUEST_ARG(r, struct fuse_mknod_in)->mode & 07777;
	int fd = -1;
	int err = label_create(fs, r, dir_fd, O_RDWR, mode, &fd);

	if (!err && fd >= 0)
		close(fd);
	return err;
}

int op_mknod(struct fs *fs, struct request *r)
{
	const struct fuse_mknod_in *in = REQUEST_ARG(r, struct fuse_mknod_in);
	const struct inode *parent = inode_table_get(fs->inodes, r->in.nodeid);
	int dir_fd = parent ? inode_fd(fs, parent) : -ESTALE;
	mode_t type = in->mode & S_IFMT ? in->mode & S_IFMT : S_IFREG;
	int err;

	if (dir_fd < 0)
		return dir_fd;
	err = creation_allowed(fs, r, parent, in->umask);
	if (!err)
		err = requester_keep_sgid(fs, r, in->mode);
	if (err)
		return err;
	if (r->label_count && type == S_IFREG)
		err = make_labelled_regular(fs, r, dir_fd);
	else
		err = label_make(fs, r, dir_fd, r->name, make_node);
	return reply_created(fs, r, parent, r->name, type, err);
}

/* The payload of SYMLINK is the name and the target, both terminated. The target, name2, may be any
 * string. */
static int symlink_strings(struct request *r)
{
	size_t name_len = strnlen(r->payload, r->payload_len);
	size_t rest, target_len;

	if (name_len == r->payload_len)
		return -EINVAL;
	r->name = r->payload;
	r->name2 = r->payload + name_len + 1;
	rest = r->payload_len - name_len - 1;
	target_len = strnlen(r->name2, rest);
	if (target_len == rest)
		return -EINVAL;
	if (target_len >= PATH_MAX)
		return -ENAMETOOLONG;
	return request_check_name(r->name);
}

static int make_symlink(const struct request *r, int dir_fd, const char *name)
{
	return symlinkat(r->name2, dir_fd, name) < 0 ? -errno : 0;
}

int op_symlink(struct fs *fs, struct request *r)
{
	const struct inode *parent = inode_table_get(fs->inodes, r->in.nodeid);
	int dir_fd = parent ? inode_fd(fs, parent) : -ESTALE;
	int err;

	if (dir_fd < 0)
		return dir_fd;
	if (fs->policy.forbid_symlinks)
		return -EPERM;
	err = symlink_strings(r);
	if (!err)
		err = creation_allowed(fs, r, parent, 0);
	if (err)
		return err;
	err = label_make(fs, r, dir_fd, r->name, make_symlink);
	return reply_created(fs, r, parent, r->name, S_IFLNK, err);
}

/* An O_PATH fd is linked through its name in /proc/self/fd, because AT_EMPTY_PATH would require
 * CAP_DAC_READ_SEARCH. */
static int link_fd(const struct fs *fs, struct watchdog *dog, int fd, int dir_fd, const char *name)
{
	char old[FD_NAME];

	proc_fd_name(fd, old);
	watchdog_begin(dog);
	return watchdog_end(dog, linkat(fs->proc_self_fd, old, dir_fd, name, AT_SYMLINK_FOLLOW));
}

int op_link(struct fs *fs, struct request *r)
{
	uint64_t old_nodeid = REQUEST_ARG(r, struct fuse_link_in)->oldnodeid;
	const struct inode *parent = inode_table_get(fs->inodes, r->in.nodeid);
	const struct inode *inode = inode_table_get(fs->inodes, old_nodeid);
	struct fuse_entry_out *ret = REQUEST_REPLY(r, struct fuse_entry_out);
	int dir_fd = parent ? inode_fd(fs, parent) : -ESTALE;
	int fd = inode ? inode_fd(fs, inode) : -ESTALE;
	bool exists;
	int err;

	if (dir_fd < 0 || fd < 0)
		return dir_fd < 0 ? dir_fd : fd;
	err = request_need_room(r, sizeof(*ret));
	if (!err)
		err = credentials_root(&fs->credentials);
	if (err)
		return err;
	do
		err = link_fd(fs, lease_watchdog(fs, r), fd, dir_fd, r->name);
	while (err == -EINTR && !(err = lease_wait_inode(r, fd)));
	exists = err == -EEXIST && r->replayed;
	if (err && !exists)
		return err;
	err = entry_lookup(fs, parent, r->name, ret);
	if (err)
		return err;
	if (!exists || ret->nodeid == old_nodeid)
		return (int)sizeof(*ret);
	inode_table_forget(fs->inodes, &fs->reclaim, ret->nodeid, 1);
	return -EEXIST;
}

/* ---- removing ---- */

static int remove_watched(const struct fs *fs, const struct request *r, int dir_fd, int flags)
{
	struct watchdog *dog = lease_watchdog(fs, r);

	watchdog_begin(dog);
	return watchdog_end(dog, unlinkat(dir_fd, r->name, flags));
}

static int remove_from(struct fs *fs, struct request *r, const struct inode *parent, int flags)
{
	int dir_fd = parent ? inode_fd(fs, parent) : -ESTALE;
	int err;

	if (dir_fd < 0)
		return dir_fd;
	err = credentials_root(&fs->credentials);
	if (err)
		return err;
	do
		err = remove_watched(fs, r, dir_fd, flags);
	while (err == -EINTR && !(err = lease_wait_name(r, dir_fd, r->name)));
	return err == -ENOENT && r->replayed ? 0 : err;
}

static int remove_name(struct fs *fs, struct request *r, int flags)
{
	return remove_from(fs, r, inode_table_get(fs->inodes, r->in.nodeid), flags);
}

static __attribute__((noinline, cold)) int unlink_given_up(struct fs *fs, struct request *r)
{
	struct given_up gone = {0};
	int result;

	silly_rename_prevent(fs, r->in.nodeid, r->name, &gone);
	result = remove_name(fs, r, 0);
	silly_rename_done(fs, r->in.nodeid, r->name, &gone, result);
	return result;
}

int op_unlink(struct fs *fs, struct request *r)
{
	const struct inode *parent = inode_table_get(fs->inodes, r->in.nodeid);

	if (silly_rename_concerns(fs, parent))
		return unlink_given_up(fs, r);
	return remove_from(fs, r, parent, 0);
}

int op_rmdir(struct fs *fs, struct request *r)
{
	uint32_t tries = 0;
	int result;

	do
		result = remove_name(fs, r, AT_REMOVEDIR);
	while ((result == -ENOTEMPTY || result == -EEXIST) &&
	       silly_rename_passes(fs, r->in.nodeid, r->name, &tries));
	return result;
}

/* ---- moving ---- */

enum {
	RENAME_FLAGS = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT,
	/* Flags that leave a file at the old name. A rename with one of them must not be done
	 * twice. */
	RENAME_REFILLS = RENAME_EXCHANGE | RENAME_WHITEOUT,
};

/* The file at the old name before a rename that must not be done twice. */
struct rename_note {
	uint64_t ino;
};

/* Did this rename happen before the worker died? If the rename has not begun, note which file is to
 * be renamed. Return: 1, 0, or -errno. */
static int refilling_rename_happened(struct request *r, int dir_fd)
{
	struct rename_note note;
	struct statx st;
	int err = identity_stat_name(dir_fd, r->name, &st);

	if (err)
		return err;
	if (intent_noted(r, &note, sizeof(note)))
		return note.ino != st.stx_ino;
	note = (struct rename_note){.ino = st.stx_ino};
	intent_note(r, &note, sizeof(note));
	return 0;
}

/* renameat is used where no flags are needed: all file systems and seccomp filters know it. */
static int rename_watched(const struct fs *fs, const struct request *r, int from_fd, int to_fd,
			  uint32_t flags)
{
	struct watchdog *dog = lease_watchdog(fs, r);

	watchdog_begin(dog);
	return watchdog_end(dog, flags ? renameat2(from_fd, r->name, to_fd, r->name2, flags)
				       : renameat(from_fd, r->name, to_fd, r->name2));
}

/* Wait first for the file that is moved, then for the file that is replaced. */
static int wait_for_renamed(struct request *r, int from_fd, int to_fd)
{
	return r->waits ? lease_wait_name(r, to_fd, r->name2)
			: lease_wait_name(r, from_fd, r->name);
}

/* A name has come to `dir` from another directory. The guest may not know its inode, and
 * by now the name may lead to another inode: the note is only a hint. */
static void note_arrival(struct fs *fs, const struct inode *dir, int dir_fd, const char *name)
{
	struct inode *inode = NULL;
	struct statx st;

	if (!identity_stat_name(dir_fd, name, &st))
		inode = inode_table_acquire(fs->inodes, fs->slot, identity_key(&st),
					    identity_birth_time(&st));
	if (!inode)
		return;
	inode_table_note_parent(inode, dir);
	inode_table_forget(fs->inodes, &fs->reclaim, inode_nodeid(fs->inodes, inode), 1);
}

static int rename_names(struct fs *fs, struct request *r, uint64_t new_dir, uint32_t flags)
{
	const struct inode *from = inode_table_get(fs->inodes, r->in.nodeid);
	const struct inode *to = inode_table_get(fs->inodes, new_dir);
	int from_fd = from ? inode_fd(fs, from) : -ESTALE;
	int to_fd = to ? inode_fd(fs, to) : -ESTALE;
	struct statx st;
	int err;

	if (from_fd < 0 || to_fd < 0)
		return from_fd < 0 ? from_fd : to_fd;
	err = flags & RENAME_WHITEOUT ? requester_act(fs, r, 0)
				      : credentials_root(&fs->credentials);
	if (err)
		return err;
	if (flags & RENAME_REFILLS) {
		int happened = refilling_rename_happened(r, from_fd);

		if (happened)
			return happened < 0 ? happened : 0;
	}
	do
		err = rename_watched(fs, r, from_fd, to_fd, flags);
	while (err == -EINTR && !(err = wait_for_renamed(r, from_fd, to_fd)));
	if (!err && from != to) {
		note_arrival(fs, to, to_fd, r->name2);
		if (flags & RENAME_EXCHANGE)
			note_arrival(fs, from, from_fd, r->name);
	}
	if (err == -ENOENT && r->replayed && !identity_stat_name(to_fd, r->name2, &st))
		return 0;
	/* After ENOSYS the guest would never send RENAME2 again. */
	return err == -ENOSYS ? -EINVAL : err;
}

/* A rename whose new name may exist already. */
static int rename_over(struct fs *fs, struct request *r, uint64_t new_dir, uint32_t flags)
{
	struct given_up gone = {0};
	int result;

	if (!(flags & (RENAME_NOREPLACE | RENAME_EXCHANGE)) &&
	    silly_rename_concerns(fs, inode_table_get(fs->inodes, new_dir)))
		silly_rename_prevent(fs, new_dir, r->name2, &gone);
	result = rename_names(fs, r, new_dir, flags);
	silly_rename_done(fs, new_dir, r->name2, &gone, result);
	return result;
}

int op_rename(struct fs *fs, struct request *r)
{
	return rename_over(fs, r, REQUEST_ARG(r, struct fuse_rename_in)->newdir, 0);
}

int op_rename2(struct fs *fs, struct request *r)
{
	const struct fuse_rename2_in *in = REQUEST_ARG(r, struct fuse_rename2_in);

	if (in->flags & ~(uint32_t)RENAME_FLAGS)
		return -EINVAL;
	return rename_over(fs, r, in->newdir, in->flags);
}
