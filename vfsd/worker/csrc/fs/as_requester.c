/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * Most ops act as root, because the guest's kernel has checked what its user may do. The server of
 * a network file system may map root to an unprivileged user (root_squash), and so refuse root what
 * the server allows the guest's user. On such a file system an op that root was refused is run
 * again as the requesting user. An op that was refused has changed nothing, or (SETATTR) nothing
 * that the second run does not change as well.
 *
 * Only an error leads to this code, so other ops do not pay for it. Neither does a local file
 * system: its kernel refuses root only what no user may do.
 *
 * Only creating requests name the supplementary groups of their user. So an op that is still
 * refused is tried once more with the group of the file as a supplementary group, and for RENAME
 * also the group of the other directory: the guest's kernel has allowed the op to the user. The
 * first run does not use these groups, since a mode may give a group less than it gives other
 * users. A group of the host that --translate-gid gives to no group of the guest is not used.
 *
 * What is not covered. Requests without ids: a guest with ALLOW_IDMAP sends ids only where it
 * creates a file, so ALLOW_IDMAP is not agreed for a share on such a file system
 * (supervisor/pool_job.py). The guest's root: it is root on the host as well, and may do what the
 * server allows root.
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

/* Get the host's ids of the requesting user. Return: false if the request has no ids, or root's. */
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

	if (fd >= 0 && !identity_stat_fd(fd, &st) &&
	    idmap_reaches(&fs->policy.gids.to_host, st.stx_gid))
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
