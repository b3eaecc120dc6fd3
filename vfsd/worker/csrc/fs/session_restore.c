/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. The sandbox was lost, and with it every fd of the share. From the session image
 * (session_image.c) this builds what the workers of the next sandbox begin with: nodeids and fhs
 * are the same numbers, so the guest sees a pause.
 *
 * How a file is found again. Where workers open handles, an inode on the mount of the share needs
 * nothing but its handle: it is opened when the guest uses it, and compared then, like an inode
 * that was entered by a name (inode_fd.c). Any other inode is looked for in the directory where the
 * guest saw it last. A directory is listed once, and the listing is compared with all inodes that
 * are to be in that directory: the inode number leads to a name, and the file of that name is
 * opened with O_PATH. A name may have another inode number in the listing than by statx(2): the
 * root of a mount does, and so do files of some overlayfs. So if a directory still lacks an inode
 * after that, every name is opened.
 *
 * Whether it is that file. Device, inode number and type are compared, and the birth time if both
 * are known; they are those of the very fd that holds the inode then. A file that was removed while
 * the guest had it open has no name: it is lost, as is what the host has moved elsewhere. The guest
 * gets ESTALE for such a file, and goes on.
 *
 * Signed handles were signed with a mount id that is gone. Their inodes are found by name, and
 * signed again if there are not enough fds.
 *
 * In an upgrade the former sandbox serves until it sends its fds and an image, and its mounts are
 * the mounts of this sandbox. Inodes and open files whose fd has come need not be found, and signed
 * handles stay valid, because both sandboxes have the same key.
 *
 * Open files are opened again by their inode, as OPEN does it (entry_reopen). A directory needs no
 * position: each READDIR brings the offset from which the guest goes on.
 *
 * Locks ended with the fds. They are taken again (session_locks.c).
 *
 * Trust. See session_image.c. Only names that a directory of the share lists are opened, one
 * component at a time, and nothing is followed: as LOOKUP does it.
 *
 * Order. `ready` of the session is set last. If the process dies before that, the tables are thrown
 * away with the sandbox, and the next sandbox begins again.
 */
#include "worker/csrc/fs/session_restore.h"

#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/fs_init.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/session_locks.h"
#include "worker/csrc/fs/session_search.h"
#include "worker/csrc/tables/inode_restore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	FLAGS_AGAIN = O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC | O_DIRECT | O_NOATIME,
};

/* ---- inodes ---- */

static void restore_nodes(struct restore *r)
{
	r->directories[r->directory_count++] = FUSE_ROOT_ID;
	for (uint32_t i = 0; i < r->image.nodes.count; i++) {
		struct image_node node;

		session_image_node(&r->image, i, &node);
		if (!session_inode_kept(r, &node) && !session_inode_by_handle(r, &node) &&
		    !(node.state & IMAGE_IS_LET_GO))
			r->wanted[r->wanted_count++] =
				(struct wanted){.ino = node.ino, .parent = node.parent, .index = i};
	}
	session_search(r);
	r->report->nodes = r->found;
	for (uint64_t i = 0; i < r->wanted_count; i++) {
		struct image_node node;

		session_image_node(&r->image, r->wanted[i].index, &node);
		if (!r->wanted[i].is_found)
			session_note_loss(r, &(struct restore_loss){.ino = node.ino,
								    .device = node.device,
								    .kind = LOSS_NODE});
	}
}

/* What the guest had forgotten, it has forgotten again. */
static void let_go(struct restore *r)
{
	for (uint64_t i = 0; i < r->image.nodes.count; i++) {
		struct image_node node;

		session_image_node(&r->image, i, &node);
		if (node.state & IMAGE_IS_LET_GO)
			inode_table_forget(r->fs->inodes, &r->fs->reclaim, node.nodeid, UINT64_MAX);
	}
}

/* ---- open files ---- */

