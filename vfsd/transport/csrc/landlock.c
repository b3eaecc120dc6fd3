/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/landlock.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	CREATE_VERSION = 1,
	RULE_PATH_BENEATH = 1,
	NET_TCP = 3,	    /* version 4: bind, connect */
	SCOPE_ABSTRACT = 1, /* version 6: abstract unix sockets */
	SCOPE_SIGNAL = 2,   /* version 6: signals to processes outside */
};

struct ruleset {
	uint64_t fs;
	uint64_t net;
	uint64_t scoped;
};

struct path_beneath {
	uint64_t access;
	int32_t fd;
} __attribute__((packed));

static int result(long ret)
{
	return ret < 0 ? -errno : (int)ret;
}

int landlock_abi(void)
{
	return result(syscall(SYS_landlock_create_ruleset, NULL, 0, CREATE_VERSION));
}

uint64_t landlock_known(void)
{
	int abi = landlock_abi();
	uint64_t last = abi >= 5   ? LANDLOCK_IOCTL_DEV
			: abi >= 3 ? LANDLOCK_TRUNCATE
			: abi == 2 ? LANDLOCK_REFER
				   : LANDLOCK_MAKE_SYM;

	return 2 * last - 1; /* this bit and all bits below it */
}

static int create(uint64_t accesses, uint64_t scoped)
{
	int abi = landlock_abi();
	/* An older kernel takes a longer structure if the fields that it does not know are zero. */
	struct ruleset rules = {
		.fs = accesses & landlock_known(),
		.net = abi >= 4 ? NET_TCP : 0,
		.scoped = abi >= 6 ? scoped : 0,
	};

	if (abi < 0)
		return abi;
	return result(syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules), 0));
}

int landlock_create(void)
{
	return create(UINT64_MAX, SCOPE_ABSTRACT);
}

int landlock_create_scoped(bool files)
{
	return create(files ? UINT64_MAX : LANDLOCK_EXECUTE | LANDLOCK_REFER,
		      SCOPE_ABSTRACT | SCOPE_SIGNAL);
}

int landlock_allow(int rules, int fd, uint64_t access)
{
	struct path_beneath rule = {access, fd};

	return result(syscall(SYS_landlock_add_rule, rules, RULE_PATH_BENEATH, &rule, 0));
}

int landlock_enforce(int rules)
{
	return result(syscall(SYS_landlock_restrict_self, rules, 0));
}
