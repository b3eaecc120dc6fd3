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
 * Signed handles were signed with a key that is gone. Their inodes are found by name, and signed
 * again if there are not enough fds.
 *
 * Open files are opened again by their inode, as OPEN does it (entry_reopen). A directory needs no
 * position: each READDIR brings the offset from which the guest goes on.
 *
 * Locks ended with the fds, and another program may have taken them by now: they are lost, and
 * counted.
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
#include "worker/csrc/fs/mount_handles.h"
#include "worker/csrc/host/file_system.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/tables/inode_restore.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	FLAGS_AGAIN = O_ACCMODE | O_APPEND | O_SYNC | O_DSYNC | O_DIRECT | O_NOATIME,
};

/* A node of the image that is looked for by its directory. They are sorted by directory and inode
 * number. */
struct wanted {
	uint64_t ino;
	uint32_t parent; /* slot */
	uint32_t index;	 /* in the image */
	bool is_found;
};

struct restore {
	struct fs *fs;
	struct session_image image;
	struct image_session session;
	struct restore_report *report;
	struct wanted *wanted;
	uint64_t wanted_count;
	uint64_t *directories; /* nodeids of directories that are to be listed: a queue */
	uint64_t directory_count;
	uint8_t *buffer; /* DIR_BUFFER bytes */
};

static void note_loss(struct restore *r, const struct image_node *node, int error, bool was_open)
{
	uint64_t *count = was_open ? &r->report->lost_files : &r->report->lost_nodes;
	struct restore_report *report = r->report;

	++*count;
	if (report->loss_count < LOSSES_NAMED)
		report->losses[report->loss_count++] = (struct restore_loss){
			.ino = node->ino,
			.device = node->device,
			.error = error,
			.was_open = was_open,
		};
}

/* ---- inodes ---- */

static struct fhandle handle_of(const struct image_node *node)
{
	struct fhandle handle = {.type = node->handle_type, .len = node->handle_len};

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
	r->report->nodes++;
	will_list(r, inode);
	return true;
}

/* An inode whose handle is all that is needed. Return: false if it must be looked for. */
static bool enter_by_handle(struct restore *r, const struct image_node *node)
{
	const struct inode *root = inode_table_get(r->fs->inodes, FUSE_ROOT_ID);
	struct inode_key key = {.ino = node->ino, .mnt_id = root->mnt_id, .type = node->type};
	struct inode values = values_of(node, key);

	if (!node->handle_len || node->device != r->fs->root_device ||
	    node->mount != r->session.root_mount || !inode_fd_uses_handles(r->fs, root->mnt_id))
		return false;
	values.handle = handle_of(node);
	values.to_parent = node->parent ? node->parent - (uint32_t)node->nodeid : 0;
	return enter(r, node, &values, NULL);
}

