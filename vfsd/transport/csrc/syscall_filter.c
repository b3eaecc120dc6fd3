/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/syscall_filter.h"

#include <errno.h>
#include <seccomp.h>
#include <string.h>

/* Younger than the libseccomp of Debian 12; the number is the same on every architecture. */
static const struct {
	const char *name;
	int number;
} YOUNG[] = {{"fchmodat2", 452}};

static int number_of(const char *name)
{
	int number = seccomp_syscall_resolve_name(name);

	for (size_t i = 0; i < sizeof(YOUNG) / sizeof(YOUNG[0]); i++)
		if (number == __NR_SCMP_ERROR && !strcmp(name, YOUNG[i].name))
			return YOUNG[i].number;
	return number;
}

static int allow(scmp_filter_ctx filter, const struct syscall_rule *rule)
{
	int number = number_of(rule->name);

	if (number == __NR_SCMP_ERROR)
		return -ENOENT;
	if (rule->argument < 0)
		return seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);
	return seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 1,
				SCMP_CMP64((unsigned int)rule->argument, SCMP_CMP_MASKED_EQ,
					   rule->mask, rule->value));
}

static int allow_all(scmp_filter_ctx filter, const struct syscall_rule *rules, uint32_t count,
		     int32_t *ret_rule)
{
	for (uint32_t i = 0; i < count; i++) {
		int err = allow(filter, &rules[i]);

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

int syscall_filter_load(enum seccomp_action action, const struct syscall_rule *rules,
			uint32_t count, int32_t *ret_rule)
{
	scmp_filter_ctx filter = seccomp_init(default_action(action));
	int err;

	*ret_rule = -1;
	if (!filter)
		return -ENOMEM;
	err = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	/* A decision tree instead of a list: the hot calls are many. */
	if (!err)
		err = seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2);
	if (!err)
		err = allow_all(filter, rules, count, ret_rule);
	if (!err)
		err = seccomp_load(filter);
	seccomp_release(filter);
	return err;
}
