/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/syscall_filter.h"

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than the libseccomp of Debian 12; the number is the same on every architecture. */
static const struct {
	const char *name;
	int number;
} YOUNG[] = {{"cachestat", 451}, {"fchmodat2", 452}};

static int number_of(const char *name)
{
	int number = seccomp_syscall_resolve_name(name);

	for (size_t i = 0; i < sizeof(YOUNG) / sizeof(YOUNG[0]); i++)
		if (number == __NR_SCMP_ERROR && !strcmp(name, YOUNG[i].name))
			return YOUNG[i].number;
	return number;
}

static uint32_t rule_action(const struct syscall_rule *rule)
{
	if (!rule->answer)
		return SCMP_ACT_ALLOW;
	return SCMP_ACT_ERRNO(rule->answer == SYSCALL_IGNORED ? 0u : (uint32_t)rule->answer);
}

static int add(scmp_filter_ctx filter, const struct syscall_rule *rule)
{
	int number = number_of(rule->name);
	const struct scmp_arg_cmp tests[] = {
		{(unsigned int)rule->argument, SCMP_CMP_MASKED_EQ, rule->mask, rule->value},
		{rule->also.argument, SCMP_CMP_MASKED_EQ, rule->also.mask, rule->also.value},
	};
	unsigned int count = rule->argument < 0 ? 0 : rule->also.mask ? 2 : 1;

	if (number == __NR_SCMP_ERROR)
		return -ENOENT;
	return seccomp_rule_add_array(filter, rule_action(rule), number, count, tests);
}

static int add_all(scmp_filter_ctx filter, const struct syscall_rule *rules, uint32_t count,
		   int32_t *ret_rule)
{
	for (uint32_t i = 0; i < count; i++) {
		int err = add(filter, &rules[i]);

		/* EDOM: this architecture does not have the call. */
		if (err && err != -EDOM) {
			*ret_rule = (int32_t)i;
			return err;
		}
	}
	return seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
}

static uint32_t default_action(enum seccomp_action action)
{
	switch (action) {
	case SECCOMP_TRAP:
		return SCMP_ACT_TRAP;
	case SECCOMP_LOG:
		return SCMP_ACT_LOG;
	default:
		return SCMP_ACT_KILL_PROCESS;
	}
}

/* Return: 0 with the filter in *ret, which is the caller's to release, or -errno. */
static int make(enum seccomp_action action, const struct syscall_rule *rules, uint32_t count,
		scmp_filter_ctx *ret, int32_t *ret_rule)
{
	scmp_filter_ctx filter = seccomp_init(default_action(action));
	int err;

	*ret_rule = -1;
	if (!filter)
		return -ENOMEM;
	err = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	/* A decision tree instead of a list, since many calls are hot. */
	if (!err)
		err = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!err)
		err = add_all(filter, rules, count, ret_rule);
	if (err)
		seccomp_release(filter);
	else
		*ret = filter;
	return err;
}

int syscall_filter_load(enum seccomp_action action, const struct syscall_rule *rules,
			uint32_t count, int32_t *ret_rule)
{
	scmp_filter_ctx filter;
	int err = make(action, rules, count, &filter, ret_rule);

	if (err)
		return err;
	err = seccomp_load(filter);
	seccomp_release(filter);
	return err;
}

/* libseccomp 2.5 writes a program only to an fd. Return: the program's size in bytes, or -errno. */
static int write_program(scmp_filter_ctx filter, uint8_t *ret, uint32_t room)
{
	int fd = memfd_create("vfsd-filter", MFD_CLOEXEC);
	ssize_t size;
	int err;

	if (fd < 0)
		return -errno;
	err = seccomp_export_bpf(filter, fd);
	size = err ? err : pread(fd, ret, room, 0);
	if (!err && size < 0)
		size = -errno;
	else if (size == (ssize_t)room) /* the program may be longer */
		size = -ENOSPC;
	close(fd);
	return (int)size;
}

int syscall_filter_compile(enum seccomp_action action, const struct syscall_rule *rules,
			   uint32_t count, uint8_t *ret, uint32_t room, int32_t *ret_rule)
{
	scmp_filter_ctx filter;
	int result = make(action, rules, count, &filter, ret_rule);

	if (result)
		return result;
	result = write_program(filter, ret, room);
	seccomp_release(filter);
	return result;
}

/* The value that a constant of a compiled filter has in the process that installs the filter. */
static uint32_t constant(uint32_t compiled, int own_socket)
{
	switch (compiled) {
	case SYSCALL_OWN_PROCESS:
		return (uint32_t)getpid();
	case SYSCALL_OWN_SOCKET:
		return (uint32_t)own_socket;
	default:
		return compiled;
	}
}

int syscall_filter_install(uint8_t *program, uint32_t bytes, int own_socket)
{
	struct sock_filter *filter = (struct sock_filter *)program;
	struct sock_fprog all = {(unsigned short)(bytes / sizeof(*filter)), filter};

	for (uint32_t i = 0; i < all.len; i++)
		if (filter[i].code == (BPF_JMP | BPF_JEQ | BPF_K))
			filter[i].k = constant(filter[i].k, own_socket);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &all) < 0 ? -errno : 0;
}
