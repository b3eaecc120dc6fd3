/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landlock(7): a process that limits what it and all it creates can do to files, whoever it is.
 * Debian 12's <linux/landlock.h> is older than the kernels this runs on, so the numbers are here.
 */
#ifndef VFSD_LANDLOCK_H
#define VFSD_LANDLOCK_H

#include "transport/csrc/types.h"

/* What a rule allows beneath a directory, or for a file: LANDLOCK_ACCESS_FS_*. */
enum landlock_access {
	LANDLOCK_WRITE_FILE = 1 << 1,
	LANDLOCK_READ_FILE = 1 << 2,
	LANDLOCK_READ_DIR = 1 << 3,
	LANDLOCK_REMOVE_FILE = 1 << 5,
	LANDLOCK_MAKE_SOCK = 1 << 9,
};

/* The version of the kernel's interface. Return: at least 1, or -errno if there is none. */
int landlock_abi(void);

/*
 * Start a set of rules that denies everything this kernel's Landlock can deny: access to files,
 * TCP, and connecting to abstract unix sockets of processes outside. Signals are not limited.
 * Return: its fd, or -errno if there is no Landlock.
 */
int landlock_create(void) must_check;

/* Allow `access` (enum landlock_access, or'ed) to what is beneath the directory `fd`, O_PATH.
 * Return: 0 or -errno. */
int landlock_allow(int rules, int fd, uint64_t access) must_check;

/* Put the rules in force for this process (it must have one thread), which needs no_new_privs.
 * Return: 0 or -errno. */
int landlock_enforce(int rules) must_check;

#endif
