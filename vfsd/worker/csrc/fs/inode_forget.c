/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/inode_forget.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/tables/forgotten.h"

#include <errno.h>
#include <unistd.h>

/* ---- FORGET ---- */

/* Inodes that wait for their handles, with generation, fd and birth time as they were read. */
struct batch {
	uint32_t count;
	struct inode *inodes[HANDLE_BATCH];
	uint32_t generations[HANDLE_BATCH];
	int fds[HANDLE_BATCH];
	int64_t btimes[HANDLE_BATCH];
};

/* Add an inode to the batch. A file without a name is left out: the file goes away soon, so a
 * handle of it has no use. */
static void add(struct batch *batch, struct inode *inode)
{
	uint32_t generation = __atomic_load_n(&inode->generation, __ATOMIC_ACQUIRE);
	int fd = __atomic_load_n(&inode->fd, __ATOMIC_ACQUIRE);
	struct statx st;

	if (fd < 0 || identity_stat_fd(fd, &st) || !st.stx_nlink)
		return;
	batch->inodes[batch->count] = inode;
	batch->generations[batch->count] = generation;
	batch->fds[batch->count] = fd;
	batch->btimes[batch->count++] = identity_birth_time(&st);
}

static void give_handle(struct fs *fs, const struct batch *batch, uint32_t at,
			const struct fhandle *handle)
{
	struct inode *inode = batch->inodes[at];
	uint32_t lender = __atomic_load_n(&inode->lender, __ATOMIC_ACQUIRE);

	if (lender)
		inode_table_repay_handle(fs->inodes, fs->slot, inode_nodeid(fs->inodes, inode),
					 lender, handle);
	else
		inode_table_give_handle(fs->inodes, fs->slot, inode, batch->generations[at],
					batch->fds[at], batch->btimes[at], handle);
}

static void give_own_handles(struct fs *fs, const struct batch *batch)
{
	struct fhandle handle;

	for (uint32_t i = 0; i < batch->count; i++)
		if (!fhandle_get(batch->fds[i], "", &handle))
			give_handle(fs, batch, i, &handle);
}

static void give_signed_handles(struct fs *fs, const struct batch *batch)
{
	struct handle_signature signatures[HANDLE_BATCH];
	int mount_fd;

	if (!batch->count)
		return;
	mount_fd = inode_table_mount_fd(fs->inodes, batch->inodes[0]->mnt_id);
	if (mount_fd < 0 ||
	    handle_client_sign(&fs->handles, mount_fd, batch->fds, batch->count, signatures))
		return;
	for (uint32_t i = 0; i < batch->count; i++) {
		struct fhandle handle = handle_of_signature(&signatures[i]);

		if (!signatures[i].error)
			give_handle(fs, batch, i, &handle);
	}
}

__attribute__((noinline, cold)) void inode_forget_finish(struct fs *fs)
{
	struct batch batch = {0};

	for (uint32_t i = 0; i < fs->forgetting_count; i++) {
		struct inode *inode = inode_table_get(fs->inodes, fs->forgetting[i]);

		if (inode)
			add(&batch, inode);
	}
	if (fs->policy.file_handles == FILE_HANDLES_SIGNED)
		give_signed_handles(fs, &batch);
	else
		give_own_handles(fs, &batch);
	for (uint32_t i = 0; i < fs->forgetting_count; i++)
		inode_table_forget(fs->inodes, &fs->reclaim, fs->forgetting[i], 0);
	fs->forgetting_count = 0;
}

void inode_forget(struct fs *fs, uint64_t nodeid, uint64_t count)
{
	if (fs->policy.file_handles == FILE_HANDLES_NEVER || fs->handles.is_gone) {
		inode_table_forget(fs->inodes, &fs->reclaim, nodeid, count);
		return;
	}
	if (!inode_table_forget_later(fs->inodes, &fs->reclaim, nodeid, count))
		return;
	fs->forgetting[fs->forgetting_count++] = nodeid;
	if (fs->forgetting_count == HANDLE_BATCH)
		inode_forget_finish(fs);
}

/* ---- coming back ---- */

/* Check that `fd`, which was opened by the inode's handle, is still the same file. A file without a
 * name counts as gone, because this fd may be the last that holds it. Return: 0, -ESTALE, or
 * -errno. */
static int check_same(const struct inode *inode, int fd)
{
	struct statx st;
	int err = identity_stat_fd(fd, &st);
	int64_t btime = err ? 0 : identity_birth_time(&st);

	if (err)
		return err;
	if (!inode_key_equal(identity_key(&st), inode_key_of(inode)) || !st.stx_nlink)
		return -ESTALE;
	return inode->btime && btime && inode->btime != btime ? -ESTALE : 0;
}

int inode_recall(struct fs *fs, uint64_t nodeid, const struct inode **ret)
{
	struct inode known;
	int fd, err;

	if (!forgotten_find(fs->inodes, fs->slot, nodeid, &known))
		return -ESTALE;
	fd = inode_fd_open_path(fs, &known);
	if (fd < 0)
		return fd;
	err = check_same(&known, fd);
	*ret = err ? NULL : forgotten_recall(fs->inodes, fs->slot, nodeid);
	if (!*ret) {
		close(fd);
		return err ? err : -ESTALE;
	}
	inode_table_note_checked(*ret); /* the file that the handle opened was compared above */
	inode_table_cache_fd(fs->inodes, &fs->reclaim, *ret, fd);
	return 0;
}
