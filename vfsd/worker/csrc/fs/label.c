/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. The guest's kernel sends the security label of a new file with the request that creates
 * it. A file that could be found without its label, however shortly, would be served under the
 * wrong one: the guest's kernel reads it once and keeps it. So a name appears labelled or not at
 * all, whenever the worker dies.
 *
 * Regular files are made without a name (O_TMPFILE), labelled, and linked to their name. That is
 * one step for everybody who looks; a file that is not linked yet ends with its fd, which the pool
 * closes after a death (sweep.py).
 *
 * Directories, symlinks, devices, FIFOs and sockets cannot be made without a name, nor can regular
 * files where O_TMPFILE is unknown. They are made under a staged name in the same directory (so
 * that default ACL, group and quota are those of the directory), labelled, and renamed with
 * RENAME_NOREPLACE. A file system that knows neither gets EOPNOTSUPP.
 *
 * The staged name is a secret of this pool's, the ring and the descriptor head. A secret: no guest
 * of this daemon can guess it, and READDIR does not tell it (label_hides), so no guest meets the
 * file. Ring and head: no two requests in flight have the same, and a request that is run again
 * has the same again.
 *
 * Death. The successor runs the request again, since its head is in flight. It finds what is left
 * under the staged name by making that name anew (EEXIST), removes it and starts over. If the
 * rename had happened it finds the final name taken, as every creating op does (request.replayed).
 * A request that is answered with EIO after two deaths is not run: label_forsake removes it then.
 *
 * What remains possible. Somebody on the host, or the guest of another daemon, who lists the
 * directory within these microseconds sees a ".vfsd-…" name whose file has no label yet. If the
 * guest resets the ring while its worker is dead, or the whole pool is killed, one such name may
 * stay; it belongs to no file that was ever reported to the guest and may be removed.
 *
 * Who. The file is made as the requesting user, labelled and moved as root: attributes of the
 * namespaces security and trusted are root's to set.
 */
#include "worker/csrc/fs/label.h"

#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/requester.h"
#include "worker/csrc/host/proc_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

enum {
	STAGED_NAME = sizeof(((struct worker_table *)0)->staging) + 24,
};

/* ---- labels ---- */

int label_set(struct fs *fs, const struct request *r, int fd)
{
	const uint8_t *at = r->labels;
	uint32_t left = r->labels_len;
	char path[FD_NAME], host[XATTRMAP_NAME];
	struct request_label label;
	int err = credentials_root(&fs->credentials);

	proc_fd_name(fd, path);
	for (uint32_t i = 0; !err && i < r->label_count; i++) {
		if (!request_next_label(&at, &left, &label))
			return -EINVAL;
		err = xattrmap_to_host(&fs->policy.xattrmap, label.name, host);
		if (!err && setxattr(path, host, label.value, label.size, 0) < 0)
			err = -errno;
	}
	return err;
}

/* ---- under a staged name ---- */

static void staged_name(const struct fs *fs, const struct request *r, char ret[static STAGED_NAME])
{
	snprintf(ret, STAGED_NAME, "%s-%u-%u", fs->table->staging, r->queue,
		 (unsigned int)r->chain.head);
}

bool label_hides(const struct fs *fs, const char *name)
{
	const char *staging = fs->table->staging;

	return fs->session->flags & FUSE_SECURITY_CTX && name[0] == staging[0] &&
	       !strncmp(name, staging, strlen(staging));
}

/* Whatever it is; a directory of ours is empty. */
static int remove_staged(struct fs *fs, int dir_fd, const char *staged)
{
	int err = credentials_root(&fs->credentials);

	if (err)
		return err;
	if (!unlinkat(dir_fd, staged, 0) || errno == ENOENT)
		return 0;
	return errno == EISDIR && !unlinkat(dir_fd, staged, AT_REMOVEDIR) ? 0 : -errno;
}

/* Make it under its staged name, where a dead worker may have left one. */
static int stage(struct fs *fs, const struct request *r, int dir_fd, const char *staged,
		 make_fn *make)
{
	int err = make(r, dir_fd, staged);

	if (err != -EEXIST)
		return err;
	err = remove_staged(fs, dir_fd, staged);
	if (!err)
		err = requester_act(fs, r, fs->credentials.umask);
	return err ? err : make(r, dir_fd, staged);
}

static int label_name(struct fs *fs, const struct request *r, int dir_fd, const char *staged)
{
	int err = credentials_root(&fs->credentials);
	int fd = err ? err : entry_open_path(dir_fd, staged);

	if (fd < 0)
		return fd;
	err = label_set(fs, r, fd);
	close(fd);
	return err;
}

static int publish(int dir_fd, const char *staged, const char *name)
{
	if (!renameat2(dir_fd, staged, dir_fd, name, RENAME_NOREPLACE))
		return 0;
	return errno == EINVAL || errno == ENOSYS ? -EOPNOTSUPP : -errno;
}

int label_make(struct fs *fs, const struct request *r, int dir_fd, const char *name, make_fn *make)
{
	char staged[STAGED_NAME];
	int err;

	if (!r->label_count)
		return make(r, dir_fd, name);
	staged_name(fs, r, staged);
	err = stage(fs, r, dir_fd, staged, make);
	if (err)
		return err;
	err = label_name(fs, r, dir_fd, staged);
	if (!err)
		err = publish(dir_fd, staged, name);
	if (err && remove_staged(fs, dir_fd, staged) < 0)
		return -EIO; /* it stays; say more than "exists" */
	return err;
}

void label_forsake(struct fs *fs, const struct request *r)
{
	const struct inode *parent = inode_table_get(fs->inodes, r->in.nodeid);
	int dir_fd = r->label_count && parent && S_ISDIR(parent->mode) ? inode_fd(fs, parent) : -1;
	char staged[STAGED_NAME];

	if (dir_fd < 0)
		return;
	staged_name(fs, r, staged);
	(void)!remove_staged(fs, dir_fd, staged);
}

/* ---- without a name ---- */

static int make_regular(const struct request *r, int dir_fd, const char *name)
{
	mode_t mode = r->in.opcode == FUSE_CREATE ? REQUEST_ARG(r, struct fuse_create_in)->mode
						  : REQUEST_ARG(r, struct fuse_mknod_in)->mode;

	return mknodat(dir_fd, name, S_IFREG | (mode & 07777), 0) < 0 ? -errno : 0;
}

static int link_to_name(const struct fs *fs, int fd, int dir_fd, const char *name)
{
	char path[FD_NAME];

	proc_fd_name(fd, path);
	return linkat(fs->proc_self_fd, path, dir_fd, name, AT_SYMLINK_FOLLOW) < 0 ? -errno : 0;
}

int label_create(struct fs *fs, const struct request *r, int dir_fd, int flags, mode_t mode,
		 int *ret_fd)
{
	int fd, err;

	*ret_fd = -1;
	if ((flags & O_ACCMODE) == O_RDONLY)
		flags |= O_RDWR; /* open(2) wants it */
	fd = openat(dir_fd, ".", (flags & ~O_TRUNC) | O_TMPFILE | O_CLOEXEC, mode);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOSYS))
		return label_make(fs, r, dir_fd, r->name, make_regular);
	if (fd < 0)
		return errno == EMFILE ? -ENFILE : -errno;
	err = label_set(fs, r, fd);
	if (!err)
		err = link_to_name(fs, fd, dir_fd, r->name);
	if (err)
		close(fd);
	else
		*ret_fd = fd;
	return err;
}
