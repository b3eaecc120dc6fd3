/* SPDX-License-Identifier: Apache-2.0 */
/* LOOKUP, FORGET, BATCH_FORGET. */
#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/inode_forget.h"
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

enum {
	DEPTH_MAX = 4096, /* at most this number of directories between a file and the root */
	LOOKS_MAX = 4, /* for an inode that leaves the table and comes back while it is looked up */
};

/*
 * Is this directory the root of the share, or below it? A process of the host may have moved the
 * directory out of the share while the guest knew it, and with sandbox=none nothing else keeps ".."
 * inside the share. Return: 0; -ESTALE if it is not; -errno.
 */
static int check_below(int dir_fd, struct inode_key root)
{
	struct inode_key here, below = {0};
	struct statx st;
	int fd = dir_fd, err = 0;

	for (int depth = 0; depth < DEPTH_MAX; depth++) {
		int up;

		err = identity_stat_fd(fd, &st);
		if (err)
			break;
		here = identity_key(&st);
		if (inode_key_equal(here, root))
			break;
		err = -ESTALE;
		if (inode_key_equal(here, below)) /* the host's root directory is its own parent */
			break;
		below = here;
		up = entry_open_path(fd, "..");
		if (fd != dir_fd)
			close(fd);
		if (up < 0)
			return up;
		fd = up;
	}
	if (fd != dir_fd)
		close(fd);
	return err;
}

/* Look up ".." of a directory. A guest that exports the share by NFS asks for it. */
static int lookup_parent(struct fs *fs, const struct inode *dir, struct fuse_entry_out *ret)
{
	const struct inode *root = inode_table_get(fs->inodes, FUSE_ROOT_ID);
	struct inode_key root_key, key;
	struct statx st;
	int fd, err;

	if (dir == root)
		return entry_again(fs, root, ret);
	if (!S_ISDIR(dir->mode))
		return -ENOTDIR;
	err = inode_fd_budget(fs);
	if (!err)
		err = identity_stat_fd(fs->root_fd, &st);
	if (err)
		return err;
	root_key = identity_key(&st);
	fd = inode_fd(fs, dir);
	if (fd >= 0)
		fd = entry_open_path(fd, "..");
	if (fd < 0)
		return fd;
	err = check_below(fd, root_key);
	if (!err)
		err = identity_stat_fd(fd, &st);
	key = identity_key(&st);
	if (!err && !inode_key_equal(key, root_key))
		return entry_from_path_fd(fs, NULL, fd, ret);
	close(fd);
	return err ? err : entry_again(fs, root, ret);
}

static inline __attribute__((always_inline)) int
lookup(struct fs *fs, const struct inode *parent, const char *name, struct fuse_entry_out *ret)
{
	int err;

	if (!strcmp(name, "."))
		return entry_again(fs, parent, ret);
	if (!strcmp(name, ".."))
		return lookup_parent(fs, parent, ret);
	err = request_check_name(name);
	return err ? err : entry_lookup(fs, parent, name, ret);
}

/* LOOKUP of "." or ".." of an inode that the guest has forgotten: a guest that exports the share by
 * NFS asks for that. The inode itself comes back with ".". */
static int lookup_forgotten(struct fs *fs, uint64_t nodeid, const char *name,
			    struct fuse_entry_out *ret)
{
	const struct inode *inode;
	int err;

	err = inode_recall(fs, nodeid, &inode);
	if (err)
		return err;
	err = lookup(fs, inode, name, ret);
	inode_table_forget(fs->inodes, &fs->reclaim, nodeid, 1);
	return err;
}

/*
 * LOOKUP of an inode that was not there, or that left the table in the meantime. The guest may ask
 * for "." while its FORGET of the same inode is served by another worker: then the inode is in use
 * for one look, and let go for the next look, or the reverse.
 */
static __attribute__((noinline, cold)) int
lookup_stale(struct fs *fs, uint64_t nodeid, const char *name, struct fuse_entry_out *ret)
{
	int err = -ESTALE;

	if (strcmp(name, ".") && strcmp(name, ".."))
		return -ESTALE;
	for (int looks = 0; err == -ESTALE && looks < LOOKS_MAX; looks++) {
		const struct inode *inode = inode_table_get(fs->inodes, nodeid);

		err = inode ? lookup(fs, inode, name, ret)
			    : lookup_forgotten(fs, nodeid, name, ret);
	}
	return err;
}

/* May the reply say for how long a name does not exist? Guests other than Linux may take nodeid 0
 * for an inode. */
static bool reports_absence(const struct fs *fs, const char *name)
{
	return name[0] && (fs->policy.negative_timeout.sec || fs->policy.negative_timeout.nsec) &&
	       is_linux(fs->session);
}

/* nodeid 0: the name does not exist, and the guest may rely on that for the given time. */
static void negative_entry(const struct fs *fs, struct fuse_entry_out *ret)
{
	memset(ret, 0, sizeof(*ret));
	entry_timeout(&fs->policy.negative_timeout, &ret->entry_valid, &ret->entry_valid_nsec);
}

int op_lookup(struct fs *fs, struct request *r)
{
	const struct inode *parent = inode_table_get(fs->inodes, r->in.nodeid);
	struct fuse_entry_out *ret = REQUEST_REPLY(r, struct fuse_entry_out);
	int err = request_need_room(r, sizeof(*ret));

	if (strnlen(r->payload, r->payload_len) == r->payload_len)
		return parent ? -EINVAL : -ESTALE; /* the name is not terminated */
	if (!err)
		err = credentials_root(&fs->credentials);
	if (!err)
		err = parent ? lookup(fs, parent, r->payload, ret) : -ESTALE;
	if (err == -ESTALE)
		err = lookup_stale(fs, r->in.nodeid, r->payload, ret);
	if (err == -ENOENT && reports_absence(fs, r->payload)) {
		negative_entry(fs, ret);
		err = 0;
	}
	return err ? err : (int)sizeof(*ret);
}

int op_forget(struct fs *fs, struct request *r)
{
	inode_forget(fs, r->in.nodeid, REQUEST_ARG(r, struct fuse_forget_in)->nlookup);
	return OUTCOME_NO_REPLY;
}

/* The payload is fuse_batch_forget_in, and then `count` times fuse_forget_one. */
int op_batch_forget(struct fs *fs, struct request *r)
{
	uint32_t count = REQUEST_ARG(r, struct fuse_batch_forget_in)->count;
	struct fuse_forget_one one;

	if (count > r->payload_len / sizeof(one))
		return OUTCOME_NO_REPLY; /* malformed: a leaked lookup is better than a lost one */
	for (uint32_t i = 0; i < count; i++) {
		memcpy(&one, r->payload + i * sizeof(one), sizeof(one));
		inode_forget(fs, one.nodeid, one.nlookup);
	}
	return OUTCOME_NO_REPLY;
}
