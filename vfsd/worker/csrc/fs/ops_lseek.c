/* SPDX-License-Identifier: Apache-2.0 */
/* LSEEK. */
#include "worker/csrc/fs/ops.h"

#include <errno.h>
#include <unistd.h>

/*
 * READ and WRITE name their offsets, and the host's fd may be shared. So a guest that has the
 * daemon seek for it (Zephyr) stands where its latest LSEEK has ended. SEEK_SET of more than
 * INT64_MAX is what lseek(2) takes for less than 0.
 *
 * Where data is cannot be said while the guest has some that it has not written yet. With a
 * write-back cache that is always so, and Linux takes ENOSYS for "all is data", up to the size that
 * it knows.
 */
int op_lseek(struct fs *fs, struct request *r)
{
	const struct fuse_lseek_in *in = REQUEST_ARG(r, struct fuse_lseek_in);
	struct open_file *file = file_table_get_regular(fs->files, in->fh, r->in.nodeid);
	uint64_t wanted = in->offset;
	uint32_t whence = in->whence;
	off_t offset;

	if (!file)
		return -EBADF;
	if (whence > SEEK_HOLE)
		return -EINVAL;
	if (whence >= SEEK_DATA && fs->session->flags & FUSE_WRITEBACK_CACHE)
		return -ENOSYS;
	if (whence == SEEK_CUR) {
		wanted += __atomic_load_n(&file->position, __ATOMIC_RELAXED);
		whence = SEEK_SET;
	}
	offset = lseek(file->fd, (off_t)wanted, (int)whence);
	if (offset < 0)
		return -errno;
	__atomic_store_n(&file->position, (uint64_t)offset, __ATOMIC_RELAXED);
	*REQUEST_REPLY(r, struct fuse_lseek_out) =
		(struct fuse_lseek_out){.offset = (uint64_t)offset};
	return (int)sizeof(struct fuse_lseek_out);
}
