/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * A guest drops its pages of a file at each OPEN, unless the reply has FOPEN_KEEP_CACHE. A process
 * that opens a file after a change was completed must see that change, on whichever machine it was
 * made. So the flag is set only if every page that the guest has is known to be that of the file as
 * it is now.
 *
 * inode.cached_ctime is a change time (ctime) of the file. It says: since the file has had this
 * ctime, the guest has dropped all of its pages once. If an OPEN finds the file with this ctime, no
 * page is older than the last change. Two steps lead there:
 *
 * 1. An OPEN finds another ctime, lets the guest drop its pages, and notes the ctime in the open
 *    file. The ctime does not count yet. The guest handles replies in any order, and another of its
 *    processes could use the old pages before they are dropped.
 * 2. The first READ through that open file proves that the pages were dropped, because Linux drops
 *    them before a process can use the file. For other guests the flag is never set. Linux locks a
 *    page while it reads the page, and waits for the lock before it drops the page, so a page that
 *    was read too early is dropped as well. Several open files may be read in any order: what is
 *    said of a ctime stays true, and no ctime comes back.
 *
 * A ctime is noted only if each later change of the data gives the file another ctime:
 *
 * - The file system sets a ctime for each change, and no program can set the ctime back
 *   (FS_HONEST_CTIME).
 * - The ctime is SETTLED_S seconds old. So the clock has ticked since. The kernel also sets the
 *   ctime at the beginning of a write(2) and copies the data later. One change can be missed: that
 *   of a write(2) that takes longer than SETTLED_S, while no page of the file is dirty.
 * - No page of the file is dirty or being written back (cachestat(2), since Linux 6.5). A mapping
 *   may store into a dirty page again and again under one ctime; its first store into a clean page
 *   sets a new ctime. The ctime is read first and the pages are counted afterwards, so a store
 *   between the two is made before the guest reads the file, or leaves a dirty page.
 * - The file has no DAX, since cachestat does not see the pages of a DAX mapping.
 * - The file is not huge, since cachestat walks over all cached pages.
 *
 * A write of the guest changes the ctime like any other write. If a WRITE fails, the guest's page
 * may have what the file lacks, under the same ctime. Such a file is dropped at each OPEN for as
 * long as the guest knows the inode.
 *
 * Listings of directories are not kept. While a guest uses a listing that it has kept, it sends no
 * READDIRPLUS, and needs a LOOKUP for each name whose timeout is over.
 *
 * A worker may die at any point: each value is one store, and an OPEN that is repeated is one more
 * OPEN. A session that is restored begins without any cached_ctime.
 */
#include "worker/csrc/fs/keep_cache.h"

#include "transport/csrc/clock.h"
#include "worker/csrc/fs/mount_facts.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/page_state.h"
#include "worker/csrc/request/agreed.h"

#include <fcntl.h>

enum {
	SETTLED_S = 10,
	HUGE_BYTES = 1 << 30, /* cachestat of as many bytes in pages of 4 KiB takes milliseconds */
};

static uint64_t stamp_of(int64_t sec, uint32_t nsec)
{
	return (uint64_t)sec * NS_PER_SEC + nsec;
}

static bool is_settled(int64_t sec)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	return sec > 0 && sec < now.tv_sec - SETTLED_S;
}

/* Return: the ctime of the file of `fd`, or 0 if a change of the data could leave it as it is. */
static uint64_t settled_ctime(int fd)
{
	struct statx st;

	if (identity_stat_fd(fd, &st) || !is_settled(st.stx_ctime.tv_sec) ||
	    st.stx_size > HUGE_BYTES || st.stx_attributes & STATX_ATTR_DAX || !is_written_back(fd))
		return 0;
	return stamp_of(st.stx_ctime.tv_sec, st.stx_ctime.tv_nsec);
}

static bool may_keep(struct fs *fs, const struct inode *inode)
{
	return fs->policy.keeps_unchanged && is_linux(fs->session) &&
	       mount_fact_of(fs, inode)->honest_ctime &&
	       !inode_table_has_past(inode, INODE_LOST_A_WRITE);
}

uint32_t keep_cache_at_open(struct fs *fs, const struct inode *inode, struct open_file *file,
			    const struct stat *st)
{
	struct stat own;
	uint64_t now;

	if (!may_keep(fs, inode) || file->open_flags & O_TRUNC)
		return 0;
	if (!st->st_mode) {
		if (fstat(file->fd, &own) < 0)
			return 0;
		st = &own;
	}
	now = stamp_of(st->st_ctim.tv_sec, (uint32_t)st->st_ctim.tv_nsec);
	if (now == inode_table_cached_ctime(inode))
		return FOPEN_KEEP_CACHE;
	if (is_settled(st->st_ctim.tv_sec))
		file->settled_ctime = settled_ctime(file->fd);
	return 0;
}

void keep_cache_at_read(const struct inode *inode, const struct open_file *file)
{
	if (file->settled_ctime)
		inode_table_note_cached_ctime(inode, file->settled_ctime);
}

void keep_cache_never(struct fs *fs, uint64_t nodeid)
{
	const struct inode *inode = inode_table_get(fs->inodes, nodeid);

	if (inode)
		inode_table_note(inode, INODE_LOST_A_WRITE);
}

void keep_cache_forsake(struct fs *fs, const struct request *r)
{
	if (r->in.opcode == FUSE_WRITE)
		keep_cache_never(fs, r->in.nodeid);
}
