/* SPDX-License-Identifier: Apache-2.0 */
/* Inodes whose handles cannot be opened any more, on a file system that does not find unlinked
 * files by their handles. */
#include "check.h"

#include "worker/csrc/fs/entry.h"
#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/mount_handles.h"
#include "worker/csrc/host/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	CAPACITY = 64,
};

static struct fs fs;
static int folder;
static bool forgets; /* the file system does not find unlinked files */

/* Replaces the function of libc. */
int open_by_handle_at(int mount_fd, struct file_handle *handle, int flags)
{
	int fd = (int)syscall(SYS_open_by_handle_at, mount_fd, handle, flags);
	struct statx st;

	if (fd < 0 || !forgets || identity_stat_fd(fd, &st) || st.stx_nlink)
		return fd;
	close(fd);
	errno = ESTALE;
	return -1;
}

static void set_up(void)
{
	folder = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(folder >= 0);
	fs.inodes = make_shared(inode_table_bytes(CAPACITY));
	fs.files = make_shared(file_table_bytes(CAPACITY));
	fs.table = make_shared(sizeof(*fs.table));
	worker_table_init(fs.table, 1);
	CHECK(!inode_table_init(fs.inodes, CAPACITY, folder));
	file_table_init(fs.files, CAPACITY);
	CHECK(mount_handles_try(fs.inodes, folder));
	fs.policy.file_handles = FILE_HANDLES_PREFER;
	fs.proc_self_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	fs.fds_max = fs.inode_fds_max = CAPACITY;
	credentials_init(&fs.credentials);
	reclaim_init(&fs.reclaim, fs.table, 0);
}

/* A file that the guest knows, held by its handle. */
static const struct inode *known(const char *name)
{
	struct fhandle handle;
	struct statx st;

	close(openat(folder, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	CHECK(!identity_stat_name(folder, name, &st) && !fhandle_get(folder, name, &handle));
	return inode_table_insert_handle(fs.inodes, 0, identity_key(&st), identity_birth_time(&st),
					 &handle);
}

static struct open_file *opened(const struct inode *inode, const char *name)
{
	struct open_file *file = file_table_reserve(fs.files, 0);
	int fd = openat(folder, name, O_RDWR | O_CLOEXEC);

	CHECK(file && fd >= 0);
	file_table_publish(fs.files, file, inode_nodeid(fs.inodes, inode), fd, 0);
	return file;
}

static uint64_t number(int fd)
{
	struct statx st;

	CHECK(fd >= 0 && !identity_stat_fd(fd, &st));
	return st.stx_ino;
}

static void test_an_open_file_stands_for_its_inode(void)
{
	const struct inode *other = known("other"), *inode = known("file"), *gone = known("gone");
	const struct open_file *file;

	opened(other, "other");
	file = opened(inode, "file");
	forgets = true;
	unlinkat(folder, "file", 0);
	unlinkat(folder, "gone", 0);
	CHECK_EQUAL(number(inode_fd(&fs, inode)), number(file->fd));
	CHECK(inode_fd(&fs, inode) != file->fd);
	CHECK_EQUAL(inode_fd(&fs, gone), -ESTALE);
	CHECK_EQUAL(number(entry_reopen(&fs, inode, O_RDWR)), number(file->fd));
}

static void test_one_that_was_released_does_not(void)
{
	const struct inode *inode = known("closed");
	struct open_file *file = opened(inode, "closed");

	forgets = true;
	unlinkat(folder, "closed", 0);
	file_table_release(fs.files, &fs.reclaim, file);
	CHECK_EQUAL(inode_fd(&fs, inode), -ESTALE);
}

int main(void)
{
	set_up();
	RUN(test_an_open_file_stands_for_its_inode);
	RUN(test_one_that_was_released_does_not);
	unlinkat(folder, "other", 0);
	return EXIT_SUCCESS;
}
