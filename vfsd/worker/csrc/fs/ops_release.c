/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RELEASE, RELEASEDIR, FLUSH.
 *
 * RELEASE is answered before the file is closed, because a close may take long. Locks are given up
 * before the answer, because the guest may rely on that immediately.
 */
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/ops_lock.h"
#include "worker/csrc/fs/silly_rename.h"
#include "worker/csrc/fs/unknown_file.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int op_release(struct fs *fs, struct request *r)
{
	const struct fuse_release_in *in = REQUEST_ARG(r, struct fuse_release_in);
	struct open_file *file = file_table_get(fs->files, in->fh, r->in.nodeid);
	bool is_silly;

	if (!file || file->flags & FILE_LOCK_OWNER)
		return 0;
	if (file->flags & FILE_FLOCKED)
		ops_lock_drop_flock(fs, file);
	is_silly = !(file->flags & (FILE_NO_FLUSH | FILE_IS_DIR)) &&
		   silly_rename_happened(fs, r->in.nodeid, file->fd);
	file_table_release(fs->files, &fs->reclaim, file);
	if (is_silly)
		silly_rename_released(fs, r->in.nodeid);
	return 0;
}

int op_releasedir(struct fs *fs, struct request *r)
{
	return op_release(fs, r);
}

static int run_flush(struct request *r)
{
	return close(r->fd) < 0 ? -errno : 0;
}

int op_flush(struct fs *fs, struct request *r)
{
	const struct fuse_flush_in *in = REQUEST_ARG(r, struct fuse_flush_in);
	struct open_file *file = file_table_get(fs->files, in->fh, r->in.nodeid);

	if (!file)
		return unknown_file(fs, r->in.nodeid);
	if (fs->policy.posix_lock)
		ops_lock_drop_owner(fs, r->in.nodeid, in->lock_owner);
	if (open_file_close_is_silent(file))
		return 0;
	r->fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 3);
	/* If no fd is free, an error that close() would have reported is reported by FSYNC, or not
	 * at all. */
	if (r->fd < 0)
		return errno == EMFILE ? 0 : -errno;
	r->holds_fd = true;
	return request_defer(r, run_flush);
}
