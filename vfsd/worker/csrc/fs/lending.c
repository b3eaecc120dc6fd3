/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/lending.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/host/fhandle.h"
#include "worker/csrc/host/proc_fd.h"

#include <fcntl.h>
#include <unistd.h>

static bool borrows(const struct inode *inode, uint32_t slot)
{
	return inode && __atomic_load_n(&inode->lender, __ATOMIC_ACQUIRE) == slot;
}

/* Let an O_PATH fd of its own hold the inode; if no such fd can be opened, the inode keeps the lent
 * fd. If this worker dies in between, keep_fd says whether the inode has the lent fd. An exception
 * is an inode that is forgotten before the next worker comes: then the sweep closes the fd. */
static void repay_with_path(struct fs *fs, struct open_file *file, uint32_t slot)
{
	char name[FD_NAME];
	int fd = openat(fs->proc_self_fd, proc_fd_name(file->fd, name), O_PATH | O_CLOEXEC);

	__atomic_store_n(&file->keep_fd, fd < 0, __ATOMIC_RELEASE);
	if (inode_table_repay(fs->inodes, fs->slot, file->nodeid, slot, fd))
		return;
	__atomic_store_n(&file->keep_fd, 0, __ATOMIC_RELEASE);
	if (fd >= 0) /* the guest has forgotten the inode just now */
		close(fd);
}

int lending_repay(void *context, uint32_t slot)
{
	struct fs *fs = context;
	struct open_file *file = file_table_at(fs->files, slot);
	const struct inode *inode = inode_table_get(fs->inodes, file->nodeid);
	struct fhandle handle;

	if (!borrows(inode, slot))
		return file->keep_fd ? -1 : file->fd;
	if (inode_fd_uses_handles(fs, inode->mnt_id) && !fhandle_get(file->fd, "", &handle))
		inode_table_repay_handle(fs->inodes, fs->slot, file->nodeid, slot, &handle);
	else
		repay_with_path(fs, file, slot);
	return file->keep_fd ? -1 : file->fd;
}
