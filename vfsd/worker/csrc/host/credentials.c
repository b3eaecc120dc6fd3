/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/host/credentials.h"

#include <errno.h>
#include <linux/capability.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* These are raw system calls, because glibc's wrappers change every thread of the process. */
static int set_euid(uint32_t uid)
{
	return syscall(SYS_setresuid, -1, uid, -1) < 0 ? -errno : 0;
}

static int set_egid(uint32_t gid)
{
	return syscall(SYS_setresgid, -1, gid, -1) < 0 ? -errno : 0;
}

static int set_groups(const uint32_t *groups, uint32_t count)
{
	return syscall(SYS_setgroups, (size_t)count, groups) < 0 ? -errno : 0;
}

struct capabilities {
	struct __user_cap_header_struct header;
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
};

static int read_capabilities(struct capabilities *ret)
{
	memset(ret, 0, sizeof(*ret));
	ret->header.version = _LINUX_CAPABILITY_VERSION_3;
	return syscall(SYS_capget, &ret->header, ret->data) < 0 ? -errno : 0;
}

static int write_capabilities(struct capabilities *caps)
{
	return syscall(SYS_capset, &caps->header, caps->data) < 0 ? -errno : 0;
}

static bool is_permitted(uint32_t capability)
{
	struct capabilities caps;

	return !read_capabilities(&caps) && caps.data[0].permitted & 1u << capability;
}

/* Make all permitted capabilities effective, or none. */
static int set_all_effective(bool on)
{
	struct capabilities caps;
	int err = read_capabilities(&caps);

	bool differs = false;

	if (err)
		return err;
	for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		uint32_t wanted = on ? caps.data[i].permitted : 0;

		differs |= caps.data[i].effective != wanted;
		caps.data[i].effective = wanted;
	}
	return differs ? write_capabilities(&caps) : 0;
}

/* A seccomp filter that the daemon was started under may deny capset(2). */
static bool may_capset(void)
{
	struct capabilities caps;

	return !read_capabilities(&caps) && !write_capabilities(&caps);
}

static bool may_change_ids(uint32_t uid)
{
	return uid == 0 || (is_permitted(CAP_SETUID) && is_permitted(CAP_SETGID));
}

static int set_effective(uint32_t capability, bool on)
{
	struct capabilities caps;
	int err = read_capabilities(&caps);

	if (err)
		return err;
	if (on)
		caps.data[0].effective |= caps.data[0].permitted & 1u << capability;
	else
		caps.data[0].effective &= ~(1u << capability);
	return write_capabilities(&caps);
}

void credentials_init(struct credentials *c)
{
	umask(0);
	*c = (struct credentials){.umask = 0};
	c->uid = c->root_uid = geteuid();
	c->gid = c->root_gid = getegid();
	c->privileged = may_change_ids(c->uid);
	/* setgroups(2) fails in a user namespace that an ordinary user has created. */
	c->may_groups = c->privileged && !set_groups(NULL, 0);
	c->may_fsetid = is_permitted(CAP_FSETID) && may_capset();
	c->fsetid = c->may_fsetid;
	c->may_override = is_permitted(CAP_DAC_OVERRIDE) && may_capset();
}

/* Only root may change the groups and the gid, so every change of identity becomes root first. */
static int become_root_uid(struct credentials *c)
{
	int err;

	if (c->uid == c->root_uid)
		return 0;
	err = set_euid(c->root_uid);
	if (!err &&
	    c->root_uid) /* an euid of 0 makes the permitted set effective without this call */
		err = set_all_effective(true);
	if (err)
		return err;
	c->uid = c->root_uid;
	c->fsetid = c->may_fsetid;
	c->override = false;
	return 0;
}

uint32_t credentials_uid(const struct credentials *c, uint32_t id)
{
	return id || c->privileged ? id : c->root_uid;
}

uint32_t credentials_gid(const struct credentials *c, uint32_t id)
{
	return id || c->privileged ? id : c->root_gid;
}

static bool same_groups(const struct credentials *c, const uint32_t *groups, uint32_t count)
{
	return c->group_count == count &&
	       (!count || !memcmp(c->groups, groups, count * sizeof(*groups)));
}

static int change_groups(struct credentials *c, const uint32_t *groups, uint32_t count)
{
	int err;

	if (count > SUPPLEMENTARY_GROUPS_MAX)
		return -EINVAL;
	if (same_groups(c, groups, count))
		return 0;
	err = set_groups(groups, count);
	if (err)
		return err;
	if (count)
		memcpy(c->groups, groups, count * sizeof(*groups));
	c->group_count = count;
	return 0;
}

static int change_gid(struct credentials *c, uint32_t gid)
{
	int err = c->gid == gid ? 0 : set_egid(gid);

	if (!err)
		c->gid = gid;
	return err;
}

int credentials_root(struct credentials *c)
{
	int err;

	if (!c->privileged || (c->uid == c->root_uid && c->gid == c->root_gid && !c->group_count))
		return 0;
	if (c->stand_in)
		return credentials_user(c, c->stand_in);
	err = become_root_uid(c);
	if (!err)
		err = change_groups(c, NULL, 0);
	return err ? err : change_gid(c, c->root_gid);
}

