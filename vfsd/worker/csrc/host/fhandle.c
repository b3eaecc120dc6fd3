/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/host/fhandle.h"

#include "worker/csrc/host/fd_error.h"
#include "worker/csrc/host/file_system.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

enum {
	OPEN_ATTEMPTS = 200,
	OPEN_PAUSE_MS = 1,
};

/* The kernel's struct file_handle, with room for the bytes of the handle. */
union kernel_handle {
	struct file_handle handle;
	uint8_t room[sizeof(struct file_handle) + FHANDLE_BYTES_MAX];
};

static int get(int dir_fd, const char *name, struct fhandle *ret, int *ret_mount_id)
{
	union kernel_handle kernel = {.handle = {.handle_bytes = FHANDLE_BYTES_MAX}};
	int flags = *name ? 0 : AT_EMPTY_PATH;

	if (name_to_handle_at(dir_fd, name, &kernel.handle, ret_mount_id, flags) < 0)
		return errno == EOVERFLOW ? -EOPNOTSUPP : -errno;
	memset(ret, 0, sizeof(*ret));
	ret->type = kernel.handle.handle_type;
	ret->len = kernel.handle.handle_bytes;
	memcpy(ret->bytes, kernel.handle.f_handle, ret->len);
	return 0;
}

int fhandle_get(int dir_fd, const char *name, struct fhandle *ret)
{
	int mount_id;

	return get(dir_fd, name, ret, &mount_id);
}

int fhandle_get_on_mount(int dir_fd, const char *name, uint32_t mount_id, struct fhandle *ret)
{
	int found;
	int err = get(dir_fd, name, ret, &found);

	if (err)
		return err;
	return (uint32_t)found == mount_id ? 0 : -EXDEV;
}

bool fhandle_equal(const struct fhandle *a, const struct fhandle *b)
{
	return a->type == b->type && a->len == b->len && !memcmp(a->bytes, b->bytes, a->len);
}

/*
 * When a new file is being created with the inode number of a deleted file, ext4 fails to open the
 * deleted file's handle with ENOMEM: its iget_locked() finds an inode that it may not wait for, and
 * ext4 takes that for a lack of memory. The creation ends within moments, and from then on the
 * error is ESTALE. So after ENOMEM the handle is opened again.
 */
static int open_when_settled(int mount_fd, struct file_handle *handle, int flags)
{
	int fd = open_by_handle_at(mount_fd, handle, flags);

	for (int i = 1; fd < 0 && errno == ENOMEM && i < OPEN_ATTEMPTS; i++) {
		poll(NULL, 0, OPEN_PAUSE_MS);
		fd = open_by_handle_at(mount_fd, handle, flags);
	}
	return fd;
}

int fhandle_open(int mount_fd, const struct fhandle *handle, int flags)
{
	union kernel_handle kernel = {
		.handle = {.handle_bytes = handle->len, .handle_type = handle->type}};

	memcpy(kernel.handle.f_handle, handle->bytes, handle->len);
	return fd_or_error(open_when_settled(mount_fd, &kernel.handle, flags));
}

bool fhandle_lasts(int fd)
{
	return file_system_facts(fd) & FS_LASTING_HANDLES;
}

bool fhandle_works(int fd)
{
	struct fhandle handle;
	int opened;

	if (!fhandle_lasts(fd) || fhandle_get(fd, "", &handle))
		return false;
	opened = fhandle_open(fd, &handle, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (opened < 0)
		return false;
	close(opened);
	return true;
}
