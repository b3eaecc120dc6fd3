/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an operation costs without any daemon: the bare system calls, over and over.
 */
#ifndef VFSD_FLOOR_H
#define VFSD_FLOOR_H

#include "transport/csrc/types.h"

enum floor_kind {
	FLOOR_NOTHING,	/* getppid(2): what any system call costs */
	FLOOR_STAT,	/* fstat(2) of the file */
	FLOOR_LOOKUP,	/* statx(2) of the name */
	FLOOR_MISSING,	/* ... of a name that is not there */
	FLOOR_READ,	/* pread(2) of a block of the file */
	FLOOR_WRITE,	/* pwrite(2) */
	FLOOR_OPEN,	/* openat(2) and close(2) */
	FLOOR_GETXATTR, /* fgetxattr(2) of user.vfsd */
	FLOOR_CREATE,	/* openat(O_CREAT), close, unlinkat */
	FLOOR_MKDIR,	/* mkdirat, unlinkat */
	FLOOR_LIST,	/* getdents64(2) into a block and statx of each entry: counts entries */
};

struct floor_target {
	int dir_fd;
	int fd;		  /* of `name` */
	const char *name; /* a regular file in the directory */
	uint32_t block;
	uint32_t blocks; /* in the file */
};

/* Do it for `ns`. Return: operations done, with their CPU time in `cpu_ns`; or -errno. */
int64_t floor_run(enum floor_kind kind, const struct floor_target *target, uint64_t ns,
		  uint64_t *cpu_ns) must_check;

#endif