static bool is_same_file(const struct image_node *node, int fd, const struct statx *st)
{
	struct inode_key key = identity_key(st);
	int64_t btime = identity_birth_time(st);

	if (key.ino != node->ino || key.type != node->type || inode_key_device(key) != node->device)
		return false;
	return !btime || !node->btime || btime == node->btime ||
	       file_system_facts(fd) & FS_NEW_BIRTHS;
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

/* `fd` is this node's file: it becomes the inode's or is closed. Return: 0 or -errno. */
static int enter_by_fd(struct restore *r, const struct image_node *node, int fd,
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

/* ---- looking for inodes ---- */

static int compare_wanted(const void *left, const void *right)
{
	const struct wanted *a = left, *b = right;

	if (a->parent != b->parent)
		return a->parent < b->parent ? -1 : 1;
	return a->ino < b->ino ? -1 : a->ino > b->ino;
}

/* The first of r->wanted that is not before this place. */
static struct wanted *find_wanted(const struct restore *r, uint32_t parent, uint64_t ino)
{
	struct wanted place = {.parent = parent, .ino = ino};
	uint64_t low = 0, high = r->wanted_count;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (compare_wanted(&r->wanted[middle], &place) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return r->wanted + low;
}

static bool is_wanted_in(const struct restore *r, const struct wanted *w, uint32_t parent)
{
	return w < r->wanted + r->wanted_count && w->parent == parent;
}

static bool lacks_any(const struct restore *r, uint32_t parent)
{
	struct wanted *w = find_wanted(r, parent, 0);

	while (is_wanted_in(r, w, parent) && w->is_found)
		w++;
	return is_wanted_in(r, w, parent);
}

/* Open a name, and enter the wanted inode that it is, if it is one. */
static void try_name(struct restore *r, const struct inode *dir, int dir_fd, const char *name,
		     uint32_t parent)
{
	int fd = entry_open_path(dir_fd, name);
	struct wanted *w;
	struct statx st;

	if (fd < 0)
		return;
	if (identity_stat_fd(fd, &st)) {
		close(fd);
		return;
	}
	for (w = find_wanted(r, parent, st.stx_ino);
	     is_wanted_in(r, w, parent) && w->ino == st.stx_ino; w++) {
		struct image_node node;

		session_image_node(&r->image, w->index, &node);
		if (w->is_found || !is_same_file(&node, fd, &st))
			continue;
		w->is_found = !enter_by_fd(r, &node, fd, &st, dir);
		return;
	}
	close(fd);
}

static bool is_listed_inode(const struct restore *r, uint32_t parent, uint64_t ino)
{
	const struct wanted *w = find_wanted(r, parent, ino);

	return is_wanted_in(r, w, parent) && w->ino == ino && !w->is_found;
}

/* `all`: try each name, whatever inode number is listed with it. */
static void try_names(struct restore *r, const struct inode *dir, int dir_fd, uint32_t parent,
		      bool all)
{
	ssize_t got;

	if (lseek(dir_fd, 0, SEEK_SET) < 0)
		return;
	while ((got = getdents64(dir_fd, r->buffer, DIR_BUFFER)) > 0) {
		for (ssize_t at = 0; at < got;) {
			const struct dirent64 *entry = (const void *)(r->buffer + at);

			at += entry->d_reclen;
			if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
				continue;
			if (all || is_listed_inode(r, parent, entry->d_ino))
				try_name(r, dir, dir_fd, entry->d_name, parent);
		}
	}
}

static void list(struct restore *r, uint64_t nodeid)
{
	const struct inode *dir = inode_table_get(r->fs->inodes, nodeid);
	uint32_t parent = (uint32_t)nodeid;
	int fd;

	if (!dir || !lacks_any(r, parent))
		return;
	fd = inode_fd(r->fs, dir);
	if (fd >= 0)
		fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	try_names(r, dir, fd, parent, false);
	if (lacks_any(r, parent))
		try_names(r, dir, fd, parent, true);
	close(fd);
}

static void restore_nodes(struct restore *r)
{
	r->directories[r->directory_count++] = FUSE_ROOT_ID;
	for (uint32_t i = 0; i < r->image.nodes.count; i++) {
		struct image_node node;

		session_image_node(&r->image, i, &node);
		if (!enter_by_handle(r, &node) && !(node.state & IMAGE_IS_LET_GO))
			r->wanted[r->wanted_count++] =
				(struct wanted){.ino = node.ino, .parent = node.parent, .index = i};
	}
	qsort(r->wanted, r->wanted_count, sizeof(*r->wanted), compare_wanted);
	for (uint64_t i = 0; i < r->directory_count; i++)
		list(r, r->directories[i]);
	for (uint64_t i = 0; i < r->wanted_count; i++) {
		struct image_node node;

		session_image_node(&r->image, r->wanted[i].index, &node);
		if (!r->wanted[i].is_found)
			note_loss(r, &node, -ESTALE, false);
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

static void restore_file(struct restore *r, const struct image_file *record)
{
	const struct inode *inode = inode_table_get(r->fs->inodes, record->nodeid);
	struct image_node lost;
	struct open_file file = {
		.nodeid = record->nodeid,
		.position = record->flags & FILE_IS_DIR ? 0 : record->position,
		.flags = record->flags & ~(uint32_t)(FILE_LENDS | FILE_FLOCKED),
		.open_flags = record->open_flags,
	};

	if (record->flags & (FILE_LOCK_OWNER | FILE_FLOCKED))
		r->report->lost_locks++;
	if (record->flags & FILE_LOCK_OWNER)
		return; /* it has held nothing but locks */
	if (!inode) {
		r->report->lost_files++; /* the loss of its inode was noted */
		return;
	}
	lost = (struct image_node){.ino = inode->ino,
				   .device = inode_key_device(inode_key_of(inode))};
	file.fd = open_again(r, inode, record);
	if (file.fd < 0) {
		note_loss(r, &lost, file.fd, true);
		return;
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
	for (uint64_t i = 0; i < r->image.files.count; i++) {
		struct image_file file;

		session_image_file(&r->image, i, &file);
		restore_file(r, &file);
	}
	file_table_restore_end(r->fs->files, r->session.file_slots, r->session.file_gen);
	let_go(r);
	reclaim_offline(&r->fs->reclaim);
	__atomic_store_n(&r->fs->session->ready, r->session.ready, __ATOMIC_RELEASE);
	return 0;
}

int session_restore(const struct fs_config *config, const struct image_tables *from,
		    struct restore_report *ret)
{
	struct restore r = {.report = ret};
	void *image = NULL;
	int64_t bytes = session_image_make(from, &image);
	int err = bytes < 0 ? (int)bytes : session_image_open(image, (uint64_t)bytes, &r.image);

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
	free(r.buffer);
	free(r.directories);
	free(r.wanted);
	free(r.fs);
	free(image);
	return err;
}
