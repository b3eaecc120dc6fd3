/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/mount_facts.h"

#include "worker/csrc/inode_fd.h"

#include <linux/magic.h>
#include <sys/vfs.h>

#ifndef RAMFS_MAGIC
#define RAMFS_MAGIC 0x858458f6
#endif
#define XFS_MAGIC 0x58465342
#define ZFS_MAGIC 0x2fc12fc1
#define BCACHEFS  0xca451a4e

/* File systems whose close() does nothing that a FLUSH has to wait for. Everything else (NFS, CIFS,
 * FUSE, Ceph, 9p, …) may write back, and fail, when a file is closed. */
static const uint32_t local[] = {
	EXT4_SUPER_MAGIC,     XFS_MAGIC,	 BTRFS_SUPER_MAGIC, F2FS_SUPER_MAGIC,
	TMPFS_MAGIC,	      RAMFS_MAGIC,	 ZFS_MAGIC,	    BCACHEFS,
	MSDOS_SUPER_MAGIC,    EXFAT_SUPER_MAGIC, ISOFS_SUPER_MAGIC, SQUASHFS_MAGIC,
	EROFS_SUPER_MAGIC_V1,
};

static bool is_local(uint32_t type)
{
	for (unsigned int i = 0; i < sizeof(local) / sizeof(local[0]); i++)
		if (local[i] == type)
			return true;
	return false;
}

static __attribute__((noinline)) void learn(struct worker *w, const struct inode *inode,
					    struct mount_fact *ret)
{
	int fd = inode_fd(w, inode);
	struct statfs fs;
	uint32_t type = fd < 0 || fstatfs(fd, &fs) < 0 ? 0 : (uint32_t)fs.f_type;

	*ret = (struct mount_fact){.mnt_id = inode->mnt_id,
				   .needs_flush = !is_local(type),
				   .in_memory = type == TMPFS_MAGIC || type == RAMFS_MAGIC};
}

const struct mount_fact *mount_fact_of(struct worker *w, const struct inode *inode)
{
	struct mount_fact *fact = &w->mounts[(inode->mnt_id >> 32 ^ inode->mnt_id) % MOUNT_FACTS];

	if (fact->mnt_id != inode->mnt_id)
		learn(w, inode, fact);
	return fact;
}
