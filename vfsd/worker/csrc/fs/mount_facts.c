/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/mount_facts.h"

#include "worker/csrc/fs/inode_fd.h"
#include "worker/csrc/host/file_system.h"

static __attribute__((noinline)) void learn(struct fs *fs, const struct inode *inode,
					    struct mount_fact *ret)
{
	int fd = inode_fd(fs, inode);
	uint32_t facts = fd < 0 ? 0 : file_system_facts(fd);

	/* Nothing is learned from a stale inode: the next inode of the mount is asked. */
	*ret = (struct mount_fact){.mnt_id = fd < 0 ? 0 : inode->mnt_id,
				   .needs_flush = !(facts & FS_SILENT_CLOSE),
				   .in_memory = facts & FS_IN_MEMORY,
				   .judges_users = facts & FS_JUDGES_USERS,
				   .silly_renames = facts & FS_SILLY_RENAMES};
}

const struct mount_fact *mount_fact_of(struct fs *fs, const struct inode *inode)
{
	struct mount_fact *fact = &fs->mounts[(inode->mnt_id >> 32 ^ inode->mnt_id) % MOUNT_FACTS];

	if (fact->mnt_id != inode->mnt_id)
		learn(fs, inode, fact);
	return fact;
}
