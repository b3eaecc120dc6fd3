/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Purpose. The guest's kernel sends the security label of a new file with the request that creates
 * the file. If the file could be found without its label, however shortly, it would be served under
 * the wrong label: the guest's kernel reads the label once and keeps it. So a name appears with its
 * label or not at all, whenever the worker dies.
 *
 * Regular files are made without a name (O_TMPFILE), labelled, and linked to their name. For every
 * process that looks at the directory the link is a single step. A file that is not linked yet is
 * removed with its fd, which the pool closes after a death (sweep.py).
 *
 * Directories, symlinks, devices, FIFOs and sockets cannot be made without a name, nor can regular
 * files where the file system does not know O_TMPFILE. They are made under a staged name in the
 * same directory (so that the directory decides on default ACL, group and quota), labelled, and
 * renamed with RENAME_NOREPLACE. On a file system that knows neither, the request fails with
 * EOPNOTSUPP.
 *
 * The staged name consists of a secret of this pool, the ring and the descriptor head. With the
 * secret no guest of this daemon can guess the name, and READDIR hides it (label_hides), so no
 * guest meets the file. With ring and head no two requests in flight have the same staged name, and
 * a request that is run again has the same name again.
 *
 * Death. The successor runs the request again, since its head is in flight. If the dead worker left
 * a file under the staged name, making that name fails with EEXIST; the successor then removes the
 * file and starts over. If the rename had already happened, the final name exists, which every
 * creating op handles (request.replayed). A request that is answered with EIO after two faults is
 * not run again: label_forsake removes its file.
 *
 * What remains possible. A process of the host, or a guest of another daemon, that lists the
 * directory within these microseconds sees a ".vfsd-…" name whose file has no label yet. If the
 * guest resets the ring while its worker is dead, or if the whole pool is killed, one such name may
 * stay; its file was never reported to the guest, and may be removed.
 *
 * Identities. The file is made as the requesting user, and labelled and moved as root: only root
 * may set attributes of the namespaces security and trusted. If the server of the share refuses
 * root (root_squash), the user removes the file again, and the whole op is run as the user.
 */
#include "worker/csrc/fs/label.h"

#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/requester.h"
#include "worker/csrc/host/fd_error.h"
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

/* Remove the staged name, whatever type its file has; a directory that we made is empty. */
static int unlink_staged(int dir_fd, const char *staged)
{
	if (!unlinkat(dir_fd, staged, 0) || errno == ENOENT)
		return 0;
	return errno == EISDIR && !unlinkat(dir_fd, staged, AT_REMOVEDIR) ? 0 : -errno;
}

static int remove_staged(struct fs *fs, int dir_fd, const char *staged)
{
	int err = credentials_root(&fs->credentials);

	return err ? err : unlink_staged(dir_fd, staged);
}

/* The same, as root or, if the server of the share refuses root what it allows a user
 * (as_requester.c), as the user that has made the file. */
static int take_back(struct fs *fs, const struct request *r, int dir_fd, const char *staged)
{
	int err = remove_staged(fs, dir_fd, staged);

	if (err != -EACCES && err != -EPERM)
		return err;
	return requester_act(fs, r, fs->credentials.umask) ? err : unlink_staged(dir_fd, staged);
}

/* Make the file under its staged name, where a dead worker may have left a file. */
static int stage(struct fs *fs, const struct request *r, int dir_fd, const char *staged,
		 make_fn *make)
{
	int err = make(r, dir_fd, staged);

	if (err != -EEXIST)
		return err;
	err = take_back(fs, r, dir_fd, staged);
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
	if (err && take_back(fs, r, dir_fd, staged) < 0)
		return -EIO; /* the name stays; EIO says more than EEXIST */
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
	(void)!take_back(fs, r, dir_fd, staged);
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
		flags |= O_RDWR; /* open(2) requires it */
	fd = openat(dir_fd, ".", (flags & ~O_TRUNC) | O_TMPFILE | O_CLOEXEC, mode);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOSYS))
		return label_make(fs, r, dir_fd, r->name, make_regular);
	if (fd < 0)
		return fd_error();
	err = label_set(fs, r, fd);
	if (!err)
		err = link_to_name(fs, fd, dir_fd, r->name);
	if (err)
		close(fd);
	else
		*ret_fd = fd;
	return err;
}
