/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/seccomp.h"
#include "worker/csrc/syscalls.h"

#define ALLOWED(name, why)			     {#name, why, -1, false, 0, 0},
#define ALLOWED_IF(name, argument, mask, value, why) {#name, why, argument, false, mask, value},
#define FOR_HANDLES(name, why)			     {#name, why, -1, true, 0, 0},

static const struct syscall_row TABLE[] = {VFSD_SYSCALLS(ALLOWED, ALLOWED_IF, FOR_HANDLES)};

enum {
	ROWS = sizeof(TABLE) / sizeof(TABLE[0]),
};

uint32_t seccomp_table(const struct syscall_row **ret)
{
	*ret = TABLE;
	return ROWS;
}

int seccomp_confine(enum seccomp_action action, bool file_handles, int32_t *ret_row)
{
	struct syscall_rule rules[ROWS];
	int32_t rows[ROWS];
	uint32_t count = 0;
	int32_t refused;
	int err;

	for (int32_t i = 0; i < ROWS; i++) {
		const struct syscall_row *row = &TABLE[i];

		if (row->for_handles && !file_handles)
			continue;
		rules[count] =
			(struct syscall_rule){row->name, row->argument, row->mask, row->value};
		rows[count++] = i;
	}
	err = syscall_filter_load(action, rules, count, &refused);
	*ret_row = refused < 0 ? -1 : rows[refused];
	return err;
}
