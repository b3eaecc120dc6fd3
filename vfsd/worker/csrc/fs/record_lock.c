/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Record locks.
 *
 * A record lock of the guest belongs to a process (the lock owner), a record lock of the host (OFD
 * lock) to an open file description. So each pair of inode and lock owner that has record locks
 * gets an open file of its own. That file is opened for reading and writing, whatever the mode of
 * the guest's file, since the guest's kernel has checked what the owner may lock. On a read-only
 * share nothing is opened for writing, because that would keep the host from executing the file.
 *
 * Each change is noted before and after the kernel is asked (lock_notes.c), under the lock of the
 * owner's open file.
 */
#include "worker/csrc/fs/record_lock.h"

#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/tables/lock_notes.h"
#include "worker/csrc/tables/owner_lock.h"

#include <errno.h>
#include <unistd.h>

struct flock record_lock_of_host(const struct record_lock *lock)
{
	return (struct flock){
		.l_type = (short)lock->type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)lock->start,
		.l_len = lock->end == INT64_MAX ? 0 : (off_t)(lock->end - lock->start + 1),
	};
}

/* ---- the owner's open file ---- */

static int open_for_locks(struct fs *fs, const struct inode *inode)
{
	int fd = entry_reopen(fs, inode, fs->policy.readonly ? O_RDONLY : O_RDWR);

	if (fd == -EPERM) /* chattr +a or +i */
		fd = entry_reopen(fs, inode, O_RDWR | O_APPEND);
	if (fd == -EROFS || fd == -ETXTBSY || fd == -EACCES || fd == -EPERM)
		fd = entry_reopen(fs, inode, O_RDONLY);
	return fd;
}

static int prepare(struct fs *fs, const struct inode *inode)
{
	int err;

	if (!inode)
		return -ESTALE;
	if (!S_ISREG(inode->mode))
		return -EINVAL;
	err = inode_fd_budget(fs);
	return err ? err : credentials_root(&fs->credentials);
}

int record_lock_owner(struct fs *fs, uint64_t nodeid, uint64_t owner, struct open_file **ret)
{
	const struct inode *inode = inode_table_get(fs->inodes, nodeid);
	struct open_file *file;
	bool added;
	int fd, err;

	*ret = file_table_lock_owner(fs->files, fs->slot, nodeid, owner);
	if (*ret)
		return 0;
	err = prepare(fs, inode);
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
	*ret = file_table_add_lock_owner(fs->files, fs->slot, file, nodeid, owner, fd, &added);
	if (!added) {
		close(fd);
		file_table_abandon(fs->files, fs->slot, file);
	}
	return 0;
}

/* ---- its locks ---- */

static int ask_kernel(const struct open_file *file, const struct record_lock *lock)
{
	struct flock host = record_lock_of_host(lock);

	if (!fcntl(file->fd, F_OFD_SETLK, &host))
		return 0;
	return errno == EACCES ? -EAGAIN : -errno;
}

static void note_changed(struct fs *fs, struct open_file *file)
{
	struct lock_notes *notes = file_table_lock_notes(fs->files);

	if (!lock_notes_change(notes, fs->slot, file->notes))
		__atomic_or_fetch(&file->flags, FILE_LOCKS_MISSED, __ATOMIC_RELAXED);
}

/* A worker that died may have left a change under way. */
static void settle(struct fs *fs, struct open_file *file)
{
	struct lock_notes *notes = file_table_lock_notes(fs->files);
	const struct lock_note *head = lock_notes_head(notes, file->notes);
	struct record_lock lock = {head->type, head->start, head->end};

	if (head->state == LOCK_NOTES_SETTLED)
		return;
	if (head->state == LOCK_NOTES_TRIED && ask_kernel(file, &lock))
		lock_notes_refused(notes, file->notes);
	else
		note_changed(fs, file);
}

static int set_noted(struct fs *fs, struct open_file *file, const struct record_lock *lock)
{
	struct lock_notes *notes = file_table_lock_notes(fs->files);
	int err;

	if (!file->notes)
		return ask_kernel(file, lock);
	settle(fs, file);
	lock_notes_try(notes, file->notes, lock->start, lock->end, lock->type);
	err = ask_kernel(file, lock);
	if (err)
		lock_notes_refused(notes, file->notes);
	else
		note_changed(fs, file);
	return err;
}

int record_lock_set(struct fs *fs, struct open_file *file, const struct record_lock *lock)
{
	int err = 0;

	owner_lock(&file->lock, fs->slot);
	/* If not, the owner has closed the file at the same moment, and holds nothing. */
	if (__atomic_load_n(&file->generation, __ATOMIC_ACQUIRE) & 1)
		err = set_noted(fs, file, lock);
	owner_unlock(&file->lock);
	if (lock->type == F_UNLCK && !err)
		fs->gave_up_lock = true;
	return err;
}

void record_lock_drop(struct fs *fs, struct open_file *file)
{
	record_lock_set(fs, file, &(struct record_lock){F_UNLCK, 0, INT64_MAX});
	fs->gave_up_lock = true;
}
