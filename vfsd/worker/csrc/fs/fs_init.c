/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/fs_init.h"

#include "transport/csrc/clock.h"
#include "worker/csrc/fs/file_capability.h"
#include "worker/csrc/fs/lending.h"
#include "worker/csrc/fs/ops_lock.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
	FDS_RESERVED = 1024,
	FDS_UNLIMITED = 1 << 20,
};

static int allocate(struct fs *fs)
{
	fs->large_reply = malloc(REQUEST_LARGE_REPLY);
	for (uint32_t i = 0; i < DIR_CACHES; i++) {
		fs->dir_caches[i].buffer = malloc(DIR_BUFFER);
		if (!fs->dir_caches[i].buffer)
			return -ENOMEM;
	}
	return fs->large_reply ? 0 : -ENOMEM;
}

/* Some fds are not for inodes and files: those of sockets, eventfds and guest memory. */
static void limit_fds(struct fs *fs)
{
	struct rlimit limit;
	uint64_t reserve;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY)
		limit.rlim_cur = FDS_UNLIMITED;
	reserve = limit.rlim_cur / 4 < FDS_RESERVED ? limit.rlim_cur / 4 : FDS_RESERVED;
	fs->fds_max = limit.rlim_cur - reserve;
	fs->inode_fds_max = fs->fds_max / 2;
}

static void use_tables(struct fs *fs, const struct fs_config *config)
{
	fs->table = config->workers;
	fs->session = &fs->table->session;
	fs->inodes = config->inodes;
	fs->root_device = inode_key_device(inode_key_of(inode_table_get(fs->inodes, FUSE_ROOT_ID)));
	fs->files = config->files;
	/* One less than the current value, so that the marks of a worker that died count as new. */
	fs->marks_seen = inode_table_marks(fs->inodes) - 1;
	reclaim_init(&fs->reclaim, fs->table, fs->slot);
	fs->reclaim.repay = lending_repay;
	fs->reclaim.repay_context = fs;
	inode_table_adopt_retired(fs->inodes, &fs->reclaim);
	file_table_adopt_retired(fs->files, &fs->reclaim);
}

int fs_init(struct fs *fs, const struct fs_config *config)
{
	/* System calls name files as "N" in this directory (ops_xattr.c, ops_attr.c). In another
	 * working directory "N" would be a name that the guest can create in the share. */
	if (fchdir(config->proc_self_fd) < 0)
		return -errno;
	if (allocate(fs))
		return -ENOMEM;
	fs->slot = config->slot;
	fs->root_fd = config->root_fd;
	fs->proc_self_fd = config->proc_self_fd;
	fs->policy = config->policy;
	file_capability_init(&fs->capability, &fs->policy.xattrmap);
	handle_client_init(&fs->handles, config->handles_fd, clock_ns());
	limit_fds(fs);
	credentials_init(&fs->credentials);
	use_tables(fs, config);
	return 0;
}

void fs_session_end(struct fs *fs)
{
	__atomic_store_n(&fs->session->ready, 0, __ATOMIC_RELEASE);
	reclaim_quiescent(&fs->reclaim);
	ops_lock_drop_all(fs); /* the files are closed later, after the next INIT perhaps */
	/* The files come first: an fd that an inode borrows must be closed by the file that lent
	 * it. */
	file_table_reset(fs->files, &fs->reclaim);
	inode_table_reset(fs->inodes, &fs->reclaim);
	for (uint32_t i = 0; i < DIR_CACHES; i++)
		fs->dir_caches[i].fh = 0;
	for (uint32_t i = 0; i < INTERRUPTS_MAX; i++)
		__atomic_store_n(&fs->table->interrupts[i], 0, __ATOMIC_RELAXED);
	reclaim_offline(&fs->reclaim);
}

void fs_session_begin(struct fs *fs, uint32_t minor, uint64_t flags, uint64_t offered)
{
	fs_session_end(fs);
	fs->session->minor = minor;
	fs->session->flags = flags;
	fs->session->offered = offered;
	fs->session->number++;
	__atomic_store_n(&fs->session->ready, 1, __ATOMIC_RELEASE);
}
