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
	FLOOR_LOOKUP,	/* statx(2) of the names, in turn */
	FLOOR_MISSING,	/* ... of names that are not there, and were not asked for before */
	FLOOR_READ,	/* pread(2) of a block of the file */
	FLOOR_WRITE,	/* pwrite(2) */
	FLOOR_OPEN,	/* openat(2) of a name, and close(2) */
	FLOOR_GETXATTR, /* fgetxattr(2) of user.vfsd */
	FLOOR_CREATE,	/* openat(O_CREAT), close, unlinkat of new names */
	FLOOR_MKDIR,	/* mkdirat, unlinkat */
	FLOOR_LIST,	/* getdents64(2) into a block and statx of each entry: counts entries */
};

enum {
	FLOOR_FOLDERS = 2, /* as many as are listed at a time */
};

struct floor_target {
	int folders[FLOOR_FOLDERS]; /* of regular files f0000000, f0000001, ... */
	uint32_t names;		    /* so many in each */
	int fd;			    /* of a file of `blocks` blocks of `block` bytes */
	uint32_t block;
	uint32_t blocks;
};

/* Do it for `ns`. Return: operations done, with their CPU time in `cpu_ns`; or -errno. */
int64_t floor_run(enum floor_kind kind, const struct floor_target *target, uint64_t ns,
		  uint64_t *cpu_ns) must_check;

#endif
