/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/requester.h"

#include "worker/csrc/request/agreed.h"

#include <errno.h>
#include <sys/stat.h>

void requester_note_refusal(struct worker *w, uint32_t uid, uint32_t gid)
{
	if (w->refusal.is_noted)
		return;
	w->refusal = (struct refusal){
		.is_noted = true,
		.uid = uid,
		.gid = gid,
		.own_uid = w->credentials.root_uid,
		.own_gid = w->credentials.root_gid,
	};
}

static int act_as_requester(struct worker *w, const struct request *r, bool override)
{
	uint32_t groups[SUPPLEMENTARY_GROUPS_MAX];
	struct requester who = {
		.uid = idmap_translate(&w->policy.uids.to_host, r->in.uid),
		.gid = idmap_translate(&w->policy.gids.to_host, r->in.gid),
		.groups = groups,
		.group_count = r->group_count,
		.override = override,
	};
	int err;

	for (uint32_t i = 0; i < r->group_count; i++)
		groups[i] = idmap_translate(&w->policy.gids.to_host, r->groups[i]);
	err = credentials_user(&w->credentials, &who);
	if (err == -EPERM && who.uid != UINT32_MAX && who.gid != UINT32_MAX)
		requester_note_refusal(w, r->in.uid, r->in.gid);
	return err;
}

int requester_act_checked(struct worker *w, const struct request *r)
{
	return act_as_requester(w, r, false);
}

int requester_act_as_member(struct worker *w, const struct request *r, uint32_t gid)
{
	const struct requester who = {
		.uid = idmap_translate(&w->policy.uids.to_host, r->in.uid),
		.gid = idmap_translate(&w->policy.gids.to_host, r->in.gid),
		.groups = &gid,
		.group_count = 1,
	};

	return credentials_user(&w->credentials, &who);
}

/* Older guests tell no groups at all, and none tells those that an ACL names. */
static bool tells_all_groups(const struct worker *w)
{
	return (w->session->flags & (FUSE_CREATE_SUPP_GROUP | FUSE_POSIX_ACL)) ==
	       FUSE_CREATE_SUPP_GROUP;
}

int requester_act(struct worker *w, const struct request *r, uint32_t umask)
{
	int err = act_as_requester(w, r, !tells_all_groups(w));

	/* Else the guest's kernel has applied its umask already. */
	credentials_umask(&w->credentials, is_agreed(w->session, &AGREED_UMASK) ? umask : 0);
	return err;
}

int requester_keep_sgid(struct worker *w, const struct request *r, uint32_t mode)
{
	if (!(mode & S_ISGID) || w->credentials.uid != w->credentials.root_uid)
		return 0;
	return credentials_fsetid(&w->credentials, r->in.uid == 0);
}
