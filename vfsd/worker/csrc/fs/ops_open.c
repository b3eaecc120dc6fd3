/* SPDX-License-Identifier: Apache-2.0 */
/*
 * OPEN, CREATE, TMPFILE, OPENDIR.
 *
 * The guest's flags are translated by an allow list: O_CREAT, O_PATH, O_TMPFILE and any future flag
 * never reach open(2). O_APPEND is not passed on either, but remembered: each WRITE decides whether
 * it appends (ops_io.c), so one open file serves both the guest's page cache and its appends. The
 * exception is a file that the host opens only with O_APPEND (chattr +a).
 *
 * CREATE gets the identity of the new file from the fd that created it, and the inode borrows that
 * fd instead of opening the file once more. The fd is repaid when the released file is about to be
 * closed: by then a temporary file has been forgotten, and needs no fd of its own. CREATE first
 * publishes the file's slot and then lets the inode refer to the slot; so an inode never borrows
 * from a slot that a dead worker did not finish.
 */
#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/file_capability.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/keep_cache.h"
#include "worker/csrc/fs/label.h"
#include "worker/csrc/fs/lease.h"
#include "worker/csrc/fs/mount_facts.h"
#include "worker/csrc/fs/open_cache.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/requester.h"
#include "worker/csrc/fs/set_id.h"
#include "worker/csrc/host/fd_error.h"
#include "worker/csrc/host/proc_fd.h"
#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* ---- flags ---- */

enum {
	FLAGS_PASSED = O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC,
};

static bool has_writeback(const struct fs *fs)
{
	return fs->session->flags & FUSE_WRITEBACK_CACHE;
}

/* Translate the guest's flags. Return: flags for open(2), or -errno. */
static int host_flags(const struct fs *fs, uint32_t guest)
{
	int flags = (int)guest & FLAGS_PASSED;

	if ((flags & O_ACCMODE) == O_ACCMODE)
		return -EINVAL;
	if (fs->policy.readonly && ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC))
		return -EROFS;
	/* The guest's page cache reads the surroundings of a small write. */
	if (has_writeback(fs) && (flags & O_ACCMODE) == O_WRONLY)
		flags = (flags & ~O_ACCMODE) | O_RDWR;
	if (fs->policy.allow_direct_io)
		flags |= (int)guest & O_DIRECT;
	if (fs->policy.preserve_noatime)
		flags |= (int)guest & O_NOATIME;
	return flags;
}

/* `flags` are the flags that the host opened the file with; `guest` are the flags of the guest. */
static uint32_t file_flags(struct fs *fs, const struct inode *inode, int flags, uint32_t guest)
{
	uint32_t ret = guest & O_APPEND ? FILE_APPENDS : 0;

	if ((flags & O_ACCMODE) != O_RDONLY)
		ret |= FILE_WRITABLE;
	if ((guest & O_ACCMODE) == O_RDWR) {
		inode_table_note(inode, INODE_WAS_MAPPABLE); /* set before the file can be found */
		ret |= FILE_MAPPABLE;
	}
	if (flags & O_DIRECT)
		ret |= FILE_DIRECT;
	if (flags & (O_SYNC | O_DSYNC))
		ret |= FILE_SYNC;
	if (!mount_fact_of(fs, inode)->needs_flush)
		ret |= FILE_NO_FLUSH;
	if (mount_fact_of(fs, inode)->in_memory)
		ret |= FILE_IN_MEMORY;
	return ret;
}

/* ---- OPEN, OPENDIR ---- */

static void fill_open(const struct fs *fs, uint64_t fh, uint32_t open_flags,
		      struct fuse_open_out *ret)
{
	open_flags = agreed_open_flags(fs->session, open_flags);
	*ret = (struct fuse_open_out){.fh = fh, .open_flags = open_flags};
}

/*
 * Let the guest close without a FLUSH if FLUSH would do nothing. Linux >= 5.16 then sends no FLUSH,
 * unless it caches writes. Linux also does not write back at close what a mapping has changed, and
 * close does not report an error of that. A local file system behaves in the same way: munmap
 * writes back, and fsync and msync report errors.
 */
static void fill_open_file(const struct fs *fs, const struct open_file *file, uint64_t fh,
			   uint32_t keep, struct fuse_open_out *ret)
{
	bool no_flush = open_file_close_is_silent(file) && !fs->policy.posix_lock;

	fill_open(fs, fh, fs->policy.file_open_flags | keep | (no_flush ? FOPEN_NOFLUSH : 0), ret);
}

