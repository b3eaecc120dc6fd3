/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/inode_fd.h"

#include "transport/csrc/clock.h"
#include "worker/csrc/host/fhandle.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/proc_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

enum {
	CLOSING_WAIT_MS = 500,
};

/* Check that the handle has opened the file that was entered in the table, and above all a file of
 * the same type. The name may have belonged to one file when its attributes were read and to
 * another file when its handle was read. The check is made once per inode, because a handle never
 * changes its file. */
static int check_identity(const struct inode *inode, int fd)
{
	struct statx st;
	int err;

	if (inode_table_is_checked(inode))
		return 0;
	err = identity_stat_fd(fd, &st);
	if (err)
		return err;
	if (!inode_key_equal(identity_key(&st), inode_key_of(inode)))
		return -ESTALE;
	inode_table_note_checked(inode);
	return 0;
}

int inode_fd_open_handle(struct fs *fs, const struct inode *inode, int flags)
{
	int mount_fd = inode_table_mount_fd(fs->inodes, inode->mnt_id);
	int fd, err = mount_fd < 0 ? -ESTALE : credentials_root(&fs->credentials);

	if (!err)
		err = inode_fd_budget(fs);
	if (err)
		return err;
	fd = fhandle_open(mount_fd, &inode->handle, flags);
	if (fd < 0)
		return fd;
	err = check_identity(inode, fd);
	if (!err)
		return fd;
	close(fd);
	return err;
}

static int open_signed(struct fs *fs, const struct inode *inode)
{
	int mount_fd = inode_table_mount_fd(fs->inodes, inode->mnt_id);

	if (mount_fd < 0)
		return -ESTALE;
	return handle_client_open(&fs->handles, mount_fd, inode_key_of(inode), &inode->handle);
}

static int open_path_once(struct fs *fs, const struct inode *inode)
{
	int err;

	if (fs->policy.file_handles != FILE_HANDLES_SIGNED)
		return inode_fd_open_handle(fs, inode, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	err = inode_fd_budget(fs);
	return err ? err : open_signed(fs, inode);
}

/* Not every file system can open the handle of an unlinked file (ZFS cannot). A file that the guest
 * still has open can be reached through its open file. This is needed because the guest's fstat(2)
 * and fchmod(2) send requests that name no open file. */
static int open_by_open_file(struct fs *fs, const struct inode *inode)
{
	const struct open_file *file =
		file_table_of_inode(fs->files, inode_nodeid(fs->inodes, inode), 0);
	char name[FD_NAME];
	struct statx st;
	int fd;

	if (!file)
		return -ESTALE;
	fd = openat(fs->proc_self_fd, proc_fd_name(file->fd, name), O_PATH | O_CLOEXEC);
	if (fd < 0)
		return errno == EMFILE ? -ENFILE : -ESTALE;
	if (!identity_stat_fd(fd, &st) && inode_key_equal(identity_key(&st), inode_key_of(inode)))
		return fd;
	close(fd);
	return -ESTALE;
}

static uint64_t closed_fds(const struct fs *fs)
{
	uint64_t count = 0;

	for (uint32_t i = 0; i < fs->table->slots && i < WORKER_SLOTS_MAX; i++)
		count += __atomic_load_n(&fs->table->rows[i].closed_fds, __ATOMIC_RELAXED);
	return count;
}

/* Is it worth waiting until fds that were given up are closed? It is, if the tables are below their
 * limit, some fds wait to be closed, and the last wait was not futile. */
static bool is_worth_a_wait(const struct fs *fs)
{
	return inode_fd_has_budget(fs) && inode_fd_unclosed(fs) &&
	       fs->futile_wait != closed_fds(fs) + 1;
}

/*
 * A thread closes the fds that were given up. While other programs keep that thread from running,
 * the process may have no free fd although the tables hold few. This state ends after moments, so
 * it is not reported as an error. But close(2) may hang in storage. So after a futile wait the
 * requests of this worker do not wait again until an fd has been closed.
 */
int inode_fd_open_path(struct fs *fs, const struct inode *inode)
{
	int ms = 0, fd = open_path_once(fs, inode);

	for (; fd == -ENFILE && is_worth_a_wait(fs) && ms < CLOSING_WAIT_MS; ms++) {
		nanosleep(&(struct timespec){.tv_nsec = NS_PER_MS}, NULL);
		fd = open_path_once(fs, inode);
	}
	if (ms == CLOSING_WAIT_MS)
		fs->futile_wait = closed_fds(fs) + 1;
	return fd;
}

/* Not inlined, so that inode_fd() needs no stack frame for an inode that has an fd. */
static __attribute__((noinline)) int open_and_cache(struct fs *fs, const struct inode *inode)
{
	int fd = inode_fd_open_path(fs, inode);

	if (fd == -ESTALE)
		fd = open_by_open_file(fs, inode);
	if (fd >= 0)
		fd = inode_table_cache_fd(fs->inodes, &fs->reclaim, inode, fd);
	if (fd >= 0)
		inode_table_touch(inode);
	return fd;
}

int inode_fd(struct fs *fs, const struct inode *inode)
{
	int fd = __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE);

	if (fd < 0)
		return open_and_cache(fs, inode);
	inode_table_touch(inode);
	return fd;
}

bool inode_fd_uses_handles(struct fs *fs, uint64_t mnt_id)
{
	return fs->policy.file_handles >= FILE_HANDLES_PREFER &&
	       inode_table_mount_fd(fs->inodes, mnt_id) >= 0;
}

bool inode_fd_can_be_signed(const struct fs *fs, uint64_t mnt_id)
{
	return fs->policy.file_handles == FILE_HANDLES_SIGNED &&
	       inode_table_mount_fd(fs->inodes, mnt_id) >= 0;
}

bool inode_fd_is_scarce(const struct fs *fs)
{
	uint64_t held = inode_table_held(fs->inodes);

	if (!inode_fd_has_budget(fs))
		return true;
	return held >= fs->inode_fds_max &&
	       held + inode_fd_unclosed(fs) >= (fs->inode_fds_max + fs->fds_max) / 2;
}

uint64_t inode_fd_unclosed(const struct fs *fs)
{
	uint64_t count = 0;

	for (uint32_t i = 0; i < fs->table->slots && i < WORKER_SLOTS_MAX; i++)
		count += __atomic_load_n(&fs->table->rows[i].loose_fds, __ATOMIC_RELAXED);
	return count;
}

bool inode_fd_has_budget(const struct fs *fs)
{
	return inode_table_held(fs->inodes) + file_table_count(fs->files) < fs->fds_max;
}

int inode_fd_budget(const struct fs *fs)
{
	if (inode_fd_has_budget(fs))
		return 0;
	inode_table_note_fullness(fs->inodes, INODES_WITHOUT_FD);
	return -ENFILE;
}
