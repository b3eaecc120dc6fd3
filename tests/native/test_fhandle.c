/* SPDX-License-Identifier: Apache-2.0 */
/* Handles of names: whose mount they are of. */
#include "check.h"

#include "worker/csrc/entry.h"
#include "worker/csrc/fhandle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static void test_a_handle_is_of_the_mount_that_was_named(void)
{
	int folder = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct fhandle by_name, by_fd;
	struct statx st;
	uint32_t mount;

	CHECK(folder >= 0);
	CHECK(!entry_stat_fd(folder, &st));
	mount = inode_key_mount_id(entry_key(&st));
	CHECK(!fhandle_get(folder, "", &by_fd));
	CHECK(!fhandle_get_on_mount(folder, ".", mount, &by_name));
	CHECK(fhandle_equal(&by_name, &by_fd));
	CHECK_EQUAL(fhandle_get_on_mount(folder, ".", mount + 1, &by_name), -EXDEV);
	CHECK_EQUAL(fhandle_get_on_mount(folder, "nothing", mount, &by_name), -ENOENT);
	close(folder);
}

int main(void)
{
	RUN(test_a_handle_is_of_the_mount_that_was_named);
	return EXIT_SUCCESS;
}
