/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/csrc/floor.h"

#include "transport/csrc/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum {
	ROUNDS_PER_CLOCK = 64,
	DIGITS = 7,
	NEW_NAMES = 1000 * 1000,
	ALIGNED = 4096, /* like guest memory: an unaligned copy takes twice as long */
	BUFFERS = 32,	/* as many as there are requests under way */
};

struct floor_run {
	const struct floor_target *target;
	uint8_t *buffers; /* each of one block */
	uint32_t buffer;  /* the buffer to use next */
	uint64_t block;	  /* the next block */
	uint32_t number;  /* the number in the next name */
	uint32_t folder;  /* the folder to list next */
	char name[DIGITS + 2];
};

static uint64_t clock_of(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return (uint64_t)now.tv_sec * NS_PER_SEC + (uint64_t)now.tv_nsec;
}

static off_t next_offset(struct floor_run *r)
{
	/* A step that is coprime to every power of two visits every block. */
	r->block = (r->block + 7919) % r->target->blocks;
	return (off_t)(r->block * r->target->block);
}

/* The next of `count` names that begin with the letter `first`. */
static const char *next_name(struct floor_run *r, char first, uint32_t count)
{
	uint32_t number = r->number++ % count;

	r->name[0] = first;
	for (int i = DIGITS; i; i--, number /= 10)
		r->name[i] = (char)('0' + number % 10);
	return r->name;
}

static int stat_name(int folder, const char *name)
{
	struct statx st;

	return statx(folder, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &st);
}

static uint8_t *next_buffer(struct floor_run *r)
{
	return r->buffers + (size_t)(r->buffer++ % BUFFERS) * r->target->block;
}

/* Each function does one operation. Return: the number of operations done, or -1. */

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
	return stat_name(r->target->folders[0], next_name(r, 'f', r->target->names)) ? -1 : 1;
}

static int do_missing(struct floor_run *r)
{
	const char *name = next_name(r, 'n', NEW_NAMES);

	return stat_name(r->target->folders[0], name) < 0 && errno == ENOENT ? 1 : -1;
}

static int do_read(struct floor_run *r)
{
	uint32_t len = r->target->block;

	return pread(r->target->fd, next_buffer(r), len, next_offset(r)) == (ssize_t)len ? 1 : -1;
}

static int do_write(struct floor_run *r)
{
	uint32_t len = r->target->block;

	return pwrite(r->target->fd, next_buffer(r), len, next_offset(r)) == (ssize_t)len ? 1 : -1;
}

static int do_open(struct floor_run *r)
{
	const char *name = next_name(r, 'f', r->target->names);
	int fd = openat(r->target->folders[0], name, O_RDONLY | O_CLOEXEC);

	return fd < 0 || close(fd) ? -1 : 1;
}

static int do_getxattr(struct floor_run *r)
{
	char value[64];

	return fgetxattr(r->target->fd, "user.vfsd", value, sizeof(value)) < 0 ? -1 : 1;
}

static int do_create(struct floor_run *r)
{
	const char *name = next_name(r, 'n', NEW_NAMES);
	int folder = r->target->folders[0];
	int fd = openat(folder, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);

	return fd < 0 || close(fd) || unlinkat(folder, name, 0) ? -1 : 1;
}

static int do_mkdir(struct floor_run *r)
{
	const char *name = next_name(r, 'n', NEW_NAMES);
	int folder = r->target->folders[0];

	return mkdirat(folder, name, 0755) || unlinkat(folder, name, AT_REMOVEDIR) ? -1 : 1;
}

static int do_list(struct floor_run *r)
{
	int folder = r->target->folders[r->folder], count = 0;
	uint8_t *buffer = next_buffer(r);
	long len = syscall(SYS_getdents64, folder, buffer, r->target->block);

	r->folder = (r->folder + 1) % FLOOR_FOLDERS;
	if (len == 0 && lseek(folder, 0, SEEK_SET) < 0)
		return -1;
	for (long at = 0; at < len; count++) {
		const struct dirent64 *entry = (const void *)(buffer + at);

		if (stat_name(folder, entry->d_name))
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
	size_t bytes = (size_t)BUFFERS * target->block;
	struct floor_run r = {.target = target, .buffers = aligned_alloc(ALIGNED, bytes)};
	uint64_t start;
	int64_t done;

	if (!r.buffers)
		return -ENOMEM;
	memset(r.buffers, 1, bytes);
	start = clock_of(CLOCK_THREAD_CPUTIME_ID);
	done = repeat(&r, KINDS[kind], clock_of(CLOCK_MONOTONIC) + ns);
	*cpu_ns = clock_of(CLOCK_THREAD_CPUTIME_ID) - start;
	free(r.buffers);
	return done;
}
