/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * How a file is found again. Where workers open handles, an inode on the mount of the share needs
 * nothing but its handle: the handle is opened when the guest uses the inode, and the file is
 * compared then, as for an inode that was entered by a name (inode_fd.c). Any other inode is looked
 * for in the directory where the guest saw it last. A directory is listed once, and the listing is
 * compared with all inodes that are to be in that directory: the inode number leads to a name, and
 * the file of that name is opened with O_PATH. A name may have another inode number in the listing
 * than by statx(2): the root of a mount does, and so do files of some overlayfs. So if a directory
 * still lacks an inode after that, every name is opened.
 *
 * Whether it is that file. Device, inode number and type are compared, and the birth time if both
 * are known and the file system keeps birth times. They are read through the very fd that holds the
 * inode from then on. A file that was removed while the guest had it open has no name: it is lost,
 * and so is a file that the host has moved elsewhere. The guest gets ESTALE for such a file, and
 * goes on.
 *
 * Signed handles were signed with a key that is gone. Their inodes are found by name, and signed
 * again if fds are scarce.
 *
 * Order. Directories that were found wait in a queue until they are listed. So the directory of an
 * inode is entered before the inode, and each directory is listed at most once.
 *
 * Trust. See session_image.c. Only names that a directory of the share lists are opened, one
 * component at a time, and no link is followed: as LOOKUP does it.
 */
#include "worker/csrc/fs/node_search.h"

#include "worker/csrc/fs/entry.h"
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

/* A node of the image that is looked for in its directory. */
struct wanted {
	uint64_t ino;
	uint32_t parent; /* slot */
	uint32_t index;	 /* in the image */
	bool is_found;
};

struct search {
	struct fs *fs;
	const struct session_image *image;
	struct restore_report *report;
	uint32_t root_mount;   /* as in the lost sandbox */
	struct wanted *wanted; /* sorted by directory and inode number */
	uint64_t wanted_count;
	uint64_t *directories; /* a queue of nodeids */
	uint64_t directory_count;
	uint8_t *buffer; /* DIR_BUFFER bytes */
};

/* ---- entering ---- */

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

/* Return: false if the table has no such nodeid, or its slot is in use. */
static bool enter(struct search *s, const struct image_node *node, const struct inode *values,
		  const struct inode *parent)
{
	struct inode *inode =
		inode_restore(s->fs->inodes, s->fs->slot, node->nodeid, values, parent);

	if (!inode)
		return false;
	s->report->nodes++;
	if (S_ISDIR(inode->mode))
		s->directories[s->directory_count++] = inode_nodeid(s->fs->inodes, inode);
	return true;
}

/* Enter a node that its handle can hold. Return: false if the node must be looked for. */
static bool enter_by_handle(struct search *s, const struct image_node *node)
{
	const struct inode *root = inode_table_get(s->fs->inodes, FUSE_ROOT_ID);
	struct inode_key key = {.ino = node->ino, .mnt_id = root->mnt_id, .type = node->type};
	struct inode values = values_of(node, key);

	if (!node->handle_len || node->device != s->fs->root_device ||
	    node->mount != s->root_mount || !inode_fd_uses_handles(s->fs, root->mnt_id))
		return false;
	values.handle = handle_of(node);
	values.to_parent = node->parent ? node->parent - (uint32_t)node->nodeid : 0;
	return enter(s, node, &values, NULL);
}

