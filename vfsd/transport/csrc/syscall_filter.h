/* SPDX-License-Identifier: Apache-2.0 */
/* A seccomp filter of allowed system calls, made with libseccomp from a table. */
#ifndef VFSD_SYSCALL_FILTER_H
#define VFSD_SYSCALL_FILTER_H

#include "transport/csrc/types.h"

/* What happens to a process that makes a call outside the table. */
enum seccomp_action {
	SECCOMP_KILL, /* the process dies */
	SECCOMP_TRAP, /* SIGSYS: the process dies with a core dump */
	SECCOMP_LOG,  /* the kernel logs the call and makes it: for debugging */
};

enum {
	SYSCALL_IGNORED = -1, /* an answer: the call is not made and returns 0 */
	/* Stands for the id of the process that installs a compiled filter. The value is not a pid:
	 * pids are below 1 << 22. */
	SYSCALL_OWN_PROCESS = 0x6f776e70,
	/* Stands for an fd that is given when a compiled filter is installed. No fd has a number
	 * this high. */
	SYSCALL_OWN_SOCKET = 0x6f776e73,
};

/* True for a call if (argument & mask) == value; the first argument has number 0. */
struct syscall_test {
	uint32_t argument;
	uint64_t mask;
	uint64_t value;
};

struct syscall_rule {
	const char *name;
	int32_t argument; /* -1: any arguments; else the rule needs (argument & mask) == value */
	uint64_t mask;
	uint64_t value;
	struct syscall_test also; /* a second condition; none if its mask is 0 */
	int32_t answer; /* 0: make the call; else answer with this errno, or SYSCALL_IGNORED */
};

/*
 * Confine this process (it must have one thread) and all processes that it creates from now on to
 * the calls of `rules`. If several rules name the same call, it is allowed if any of them applies.
 * Filters add up: a call that an earlier filter forbids stays forbidden. clone3 is answered with
 * ENOSYS, since a filter cannot see its flags; glibc then uses clone. Sets no_new_privs. Return: 0
 * or -errno; *ret_rule is the rule that libseccomp refused, or -1.
 */
int syscall_filter_load(enum seccomp_action action, const struct syscall_rule *rules,
			uint32_t count, int32_t *ret_rule) must_check;

/*
 * Make the same filter as a program for syscall_filter_install(), which any process can put in
 * force later without the milliseconds and the memory that libseccomp takes. Return: the program's
 * size in bytes, or -errno; -ENOSPC if `room` bytes are too few.
 */
int syscall_filter_compile(enum seccomp_action action, const struct syscall_rule *rules,
			   uint32_t count, uint8_t *ret, uint32_t room,
			   int32_t *ret_rule) must_check;

/*
 * Put a compiled filter in force for this thread and all threads and processes that it creates.
 * no_new_privs must be set. SYSCALL_OWN_PROCESS in `program` becomes this process's id,
 * SYSCALL_OWN_SOCKET becomes `own_socket` (an fd, or -1). Return: 0 or -errno.
 */
int syscall_filter_install(uint8_t *program, uint32_t bytes, int own_socket) must_check;

#endif