/* Does the guest say that truncating is to remove set-id bits? */
static bool kills_set_id(const struct fs *fs, const struct request *r)
{
	uint32_t flags = r->in.opcode == FUSE_OPEN
				 ? REQUEST_ARG(r, struct fuse_open_in)->open_flags
				 : REQUEST_ARG(r, struct fuse_create_in)->open_flags;

	return flags & FUSE_OPEN_KILL_SUIDGID && is_agreed(fs->session, &AGREED_KILLPRIV);
}

static int prepare_truncate(struct fs *fs, const struct request *r, const struct inode *inode)
{
	int fd = inode_fd(fs, inode);
	int err = fd < 0 ? fd : file_capability_drop(fs, inode_nodeid(fs->inodes, inode), fd);

	return err ? err : set_id_before_truncate(fs, r, fd, kills_set_id(fs, r));
}

static int open_regular(struct fs *fs, const struct request *r, const struct inode *inode,
			int flags, struct stat *ret)
{
	int err;

	if (S_ISDIR(inode->mode))
		return -EISDIR;
	if (S_ISLNK(inode->mode))
		return -ELOOP;
	/* The guest handles its devices and FIFOs itself: the host's device or FIFO is never
	 * opened. */
	if (!S_ISREG(inode->mode))
		return -ENXIO;
	err = flags & O_TRUNC ? prepare_truncate(fs, r, inode) : 0;
	return err ? err : entry_reopen_stat(fs, inode, flags, ret);
}

/* What else OPEN finds out. */
struct opened {
	uint32_t file_flags; /* enum open_file_flag, in addition to file_flags() */
	struct stat st;	     /* of the open file; st_mode 0: not read */
};

/*
 * A file that may only grow (chattr +a) can be opened for writing only with O_APPEND. The open file
 * is then marked, since every write to it appends. With a write-back cache such an open fails,
 * because written-back data has its own offsets.
 */
static int open_guests(struct fs *fs, const struct request *r, const struct inode *inode, int flags,
		       struct opened *ret)
{
	uint32_t guest = REQUEST_ARG(r, struct fuse_open_in)->flags;
	int fd = open_regular(fs, r, inode, flags, &ret->st);

	if (fd != -EPERM || !(guest & O_APPEND) || flags & O_TRUNC || has_writeback(fs))
		return fd;
	ret->file_flags = FILE_ONLY_GROWS;
	return open_regular(fs, r, inode, flags | O_APPEND, &ret->st);
}

/* The access that an open with `flags` needs to a file under a lease (lease.h). */
static int access_wanted(int flags)
{
	return flags & O_TRUNC ? O_WRONLY : flags & O_ACCMODE;
}

static int open_or_share(struct fs *fs, const struct request *r, const struct inode *inode,
			 int flags, struct opened *ret)
{
	bool may_share = open_cache_may_share(fs, inode, flags);
	int fd = may_share ? open_cache_get(fs, inode) : -1;

	ret->file_flags = 0;
	ret->st.st_mode = 0;
	if (fd >= 0)
		return fd;
	fd = open_guests(fs, r, inode, flags, ret);
	if (fd >= 0 && may_share)
		open_cache_note_opened(fs, inode, fd);
	return fd;
}

/* Opening the file failed with -EAGAIN. Return: OUTCOME_DEFER or -errno. */
static int wait_for_lease(struct fs *fs, struct request *r, const struct inode *inode, int flags)
{
	int path_fd = inode_fd(fs, inode);

	return path_fd < 0 ? path_fd : lease_wait(r, path_fd, access_wanted(flags));
}

/* Return: an fd, -errno, or OUTCOME_DEFER, which is also negative. */
static int open_waiting(struct fs *fs, struct request *r, const struct inode *inode, int flags,
			struct opened *ret)
{
	int fd = open_or_share(fs, r, inode, flags, ret);

	return fd == -EAGAIN ? wait_for_lease(fs, r, inode, flags) : fd;
}

/* Act as root, because the guest's kernel has checked permissions. */
static int prepare_open(struct fs *fs, const struct request *r)
{
	int err = request_need_room(r, sizeof(struct fuse_open_out));

	if (!err)
		err = inode_fd_budget(fs);
	return err ? err : credentials_root(&fs->credentials);
}

