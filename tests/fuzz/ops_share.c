/* SPDX-License-Identifier: Apache-2.0 */
#include "ops_share.h"

#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>

/* The path to the share, and the directory that must not be reached from the share. */
static struct {
	int tmpfs;
	int share;  /* the share's directory, to fill and to empty it */
	int beside; /* a directory next to the share */
	struct stat seen[3];
} place;

static void write_file(int dir, const char *name, const char *text)
{
	int fd = openat(dir, name, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);

	CHECK(fd >= 0);
	CHECK(write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

/* An ordinary user gets a user namespace, in which it can make a tmpfs. */
static void become_root(void)
{
	char map[32];

	if (!geteuid())
		return;
	snprintf(map, sizeof(map), "0 %u 1", geteuid());
	CHECK(!unshare(CLONE_NEWUSER | CLONE_NEWNS));
	write_text("/proc/self/setgroups", "deny");
	write_text("/proc/self/uid_map", map);
	snprintf(map, sizeof(map), "0 %u 1", getegid());
	write_text("/proc/self/gid_map", map);
}

/* A tmpfs that only this fd reaches: it ends with the process, and ".." leads nowhere. */
static int make_tmpfs(void)
{
	int context, fd;

	become_root();
	context = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
	CHECK(context >= 0);
	CHECK(!syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", "4m", 0));
	CHECK(!syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "nr_inodes", "512", 0));
	CHECK(!syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	fd = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
			  MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID | MOUNT_ATTR_STRICTATIME);
	CHECK(fd >= 0);
	close(context);
	return fd;
}

static void see(struct stat *ret)
{
	CHECK(!fstat(place.tmpfs, &ret[0]));
	CHECK(!fstat(place.beside, &ret[1]));
	CHECK(!fstatat(place.beside, "secret", &ret[2], AT_SYMLINK_NOFOLLOW));
}

static bool same_time(struct timespec a, struct timespec b)
{
	return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec;
}

void share_check_beside(void)
{
	struct stat now[3];

	see(now);
	for (uint32_t i = 0; i < 3; i++) {
		CHECK_EQUAL(now[i].st_ino, place.seen[i].st_ino);
		CHECK_EQUAL(now[i].st_nlink, place.seen[i].st_nlink);
		CHECK_EQUAL(now[i].st_size, place.seen[i].st_size);
		CHECK(same_time(now[i].st_ctim, place.seen[i].st_ctim));
		CHECK(same_time(now[i].st_atim, place.seen[i].st_atim));
	}
}

void share_check_ino(uint64_t ino)
{
	for (uint32_t i = 0; i < 3; i++)
		CHECK(ino != place.seen[i].st_ino);
}

int share_make(void)
{
	place.tmpfs = make_tmpfs();
	CHECK(!mkdirat(place.tmpfs, "beside", 0755) && !mkdirat(place.tmpfs, "share", 0755));
	place.beside = openat(place.tmpfs, "beside", O_PATH | O_DIRECTORY | O_CLOEXEC);
	place.share = openat(place.tmpfs, "share", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(place.beside >= 0 && place.share >= 0);
	write_file(place.beside, "secret", "secret");
	see(place.seen);
	return place.tmpfs;
}

static void make_files(void)
{
	write_file(place.share, "file", "some bytes that can be read");
	CHECK(!mkdirat(place.share, "dir", 0777));
	CHECK(!symlinkat("../beside/secret", place.share, "link"));
	CHECK(!mknodat(place.share, "fifo", S_IFIFO | 0666, 0));
}

/* The attributes of chattr +i and +a also stop root. */
static void clear_flags(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC), none = 0;

	if (fd < 0)
		return;
	(void)!ioctl(fd, FS_IOC_SETFLAGS, &none);
	close(fd);
}

static void empty_directory(int dir);

static void remove_entry(int dir, const struct dirent *entry)
{
	int fd = openat(dir, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	int flags = fd < 0 ? 0 : AT_REMOVEDIR;

	if (fd >= 0) {
		empty_directory(fd);
		close(fd);
	}
	if (!unlinkat(dir, entry->d_name, flags))
		return;
	clear_flags(dir, entry->d_name);
	CHECK(!unlinkat(dir, entry->d_name, flags));
}

static void empty_directory(int dir)
{
	DIR *stream = fdopendir(openat(dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
	struct dirent *entry;
	int none = 0;

	CHECK(stream);
	(void)!ioctl(dir, FS_IOC_SETFLAGS, &none);
	while ((entry = readdir(stream)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			remove_entry(dir, entry);
	closedir(stream);
}

static void remove_xattrs(int fd)
{
	char list[4096];
	ssize_t len = flistxattr(fd, list, sizeof(list));

	for (ssize_t at = 0; at < len; at += (ssize_t)strlen(list + at) + 1)
		(void)!fremovexattr(fd, list + at);
}

void share_restore(void)
{
	empty_directory(place.share);
	remove_xattrs(place.share);
	CHECK(!fchown(place.share, 0, 0) && !fchmod(place.share, 0777));
	make_files();
}
