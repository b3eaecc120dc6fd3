/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GETATTR, SETATTR, STATX, ACCESS, READLINK, STATFS.
 *
 * An inode's fd is O_PATH. A call that does not work on such an fd uses the fd's name in
 * /proc/self/fd, which is a link to that very file, not to a path: no path is resolved again.
 */
#include "transport/csrc/clock.h"
#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/file_capability.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/lease.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/requester.h"
#include "worker/csrc/fs/set_id.h"
#include "worker/csrc/host/fd_error.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/proc_fd.h"
#include "worker/csrc/host/watchdog.h"
#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

enum {
	MODE_BITS = 07777,
	CHANGES = FATTR_MODE | FATTR_UID | FATTR_GID | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME,
};

static int reply_attr(const struct fs *fs, int fd, struct request *r)
{
	struct fuse_attr_out *ret = REQUEST_REPLY(r, struct fuse_attr_out);
	struct statx st;
	int err = identity_stat_fd(fd, &st);

	if (err)
		return err;
	memset(ret, 0, sizeof(*ret));
	entry_timeout(&fs->policy.attr_timeout, &ret->attr_valid, &ret->attr_valid_nsec);
	entry_attr(fs, &st, &ret->attr);
	return (int)sizeof(*ret);
}

/* If the request has an fh, that is an open file of the same inode, so the inode's fd is enough. */
int op_getattr(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	int fd = inode ? inode_fd(fs, inode) : -ESTALE;

	return fd < 0 ? fd : reply_attr(fs, fd, r);
}

/* ---- SETATTR ---- */

/* Get the host's id of the new owner or group. No guest may make it -1, which means "do not
 * change". */
static int owner_wanted(const struct idmap *map, uint32_t id, uint32_t *ret)
{
	*ret = idmap_translate(map, id);
	if (*ret != UINT32_MAX)
		return 0;
	return id == UINT32_MAX ? -EINVAL : -EPERM; /* EPERM: the map forbids the id */
}

/* Changing the owner removes suid, and sgid of files that the group may execute, for every caller
 * (the host's kernel does it). So the mode is set after the owner. */