int op_open(struct fs *fs, struct request *r)
{
	const struct fuse_open_in *in = REQUEST_ARG(r, struct fuse_open_in);
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	int flags = host_flags(fs, in->flags);
	struct open_file *file;
	struct opened opened;
	uint32_t keep;
	uint64_t fh;
	int fd, err;

	if (!inode)
		return -ESTALE;
	if (flags < 0)
		return flags;
	err = prepare_open(fs, r);
	if (err)
		return err;
	file = file_table_reserve(fs->files, fs->slot);
	if (!file)
		return -ENFILE;
	fd = open_waiting(fs, r, inode, flags, &opened);
	if (fd < 0) {
		file_table_abandon(fs->files, fs->slot, file);
		return fd;
	}
	file->open_flags = flags | (opened.file_flags & FILE_ONLY_GROWS ? O_APPEND : 0);
	fh = file_table_publish(fs->files, file, r->in.nodeid, fd,
				file_flags(fs, inode, flags, in->flags) | opened.file_flags);
	keep = keep_cache_at_open(fs, inode, file, &opened.st);
	fill_open_file(fs, file, fh, keep, REQUEST_REPLY(r, struct fuse_open_out));
	return (int)sizeof(struct fuse_open_out);
}

int op_opendir(struct fs *fs, struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	int dir_fd = inode ? inode_fd(fs, inode) : -ESTALE;
	struct open_file *file;
	uint64_t fh;
	int fd, err;

	if (dir_fd < 0)
		return dir_fd;
	if (!S_ISDIR(inode->mode))
		return -ENOTDIR;
	err = prepare_open(fs, r);
	if (err)
		return err;
	file = file_table_reserve(fs->files, fs->slot);
	if (!file)
		return -ENFILE;
	fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		err = fd_error();
		file_table_abandon(fs->files, fs->slot, file);
		return err;
	}
	file->open_flags = O_RDONLY | O_DIRECTORY;
	fh = file_table_publish(fs->files, file, r->in.nodeid, fd, FILE_IS_DIR);
	fill_open(fs, fh, fs->policy.dir_open_flags, REQUEST_REPLY(r, struct fuse_open_out));
	return (int)sizeof(struct fuse_open_out);
}

/* ---- CREATE, TMPFILE ---- */

struct create_reply {
	struct fuse_entry_out entry;
	struct fuse_open_out open;
};

static int prepare_create(struct fs *fs, const struct request *r)
{
	const struct fuse_create_in *in = REQUEST_ARG(r, struct fuse_create_in);
	int err = request_need_room(r, sizeof(struct create_reply));

	if (!err)
		err = inode_fd_budget(fs);
	if (!err)
		err = requester_act(fs, r, in->umask);
	return err ? err : requester_keep_sgid(fs, r, in->mode);
}

/*
 * Make an open file and an inode for `fd`, which is open and belongs to neither yet. `lends`: the
 * inode may borrow the fd. Return: bytes of the reply, or -errno; this function releases fd and
 * file itself.
 */
static int reply_create(struct fs *fs, struct request *r, const struct inode *parent,
			struct open_file *file, int fd, int flags)
{
	const struct fuse_create_in *in = REQUEST_ARG(r, struct fuse_create_in);
	struct create_reply *ret = REQUEST_REPLY(r, struct create_reply);
	uint64_t fh = file_table_publish(fs->files, file, 0, fd, FILE_LENDS);
	const struct inode *inode;
	int err =
		entry_from_fd(fs, parent, fd, open_file_slot(fs->files, file), &ret->entry, &inode);

	if (err) {
		file_table_release(fs->files, &fs->reclaim, file);
		return err;
	}
	file->open_flags = flags;
	file->flags |= file_flags(fs, inode, flags, in->flags);
	__atomic_store_n(&file->nodeid, ret->entry.nodeid, __ATOMIC_RELEASE);
	fill_open_file(fs, file, fh, 0, &ret->open);
	return (int)sizeof(*ret);
}

/* The file exists; the guest did not know the name. Return: bytes of the reply, -errno, or
 * OUTCOME_DEFER: CREATE begins again after the wait. */
static int open_existing(struct fs *fs, struct request *r, const struct inode *parent,
			 struct open_file *file, int flags)
{
	const struct fuse_create_in *in = REQUEST_ARG(r, struct fuse_create_in);
	struct create_reply *ret = REQUEST_REPLY(r, struct create_reply);
	const struct inode *inode;
	struct stat st;
	uint64_t fh;
	int fd, err;

