/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/seccomp.h"
#include "worker/csrc/syscalls.h"

#include <errno.h>
#include <seccomp.h>
#include <string.h>

#define ALLOWED(name, why)			     {#name, why, -1, false, 0, 0},
#define ALLOWED_IF(name, argument, mask, value, why) {#name, why, argument, false, mask, value},
#define FOR_HANDLES(name, why)			     {#name, why, -1, true, 0, 0},

static const struct syscall_row TABLE[] = {VFSD_SYSCALLS(ALLOWED, ALLOWED_IF, FOR_HANDLES)};

enum {
	ROWS = sizeof(TABLE) / sizeof(TABLE[0]),
};

/* Younger than the libseccomp of Debian 12; the number is the same on every architecture. */
static const struct {
	const char *name;
	int number;
} YOUNG[] = {{"fchmodat2", 452}};

uint32_t seccomp_table(const struct syscall_row **ret)
{
	*ret = TABLE;
	return ROWS;
}

static int number_of(const char *name)
{
	int number = seccomp_syscall_resolve_name(name);

	for (size_t i = 0; i < sizeof(YOUNG) / sizeof(YOUNG[0]); i++)
		if (number == __NR_SCMP_ERROR && !strcmp(name, YOUNG[i].name))
			return YOUNG[i].number;
	return number;
}

static int allow(scmp_filter_ctx filter, const struct syscall_row *row)
{
	int number = number_of(row->name);

	if (number == __NR_SCMP_ERROR)
		return -ENOENT;
	if (row->argument < 0)
		return seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
	return seccomp_rule_add(
		filter, SCMP_ACT_ALLOW, number, 1,
		SCMP_CMP64((unsigned int)row->argument, SCMP_CMP_MASKED_EQ, row->mask, row->value));
}

static int allow_table(scmp_filter_ctx filter, bool file_handles, int32_t *ret_row)
{
	for (int32_t i = 0; i < ROWS; i++) {
		bool skip = TABLE[i].for_handles && !file_handles;
		int err = skip ? 0 : allow(filter, &TABLE[i]);

		/* EDOM: this architecture does not have the call. */
		if (err && err != -EDOM) {
			*ret_row = i;
			return err;
		}
	}
	*ret_row = -1;
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

int seccomp_confine(enum seccomp_action action, bool file_handles, int32_t *ret_row)
{
	scmp_filter_ctx filter = seccomp_init(default_action(action));
	int err;

	*ret_row = -1;
	if (!filter)
		return -ENOMEM;
	err = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	/* A decision tree instead of a list: the hot calls are many. */
	if (!err)
		err = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!err)
		err = allow_table(filter, file_handles, ret_row);
	if (!err)
		err = seccomp_load(filter);
	seccomp_release(filter);
	return err;
}
