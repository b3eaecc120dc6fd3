/* SPDX-License-Identifier: Apache-2.0 */
/* A seccomp filter of allowed system calls, made with libseccomp from a table. */
#ifndef VFSD_SYSCALL_FILTER_H
#define VFSD_SYSCALL_FILTER_H

#include "transport/csrc/types.h"

/* What happens to a process that makes a call outside the table. */
enum seccomp_action {
	SECCOMP_KILL, /* it dies */
	SECCOMP_TRAP, /* SIGSYS: it dies with a core dump */
	SECCOMP_LOG,  /* the call is logged by the kernel and made: for debugging */
};

enum {
	SYSCALL_IGNORED = -1, /* an answer: the call is not made and returns 0 */
	/* A value that stands for the id of the process that installs a compiled filter. It is no
	 * id: those are below 1 << 22. */
	SYSCALL_OWN_PROCESS = 0x6f776e70,
	/* A value that stands for an fd which the process that installs a compiled filter names. No
	 * fd is that high. */
	SYSCALL_OWN_SOCKET = 0x6f776e73,
};

/* Holds for a call if (argument & mask) == value; the first argument is 0. */
struct syscall_test {
	uint32_t argument;
	uint64_t mask;
	uint64_t value;
};

struct syscall_rule {
	const char *name;
	int32_t argument; /* -1: any arguments; else allowed if (argument & mask) == value */
	uint64_t mask;
	uint64_t value;
	struct syscall_test also; /* another condition; none if its mask is 0 */
	int32_t answer;		  /* 0: the call is made; an errno, or SYSCALL_IGNORED: it is not */
};

/*
 * Confine this process (it must have one thread) and all it creates from now on to the calls of
 * `rules`; several rules of one call: any of them. Filters add up: what an earlier one forbids
 * stays forbidden. clone3 is answered with ENOSYS, since its flags cannot be looked at; glibc then
 * uses clone. Sets no_new_privs. Return: 0 or -errno; *ret_rule is the rule that libseccomp
 * refused, or -1.
 */
int syscall_filter_load(enum seccomp_action action, const struct syscall_rule *rules,
			uint32_t count, int32_t *ret_rule) must_check;

/*
 * The same filter as a program for syscall_filter_install(), which any process can put in force
 * later without libseccomp's milliseconds and its memory. Return: the program's size in bytes, or
 * -errno; -ENOSPC if `room` bytes are too few.
 */
int syscall_filter_compile(enum seccomp_action action, const struct syscall_rule *rules,
			   uint32_t count, uint8_t *ret, uint32_t room,
			   int32_t *ret_rule) must_check;

/*
 * Put a compiled filter in force for this thread and all it creates. no_new_privs is set already.
 * SYSCALL_OWN_PROCESS in `program` becomes this process, SYSCALL_OWN_SOCKET `own_socket` (an fd, or
 * -1). Return: 0 or -errno.
 */
int syscall_filter_install(uint8_t *program, uint32_t bytes, int own_socket) must_check;

#endif
