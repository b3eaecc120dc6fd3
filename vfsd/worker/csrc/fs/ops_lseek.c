/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LSEEK.
 *
 * READ and WRITE name their offsets, and the host's fd may be shared. So a guest that has the
 * daemon seek for it (Zephyr) stands where its latest LSEEK has ended.
 *
 * Nobody on the host knows where data is while the guest has some that it has not written yet; and
 * Linux asks without writing back. With a write-back cache that is always so, and Linux takes
 * ENOSYS for "all is data", up to the size that it knows. Without such a cache only stores to a
 * mapping are held back, and they change no size. A store can hide in a hole only if two things
 * have happened, each of which the daemon sees:
 *
 * - The file is open for reading and writing. The guest releases a file that is mapped when the
 *   mapping is gone and has been written back.
 * - The guest has read the file, since a store to a page needs what the page held before. A page
 *   that the guest wrote as a whole is in its page cache as well, but is no hole.
 *
 * Then all is data. Where one of the two is not so the host's answer is right: programs that write
 * a sparse file, and look for its holes, get the truth.
 */
#include "worker/csrc/fs/ops.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

static bool may_hold_stores(struct fs *fs, const struct open_file *file)
{
	const struct inode *inode = inode_table_get(fs->inodes, file->nodeid);

	if (!inode || !fs->policy.holds_back ||
	    !inode_table_has_past(inode, INODE_WAS_MAPPABLE | INODE_WAS_READ))
		return false;
	return file->flags & FILE_MAPPABLE ||
	       file_table_of_inode(fs->files, file->nodeid, FILE_MAPPABLE);
}

/* As if there were no hole but the one behind the end. */
static off_t seek_in_data(int fd, uint64_t wanted, uint32_t whence)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (wanted >= (uint64_t)st.st_size)
		return -ENXIO;
	return whence == SEEK_HOLE ? st.st_size : (off_t)wanted;
}

static off_t seek_on_host(int fd, uint64_t wanted, uint32_t whence)
{
	off_t offset = lseek(fd, (off_t)wanted, (int)whence);

	return offset < 0 ? -errno : offset;
}

/* SEEK_SET of more than INT64_MAX is what lseek(2) takes for less than 0. */
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
	offset = whence >= SEEK_DATA && may_hold_stores(fs, file)
			 ? seek_in_data(file->fd, wanted, whence)
			 : seek_on_host(file->fd, wanted, whence);
	if (offset < 0)
		return (int)offset;
	__atomic_store_n(&file->position, (uint64_t)offset, __ATOMIC_RELAXED);
	*REQUEST_REPLY(r, struct fuse_lseek_out) =
		(struct fuse_lseek_out){.offset = (uint64_t)offset};
	return (int)sizeof(struct fuse_lseek_out);
}
