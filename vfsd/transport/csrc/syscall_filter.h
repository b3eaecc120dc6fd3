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

struct syscall_rule {
	const char *name;
	int32_t argument; /* -1: any arguments; else allowed if (argument & mask) == value */
	uint64_t mask;
	uint64_t value;
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

#endif
