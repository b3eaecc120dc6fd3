/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/lease.h"

#include "worker/csrc/host/proc_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum {
	WAITS_MAX = 8, /* of one request: the file may be taken again at once */
};

/* r->fd2 is the access. The working directory is /proc/self/fd. */
static int run_wait(struct request *r)
{
	char name[FD_NAME];
	int fd = openat(AT_FDCWD, proc_fd_name(r->fd, name), r->fd2 | O_NOCTTY | O_CLOEXEC);
	int err = fd < 0 ? -errno : 0;

	if (fd >= 0)
		close(fd);
	close(r->fd);
	return err;
}

int lease_wait(struct request *r, int path_fd, int access)
{
	if (r->waits++ == WAITS_MAX)
		return -EAGAIN;
	r->fd = fcntl(path_fd, F_DUPFD_CLOEXEC, 3);
	if (r->fd < 0)
		return errno == EMFILE ? -ENFILE : -errno;
	r->fd2 = access;
	r->holds_fd = r->run_again = true;
	return request_defer(r, run_wait);
}
