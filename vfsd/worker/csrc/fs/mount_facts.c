/* SPDX-License-Identifier: Apache-2.0 */
/*
 * THEORY
 *
 * A fact is found out once per mount and worker. The kernel gives the number of a mount that is
 * gone, and its device number, to the next mount. So a fact is valid only until a mount departs,
 * that is until the guest has forgotten the last inode of a mount: before that the host cannot
 * unmount it. The mount of the share itself never departs, and has a place of its own.
 */
#include "worker/csrc/fs/mount_facts.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/host/file_system.h"

static void learn(struct fs *fs, const struct inode *inode, uint32_t departures,
		  struct mount_fact *ret)
{
	int fd = inode_fd(fs, inode);
	uint32_t facts = fd < 0 ? 0 : file_system_facts(fd);

	/* Nothing is learned from a stale inode: the next inode of the mount is asked. */
	*ret = (struct mount_fact){.mnt_id = fd < 0 ? 0 : inode->mnt_id,
				   .departures = departures,
				   .needs_flush = !(facts & FS_SILENT_CLOSE),
				   .in_memory = facts & FS_IN_MEMORY,
				   .judges_users = facts & FS_JUDGES_USERS,
				   .silly_renames = facts & FS_SILLY_RENAMES,
				   .honest_ctime = facts & FS_HONEST_CTIME};
}

static __attribute__((noinline)) const struct mount_fact *find(struct fs *fs,
							       const struct inode *inode)
{
	struct mount_fact *fact = &fs->mounts[(inode->mnt_id >> 32 ^ inode->mnt_id) % MOUNT_FACTS];
	uint32_t departures = inode_table_departures(fs->inodes);

	if (inode->mnt_id == inode_table_get(fs->inodes, FUSE_ROOT_ID)->mnt_id)
		fact = &fs->share;
	else if (fact->mnt_id == inode->mnt_id && fact->departures == departures)
		return fact;
	learn(fs, inode, departures, fact);
	return fact;
}

const struct mount_fact *mount_fact_of(struct fs *fs, const struct inode *inode)
{
	return inode->mnt_id == fs->share.mnt_id ? &fs->share : find(fs, inode);
}
