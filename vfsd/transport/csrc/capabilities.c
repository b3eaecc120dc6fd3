/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/csrc/capabilities.h"

#include <errno.h>
#include <linux/capability.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *const NAMES[] = {
#define ROW(name) [CAP_##name] = #name
	ROW(CHOWN),
	ROW(DAC_OVERRIDE),
	ROW(DAC_READ_SEARCH),
	ROW(FOWNER),
	ROW(FSETID),
	ROW(KILL),
	ROW(SETGID),
	ROW(SETUID),
	ROW(SETPCAP),
	ROW(LINUX_IMMUTABLE),
	ROW(NET_BIND_SERVICE),
	ROW(NET_BROADCAST),
	ROW(NET_ADMIN),
	ROW(NET_RAW),
	ROW(IPC_LOCK),
	ROW(IPC_OWNER),
	ROW(SYS_MODULE),
	ROW(SYS_RAWIO),
	ROW(SYS_CHROOT),
	ROW(SYS_PTRACE),
	ROW(SYS_PACCT),
	ROW(SYS_ADMIN),
	ROW(SYS_BOOT),
	ROW(SYS_NICE),
	ROW(SYS_RESOURCE),
	ROW(SYS_TIME),
	ROW(SYS_TTY_CONFIG),
	ROW(MKNOD),
	ROW(LEASE),
	ROW(AUDIT_WRITE),
	ROW(AUDIT_CONTROL),
	ROW(SETFCAP),
	ROW(MAC_OVERRIDE),
	ROW(MAC_ADMIN),
	ROW(SYSLOG),
	ROW(WAKE_ALARM),
	ROW(BLOCK_SUSPEND),
	ROW(AUDIT_READ),
	ROW(PERFMON),
	ROW(BPF),
	ROW(CHECKPOINT_RESTORE),
#undef ROW
};

struct capability_sets {
	struct __user_cap_header_struct header;
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
};

int capability_number(const char *name)
{
	if (!strncasecmp(name, "CAP_", 4))
		name += 4;
	for (unsigned int i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++)
		if (!strcasecmp(name, NAMES[i]))
			return (int)i;
	return -EINVAL;
}

int capabilities_permitted(uint64_t *ret)
{
	struct capability_sets sets = {.header = {.version = _LINUX_CAPABILITY_VERSION_3}};

	if (syscall(SYS_capget, &sets.header, sets.data) < 0)
		return -errno;
	*ret = sets.data[0].permitted | (uint64_t)sets.data[1].permitted << 32;
	return 0;
}

/* An unprivileged process cannot empty the set. It need not either: no_new_privs keeps it from
 * gaining a capability. */
static int empty_bounding_set(void)
{
	for (unsigned long i = 0; prctl(PR_CAPBSET_READ, i, 0, 0, 0) >= 0; i++)
		if (prctl(PR_CAPBSET_DROP, i, 0, 0, 0) < 0)
			return errno == EPERM ? 0 : -errno;
	return 0;
}

int capabilities_limit(uint64_t keep)
{
	struct capability_sets sets = {.header = {.version = _LINUX_CAPABILITY_VERSION_3}};
	int err = empty_bounding_set();

	if (err)
		return err;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -errno;
	for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		sets.data[i].permitted = (uint32_t)(keep >> 32 * i);
		sets.data[i].effective = sets.data[i].permitted;
	}
	return syscall(SYS_capset, &sets.header, sets.data) < 0 ? -errno : 0;
}

int capabilities_keep(void)
{
	return prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

static int make_inheritable(uint64_t *ret)
{
	struct capability_sets sets = {.header = {.version = _LINUX_CAPABILITY_VERSION_3}};

	if (syscall(SYS_capget, &sets.header, sets.data) < 0)
		return -errno;
	for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
		sets.data[i].inheritable = sets.data[i].permitted;
	*ret = sets.data[0].permitted | (uint64_t)sets.data[1].permitted << 32;
	return syscall(SYS_capset, &sets.header, sets.data) < 0 ? -errno : 0;
}

int capabilities_pass_on(void)
{
	uint64_t passed;
	int err = make_inheritable(&passed);

	for (unsigned long i = 0; !err && i < 64; i++)
		if (passed >> i & 1 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0) < 0)
			err = -errno;
	return err;
}
