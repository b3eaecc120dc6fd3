/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/landlock.h"

#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	CREATE_VERSION = 1,
	RULE_PATH_BENEATH = 1,
	/* How many LANDLOCK_ACCESS_FS_* there are, by the version that brought them. */
	FS_ACCESSES_1 = 13,
	FS_ACCESSES_2 = 14, /* REFER */
	FS_ACCESSES_3 = 15, /* TRUNCATE */
	FS_ACCESSES_5 = 16, /* IOCTL_DEV */
	NET_TCP = 3,	    /* version 4: bind, connect */
	SCOPE_ABSTRACT = 1, /* version 6: abstract unix sockets */
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

static uint64_t fs_accesses(int abi)
{
	unsigned int count = abi >= 5	? FS_ACCESSES_5
			     : abi >= 3 ? FS_ACCESSES_3
			     : abi == 2 ? FS_ACCESSES_2
					: FS_ACCESSES_1;

	return (UINT64_C(1) << count) - 1;
}

int landlock_create(void)
{
	int abi = landlock_abi();
	/* An older kernel takes a longer structure if what it does not know is zero. */
	struct ruleset rules = {
		.fs = fs_accesses(abi),
		.net = abi >= 4 ? NET_TCP : 0,
		.scoped = abi >= 6 ? SCOPE_ABSTRACT : 0,
	};

	if (abi < 0)
		return abi;
	return result(syscall(SYS_landlock_create_ruleset, &rules, sizeof(rules), 0));
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
