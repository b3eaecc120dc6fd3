/* SPDX-License-Identifier: Apache-2.0 */
/* The seccomp filter of the pool and its workers: the table in syscalls.h. */
#ifndef VFSD_SECCOMP_H
#define VFSD_SECCOMP_H

#include "transport/csrc/syscall_filter.h"

struct syscall_row {
	const char *name;
	const char *why;
	int32_t argument; /* -1: any arguments; else allowed if (argument & mask) == value */
	bool for_handles; /* only where inodes are held by file handles */
	uint64_t mask;
	uint64_t value;
};

/* The table. Return: its number of rows. */
uint32_t seccomp_table(const struct syscall_row **ret);

/*
 * Confine this process and all it creates from now on (it must have one thread).
 * Return: 0 or -errno; *ret_row is the row that libseccomp refused, or -1.
 */
int seccomp_confine(enum seccomp_action action, bool file_handles, int32_t *ret_row) must_check;

#endif
