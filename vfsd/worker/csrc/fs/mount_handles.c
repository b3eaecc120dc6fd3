/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/mount_handles.h"

#include "worker/csrc/fs/fs.h"
#include "worker/csrc/host/fhandle.h"
#include "worker/csrc/host/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* Return: an fd through which handles of the mount of `dir_fd` can be opened; MOUNT_FD_NONE if they
 * cannot be opened; MOUNT_FD_UNKNOWN if that cannot be found out now. */
static int try_handles(int dir_fd)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return MOUNT_FD_UNKNOWN;
	if (fhandle_works(fd))
		return fd;
	close(fd);
	return MOUNT_FD_NONE;
}

int mount_handles_try(void *inodes, int root_fd)
{
	struct statx st;
	int fd = identity_stat_fd(root_fd, &st) ? MOUNT_FD_UNKNOWN : try_handles(root_fd);

	return fd >= 0 && inode_table_set_mount_fd(inodes, 0, identity_key(&st).mnt_id, fd);
}

/* Return: an fd of the mount of `dir_fd` to show to the broker, if the broker signs handles of that
 * mount; MOUNT_FD_NONE if it does not; MOUNT_FD_UNKNOWN if there is no broker, or if that cannot be
 * found out now. */
static int try_signatures(struct handle_client *client, int dir_fd)
{
	struct handle_signature signature;
	int fd, err;

	if (!fhandle_lasts(dir_fd))
		return MOUNT_FD_NONE;
	err = handle_client_sign(client, dir_fd, &dir_fd, 1, &signature);
	if (err)
		return MOUNT_FD_UNKNOWN;
	if (signature.error)
		return MOUNT_FD_NONE;
	fd = openat(dir_fd, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? MOUNT_FD_UNKNOWN : fd;
}

int mount_handles_expect_signatures(void *inodes, int root_fd, int handles_fd)
{
	struct handle_client client;
	struct statx st;
	int fd, err = identity_stat_fd(root_fd, &st);

	if (err)
		return err;
	handle_client_init(&client, handles_fd, 0);
	fd = try_signatures(&client, root_fd);
	if (fd < 0)
		return -EIO;
	(void)!inode_table_set_mount_fd(inodes, 0, identity_key(&st).mnt_id, fd);
	return 0;
}

bool mount_handles_are_unknown(const struct fs *fs, uint64_t mnt_id)
{
	return fs->policy.file_handles != FILE_HANDLES_NEVER &&
	       inode_table_mount_fd(fs->inodes, mnt_id) == MOUNT_FD_UNKNOWN;
}

/* As root even while a user stands in for root (as_requester.c): no user may open handles, and what
 * is found out here is kept. */
static int try_mount(struct fs *fs, int dir_fd)
{
	const struct requester *who = fs->credentials.stand_in;
	int fd, err = credentials_stand_in(&fs->credentials, NULL);

	if (err)
		fd = MOUNT_FD_UNKNOWN;
	else if (fs->policy.file_handles == FILE_HANDLES_SIGNED)
		fd = try_signatures(&fs->handles, dir_fd);
	else
		fd = try_handles(dir_fd);
	/* After an error here the next op that wants to be root stands in again, or fails. */
	if (who)
		(void)!credentials_stand_in(&fs->credentials, who);
	return fd;
}

void mount_handles_find_out(struct fs *fs, uint64_t mnt_id, int dir_fd)
{
	int fd = try_mount(fs, dir_fd);

	if (fd == MOUNT_FD_UNKNOWN)
		return;
	if (!inode_table_set_mount_fd(fs->inodes, fs->slot, mnt_id, fd) && fd >= 0)
		close(fd);
}
