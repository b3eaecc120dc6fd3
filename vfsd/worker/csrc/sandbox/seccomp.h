/* SPDX-License-Identifier: Apache-2.0 */
/* The seccomp filters of the pool and its workers, from the table in syscalls.h. */
#ifndef VFSD_SECCOMP_H
#define VFSD_SECCOMP_H

#include "transport/csrc/syscall_filter.h"

/* The kind of process or thread that makes a call. */
enum seccomp_role {
	ROLE_POOL = 1,
	ROLE_LOOP = 2,	 /* a worker's main thread */
	ROLE_THREAD = 4, /* its other threads: requests off the loop, zmq */
	ROLE_GUARD = 8,	 /* the guard of the broker of file handles */
	ROLE_BROKER = 16,
};

/* The conditions of a row, or'ed: the row holds only for jobs that meet them all. worker/seccomp.py
 * determines a job's conditions. */
enum seccomp_condition {
	IF_HANDLES = 1, /* workers open inodes by file handles themselves */
	IF_XATTR = 2,
	IF_WRITABLE = 4,
	IF_READONLY = 8,
	IF_FLOCK = 16,
	IF_POSIX_LOCK = 32,
	IF_DIRECT_IO = 64, /* O_DIRECT is passed on, and there are threads */
	IF_QUEUE_CPUS = 128,
	IF_IDS = 256, /* ids can be changed */
	IF_NEVER = 512,
	IF_SIGNED = 1024, /* workers have the broker open file handles */
};

struct syscall_row {
	struct syscall_rule rule;
	const char *text;    /* the rule as written in the table */
	const char *callers; /* files of vfsd, or libraries */
	const char *why;
	uint32_t roles;	     /* enum seccomp_role */
	uint32_t conditions; /* enum seccomp_condition */
};

enum {
	SECCOMP_PROGRAM_MAX = 32768, /* bytes: 4096 instructions, the kernel's limit */
};

/* The table. Return: its number of rows. */
uint32_t seccomp_table(const struct syscall_row **ret);

/*
 * Confine this process, the pool, and all processes that it creates from now on to the rows of
 * every role that `conditions` allow. The process must have one thread. Return: 0 or -errno;
 * *ret_row is the row that libseccomp refused, or -1.
 */
int seccomp_confine_pool(enum seccomp_action action, uint32_t conditions,
			 int32_t *ret_row) must_check;

/* Confine this process, the guard, and the brokers that it creates from now on to the rows of these
 * two roles. Conditions and return value as for seccomp_confine_pool. */
int seccomp_confine_guard(enum seccomp_action action, int32_t *ret_row) must_check;

/*
 * Compile the filter that each worker puts in force with syscall_filter_install(): the rows of its
 * own roles. Return: bytes in `ret`, which has room for SECCOMP_PROGRAM_MAX, or -errno as above.
 */
int seccomp_compile_worker(enum seccomp_action action, uint32_t conditions, uint8_t *ret,
			   int32_t *ret_row) must_check;

/* Compile the filter that the broker puts in force: the rows of its role. Return as for
 * seccomp_compile_worker. */
int seccomp_compile_broker(enum seccomp_action action, uint8_t *ret, int32_t *ret_row) must_check;

#endif