/* Give the inode the handle of `fd` if a handle is to hold it. Return: may fd be closed then? */
static bool take_handle(struct fs *fs, int fd, struct inode *values)
{
	struct handle_signature signature;
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

/* Enter a node whose file `fd` is. The caller closes fd unless *ret_used_fd. Return: was the node
 * entered? */
static bool enter_by_fd(struct search *s, const struct image_node *node, int fd,
			const struct statx *st, const struct inode *parent, bool *ret_used_fd)
{
	struct inode values = values_of(node, identity_key(st));
	bool is_new_mount =
		S_ISDIR(st->stx_mode) && mount_handles_are_unknown(s->fs, values.mnt_id);

	values.btime = identity_birth_time(st);
	if (is_new_mount || !take_handle(s->fs, fd, &values))
		values.fd = fd;
	if ((values.fd >= 0 && !inode_fd_has_budget(s->fs)) || !enter(s, node, &values, parent))
		return false;
	*ret_used_fd = values.fd >= 0;
	if (is_new_mount)
		mount_handles_find_out(s->fs, values.mnt_id, fd);
	return true;
}

/* ---- looking ---- */

static int compare_wanted(const void *left, const void *right)
{
	const struct wanted *a = left, *b = right;

	if (a->parent != b->parent)
		return a->parent < b->parent ? -1 : 1;
	return a->ino < b->ino ? -1 : a->ino > b->ino;
}

/* The first of s->wanted that is not sorted before this directory and number. */
static struct wanted *find_wanted(const struct search *s, uint32_t parent, uint64_t ino)
{
	struct wanted place = {.parent = parent, .ino = ino};
	uint64_t low = 0, high = s->wanted_count;

	while (low < high) {
		uint64_t middle = (low + high) / 2;

		if (compare_wanted(&s->wanted[middle], &place) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return s->wanted + low;
}

static bool is_wanted_in(const struct search *s, const struct wanted *w, uint32_t parent)
{
	return w < s->wanted + s->wanted_count && w->parent == parent;
}

static bool lacks_any(const struct search *s, uint32_t parent)
{
	struct wanted *w = find_wanted(s, parent, 0);

	while (is_wanted_in(s, w, parent) && w->is_found)
		w++;
	return is_wanted_in(s, w, parent);
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

/* Enter the wanted node whose file `fd` is, if there is such a node. Return: is fd in use? */
static bool try_fd(struct search *s, const struct inode *dir, uint32_t parent, int fd)
{
	struct image_node node;
	bool used_fd = false;
	struct statx st;
	struct wanted *w;

	if (identity_stat_fd(fd, &st))
		return false;
	w = find_wanted(s, parent, st.stx_ino);
	for (; is_wanted_in(s, w, parent) && w->ino == st.stx_ino; w++) {
		session_image_node(s->image, w->index, &node);
		if (w->is_found || !is_same_file(&node, fd, &st))
			continue;
		w->is_found = enter_by_fd(s, &node, fd, &st, dir, &used_fd);
		break;
	}
	return used_fd;
}

static void try_name(struct search *s, const struct inode *dir, uint32_t parent, int dir_fd,
		     const char *name)
{
	int fd = entry_open_path(dir_fd, name);

	if (fd >= 0 && !try_fd(s, dir, parent, fd))
		close(fd);
}

static bool lacks_number(const struct search *s, uint32_t parent, uint64_t ino)
{
	const struct wanted *w = find_wanted(s, parent, ino);

	return is_wanted_in(s, w, parent) && w->ino == ino && !w->is_found;
}

/* `all`: try each name, whatever inode number is listed with it. */
static void try_names(struct search *s, const struct inode *dir, uint32_t parent, int dir_fd,
		      bool all)
{
	ssize_t got;

	if (lseek(dir_fd, 0, SEEK_SET) < 0)
		return;
	while ((got = getdents64(dir_fd, s->buffer, DIR_BUFFER)) > 0) {
		for (ssize_t at = 0; at < got;) {
			const struct dirent64 *entry = (const void *)(s->buffer + at);

			at += entry->d_reclen;
			if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
				continue;
			if (all || lacks_number(s, parent, entry->d_ino))
				try_name(s, dir, parent, dir_fd, entry->d_name);
		}
	}
}

static void list(struct search *s, uint64_t nodeid)
{
	const struct inode *dir = inode_table_get(s->fs->inodes, nodeid);
	uint32_t parent = (uint32_t)nodeid;
	int fd;

	if (!dir || !lacks_any(s, parent))
		return;
	fd = inode_fd(s->fs, dir);
	if (fd >= 0)
		fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	try_names(s, dir, parent, fd, false);
	if (lacks_any(s, parent))
		try_names(s, dir, parent, fd, true);
	close(fd);
}

/* ---- the whole image ---- */

/* Enter the nodes that their handles can hold, and make the list of the other nodes. A node that
 * the guest has forgotten is not worth a search. */
static void sort_out(struct search *s)
{
	for (uint32_t i = 0; i < s->image->nodes.count; i++) {
		struct image_node node;

		session_image_node(s->image, i, &node);
		if (!enter_by_handle(s, &node) && !(node.state & IMAGE_IS_LET_GO))
			s->wanted[s->wanted_count++] =
				(struct wanted){.ino = node.ino, .parent = node.parent, .index = i};
	}
	qsort(s->wanted, s->wanted_count, sizeof(*s->wanted), compare_wanted);
}

static void report_lost(const struct search *s)
{
	for (uint64_t i = 0; i < s->wanted_count; i++) {
		struct image_node node;

		session_image_node(s->image, s->wanted[i].index, &node);
		if (!s->wanted[i].is_found)
			restore_report_loss(s->report, &(struct restore_loss){.ino = node.ino,
									      .device = node.device,
									      .error = -ESTALE});
	}
}

static int allocate(struct search *s)
{
	uint64_t count = s->image->nodes.count + 1; /* the root is not in the image */

	s->wanted = calloc(count, sizeof(*s->wanted));
	s->directories = calloc(count, sizeof(*s->directories));
	s->buffer = malloc(DIR_BUFFER);
	return s->wanted && s->directories && s->buffer ? 0 : -ENOMEM;
}

int node_search(struct fs *fs, const struct session_image *image, struct restore_report *report)
{
	struct search s = {.fs = fs, .image = image, .report = report};
	struct image_session session;
	int err = allocate(&s);

	session_image_session(image, &session);
	s.root_mount = session.root_mount;
	if (!err) {
		s.directories[s.directory_count++] = FUSE_ROOT_ID;
		sort_out(&s);
		for (uint64_t i = 0; i < s.directory_count; i++)
			list(&s, s.directories[i]);
		report_lost(&s);
	}
	free(s.buffer);
	free(s.directories);
	free(s.wanted);
	return err;
}
