/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/descriptors.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>

/* A socket that the guest has in the share is opened O_PATH and has no options. */
static bool is_socket(int fd)
{
	int type;
	socklen_t len = sizeof(type);

	return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len);
}

static bool is_anonymous(int fd)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return false;
	/* The kernel's anonymous inodes have no file type. */
	return (st.st_mode & S_IFMT) == 0 || ((st.st_mode & S_IFMT) == S_IFSOCK && is_socket(fd));
}

uint32_t descriptors_anonymous(int32_t end, int32_t *ret, uint32_t room)
{
	uint32_t count = 0;

	for (int32_t fd = 0; fd < end; fd++) {
		if (!is_anonymous(fd))
			continue;
		if (count < room)
			ret[count] = fd;
		count++;
	}
	return count;
}

bool descriptors_mark(int32_t fd)
{
	return fcntl(fd, F_SETFD, 0) == 0;
}

bool descriptors_is_marked(int32_t fd)
{
	return fcntl(fd, F_GETFD) == 0;
}

void descriptors_unmark(int32_t fd)
{
	(void)!fcntl(fd, F_SETFD, FD_CLOEXEC);
}
