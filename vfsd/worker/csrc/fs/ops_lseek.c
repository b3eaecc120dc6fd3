/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LSEEK.
 *
 * READ and WRITE carry their offsets, and the host's fd may be shared. So for a guest that lets the
 * daemon keep the position (Zephyr), the position is where the guest's latest LSEEK ended.
 *
 * The host cannot know where a file has data while the guest holds data that it has not written
 * back yet, and Linux asks without writing back first. With a write-back cache that is always so,
 * and Linux takes ENOSYS as "everything is data", up to the size that it knows. Without a
 * write-back cache the guest holds back only stores to a mapping, and these change no size. A store
 * can lie in a hole of the host's file only if two things have happened, both of which the daemon
 * sees:
 *
 * - The file is open for reading and writing. The guest releases a mapped file only after the
 *   mapping is gone and has been written back.
 *
 * - The guest has read the file, since a store to a page needs the old content of the page. A page
 *   that the guest wrote as a whole is in its page cache as well, but such a page is not a hole.
 *
 * If both are true, everything is reported as data. Otherwise the host's answer is right, so
 * programs that write a sparse file and look for its holes get the truth.
 */
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/unknown_file.h"

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

/* Seek as if the only hole were the one after the end of the file. */
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

/* lseek(2) takes a SEEK_SET of more than INT64_MAX as negative. */
int op_lseek(struct fs *fs, struct request *r)
{
	const struct fuse_lseek_in *in = REQUEST_ARG(r, struct fuse_lseek_in);
	struct open_file *file = file_table_get_regular(fs->files, in->fh, r->in.nodeid);
	uint64_t wanted = in->offset;
	uint32_t whence = in->whence;
	off_t offset;

	if (!file)
		return unknown_file(fs, r->in.nodeid);
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