/* Return: an fd or -errno. */
static int open_again(struct restore *r, const struct inode *inode, const struct image_file *file)
{
	int fd, err = inode_fd_budget(r->fs);

	if (err)
		return err;
	if (!(file->flags & FILE_IS_DIR))
		return entry_reopen(r->fs, inode, file->open_flags & FLAGS_AGAIN);
	fd = inode_fd(r->fs, inode);
	if (fd < 0)
		return fd;
	fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Return: the fd that has come from the former sandbox, or -1. */
static int kept_fd(struct restore *r, const struct image_file *record)
{
	int fd = session_kept_fd(r, record->fd);

	if (fd < 0 || !record->keeps_fd)
		return session_kept_fd_take(r, record->fd);
	return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

/* The private open file of an owner of record locks, if its fd has come. The guest does not know
 * its fh, which may differ. */
static void restore_lock_owner(struct restore *r, const struct image_file *record)
{
	struct file_table *files = r->fs->files;
	int fd = session_kept_fd_take(r, record->fd);
	struct open_file *file = fd < 0 ? NULL : file_table_reserve(files, r->fs->slot);
	bool is_added = false;

	if (file)
		file_table_add_lock_owner(files, r->fs->slot, file, record->nodeid, record->owner,
					  fd, &is_added);
	if (file && !is_added)
		file_table_abandon(files, r->fs->slot, file);
	if (fd >= 0 && !is_added)
		close(fd);
}

static void restore_file(struct restore *r, const struct image_file *record)
{
	const struct inode *inode = inode_table_get(r->fs->inodes, record->nodeid);
	struct open_file file = {
		.nodeid = record->nodeid,
		.position = record->flags & FILE_IS_DIR ? 0 : record->position,
		.flags = record->flags & ~(uint32_t)FILE_LENDS,
		.open_flags = record->open_flags,
	};

	file.fd = inode ? kept_fd(r, record) : -ESTALE;
	if (file.fd >= 0) {
		file.position = record->position;
	} else {
		file.fd = inode ? open_again(r, inode, record) : -ESTALE;
		if (file.fd < 0) {
			session_note_loss_of(r, inode, LOSS_FILE, file.fd);
			return;
		}
		session_flock(r, &file);
	}
	if (file_table_restore(r->fs->files, record->fh, &file))
		r->report->files++;
	else
		close(file.fd);
}

/* ---- the session ---- */

static void restore_session(struct restore *r)
{
	const struct image_session *session = &r->session;
	struct worker_table *table = r->fs->table;

	table->set_id_modes = session->set_id_modes;
	table->capability_sets = session->capability_sets;
	memcpy(table->staging, session->staging, sizeof(table->staging));
	table->staging[sizeof(table->staging) - 1] = '\0';
	table->session = (struct fuse_session){.minor = session->minor,
					       .flags = session->flags,
					       .offered = session->offered,
					       .number = session->number};
}

static void restore_files(struct restore *r)
{
	struct image_file file;

	for (uint64_t i = 0; i < r->image.files.count; i++) {
		session_image_file(&r->image, i, &file);
		if (!(file.flags & FILE_LOCK_OWNER))
			restore_file(r, &file);
	}
	file_table_restore_end(r->fs->files, r->session.file_slots, r->session.file_gen);
	for (uint64_t i = 0; i < r->image.files.count; i++) {
		session_image_file(&r->image, i, &file);
		if (file.flags & FILE_LOCK_OWNER)
			restore_lock_owner(r, &file);
	}
	session_record_locks(r);
}

static int restore_all(struct restore *r)
{
	uint64_t nodes = r->image.nodes.count;

	session_image_session(&r->image, &r->session);
	r->wanted = calloc(nodes + 1, sizeof(*r->wanted));
	r->directories = calloc(nodes + 1, sizeof(*r->directories));
	r->buffer = malloc(DIR_BUFFER);
	if (!r->wanted || !r->directories || !r->buffer)
		return -ENOMEM;
	restore_session(r);
	restore_nodes(r);
	inode_restore_end(r->fs->inodes, r->session.node_gen);
	restore_files(r);
	let_go(r);
	reclaim_offline(&r->fs->reclaim);
	__atomic_store_n(&r->fs->session->ready, r->session.ready, __ATOMIC_RELEASE);
	return 0;
}

int session_take_over(const struct fs_config *config, const struct restore_source *from,
		      struct restore_report *ret)
{
	struct restore r = {.report = ret, .kept = from->kept, .kept_count = from->kept_count};
	int err = session_image_open(from->image, from->bytes, &r.image);

	r.fs = calloc(1, sizeof(*r.fs));
	if (!err && !r.fs)
		err = -ENOMEM;
	if (!err)
		err = fs_init(r.fs, config);
	if (!err)
		err = credentials_root(&r.fs->credentials);
	if (!err) {
		reclaim_quiescent(&r.fs->reclaim);
		err = restore_all(&r);
	}
	for (uint32_t i = 0; i < r.kept_count; i++) /* of no inode and no open file */
		if (r.kept[i] >= 0)
			close(r.kept[i]);
	free(r.buffer);
	free(r.directories);
	free(r.wanted);
	free(r.fs);
	return err;
}

int session_restore(const struct fs_config *config, const struct image_tables *from,
		    struct restore_report *ret)
{
	struct restore_source source = {0};
	void *image = NULL;
	int64_t bytes = session_image_make(from, &image);
	int err = bytes < 0 ? (int)bytes : 0;

	if (!err) {
		source.image = image;
		source.bytes = (uint64_t)bytes;
		err = session_take_over(config, &source, ret);
	}
	free(image);
	return err;
}
