/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * If a file is removed while anything holds its directory entry, the NFS client renames the file to
 * .nfsXXXX instead, and removes that name when the last fd is closed, O_PATH fds included. A
 * directory with such a name is not empty, so `rm -r` fails. The daemon holds an O_PATH fd of each
 * file that the guest knows.
 *
 * So before UNLINK, and before RENAME to a name that exists, the worker looks up the file. If the
 * guest does not have the file open, the inode loses its fd and is stale from then on. An fd of a
 * file that the guest has released and the daemon has not closed yet is closed as well. If the op
 * fails, the inode gets an fd again. A file that has other names becomes stale also: Linux looks
 * the file up again by the name that it used, and finds a new inode.
 *
 * A file that the guest has open when it is removed does become .nfsXXXX. When the guest releases
 * the file, the inode becomes stale: Linux does not forget the inode by itself, since the NFS
 * client reports one link.
 *
 * Other workers may be using the fd at this moment, and each worker closes what it has retired
 * itself. If that takes longer than a moment, the file becomes .nfsXXXX until the fd is closed.
 * RMDIR then waits, but only for a limited time, and only if the directory is small and contains no
 * other names.
 *
 * Death. The fd that was taken out of the table is found by the pool's sweep. The request is run
 * again and removes the name. If that removal fails, the guest looks up the file again.
 */
#include "worker/csrc/fs/silly_rename.h"

#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/mount_facts.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/proc_fd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

enum {
	TRIES_MAX = 500, /* tries of RMDIR, a millisecond apart */
	NAMES_ROOM = 4096,
	READS_MAX = 16, /* reads of a directory, enough for about a thousand names .nfsXXXX */
};

static const char silly_prefix[] = ".nfs";

bool silly_rename_concerns(struct fs *fs, const struct inode *inode)
{
	return inode && mount_fact_of(fs, inode)->silly_renames;
}

/* The fd of the directory. Leaves root acting. */
static int open_dir(struct fs *fs, uint64_t dir)
{
	const struct inode *parent = inode_table_get(fs->inodes, dir);
	int fd = parent ? inode_fd(fs, parent) : -ESTALE;
	int err = fd < 0 ? fd : credentials_root(&fs->credentials);

	return err ? err : fd;
}

/* The nodeid of the file, with one more lookup, which the caller must forget; 0: the guest does not
 * know the file. */
static uint64_t look_up(struct fs *fs, uint64_t dir, const char *name, struct given_up *ret)
{
	int dir_fd = open_dir(fs, dir);
	const struct inode *inode;
	struct statx st;

	if (dir_fd < 0 || identity_stat_name(dir_fd, name, &st) || S_ISDIR(st.stx_mode))
		return 0;
	ret->key = identity_key(&st);
	ret->btime = identity_birth_time(&st);
	inode = inode_table_acquire(fs->inodes, fs->slot, ret->key, ret->btime);
	return inode ? inode_nodeid(fs->inodes, inode) : 0;
}

__attribute__((noinline, cold)) void silly_rename_prevent(struct fs *fs, uint64_t dir,
							  const char *name, struct given_up *ret)
{
	uint64_t nodeid = look_up(fs, dir, name, ret);
	bool is_open = nodeid && file_table_of_inode(fs->files, nodeid, 0);

	/* This closes the files that were released. An inode that borrowed the fd of a released
	 * file gets an fd of its own. */
	reclaim_flush(&fs->reclaim);
	if (!nodeid)
		return;
	inode_table_forget(fs->inodes, &fs->reclaim, nodeid, 1);
	if (is_open)
		return;
	inode_table_give_up_fd(fs->inodes, &fs->reclaim, nodeid);
	reclaim_flush(&fs->reclaim);
	ret->nodeid = nodeid;
}

/* Another file may have got the inode number: nothing holds the file that was given up. */
static bool is_file(int fd, const struct given_up *gone)
{
	struct statx st;

	return !identity_stat_fd(fd, &st) && inode_key_equal(identity_key(&st), gone->key) &&
	       identity_birth_time(&st) == gone->btime;
}

static __attribute__((noinline, cold)) void give_back(struct fs *fs, uint64_t dir, const char *name,
						      const struct given_up *gone)
{
	const struct inode *inode = inode_table_get(fs->inodes, gone->nodeid);
	int dir_fd = open_dir(fs, dir);
	int fd = inode && dir_fd >= 0 ? entry_open_path(dir_fd, name) : -ESTALE;

	if (fd < 0)
		return;
	if (is_file(fd, gone))
		(void)!inode_table_cache_fd(fs->inodes, &fs->reclaim, inode, fd);
	else
		close(fd);
}

void silly_rename_done(struct fs *fs, uint64_t dir, const char *name, const struct given_up *gone,
		       int result)
{
	if (result < 0 && gone->nodeid)
		give_back(fs, dir, name, gone);
}

static bool is_silly(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..") ||
	       !strncmp(name, silly_prefix, sizeof(silly_prefix) - 1);
}

bool silly_rename_happened(struct fs *fs, uint64_t nodeid, int fd)
{
	char fd_name[FD_NAME], path[PATH_MAX];
	const char *name;
	ssize_t len;

	if (!silly_rename_concerns(fs, inode_table_get(fs->inodes, nodeid)))
		return false;
	len = readlinkat(fs->proc_self_fd, proc_fd_name(fd, fd_name), path, sizeof(path) - 1);
	if (len < 0)
		return false;
	path[len] = '\0';
	name = strrchr(path, '/');
	return name && !strncmp(name + 1, silly_prefix, sizeof(silly_prefix) - 1);
}

void silly_rename_released(struct fs *fs, uint64_t nodeid)
{
	reclaim_flush(&fs->reclaim); /* an inode that borrowed the fd then has its own */
	if (file_table_of_inode(fs->files, nodeid, 0))
		return;
	inode_table_give_up_fd(fs->inodes, &fs->reclaim, nodeid);
	reclaim_flush(&fs->reclaim);
}

/* Are all names in `buffer` silly ones? */
static bool are_silly(const uint8_t *buffer, uint32_t len)
{
	const struct dirent64 *entry;

	for (uint32_t at = 0; at < len; at += entry->d_reclen) {
		entry = (const struct dirent64 *)(const void *)(buffer + at);
		if (!is_silly(entry->d_name))
			return false;
	}
	return true;
}

/* A guest can give a file such a name itself, and a directory is read once for each try of RMDIR.
 * So a large directory counts as one with other names. */
static bool has_only_silly_names(int dir_fd, const char *name)
{
	_Alignas(struct dirent64) uint8_t buffer[NAMES_ROOM];
	int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	bool only = fd >= 0;
	uint32_t reads = 0;
	ssize_t got = 0;

	while (only && (got = getdents64(fd, buffer, sizeof(buffer))) > 0)
		only = reads++ < READS_MAX && are_silly(buffer, (uint32_t)got);
	if (fd >= 0)
		close(fd);
	return only && !got;
}

bool silly_rename_passes(struct fs *fs, uint64_t dir, const char *name, uint32_t *tries)
{
	int dir_fd;

	if (!silly_rename_concerns(fs, inode_table_get(fs->inodes, dir)) || ++*tries > TRIES_MAX)
		return false;
	dir_fd = open_dir(fs, dir);
	if (dir_fd < 0 || !has_only_silly_names(dir_fd, name))
		return false;
	reclaim_flush(&fs->reclaim);
	reclaim_pause(&fs->reclaim);
	return true;
}
