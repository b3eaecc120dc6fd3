/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock(7): a process limits what it and all processes that it creates can do to files, whatever
 * their user is. Debian 12's <linux/landlock.h> is older than the kernels that this runs on, so the
 * numbers are here.
 */
#ifndef VFSD_LANDLOCK_H
#define VFSD_LANDLOCK_H

#include "transport/csrc/types.h"

/* What a rule allows beneath a directory, or for a file: LANDLOCK_ACCESS_FS_*. */
enum landlock_access {
	LANDLOCK_EXECUTE = 1 << 0,
	LANDLOCK_WRITE_FILE = 1 << 1,
	LANDLOCK_READ_FILE = 1 << 2,
	LANDLOCK_READ_DIR = 1 << 3,
	LANDLOCK_REMOVE_DIR = 1 << 4,
	LANDLOCK_REMOVE_FILE = 1 << 5,
	LANDLOCK_MAKE_CHAR = 1 << 6,
	LANDLOCK_MAKE_DIR = 1 << 7,
	LANDLOCK_MAKE_REG = 1 << 8,
	LANDLOCK_MAKE_SOCK = 1 << 9,
	LANDLOCK_MAKE_FIFO = 1 << 10,
	LANDLOCK_MAKE_BLOCK = 1 << 11,
	LANDLOCK_MAKE_SYM = 1 << 12,
	LANDLOCK_REFER = 1 << 13,     /* version 2: move or link to another directory */
	LANDLOCK_TRUNCATE = 1 << 14,  /* version 3 */
	LANDLOCK_IOCTL_DEV = 1 << 15, /* version 5: ioctl(2) of devices */
};

/* The version of the kernel's interface. Return: at least 1, or -errno if there is none. */
int landlock_abi(void);
/* The part of enum landlock_access that this kernel knows. The kernel refuses a rule that names any
 * other access. */
uint64_t landlock_known(void);

/*
 * Start a set of rules that denies everything this kernel's Landlock can deny: access to files,
 * TCP, and connecting to abstract unix sockets of processes outside. Signals are not limited.
 * Return: its fd, or -errno if there is no Landlock.
 */
int landlock_create(void) must_check;

/*
 * As landlock_create(), but the rules also deny signals to processes outside. `files`: deny each
 * access to files. If it is false, only LANDLOCK_EXECUTE is denied, and LANDLOCK_REFER, which every
 * set of rules denies.
 */
int landlock_create_scoped(bool files) must_check;

/*
 * Allow `access` (enum landlock_access, or'ed) to everything beneath the directory `fd`, O_PATH.
 * Return: 0 or -errno.
 */
int landlock_allow(int rules, int fd, uint64_t access) must_check;

/* Put the rules in force for this process (it must have one thread), which needs no_new_privs.
 * Return: 0 or -errno. */
int landlock_enforce(int rules) must_check;

#endif
