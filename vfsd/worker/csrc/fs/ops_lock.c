/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GETLK, SETLK, SETLKW, INTERRUPT.
 *
 * Locks are taken on the host, so they hold against other virtual machines and against the host.
 *
 * flock: taken on the guest's own open file. The fd of an open file is one open file description,
 * as flock requires.
 *
 * Record locks: a record lock of the guest belongs to a process (the lock owner), a record lock of
 * the host (OFD lock) to an open file description. So each pair of inode and lock owner that has
 * record locks gets an open file of its own. That file is opened for reading and writing, whatever
 * the mode of the guest's file, since the guest's kernel has checked what the owner may lock. On a
 * read-only share nothing is opened for writing, because that would keep the host from executing
 * the file. When the owner closes the file (FLUSH), its private open file is closed, and all its
 * locks are released.
 */
#include "worker/csrc/fs/ops_lock.h"

#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/unknown_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static bool is_flock(const struct fuse_lk_in *in)
{
	return in->lk_flags & FUSE_LK_FLOCK;
}

/* After ENOSYS the guest's kernel keeps such locks to itself. */
static int check_wanted(const struct fs *fs, const struct fuse_lk_in *in)
{
	if (is_flock(in) ? !fs->policy.flock : !fs->policy.posix_lock)
		return -ENOSYS;
	if (in->lk.type != F_RDLCK && in->lk.type != F_WRLCK && in->lk.type != F_UNLCK)
		return -EINVAL;
	return in->lk.start > in->lk.end || in->lk.end > INT64_MAX ? -EINVAL : 0;
}

/* ---- record locks ---- */

static struct flock host_lock(const struct fuse_lk_in *in)
{
	return (struct flock){
		.l_type = (short)in->lk.type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)in->lk.start,
		.l_len = in->lk.end == INT64_MAX ? 0 : (off_t)(in->lk.end - in->lk.start + 1),
	};
}

static int open_for_locks(struct fs *fs, const struct inode *inode)
{
	int fd = entry_reopen(fs, inode, fs->policy.readonly ? O_RDONLY : O_RDWR);

	if (fd == -EPERM) /* chattr +a or +i */
		fd = entry_reopen(fs, inode, O_RDWR | O_APPEND);
	if (fd == -EROFS || fd == -ETXTBSY || fd == -EACCES || fd == -EPERM)
		fd = entry_reopen(fs, inode, O_RDONLY);
	return fd;
}

/* Get the open file that holds the locks of this owner; make it if necessary. Return: 0 or
 * -errno. */
static int lock_owner_file(struct fs *fs, const struct request *r, struct open_file **ret)
{
	const struct fuse_lk_in *in = REQUEST_ARG(r, struct fuse_lk_in);
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);
	struct open_file *file;
	bool added;
	int fd, err;

	*ret = file_table_lock_owner(fs->files, fs->slot, r->in.nodeid, in->owner);
	if (*ret || in->lk.type == F_UNLCK)
		return 0;
	if (!inode)
		return -ESTALE;
	if (!S_ISREG(inode->mode))
		return -EINVAL;
	err = inode_fd_budget(fs);
	if (!err)
		err = credentials_root(&fs->credentials);
	if (err)
		return err;
	file = file_table_reserve(fs->files, fs->slot);
	if (!file)
		return -ENFILE;
	fd = open_for_locks(fs, inode);
	if (fd < 0) {
		file_table_abandon(fs->files, fs->slot, file);
		return fd;
	}
	*ret = file_table_add_lock_owner(fs->files, fs->slot, file, r->in.nodeid, in->owner, fd,
					 &added);
	if (!added) {
		close(fd);
		file_table_abandon(fs->files, fs->slot, file);
	}
	return 0;
}

static int try_record_lock(struct fs *fs, const struct request *r)
{
	const struct fuse_lk_in *in = REQUEST_ARG(r, struct fuse_lk_in);
	struct flock lock = host_lock(in);
	struct open_file *file;
	int err = lock_owner_file(fs, r, &file);

	if (err || !file) /* without a file there is nothing to unlock */
		return err;
	if (fcntl(file->fd, F_OFD_SETLK, &lock) < 0)
		return errno == EACCES ? -EAGAIN : -errno;
	if (in->lk.type == F_UNLCK)
		fs->gave_up_lock = true;
	return 0;
}

static void unlock_records(const struct open_file *file)
{
	struct flock all = {.l_type = F_UNLCK, .l_whence = SEEK_SET};

	(void)!fcntl(file->fd, F_OFD_SETLK, &all);
}

