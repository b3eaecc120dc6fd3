/* SPDX-License-Identifier: Apache-2.0 */
#include "frontend/csrc/floor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define NEW_NAME "floor-new"

enum {
	ROUNDS_PER_CLOCK = 64,
};

struct floor_run {
	const struct floor_target *target;
	uint8_t *buffer; /* of a block */
	uint64_t block;	 /* next one */
};

static uint64_t clock_of(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static off_t next_offset(struct floor_run *r)
{
	/* A step that is coprime to any power of two visits every block. */
	r->block = (r->block + 7919) % r->target->blocks;
	return (off_t)(r->block * r->target->block);
}

static int stat_name(const struct floor_run *r, const char *name)
{
	struct statx st;

	return statx(r->target->dir_fd, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st);
}

/* One operation each. Return: how many it was, or -1. */

static int do_nothing(struct floor_run *r)
{
	return syscall(SYS_getppid) >= 0 ? 1 : -1;
}

static int do_stat(struct floor_run *r)
{
	struct stat st;

	return fstat(r->target->fd, &st) ? -1 : 1;
}

static int do_lookup(struct floor_run *r)
{
	return stat_name(r, r->target->name) ? -1 : 1;
}

static int do_missing(struct floor_run *r)
{
	return stat_name(r, "nothing") < 0 && errno == ENOENT ? 1 : -1;
}

static int do_read(struct floor_run *r)
{
	uint32_t len = r->target->block;

	return pread(r->target->fd, r->buffer, len, next_offset(r)) == (ssize_t)len ? 1 : -1;
}

static int do_write(struct floor_run *r)
{
	uint32_t len = r->target->block;

	return pwrite(r->target->fd, r->buffer, len, next_offset(r)) == (ssize_t)len ? 1 : -1;
}

static int do_open(struct floor_run *r)
{
	int fd = openat(r->target->dir_fd, r->target->name, O_RDONLY | O_CLOEXEC);

	return fd < 0 || close(fd) ? -1 : 1;
}

static int do_getxattr(struct floor_run *r)
{
	char value[64];

	return fgetxattr(r->target->fd, "user.vfsd", value, sizeof(value)) < 0 ? -1 : 1;
}

static int do_create(struct floor_run *r)
{
	int dir = r->target->dir_fd;
	int fd = openat(dir, NEW_NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	return fd < 0 || close(fd) || unlinkat(dir, NEW_NAME, 0) ? -1 : 1;
}

static int do_mkdir(struct floor_run *r)
{
	int dir = r->target->dir_fd;

	return mkdirat(dir, NEW_NAME, 0755) || unlinkat(dir, NEW_NAME, AT_REMOVEDIR) ? -1 : 1;
}

static int do_list(struct floor_run *r)
{
	int dir = r->target->dir_fd, count = 0;
	long len = syscall(SYS_getdents64, dir, r->buffer, r->target->block);

	if (len == 0 && lseek(dir, 0, SEEK_SET) < 0)
		return -1;
	for (long at = 0; at < len; count++) {
		const struct dirent64 *entry = (const void *)(r->buffer + at);

		if (stat_name(r, entry->d_name))
			return -1;
		at += entry->d_reclen;
	}
	return len < 0 ? -1 : count;
}

static int (*const KINDS[])(struct floor_run *) = {
	[FLOOR_NOTHING] = do_nothing, [FLOOR_STAT] = do_stat,	      [FLOOR_LOOKUP] = do_lookup,
	[FLOOR_MISSING] = do_missing, [FLOOR_READ] = do_read,	      [FLOOR_WRITE] = do_write,
	[FLOOR_OPEN] = do_open,	      [FLOOR_GETXATTR] = do_getxattr, [FLOOR_CREATE] = do_create,
	[FLOOR_MKDIR] = do_mkdir,     [FLOOR_LIST] = do_list,
};

static int64_t repeat(struct floor_run *r, int (*once)(struct floor_run *), uint64_t until)
{
	int64_t done = 0;

	do {
		for (int i = 0; i < ROUNDS_PER_CLOCK; i++) {
			int count = once(r);

			if (count < 0)
				return -errno;
			done += count;
		}
	} while (clock_of(CLOCK_MONOTONIC) < until);
	return done;
}

int64_t floor_run(enum floor_kind kind, const struct floor_target *target, uint64_t ns,
		  uint64_t *cpu_ns)
{
	struct floor_run r = {.target = target, .buffer = calloc(1, target->block)};
	uint64_t start = clock_of(CLOCK_THREAD_CPUTIME_ID);
	int64_t done;

	if (!r.buffer)
		return -ENOMEM;
	done = repeat(&r, KINDS[kind], clock_of(CLOCK_MONOTONIC) + ns);
	*cpu_ns = clock_of(CLOCK_THREAD_CPUTIME_ID) - start;
	free(r.buffer);
	return done;
}
