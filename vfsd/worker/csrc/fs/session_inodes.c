/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/session_inodes.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/mount_handles.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/tables/inode_restore.h"

#include "worker/csrc/host/proc_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

void session_note_loss(struct restore *r, const struct restore_loss *loss)
{
	struct restore_report *report = r->report;

	report->lost[loss->kind]++;
	if (report->loss_count < LOSSES_NAMED)
		report->losses[report->loss_count++] = *loss;
}

void session_note_loss_of(struct restore *r, const struct inode *inode, enum loss_kind kind,
			  int error)
{
	struct restore_loss loss = {.kind = kind, .error = error};

	if (!inode) {
		r->report->lost[kind]++;
		return;
	}
	loss.ino = inode->ino;
	loss.device = inode_key_device(inode_key_of(inode));
	session_note_loss(r, &loss);
}

static struct fhandle handle_of(const struct image_node *node)
{
	struct fhandle handle = {
		.type = node->handle_type, .len = node->handle_len, .mac = node->mac};

	memcpy(handle.bytes, node->handle, sizeof(handle.bytes));
	return handle;
}

static struct inode values_of(const struct image_node *node, struct inode_key key)
{
	return (struct inode){
		.ino = key.ino,
		.mnt_id = key.mnt_id,
		.mode = (uint16_t)key.type,
		.fd = -1,
		.btime = node->btime,
		.is_young = node->state & IMAGE_IS_YOUNG,
		.marks.past = node->past,
		.lookup_count = node->lookups ? node->lookups : 1,
	};
}

static void will_list(struct restore *r, const struct inode *inode)
{
	if (S_ISDIR(inode->mode))
		r->directories[r->directory_count++] = inode_nodeid(r->fs->inodes, inode);
}

/* Return: false if the table does not take it. */
static bool enter(struct restore *r, const struct image_node *node, const struct inode *values,
		  const struct inode *parent)
{
	struct inode *inode =
		inode_restore(r->fs->inodes, r->fs->slot, node->nodeid, values, parent);

	if (!inode)
		return false;
	r->found++;
	will_list(r, inode);
	return true;
}

/* Is the handle of this node of use here? A signed handle is, if the broker has the key by which it
 * was signed, and if the mounts are the same, because the mount is signed as well: after an upgrade
 * that is so, and after the loss of a sandbox it is not. */
static bool has_handle(struct restore *r, const struct image_node *node)
{
	const struct inode *root = inode_table_get(r->fs->inodes, FUSE_ROOT_ID);

	if (!node->handle_len || node->device != r->fs->root_device ||
	    node->mount != r->session.root_mount)
		return false;
	return inode_fd_uses_handles(r->fs, root->mnt_id) ||
	       (node->mac && r->kept && inode_fd_can_be_signed(r->fs, root->mnt_id) &&
		node->mount == inode_key_mount_id(inode_key_of(root)));
}

bool session_inode_by_handle(struct restore *r, const struct image_node *node)
{
	const struct inode *root = inode_table_get(r->fs->inodes, FUSE_ROOT_ID);
	struct inode_key key = {.ino = node->ino, .mnt_id = root->mnt_id, .type = node->type};
	struct inode values = values_of(node, key);

	if (!has_handle(r, node))
		return false;
	values.handle = handle_of(node);
	values.marks.is_checked = node->mac != 0;
	values.to_parent = node->parent ? node->parent - (uint32_t)node->nodeid : 0;
	return enter(r, node, &values, NULL);
}

int session_kept_fd(const struct restore *r, uint32_t fd)
{
	return fd && fd <= r->kept_count ? r->kept[fd - 1] : -1;
}

int session_kept_fd_take(struct restore *r, uint32_t fd)
{
	int ret = session_kept_fd(r, fd);

	if (ret >= 0)
		r->kept[fd - 1] = -1;
	return ret;
}

/* The fd for an inode that has borrowed the fd of an open file: a description of its own, because
 * locks belong to that of the file. */
static int open_anew(const struct restore *r, int fd)
{
	char name[FD_NAME];

	return openat(r->fs->proc_self_fd, proc_fd_name(fd, name), O_PATH | O_CLOEXEC);
}

bool session_inode_kept(struct restore *r, const struct image_node *node)
{
	struct inode_key key = {.ino = node->ino,
				.mnt_id = (uint64_t)node->mount << 32 | node->device,
				.type = node->type};
	struct inode values = values_of(node, key);
	bool borrows = node->state & IMAGE_BORROWS;
	int fd = session_kept_fd(r, node->fd);

	if (fd < 0 || !inode_fd_has_budget(r->fs))
		return false;
	values.fd = borrows ? open_anew(r, fd) : session_kept_fd_take(r, node->fd);
	values.is_readable = !borrows && node->state & IMAGE_IS_READABLE;
	values.to_parent = node->parent ? node->parent - (uint32_t)node->nodeid : 0;
	if (has_handle(r, node)) {
		values.handle = handle_of(node);
		values.marks.is_checked = node->mac != 0;
	}
	if (values.fd < 0)
		return false;
	if (!enter(r, node, &values, NULL)) {
		close(values.fd);
		return false;
	}
	if (S_ISDIR(node->type) && mount_handles_are_unknown(r->fs, key.mnt_id))
		mount_handles_find_out(r->fs, key.mnt_id, values.fd);
	return true;
}

/* Give the inode the handle of `fd`, where handles hold inodes. Return: may fd be closed then? */
static bool take_handle(struct restore *r, int fd, struct inode *values)
{
	struct handle_signature signature;
	struct fs *fs = r->fs;
	int mount_fd = inode_table_mount_fd(fs->inodes, values->mnt_id);

	if (inode_fd_uses_handles(fs, values->mnt_id)) {
		if (fhandle_get(fd, "", &values->handle))
			return false;
		values->marks.is_checked = 1;
		return !S_ISDIR(values->mode) || inode_fd_is_scarce(fs);
	}
	if (!inode_fd_can_be_signed(fs, values->mnt_id) || !inode_fd_is_scarce(fs) ||
	    handle_client_sign(&fs->handles, mount_fd, &fd, 1, &signature) || signature.error)
		return false;
	values->handle = handle_of_signature(&signature);
	values->marks.is_checked = 1;
	return true;
}

int session_inode_by_fd(struct restore *r, const struct image_node *node, int fd,
			const struct statx *st, const struct inode *parent)
{
	struct inode values = values_of(node, identity_key(st));
	bool is_new_mount =
		S_ISDIR(st->stx_mode) && mount_handles_are_unknown(r->fs, identity_key(st).mnt_id);

	values.btime = identity_birth_time(st);
	values.fd = !is_new_mount && take_handle(r, fd, &values) ? -1 : fd;
	if (values.fd >= 0 && !inode_fd_has_budget(r->fs)) {
		close(fd);
		return -ENFILE;
	}
	if (!enter(r, node, &values, parent)) {
		close(fd);
		return -EINVAL;
	}
	if (values.fd < 0)
		close(fd);
	if (is_new_mount)
		mount_handles_find_out(r->fs, values.mnt_id, fd);
	return 0;
}