void ops_lock_drop_owner(struct fs *fs, uint64_t nodeid, uint64_t owner)
{
	struct open_file *file = file_table_lock_owner(fs->files, fs->slot, nodeid, owner);

	if (!file)
		return;
	unlock_records(file); /* now, because the fd is closed later */
	file_table_drop_lock_owner(fs->files, &fs->reclaim, file);
	fs->gave_up_lock = true;
}

int op_getlk(struct fs *fs, struct request *r)
{
	const struct fuse_lk_in *in = REQUEST_ARG(r, struct fuse_lk_in);
	const struct open_file *file = file_table_get(fs->files, in->fh, r->in.nodeid);
	struct fuse_lk_out *ret = REQUEST_REPLY(r, struct fuse_lk_out);
	const struct open_file *own;
	struct flock lock = host_lock(in);
	int err = check_wanted(fs, in);

	if (err)
		return err;
	if (!file)
		return unknown_file(fs, r->in.nodeid);
	/* The guest's open file has no record locks, so any record lock conflicts with it. */
	own = file_table_lock_owner(fs->files, fs->slot, r->in.nodeid, in->owner);
	if (fcntl(own ? own->fd : file->fd, F_OFD_GETLK, &lock) < 0)
		return -errno;
	memset(ret, 0, sizeof(*ret));
	ret->lk.type = (uint32_t)lock.l_type;
	if (lock.l_type == F_UNLCK)
		return (int)sizeof(*ret);
	ret->lk.start = (uint64_t)lock.l_start;
	ret->lk.end = lock.l_len ? (uint64_t)(lock.l_start + lock.l_len - 1) : INT64_MAX;
	return (int)sizeof(*ret); /* pid 0: the guest does not know the holder */
}

/* ---- flock ---- */

/* If the sandbox is lost, the next one takes this lock again (session_restore.c). If the worker
 * dies before this, the request is in flight, and is run again. */
static void note_flock(struct open_file *file, int operation)
{
	const uint32_t all = FILE_FLOCKED | FILE_FLOCK_SHARED;
	uint32_t set = operation == LOCK_UN   ? 0
		       : operation == LOCK_SH ? FILE_FLOCKED | FILE_FLOCK_SHARED
					      : FILE_FLOCKED;
	uint32_t old = __atomic_load_n(&file->flags, __ATOMIC_RELAXED);

	while (!__atomic_compare_exchange_n(&file->flags, &old, (old & ~all) | set, true,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		continue;
}

static int try_flock(struct fs *fs, const struct fuse_lk_in *in, struct open_file *file)
{
	int operation = in->lk.type == F_RDLCK	 ? LOCK_SH
			: in->lk.type == F_WRLCK ? LOCK_EX
						 : LOCK_UN;

	if (flock(file->fd, operation | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	if (operation == LOCK_UN)
		fs->gave_up_lock = true;
	note_flock(file, operation);
	return 0;
}

/* ---- both ---- */

void ops_lock_drop_all(struct fs *fs)
{
	struct open_file *file;
	uint32_t at = 0;

	while ((file = file_table_next(fs->files, &at, FILE_LOCK_OWNER | FILE_FLOCKED))) {
		if (file->flags & FILE_LOCK_OWNER)
			unlock_records(file);
		else if (!flock(file->fd, LOCK_UN))
			note_flock(file, LOCK_UN);
	}
	fs->gave_up_lock = true;
}

/* Try a SETLK or SETLKW without waiting. Return: 0, -EAGAIN (the lock is held), or -errno. */
static int try_lock(struct fs *fs, struct request *r)
{
	const struct fuse_lk_in *in = REQUEST_ARG(r, struct fuse_lk_in);
	struct open_file *file = file_table_get(fs->files, in->fh, r->in.nodeid);
	int err = check_wanted(fs, in);

	if (err)
		return err;
	if (!file)
		return unknown_file(fs, r->in.nodeid);
	return is_flock(in) ? try_flock(fs, in, file) : try_record_lock(fs, r);
}

int op_setlk(struct fs *fs, struct request *r)
{
	return try_lock(fs, r);
}

int op_setlkw(struct fs *fs, struct request *r)
{
	int err = try_lock(fs, r);

	return err == -EAGAIN ? OUTCOME_WAIT : err;
}

/* The interrupted request may wait at any worker, so all workers look at the table. */
int op_interrupt(struct fs *fs, struct request *r)
{
	uint64_t unique = REQUEST_ARG(r, struct fuse_interrupt_in)->unique;
	uint32_t at = __atomic_fetch_add(&fs->table->interrupt_count, 1, __ATOMIC_RELAXED);

	__atomic_store_n(&fs->table->interrupts[at % INTERRUPTS_MAX], unique, __ATOMIC_RELAXED);
	fs->gave_up_lock = true; /* requests that wait here are tried again now */
	return OUTCOME_NO_REPLY;
}
