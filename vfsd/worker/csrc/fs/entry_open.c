/* SPDX-License-Identifier: Apache-2.0 */
/* Opening the file of an entry, by name or by inode. The theory is in entry.c. */
#include "worker/csrc/fs/entry.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/host/fd_error.h"
#include "worker/csrc/host/proc_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

int entry_open_path(int dir_fd, const char *name)
{
	return fd_or_error(openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
}

static int reopen(struct fs *fs, const struct inode *inode, int flags)
{
	char name[FD_NAME];
	int fd;

	/* Opening by handle is faster than opening by fd. A handle that may belong to another file
	 * is not opened here but with O_PATH first, because opening a device of the host may have
	 * effects. O_TRUNC is not used here, because handles are opened as root in root's group,
	 * and another group may decide which bits the truncation removes (set_id.h). */
	if (!(flags & O_TRUNC) && fs->policy.file_handles >= FILE_HANDLES_PREFER &&
	    inode_table_is_checked(inode)) {
		int opened = inode_fd_open_handle(fs, inode, flags);

		/* Some file systems cannot open the handle of an unlinked file. */
		if (opened != -ESTALE)
			return opened;
	}
	fd = inode_fd(fs, inode);
	if (fd < 0)
		return fd;
	return fd_or_error(openat(fs->proc_self_fd, proc_fd_name(fd, name), flags));
}

static bool is_of_type(int fd, uint32_t type, struct stat *ret)
{
	return !fstat(fd, ret) && (ret->st_mode & S_IFMT) == type;
}

int entry_reopen_stat(struct fs *fs, const struct inode *inode, int flags, struct stat *ret)
{
	int fd;

	if (!S_ISREG(inode->mode) && !S_ISDIR(inode->mode))
		return -ENXIO;
	fd = reopen(fs, inode, flags | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || is_of_type(fd, inode->mode, ret))
		return fd;
	close(fd);
	return -ESTALE;
}

int entry_reopen(struct fs *fs, const struct inode *inode, int flags)
{
	struct stat st;

	return entry_reopen_stat(fs, inode, flags, &st);
}
