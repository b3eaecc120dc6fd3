/* SPDX-License-Identifier: Apache-2.0 */
/*
 * GETLK, SETLK, SETLKW, INTERRUPT.
 *
 * Locks are taken on the host, so they hold against other virtual machines and against the host.
 *
 * flock: taken on the guest's own open file. The fd of an open file is one open file description,
 * as flock requires.
 *
 * Record locks: see record_lock.c. When the owner closes the file (FLUSH), its private open file is
 * closed, and all its locks are released.
 */
#include "worker/csrc/fs/ops_lock.h"

#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/record_lock.h"
#include "worker/csrc/fs/unknown_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>

enum {
	FLOCK_NOTE = FILE_FLOCKED | FILE_FLOCK_SHARED,
};

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

static int try_record_lock(struct fs *fs, const struct request *r)
{
	const struct fuse_lk_in *in = REQUEST_ARG(r, struct fuse_lk_in);
	struct record_lock lock = {(int)in->lk.type, in->lk.start, in->lk.end};
	struct open_file *file = NULL;
	int err;

	if (in->lk.type == F_UNLCK) /* without a file there is nothing to unlock */
		file = file_table_lock_owner(fs->files, fs->slot, r->in.nodeid, in->owner);
	else if ((err = record_lock_owner(fs, r->in.nodeid, in->owner, &file)))
		return err;
	return file ? record_lock_set(fs, file, &lock) : 0;
}

void ops_lock_drop_owner(struct fs *fs, uint64_t nodeid, uint64_t owner)
{
	struct open_file *file = file_table_lock_owner(fs->files, fs->slot, nodeid, owner);

	if (!file)
		return;
	record_lock_drop(fs, file); /* now, because the fd is closed later */
	file_table_drop_lock_owner(fs->files, &fs->reclaim, file);
}

int op_getlk(struct fs *fs, struct request *r)
{
	const struct fuse_lk_in *in = REQUEST_ARG(r, struct fuse_lk_in);
	const struct open_file *file = file_table_get(fs->files, in->fh, r->in.nodeid);
	struct fuse_lk_out *ret = REQUEST_REPLY(r, struct fuse_lk_out);
	const struct open_file *own;
	struct flock lock = record_lock_of_host(
		&(struct record_lock){(int)in->lk.type, in->lk.start, in->lk.end});
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
static void note_flock(struct open_file *file, uint32_t noted)
{
	uint32_t old = __atomic_load_n(&file->flags, __ATOMIC_RELAXED);

	while (!__atomic_compare_exchange_n(&file->flags, &old,
					    (old & ~(uint32_t)FLOCK_NOTE) | noted, true,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		continue;
}

static uint32_t flock_note_of(uint32_t type)
{
	return type == F_UNLCK	 ? 0
	       : type == F_RDLCK ? FILE_FLOCKED | FILE_FLOCK_SHARED
				 : FILE_FLOCKED;
}

/* What is given up is noted before, because others may take it at once; what is taken is noted
 * afterwards. */
static int try_flock(struct fs *fs, const struct fuse_lk_in *in, struct open_file *file)
{
	int operation = in->lk.type == F_RDLCK	 ? LOCK_SH
			: in->lk.type == F_WRLCK ? LOCK_EX
						 : LOCK_UN;
	uint32_t held = file->flags & FLOCK_NOTE, wanted = flock_note_of(in->lk.type);

	if (!wanted || held == FILE_FLOCKED)
		note_flock(file, wanted);
	if (flock(file->fd, operation | LOCK_NB) < 0) {
		if (held != wanted)
			note_flock(file, 0); /* Linux has released the lock that was to change */
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	}
	if (operation == LOCK_UN)
		fs->gave_up_lock = true;
	note_flock(file, wanted);
	return 0;
}

void ops_lock_drop_flock(struct fs *fs, struct open_file *file)
{
	note_flock(file, 0);
	flock(file->fd, LOCK_UN);
	fs->gave_up_lock = true;
}

/* ---- both ---- */

void ops_lock_drop_all(struct fs *fs)
{
	struct open_file *file;
	uint32_t at = 0;

	while ((file = file_table_next(fs->files, &at, FILE_LOCK_OWNER | FILE_FLOCKED))) {
		if (file->flags & FILE_LOCK_OWNER)
			record_lock_drop(fs, file);
		else
			ops_lock_drop_flock(fs, file);
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
