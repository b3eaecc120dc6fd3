/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. The sandbox was lost, and with it every fd of the share. From the session image
 * (session_image.c) this builds what the workers of the next sandbox begin with: nodeids and fhs
 * are the same numbers, so the guest sees a pause.
 *
 * Inodes are found again by node_search.c.
 *
 * Open files are opened again by their inode, as OPEN does it (entry_reopen). A directory needs no
 * position: each READDIR brings the offset from which the guest goes on.
 *
 * Locks ended with the fds, and another program may have taken them by now: they are lost, and
 * counted.
 *
 * Trust. See session_image.c.
 *
 * Order. `ready` of the session is set last. If the process dies before that, the tables are thrown
 * away with the sandbox, and the next sandbox begins again.
 */
#include "worker/csrc/fs/session_restore.h"

#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/fs_init.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/node_search.h"
#include "worker/csrc/tables/inode_restore.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	FLAGS_AGAIN = O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC | O_DIRECT | O_NOATIME,
};

struct restore {
	struct fs *fs;
	struct session_image image;
	struct image_session session;
	struct restore_report *report;
};

/* ---- open files ---- */

/* Return: an fd or -errno. */
static int open_again(struct fs *fs, const struct inode *inode, const struct image_file *file)
{
	int fd, err = inode_fd_budget(fs);

	if (err)
		return err;
	if (!(file->flags & FILE_IS_DIR))
		return entry_reopen(fs, inode, file->open_flags & FLAGS_AGAIN);
	fd = inode_fd(fs, inode);
	if (fd < 0)
		return fd;
	fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Enter the file that was opened again as `fd`. */
static void enter_file(struct restore *r, const struct image_file *record, int fd)
{
	struct open_file file = {
		.nodeid = record->nodeid,
		.position = record->flags & FILE_IS_DIR ? 0 : record->position,
		.fd = fd,
		.flags = record->flags & ~(uint32_t)(FILE_LENDS | FILE_FLOCKED),
		.open_flags = record->open_flags,
	};

	if (file_table_restore(r->fs->files, record->fh, &file))
		r->report->files++;
	else
		close(fd);
}

static void restore_file(struct restore *r, const struct image_file *record)
{
	const struct inode *inode = inode_table_get(r->fs->inodes, record->nodeid);
	int fd;

	if (record->flags & (FILE_LOCK_OWNER | FILE_FLOCKED))
		r->report->lost_locks++;
	if (record->flags & FILE_LOCK_OWNER)
		return; /* the guest has not opened this file: it only held locks */
	if (!inode) {
		r->report->lost_files++; /* node_search() has named the inode */
		return;
	}
	fd = open_again(r->fs, inode, record);
	if (fd < 0)
		restore_report_loss(r->report, &(struct restore_loss){.ino = inode->ino,
								      .device = inode_key_device(
									      inode_key_of(inode)),
								      .error = fd,
								      .was_open = true});
	else
		enter_file(r, record, fd);
}

static void restore_files(struct restore *r)
{
	for (uint64_t i = 0; i < r->image.files.count; i++) {
		struct image_file file;

		session_image_file(&r->image, i, &file);
		restore_file(r, &file);
	}
	file_table_restore_end(r->fs->files, r->session.file_slots, r->session.file_gen);
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

/* Forget the inodes that the guest had forgotten; the table may keep them (forgotten.c). */
static void let_go(struct restore *r)
{
	for (uint64_t i = 0; i < r->image.nodes.count; i++) {
		struct image_node node;

		session_image_node(&r->image, i, &node);
		if (node.state & IMAGE_IS_LET_GO)
			inode_table_forget(r->fs->inodes, &r->fs->reclaim, node.nodeid, UINT64_MAX);
	}
}

static int restore_all(struct restore *r)
{
	int err;

	reclaim_quiescent(&r->fs->reclaim);
	session_image_session(&r->image, &r->session);
	restore_session(r);
	err = node_search(r->fs, &r->image, r->report);
	if (err)
		return err;
	inode_restore_end(r->fs->inodes, r->session.node_gen);
	restore_files(r);
	let_go(r);
	reclaim_offline(&r->fs->reclaim);
	__atomic_store_n(&r->fs->session->ready, r->session.ready, __ATOMIC_RELEASE);
	return 0;
}

/* Make the image, which the caller frees also after an error, and open it. Return: 0 or -errno. */
static int read_image(const struct image_tables *from, void **ret_image, struct session_image *ret)
{
	int64_t bytes = session_image_make(from, ret_image);

	return bytes < 0 ? (int)bytes : session_image_open(*ret_image, (uint64_t)bytes, ret);
}

int session_restore(const struct fs_config *config, const struct image_tables *from,
		    struct restore_report *ret)
{
	struct restore r = {.fs = calloc(1, sizeof(*r.fs)), .report = ret};
	void *image = NULL;
	int err = r.fs ? read_image(from, &image, &r.image) : -ENOMEM;

	if (!err)
		err = fs_init(r.fs, config);
	if (!err)
		err = credentials_root(&r.fs->credentials);
	if (!err)
		err = restore_all(&r);
	free(r.fs);
	free(image);
	return err;
}
