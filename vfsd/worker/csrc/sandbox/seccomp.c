/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/sandbox/seccomp.h"
#include "worker/csrc/sandbox/syscalls.h"

#define INT_BITS UINT64_C(0xffffffff)

#define ANY		      .argument = -1
#define MASKED(n, bits, want) .argument = (n), .mask = (uint32_t)(bits), .value = (uint32_t)(want)
#define IS(n, want)	      MASKED(n, INT_BITS, want)
#define PAIR(n, want, m, other) \
	IS(n, want), .also = {.argument = (m), .mask = UINT64_MAX, .value = (other)}
#define OWN_PROCESS		IS(0, SYSCALL_OWN_PROCESS)
#define OWN_SOCKET		IS(0, SYSCALL_OWN_SOCKET)
#define ANSWERED(test, instead) test, .answer = (instead)
#define IGNORED			SYSCALL_IGNORED

#define P ROLE_POOL
#define L ROLE_LOOP
#define T ROLE_THREAD
#define G ROLE_GUARD
#define B ROLE_BROKER

#define ROW(call, who, when, test, by, reason) \
	{.rule = {.name = #call, test},        \
	 .text = #test,                        \
	 .callers = (by),                      \
	 .why = (reason),                      \
	 .roles = (who),                       \
	 .conditions = (when)},

static const struct syscall_row TABLE[] = {VFSD_SYSCALLS(ROW)};

enum {
	ROWS = sizeof(TABLE) / sizeof(TABLE[0]),
	ROLES_OF_POOL = ROLE_POOL | ROLE_LOOP | ROLE_THREAD,
};

/* The rules for some roles, and the row that each rule comes from. */
struct selection {
	struct syscall_rule rules[ROWS];
	int32_t rows[ROWS];
	uint32_t count;
};

uint32_t seccomp_table(const struct syscall_row **ret)
{
	*ret = TABLE;
	return ROWS;
}

/* In the pool's filter "this process" means any process, and its socket any socket: each worker's
 * own filter says which. */
static struct syscall_rule for_any_worker(struct syscall_rule rule)
{
	if (rule.value == SYSCALL_OWN_PROCESS || rule.value == SYSCALL_OWN_SOCKET)
		rule.argument = -1;
	return rule;
}

static void select_rows(uint32_t roles, uint32_t conditions, struct selection *ret)
{
	ret->count = 0;
	for (int32_t i = 0; i < ROWS; i++) {
		const struct syscall_row *row = &TABLE[i];

		if (!(row->roles & roles) || row->conditions & ~conditions)
			continue;
		ret->rules[ret->count] = roles & ROLE_POOL ? for_any_worker(row->rule) : row->rule;
		ret->rows[ret->count++] = i;
	}
}

static int32_t row_of(const struct selection *selection, int32_t rule)
{
	return rule < 0 ? -1 : selection->rows[rule];
}

static int confine(uint32_t roles, enum seccomp_action action, uint32_t conditions,
		   int32_t *ret_row)
{
	struct selection selection;
	int32_t refused;
	int err;

	select_rows(roles, conditions, &selection);
	err = syscall_filter_load(action, selection.rules, selection.count, &refused);
	*ret_row = row_of(&selection, refused);
	return err;
}

int seccomp_confine_pool(enum seccomp_action action, uint32_t conditions, int32_t *ret_row)
{
	return confine(ROLES_OF_POOL, action, conditions, ret_row);
}

int seccomp_confine_guard(enum seccomp_action action, int32_t *ret_row)
{
	return confine(ROLE_GUARD | ROLE_BROKER, action, 0, ret_row);
}

static int compile(uint32_t roles, enum seccomp_action action, uint32_t conditions, uint8_t *ret,
		   int32_t *ret_row)
{
	struct selection selection;
	int32_t refused;
	int result;

	select_rows(roles, conditions, &selection);
	result = syscall_filter_compile(action, selection.rules, selection.count, ret,
					SECCOMP_PROGRAM_MAX + 1, &refused);
	*ret_row = row_of(&selection, refused);
	return result;
}

int seccomp_compile_worker(enum seccomp_action action, uint32_t conditions, uint8_t *ret,
			   int32_t *ret_row)
{
	return compile(ROLE_LOOP | ROLE_THREAD, action, conditions, ret, ret_row);
}

int seccomp_compile_broker(enum seccomp_action action, uint8_t *ret, int32_t *ret_row)
{
	return compile(ROLE_BROKER, action, 0, ret, ret_row);
}
