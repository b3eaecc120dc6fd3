/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cost of an operation without any daemon: its bare system calls, repeated.
 */
#ifndef VFSD_FLOOR_H
#define VFSD_FLOOR_H

#include "transport/csrc/types.h"

enum floor_kind {
	FLOOR_NOTHING,	/* getppid(2): the cost of any system call */
	FLOOR_STAT,	/* fstat(2) of the file */
	FLOOR_LOOKUP,	/* statx(2) of each name in turn */
	FLOOR_MISSING,	/* ... of names that do not exist and were not looked up before */
	FLOOR_READ,	/* pread(2) of a block of the file */
	FLOOR_WRITE,	/* pwrite(2) */
	FLOOR_OPEN,	/* openat(2) of a name, and close(2) */
	FLOOR_GETXATTR, /* fgetxattr(2) of user.vfsd */
	FLOOR_CREATE,	/* openat(O_CREAT), close, unlinkat of new names */
	FLOOR_MKDIR,	/* mkdirat, unlinkat */
	FLOOR_LIST,	/* getdents64(2) into a block and statx of each entry: counts entries */
};

enum {
	FLOOR_FOLDERS = 2, /* the number of folders that are listed in turn */
};

struct floor_target {
	int folders[FLOOR_FOLDERS]; /* of regular files f0000000, f0000001, ... */
	uint32_t names;		    /* number of files in each folder */
	int fd;			    /* a file of `blocks` blocks of `block` bytes */
	uint32_t block;
	uint32_t blocks;
};

/* Repeat the operation for `ns`. Return: the number of operations done, with their CPU time in
 * `cpu_ns`; or -errno. */
int64_t floor_run(enum floor_kind kind, const struct floor_target *target, uint64_t ns,
		  uint64_t *cpu_ns) must_check;

#endif
