/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/open_cache.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/mount_facts.h"
#include "worker/csrc/host/proc_fd.h"

#include <fcntl.h>
#include <sys/stat.h>

static int duplicate(int fd)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

bool open_cache_may_share(struct fs *fs, const struct inode *inode, int flags)
{
	return flags == O_RDONLY && S_ISREG(inode->mode) && !fs->policy.flock &&
	       !mount_fact_of(fs, inode)->needs_flush;
}

int open_cache_get(struct fs *fs, const struct inode *inode)
{
	int fd = inode_table_readable_fd(fs->inodes, fs->slot, inode);

	if (fd < 0)
		return -1;
	inode_table_touch(inode);
	return duplicate(fd);
}

/* Take the cached fd away from an inode. An inode that is not held by a handle gets an O_PATH fd of
 * the same file in its place. */
static void drop(struct fs *fs, uint64_t nodeid)
{
	const struct inode *inode = inode_table_get(fs->inodes, nodeid);
	int fd = inode ? inode_table_readable_fd(fs->inodes, fs->slot, inode) : -1;
	int path_fd = -1;
	char name[FD_NAME];

	if (fd < 0)
		return;
	if (!__atomic_load_n(&inode->handle.len, __ATOMIC_ACQUIRE))
		path_fd = openat(fs->proc_self_fd, proc_fd_name(fd, name), O_PATH | O_CLOEXEC);
	inode_table_drop_readable(fs->inodes, &fs->reclaim, nodeid, path_fd);
}

void open_cache_note_opened(struct fs *fs, const struct inode *inode, int fd)
{
	uint64_t *oldest = &fs->readable[fs->readable_next];
	int own;

	if (!inode_table_may_cache_readable(inode) || inode_table_note_opened(inode) ||
	    !inode_fd_has_budget(fs))
		return;
	own = duplicate(fd);
	if (own < 0)
		return;
	drop(fs, *oldest);
	*oldest = inode_nodeid(fs->inodes, inode);
	fs->readable_next = (fs->readable_next + 1) % OPEN_CACHE;
	inode_table_cache_readable(fs->inodes, &fs->reclaim, inode, own);
}
