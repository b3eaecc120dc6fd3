/* SPDX-License-Identifier: Apache-2.0 */
/* Handles of names, and the mounts that they belong to. */
#include "check.h"

#include "worker/csrc/host/fhandle.h"
#include "worker/csrc/host/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_a_handle_is_of_the_mount_that_was_named(void)
{
	int folder = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct fhandle by_name, by_fd;
	struct statx st;
	uint32_t mount;

	CHECK(folder >= 0);
	CHECK(!identity_stat_fd(folder, &st));
	mount = inode_key_mount_id(identity_key(&st));
	CHECK(!fhandle_get(folder, "", &by_fd));
	CHECK(!fhandle_get_on_mount(folder, ".", mount, &by_name));
	CHECK(fhandle_equal(&by_name, &by_fd));
	CHECK_EQUAL(fhandle_get_on_mount(folder, ".", mount + 1, &by_name), -EXDEV);
	CHECK_EQUAL(fhandle_get_on_mount(folder, "nothing", mount, &by_name), -ENOENT);
	close(folder);
}

/* Create files one after the other, with one name and, on most file systems, one inode number. */
static pid_t keep_creating(int folder)
{
	pid_t pid = fork();

	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0); /* also end if a check fails */
	while (!pid) {
		close(openat(folder, "file", O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600));
		unlinkat(folder, "file", 0);
	}
	return pid;
}

/* A file that is gone while its inode number goes to another file. In one of twenty such cases
 * ext4 returns ENOMEM. */
static void test_a_file_that_is_gone_is_stale_while_its_number_is_given_away(void)
{
	int folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	pid_t other = keep_creating(folder);
	uint32_t stale = 0;

	while (stale < 5000) {
		struct fhandle handle;

		if (fhandle_get(folder, "file", &handle))
			continue;
		for (int i = 0; i < 20; i++) {
			int fd = fhandle_open(folder, &handle, O_PATH | O_CLOEXEC);

			CHECK(fd >= 0 || fd == -ESTALE);
			if (fd >= 0)
				close(fd);
			else
				stale++;
		}
	}
	kill(other, SIGKILL);
	waitpid(other, NULL, 0);
	unlinkat(folder, "file", 0);
	close(folder);
}

int main(void)
{
	RUN(test_a_handle_is_of_the_mount_that_was_named);
	RUN(test_a_file_that_is_gone_is_stale_while_its_number_is_given_away);
	return EXIT_SUCCESS;
}