static int set_owner(struct fs *fs, const struct request *r, int fd)
{
	const struct fuse_setattr_in *in = REQUEST_ARG(r, struct fuse_setattr_in);
	uid_t uid = (uid_t)-1;
	gid_t gid = (gid_t)-1;
	struct watchdog *dog = lease_watchdog(fs, r);
	int err = set_id_before_chown(fs, r, fd);

	if (!err && in->valid & FATTR_UID)
		err = owner_wanted(&fs->policy.uids.to_host, in->uid, &uid);
	if (!err && in->valid & FATTR_GID)
		err = owner_wanted(&fs->policy.gids.to_host, in->gid, &gid);
	if (err)
		return err;
	uid = credentials_uid(&fs->credentials, uid);
	gid = credentials_gid(&fs->credentials, gid);
	watchdog_begin(dog);
	err = watchdog_end(dog, fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
	/* EINVAL: as in credentials_user() */
	if (err == -EINVAL || (err == -EPERM && !fs->credentials.privileged))
		requester_note_refusal(fs, in->valid & FATTR_UID ? in->uid : 0,
				       in->valid & FATTR_GID ? in->gid : 0);
	return err == -EINVAL ? -EPERM : err;
}

/*
 * Linux sends a SETATTR without attributes for a chown(2) that changes nothing, and, with
 * FUSE_HANDLE_KILLPRIV_V2, before an op that changes a file and has no flag for this purpose
 * (FALLOCATE, COPY_FILE_RANGE, a write to a mapping). Set-id bits and capabilities of the file are
 * then removed, as the host's kernel does at chown(2). With --writeback Linux adds FATTR_CTIME for
 * a chown(2) that changes nothing; a SETATTR with FATTR_CTIME alone has no other cause.
 */
static int kill_privileges(struct fs *fs, const struct request *r, int fd)
{
	int flags = AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW;
	struct watchdog *dog = lease_watchdog(fs, r);
	int err = set_id_before_chown(fs, r, fd);

	if (err)
		return err;
	watchdog_begin(dog);
	return watchdog_end(dog, fchownat(fd, "", (uid_t)-1, (gid_t)-1, flags));
}

/* The guest's kernel has already removed the mode bits that its caller may not set. */
static int set_mode(struct fs *fs, const struct request *r, int fd, uint32_t mode)
{
	struct watchdog *dog = lease_watchdog(fs, r);
	int err = credentials_fsetid(&fs->credentials, true);
	char name[FD_NAME];

	if (err)
		return err;
	watchdog_begin(dog);
	err = watchdog_end(dog,
			   fchmodat(fs->proc_self_fd, proc_fd_name(fd, name), mode & MODE_BITS, 0));
	if (!err)
		set_id_note_mode(fs, mode);
	return err;
}

/* truncate(2) would wait for a program that has the file under a lease. Return also: -EAGAIN (the
 * file is under a lease). */
static int truncate_unleased(const struct fs *fs, int path_fd, off_t size)
{
	int flags = O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
	char name[FD_NAME];
	int fd = openat(fs->proc_self_fd, proc_fd_name(path_fd, name), flags);
	int err;

	if (fd < 0)
		return fd_error();
	err = ftruncate(fd, size) < 0 ? -errno : 0;
	close(fd);
	return err;
}

static int set_size(struct fs *fs, const struct request *r, const struct inode *inode, int fd,
		    const struct open_file *file)
{
	const struct fuse_setattr_in *in = REQUEST_ARG(r, struct fuse_setattr_in);
	bool kill = in->valid & FATTR_KILL_SUIDGID && is_agreed(fs->session, &AGREED_KILLPRIV);
	int err = set_id_before_truncate(fs, r, fd, kill);

	if (err)
		return err;
	if (in->size > INT64_MAX)
		return -EFBIG;
	if (file && file->flags & FILE_WRITABLE)
		return ftruncate(file->fd, (off_t)in->size) < 0 ? -errno : 0;
	if (S_ISDIR(inode->mode))
		return -EISDIR;
	if (!S_ISREG(inode->mode))
		return -EINVAL;
	return truncate_unleased(fs, fd, (off_t)in->size);
}

/* Get *ret for utimensat. A nanosecond field of the guest must not become UTIME_NOW or
 * UTIME_OMIT. */
static int time_wanted(bool set, bool now, uint64_t sec, uint32_t nsec, struct timespec *ret)
{
	*ret = (struct timespec){.tv_nsec = set ? UTIME_NOW : UTIME_OMIT};
	if (!set || now)
		return 0;
	if (nsec >= NS_PER_SEC)
		return -EINVAL;
	*ret = (struct timespec){.tv_sec = (time_t)sec, .tv_nsec = nsec};
	return 0;
}

static int set_times(const struct fs *fs, const struct request *r, int fd)
{
	const struct fuse_setattr_in *in = REQUEST_ARG(r, struct fuse_setattr_in);
	struct watchdog *dog = lease_watchdog(fs, r);
	struct timespec times[2];
	int err = time_wanted(in->valid & FATTR_ATIME, in->valid & FATTR_ATIME_NOW, in->atime,
			      in->atimensec, &times[0]);

	if (!err)
		err = time_wanted(in->valid & FATTR_MTIME, in->valid & FATTR_MTIME_NOW, in->mtime,
				  in->mtimensec, &times[1]);
	if (err)
		return err;
	watchdog_begin(dog);
	return watchdog_end(dog, utimensat(fd, "", times, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
}

static int set_attributes(struct fs *fs, const struct request *r, const struct inode *inode, int fd,
			  const struct open_file *file)
{
	const struct fuse_setattr_in *in = REQUEST_ARG(r, struct fuse_setattr_in);
	uint32_t valid = in->valid;
	int err = credentials_root(&fs->credentials);

	if (!err && (valid & (FATTR_UID | FATTR_GID | FATTR_SIZE) || !(valid & CHANGES)) &&
	    S_ISREG(inode->mode))
		err = file_capability_drop(fs, inode_nodeid(fs->inodes, inode), fd);
	if (!err && !(valid & CHANGES))
		err = kill_privileges(fs, r, fd);
	if (!err && valid & (FATTR_UID | FATTR_GID))
		err = set_owner(fs, r, fd);
	if (!err && valid & FATTR_MODE)
		err = set_mode(fs, r, fd, in->mode);
	if (!err && valid & FATTR_SIZE)
		err = set_size(fs, r, inode, fd, file);
	if (!err && valid & (FATTR_ATIME | FATTR_MTIME))
		err = set_times(fs, r, fd);
	return err; /* FATTR_CTIME is ignored: the host's kernel keeps ctime itself */
}

/* Wait if the file is under a lease or a delegation. Return: 0 to try again, or the op's result. */
static int wait_for_lease(struct request *r, int fd, int err)
{
	if (err == -EINTR)
		return lease_wait_inode(r, fd);
	if (err == -EAGAIN && REQUEST_ARG(r, struct fuse_setattr_in)->valid & FATTR_SIZE)
		return lease_wait(r, fd, O_WRONLY);
	return err;
}

int op_setattr(struct fs *fs, struct request *r)
{
	const struct fuse_setattr_in *in = REQUEST_ARG(r, struct fuse_setattr_in);
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	const struct open_file *file = NULL;
	int fd = inode ? inode_fd(fs, inode) : -ESTALE;
	int err;

	if (fd < 0)
		return fd;
	/* The fh may be invalid: Windows does not open the symbolic links that it changes, and
	 * sends 0. The inode is the same file. */
	if (in->valid & FATTR_FH)
		file = file_table_get(fs->files, in->fh, r->in.nodeid);
	do
		err = set_attributes(fs, r, inode, fd, file);
	while (err && !(err = wait_for_lease(r, fd, err)));
	return err ? err : reply_attr(fs, fd, r);
}

/* ---- STATX ---- */

enum {
	STATX_REPORTED = STATX_BASIC_STATS | STATX_BTIME,
};

/* Attributes that describe the host's mount are hidden from the guest. */
static const uint64_t attributes_hidden =
	STATX_ATTR_AUTOMOUNT | STATX_ATTR_MOUNT_ROOT | STATX_ATTR_DAX;

static struct fuse_sx_time statx_time(const struct statx_timestamp *time)
{
	return (struct fuse_sx_time){.tv_sec = time->tv_sec, .tv_nsec = time->tv_nsec};
}

static void fill_statx(const struct fs *fs, const struct statx *st, struct fuse_statx *ret)
{
	*ret = (struct fuse_statx){
		.mask = st->stx_mask & STATX_REPORTED,
		.blksize = st->stx_blksize,
		.attributes = st->stx_attributes & ~attributes_hidden,
		.nlink = st->stx_nlink,
		.uid = idmap_translate(&fs->policy.uids.to_guest, st->stx_uid),
		.gid = idmap_translate(&fs->policy.gids.to_guest, st->stx_gid),
		.mode = st->stx_mode,
		.ino = entry_number(fs, st->stx_ino, inode_key_device(identity_key(st))),
		.size = st->stx_size,
		.blocks = entry_blocks(fs, st),
		.attributes_mask = st->stx_attributes_mask & ~attributes_hidden,
		.atime = statx_time(&st->stx_atime),
		.btime = statx_time(&st->stx_btime),
		.ctime = statx_time(&st->stx_ctime),
		.mtime = statx_time(&st->stx_mtime),
		.rdev_major = st->stx_rdev_major,
		.rdev_minor = st->stx_rdev_minor,
		.dev_major = st->stx_dev_major,
		.dev_minor = st->stx_dev_minor,
	};
}

int op_statx(struct fs *fs, struct request *r)
{
	const struct fuse_statx_in *in = REQUEST_ARG(r, struct fuse_statx_in);
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	struct fuse_statx_out *ret = REQUEST_REPLY(r, struct fuse_statx_out);
	unsigned int mask = in->sx_mask & STATX_REPORTED;
	int flags = AT_EMPTY_PATH | AT_NO_AUTOMOUNT | ((int)in->sx_flags & AT_STATX_SYNC_TYPE);
	struct statx st;
	int fd = inode ? inode_fd(fs, inode) : -ESTALE;

	if (fd < 0)
		return fd;
	if (statx(fd, "", flags, mask, &st) < 0)
		return -errno;
	memset(ret, 0, sizeof(*ret));
	entry_timeout(&fs->policy.attr_timeout, &ret->attr_valid, &ret->attr_valid_nsec);
	fill_statx(fs, &st, &ret->stat);
	return (int)sizeof(*ret);
}

/* ---- ACCESS, READLINK, STATFS ---- */

/*
 * No guest sends the supplementary groups of its user with ACCESS. Linux does not send ACCESS: its
 * kernel has checked permissions. Another guest sends ACCESS because it checks nothing itself
 * (FreeBSD without default_permissions), and the user may be in the file's group. So what the group
 * may do is allowed as well. Otherwise no user could use what only a supplementary group may
 * access; the peers allow everything.
 */
static int access_as_member(struct fs *fs, const struct request *r, int fd, int mask, int flags)
{
	struct statx st;
	int err = identity_stat_fd(fd, &st);

	if (!err)
		err = requester_act_as_member(fs, r, st.stx_gid);
	if (err)
		return err;
	return faccessat(fd, "", mask, flags) < 0 ? -errno : 0;
}

/* The host's kernel decides for the requesting user, ACLs included. */
int op_access(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	uint32_t mask = REQUEST_ARG(r, struct fuse_access_in)->mask;
	int flags = AT_EMPTY_PATH | AT_EACCESS | AT_SYMLINK_NOFOLLOW;
	int fd = inode ? inode_fd(fs, inode) : -ESTALE;
	int err;

	if (fd < 0)
		return fd;
	if (mask & ~(uint32_t)(R_OK | W_OK | X_OK))
		return -EINVAL;
	err = requester_act_checked(fs, r);
	if (err)
		return err;
	if (!faccessat(fd, "", (int)mask, flags))
		return 0;
	if (errno != EACCES || r->group_count || is_linux(fs->session))
		return -errno;
	return access_as_member(fs, r, fd, (int)mask, flags);
}

int op_readlink(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	int fd = inode ? inode_fd(fs, inode) : -ESTALE;
	ssize_t len;

	if (fd < 0)
		return fd;
	if (!S_ISLNK(inode->mode))
		return -EINVAL;
	r->reply = fs->large_reply;
	len = readlinkat(fd, "", (char *)r->reply, PATH_MAX);
	if (len < 0)
		return -errno;
	return len == PATH_MAX ? -ENAMETOOLONG : (int)len;
}

int op_statfs(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	struct fuse_statfs_out *ret = REQUEST_REPLY(r, struct fuse_statfs_out);
	int fd = inode ? inode_fd(fs, inode) : -ESTALE;
	struct statfs host;
	uint32_t unit;

	if (fd < 0)
		return fd;
	if (fstatfs(fd, &host) < 0)
		return -errno;
	/* Blocks are counted in units of frsize. Windows knows only bsize. */
	unit = (uint32_t)(host.f_frsize ? host.f_frsize : host.f_bsize);
	memset(ret, 0, sizeof(*ret));
	ret->st = (struct fuse_kstatfs){
		.blocks = host.f_blocks,
		.bfree = host.f_bfree,
		.bavail = host.f_bavail,
		.files = host.f_files,
		.ffree = host.f_ffree,
		.bsize = is_linux(fs->session) ? (uint32_t)host.f_bsize : unit,
		.namelen = host.f_namelen < PATH_MAX ? (uint32_t)host.f_namelen : PATH_MAX - 1,
		.frsize = unit,
	};
	return (int)sizeof(*ret);
}
