/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How the inodes of a lost sandbox are looked for by name. The theory is in session_restore.c.
 *
 * First each directory is listed once, and only the inodes that the guest saw there last are looked
 * for in it. A file with two names may have lost the name by which the guest saw it last, and a
 * rename may have been under way. So then all directories that the guest knows are listed, for the
 * inodes that are left, in the time of EVERYWHERE_NS: the guest waits.
 */
#include "worker/csrc/fs/session_search.h"

#include "transport/csrc/clock.h"
#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/host/file_system.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/tables/inode_table.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	ANYWHERE = 0, /* no directory has this slot */
	EVERYWHERE_NS = 500 * 1000 * 1000,
};

static bool is_same_file(const struct image_node *node, int fd, const struct statx *st)
{
	struct inode_key key = identity_key(st);
	int64_t btime = identity_birth_time(st);

	if (key.ino != node->ino || key.type != node->type || inode_key_device(key) != node->device)
		return false;
	return !btime || !node->btime || btime == node->btime ||
	       file_system_facts(fd) & FS_NEW_BIRTHS;
}

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
		w->is_found = !session_inode_by_fd(r, &node, fd, &st, dir);
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

/* Look in a directory for the inodes that are wanted in `parent`, a slot or ANYWHERE. */
static void look_in(struct restore *r, uint64_t nodeid, uint32_t parent)
{
	const struct inode *dir = inode_table_get(r->fs->inodes, nodeid);
	int fd;

	if (!dir || !lacks_any(r, parent))
		return;
	fd = inode_fd(r->fs, dir);
	if (fd >= 0)
		fd = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	try_names(r, dir, fd, parent, false);
	if (parent != ANYWHERE && lacks_any(r, parent))
		try_names(r, dir, fd, parent, true);
	close(fd);
}

static void sort(struct restore *r)
{
	qsort(r->wanted, r->wanted_count, sizeof(*r->wanted), compare_wanted);
}

/* Look for what is left in all directories that were found. A directory that is found on the way
 * is looked into as well. */
static void look_everywhere(struct restore *r)
{
	uint64_t deadline = clock_ns() + EVERYWHERE_NS;

	for (uint64_t i = 0; i < r->wanted_count; i++)
		if (!r->wanted[i].is_found)
			r->wanted[i].parent = ANYWHERE;
	sort(r);
	for (uint64_t i = 0; i < r->directory_count && clock_ns() < deadline; i++)
		look_in(r, r->directories[i], ANYWHERE);
}

void session_search(struct restore *r)
{
	if (!r->wanted_count)
		return;
	sort(r);
	for (uint64_t i = 0; i < r->directory_count; i++)
		look_in(r, r->directories[i], (uint32_t)r->directories[i]);
	look_everywhere(r);
}
