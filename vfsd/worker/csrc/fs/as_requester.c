/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Most ops act as root, because the guest's kernel has checked what its user may do. The server of
 * a network file system may take root for nobody (root_squash), and so refuse what it allows the
 * user. There an op that root was refused is run again as the requesting user. An op that was
 * refused has changed nothing, or (SETATTR) nothing that the second run does not do as well.
 *
 * It is an error that leads here, so no other op pays for this, and no local file system does: the
 * kernel does not refuse root there, but for what nobody may do.
 *
 * Only creating requests name the supplementary groups of their user. So what is still refused is
 * tried once more in the group of the file, and for RENAME of the other directory: the guest's
 * kernel has let the user pass. Not first, since a mode may give a group less than the others.
 *
 * What it does not cover. A request without ids: a guest with ALLOW_IDMAP sends them only where it
 * creates, so that is not agreed for a share on such a file system (supervisor/pool_job.py). The
 * guest's root: it is root on the host too, and may do what the server allows that.
 */
#include "worker/csrc/fs/as_requester.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/fs/mount_facts.h"
#include "worker/csrc/host/identity.h"

#include <errno.h>

enum {
	GROUPS_MAX = 2,
};

static bool is_refused(int result)
{
	return result == -EACCES || result == -EPERM;
}

/* The host's ids of the user; false if there are none, or root's. */
static bool find_requester(const struct fs *fs, const struct request *r, struct requester *ret)
{
	*ret = (struct requester){
		.uid = idmap_translate(&fs->policy.uids.to_host, r->in.uid),
		.gid = idmap_translate(&fs->policy.gids.to_host, r->in.gid),
		.override = true,
	};
	return r->in.uid != UINT32_MAX && r->in.gid != UINT32_MAX && ret->uid != UINT32_MAX &&
	       ret->gid != UINT32_MAX && ret->uid != fs->credentials.root_uid;
}

static void add_group(struct fs *fs, uint64_t nodeid, struct requester *who, uint32_t *groups)
{
	const struct inode *inode = inode_table_get(fs->inodes, nodeid);
	int fd = inode ? inode_fd(fs, inode) : -ESTALE;
	struct statx st;

	if (fd >= 0 && !identity_stat_fd(fd, &st))
		groups[who->group_count++] = st.stx_gid;
}

static void add_groups(struct fs *fs, const struct request *r, struct requester *who,
		       uint32_t groups[static GROUPS_MAX])
{
	who->groups = groups;
	add_group(fs, r->in.nodeid, who, groups);
	if (r->in.opcode == FUSE_RENAME)
		add_group(fs, REQUEST_ARG(r, struct fuse_rename_in)->newdir, who, groups);
	if (r->in.opcode == FUSE_RENAME2)
		add_group(fs, REQUEST_ARG(r, struct fuse_rename2_in)->newdir, who, groups);
}

static int run_as(struct fs *fs, struct request *r, op_fn *op, const struct requester *who,
		  int refused)
{
	int err = credentials_stand_in(&fs->credentials, who);
	int result = err ? refused : op(fs, r);

	err = credentials_stand_in(&fs->credentials, NULL);
	return err ? err : result;
}

static bool may_be_refused_root(struct fs *fs, const struct request *r)
{
	const struct inode *inode = inode_table_get(fs->inodes, r->in.nodeid);

	return fs->credentials.privileged && inode && mount_fact_of(fs, inode)->judges_users;
}

__attribute__((cold)) int as_requester_if_refused(struct fs *fs, struct request *r, op_fn *op,
						  int result)
{
	uint32_t groups[GROUPS_MAX];
	struct requester who;

	if (!is_refused(result) || !may_be_refused_root(fs, r) || !find_requester(fs, r, &who))
		return result;
	result = run_as(fs, r, op, &who, result);
	if (!is_refused(result))
		return result;
	add_groups(fs, r, &who, groups);
	return run_as(fs, r, op, &who, result);
}
