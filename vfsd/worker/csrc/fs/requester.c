/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/requester.h"

#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <sys/stat.h>

void requester_note_refusal(struct fs *fs, uint32_t uid, uint32_t gid)
{
	if (fs->refusal.is_noted)
		return;
	fs->refusal = (struct refusal){
		.is_noted = true,
		.uid = uid,
		.gid = gid,
		.own_uid = fs->credentials.root_uid,
		.own_gid = fs->credentials.root_gid,
	};
}

static int act_as_requester(struct fs *fs, const struct request *r, bool override)
{
	uint32_t groups[SUPPLEMENTARY_GROUPS_MAX];
	struct requester who = {
		.uid = idmap_translate(&fs->policy.uids.to_host, r->in.uid),
		.gid = idmap_translate(&fs->policy.gids.to_host, r->in.gid),
		.groups = groups,
		.group_count = r->group_count,
		.override = override,
	};
	int err;

	for (uint32_t i = 0; i < r->group_count; i++)
		groups[i] = idmap_translate(&fs->policy.gids.to_host, r->groups[i]);
	err = credentials_user(&fs->credentials, &who);
	if (err == -EPERM && who.uid != UINT32_MAX && who.gid != UINT32_MAX)
		requester_note_refusal(fs, r->in.uid, r->in.gid);
	return err;
}

int requester_act_checked(struct fs *fs, const struct request *r)
{
	return act_as_requester(fs, r, false);
}

int requester_act_as_member(struct fs *fs, const struct request *r, uint32_t gid)
{
	const struct requester who = {
		.uid = idmap_translate(&fs->policy.uids.to_host, r->in.uid),
		.gid = idmap_translate(&fs->policy.gids.to_host, r->in.gid),
		.groups = &gid,
		.group_count = 1,
	};

	return credentials_user(&fs->credentials, &who);
}

/* Older guests send no groups at all, and no guest sends the groups that an ACL names. */
static bool sends_all_groups(const struct fs *fs)
{
	return (fs->session->flags & (FUSE_CREATE_SUPP_GROUP | FUSE_POSIX_ACL)) ==
	       FUSE_CREATE_SUPP_GROUP;
}

int requester_act(struct fs *fs, const struct request *r, uint32_t umask)
{
	int err = act_as_requester(fs, r, !sends_all_groups(fs));

	/* Without this agreement the guest's kernel has applied its umask already. */
	credentials_umask(&fs->credentials, is_agreed(fs->session, &AGREED_UMASK) ? umask : 0);
	return err;
}

int requester_keep_sgid(struct fs *fs, const struct request *r, uint32_t mode)
{
	if (!(mode & S_ISGID) || fs->credentials.uid != fs->credentials.root_uid)
		return 0;
	return credentials_fsetid(&fs->credentials, r->in.uid == 0);
}