static int become_user_uid(struct credentials *c, uint32_t uid)
{
	int err;

	if (c->uid == uid)
		return 0;
	err = set_euid(uid);
	if (!err && c->root_uid && uid) /* the kernel empties the set if uid 0 was left */
		err = set_all_effective(false);
	if (err)
		return err;
	c->uid = uid;
	c->fsetid = uid == 0 && c->may_fsetid;
	return 0;
}

static int set_override(struct credentials *c, bool on)
{
	int err;

	on = on && c->may_override;
	if (c->uid == c->root_uid || c->uid == 0 || c->override == on)
		return 0;
	err = set_effective(CAP_DAC_OVERRIDE, on);
	if (!err)
		c->override = on;
	return err;
}

static bool is_user(const struct credentials *c, const struct requester *who)
{
	return c->uid == who->uid && c->gid == who->gid &&
	       same_groups(c, who->groups, who->group_count);
}

static int become_user(struct credentials *c, const struct requester *who)
{
	int err;

	if (is_user(c, who))
		return 0;
	err = become_root_uid(c);
	if (!err)
		err = change_groups(c, who->groups, who->group_count);
	if (!err)
		err = change_gid(c, who->gid);
	if (!err)
		err = become_user_uid(c, who->uid);
	return err;
}

/* Is none of these ids (uint32_t)-1, which no user or group can have? */
static bool exists(const struct requester *who)
{
	for (uint32_t i = 0; i < who->group_count; i++)
		if (who->groups[i] == UINT32_MAX)
			return false;
	return who->uid != UINT32_MAX && who->gid != UINT32_MAX;
}

static bool is_self(const struct credentials *c, const struct requester *who)
{
	return credentials_uid(c, who->uid) == c->root_uid &&
	       credentials_gid(c, who->gid) == c->root_gid;
}

int credentials_user(struct credentials *c, const struct requester *who)
{
	struct requester able = *who;
	int err;

	if (!exists(who))
		return -EPERM;
	if (!c->privileged)
		return is_self(c, who) ? 0 : -EPERM;
	if (!c->may_groups)
		able.group_count = 0;
	err = become_user(c, &able);
	if (!err)
		err = set_override(c, able.override);
	/* EINVAL: the user namespace does not map one of the ids. */
	return err == -EINVAL ? -EPERM : err;
}

/* Act as `who` immediately, because credentials_root() does nothing for a worker that is root
 * already. */
int credentials_stand_in(struct credentials *c, const struct requester *who)
{
	c->stand_in = who;
	return who ? credentials_user(c, who) : credentials_root(c);
}

int credentials_fsetid(struct credentials *c, bool keep)
{
	int err;

	if (!c->may_fsetid || c->fsetid == keep)
		return 0;
	if (c->stand_in)
		return credentials_root(c);
	if (c->uid != c->root_uid) { /* `keep` is true: a user has no CAP_FSETID to drop */
		err = credentials_root(c);
		if (err)
			return err;
		if (c->fsetid == keep)
			return 0;
	}
	err = set_effective(CAP_FSETID, keep);
	if (!err)
		c->fsetid = keep;
	return err;
}

int credentials_set_id(struct credentials *c, bool kill, uint32_t group)
{
	int err;

	if (!kill || group == CREDENTIALS_ANY_GROUP)
		return credentials_fsetid(c, !kill);
	err = credentials_root(c);
	if (!err && c->privileged && !c->stand_in)
		err = change_gid(c, group);
	if (err && err != -EINVAL) /* EINVAL: no process here can be in that group */
		return err;
	return credentials_fsetid(c, false);
}

void credentials_umask(struct credentials *c, uint32_t mask)
{
	if (c->umask == (mask & 0777))
		return;
	c->umask = mask & 0777;
	umask(c->umask);
}

int credentials_thread_root(struct credentials *ret)
{
	uint32_t ruid, euid, suid, rgid, egid, sgid;
	int err;

	if (syscall(SYS_getresuid, &ruid, &euid, &suid) < 0 ||
	    syscall(SYS_getresgid, &rgid, &egid, &sgid) < 0)
		return -errno;
	err = euid == ruid ? 0 : set_euid(ruid);
	if (!err)
		err = set_all_effective(true);
	if (!err && may_change_ids(ruid)) {
		err = set_groups(NULL, 0);
		/* EPERM: this process may not set its groups, so it has never changed them. */
		err = err == -EPERM ? 0 : err;
	}
	if (!err && egid != rgid)
		err = set_egid(rgid);
	if (err)
		return err;
	*ret = (struct credentials){.uid = ruid, .gid = rgid, .root_uid = ruid, .root_gid = rgid};
	ret->privileged = may_change_ids(ruid);
	ret->may_fsetid = ret->fsetid = is_permitted(CAP_FSETID) && may_capset();
	return 0;
}