	err = prepare_open(fs, r);
	if (!err)
		err = entry_lookup(fs, parent, r->name, &ret->entry);
	if (err)
		return err;
	inode = inode_table_get(fs->inodes, ret->entry.nodeid);
	fd = inode ? open_regular(fs, r, inode, flags, &st) : -ESTALE;
	if (fd == -EAGAIN)
		fd = wait_for_lease(fs, r, inode, flags);
	/* The attributes are older than the open, which may have truncated the file. */
	err = fd < 0 ? fd : entry_refresh(fs, inode, &ret->entry);
	if (err) {
		if (fd >= 0)
			close(fd);
		inode_table_forget(fs->inodes, &fs->reclaim, ret->entry.nodeid, 1);
		return err;
	}
	file->open_flags = flags;
	fh = file_table_publish(fs->files, file, ret->entry.nodeid, fd,
				file_flags(fs, inode, flags, in->flags));
	fill_open_file(fs, file, fh, 0, &ret->open);
	return (int)sizeof(*ret);
}

/* Create a new file r->name. *ret_fd is its fd, or -1 if the file is not open. Return: 0 or
 * -errno. */
static int create_new(struct fs *fs, const struct request *r, int dir_fd, int flags, int *ret_fd)
{
	mode_t mode = REQUEST_ARG(r, struct fuse_create_in)->mode & 07777;

	if (r->label_count)
		return label_create(fs, r, dir_fd, flags, mode, ret_fd);
	*ret_fd = openat(dir_fd, r->name,
			 flags | O_CREAT | O_EXCL | O_NOFOLLOW | O_NOCTTY | O_CLOEXEC, mode);
	return *ret_fd < 0 ? fd_error() : 0;
}

/* Try O_EXCL first, whatever the guest's flags are: a file that exists is opened as root, a new
 * file is created as the requesting user. */
static int create(struct fs *fs, struct request *r, const struct inode *parent, int dir_fd,
		  struct open_file *file, int flags)
{
	const struct fuse_create_in *in = REQUEST_ARG(r, struct fuse_create_in);
	int fd = -1;
	int err = create_new(fs, r, dir_fd, flags, &fd);

	if (!err && fd >= 0)
		return reply_create(fs, r, parent, file, fd, flags);
	/* If a worker died during this CREATE, "it exists" means that the dead worker created the
	 * file. */
	if (!err || (err == -EEXIST && (!(in->flags & O_EXCL) || r->replayed)))
		err = open_existing(fs, r, parent, file, flags);
	if (err < 0)
		file_table_abandon(fs->files, fs->slot, file);
	return err;
}

static int create_tmpfile(struct fs *fs, struct request *r, const struct inode *parent, int dir_fd,
			  struct open_file *file, int flags)
{
	const struct fuse_create_in *in = REQUEST_ARG(r, struct fuse_create_in);
	int fd, err;

	if ((flags & O_ACCMODE) == O_RDONLY)
		flags |= O_RDWR; /* O_TMPFILE needs a mode that writes */
	flags = (flags & ~O_TRUNC) | (int)(in->flags & O_EXCL);
	fd = openat(dir_fd, ".", flags | O_TMPFILE | O_CLOEXEC, in->mode & 07777);
	/* A kernel without O_TMPFILE fails with EISDIR, a file system without it may fail with
	 * ENOSYS. After ENOSYS the guest would never send TMPFILE again. */
	if (fd < 0)
		err = errno == EISDIR || errno == ENOSYS ? -EOPNOTSUPP : fd_error();
	else
		err = r->label_count ? label_set(fs, r, fd) : 0;
	if (!err)
		return reply_create(fs, r, parent, file, fd, flags);
	if (fd >= 0)
		close(fd);
	file_table_abandon(fs->files, fs->slot, file);
	return err;
}

static int create_op(struct fs *fs, struct request *r,
		     int (*make)(struct fs *fs, struct request *r, const struct inode *parent,
				 int dir_fd, struct open_file *file, int flags))
{
	const struct inode *parent = inode_table_get(fs->inodes, r->in.nodeid);
	int flags = host_flags(fs, REQUEST_ARG(r, struct fuse_create_in)->flags);
	int dir_fd = parent ? inode_fd(fs, parent) : -ESTALE;
	struct open_file *file;
	int err;

	if (dir_fd < 0)
		return dir_fd;
	if (flags < 0)
		return flags;
	err = prepare_create(fs, r);
	if (err)
		return err;
	file = file_table_reserve(fs->files, fs->slot);
	return file ? make(fs, r, parent, dir_fd, file, flags) : -ENFILE;
}

int op_create(struct fs *fs, struct request *r)
{
	return create_op(fs, r, create);
}

int op_tmpfile(struct fs *fs, struct request *r)
{
	return create_op(fs, r, create_tmpfile);
}
