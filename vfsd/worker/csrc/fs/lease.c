/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/lease.h"

#include "worker/csrc/host/fd_error.h"
#include "worker/csrc/host/identity.h"
#include "worker/csrc/host/proc_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	WAITS_MAX = 8,	 /* of one request; other programs may take a lease again and again */
	WATCHED_MAX = 2, /* interrupted waits of one request; a rename concerns two files */
};

/* r->fd2 is the access mode. The working directory is /proc/self/fd. */
static int run_wait(struct request *r)
{
	char name[FD_NAME];
	int fd = openat(AT_FDCWD, proc_fd_name(r->fd, name), r->fd2 | O_NOCTTY | O_CLOEXEC);
	int err = fd < 0 ? fd_error() : 0;

	if (fd >= 0)
		close(fd);
	close(r->fd);
	return err;
}

/* The error of opening the file does not matter here: the op finds it again by itself. */
static int run_break(struct request *r)
{
	(void)!run_wait(r);
	return 0;
}

/* The request takes ownership of `fd`. */
static int wait_off_the_loop(struct request *r, int fd, int access, int (*run)(struct request *r))
{
	int err = request_keep_payload(r);

	if (err) {
		close(fd);
		return err;
	}
	r->fd = fd;
	r->fd2 = access;
	r->holds_fd = r->run_again = true;
	return request_defer(r, run);
}

int lease_wait(struct request *r, int path_fd, int access)
{
	int fd;

	if (r->waits++ >= WAITS_MAX)
		return -EAGAIN;
	fd = fcntl(path_fd, F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return fd_error();
	return wait_off_the_loop(r, fd, access, run_wait);
}

struct watchdog *lease_watchdog(const struct fs *fs, const struct request *r)
{
	return r->waits < WATCHED_MAX ? fs->watchdog : NULL;
}

/* `fd` is O_PATH, and this function takes ownership of it; or -1. The file that is opened later is
 * the file that was looked at here: a regular file. */
static int wait_for_delegation(struct request *r, int fd)
{
	struct statx st;

	if (fd >= 0 && !identity_stat_fd(fd, &st) && S_ISREG(st.stx_mode)) {
		r->waits++;
		return wait_off_the_loop(r, fd, O_WRONLY, run_break);
	}
	if (fd >= 0)
		close(fd);
	r->waits = WATCHED_MAX;
	return 0;
}

int lease_wait_inode(struct request *r, int path_fd)
{
	return wait_for_delegation(r, fcntl(path_fd, F_DUPFD_CLOEXEC, 3));
}

int lease_wait_name(struct request *r, int dir_fd, const char *name)
{
	return wait_for_delegation(r, openat(dir_fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC));
}
