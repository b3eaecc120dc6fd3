/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file system that is not in the table is assumed to guarantee nothing: its files are held by
 * fds, and FLUSH waits for their close().
 *
 * Handles. Any file system may offer handles, and a trial shows only that the handles work now. A
 * handle of FUSE or virtio-fs names a node of the server, and the server forgets the node when the
 * kernel's cache does. A handle of FAT or exFAT names an inode number that the kernel makes up each
 * time it reads in a file. Handles of overlayfs, where they can be opened at all (nfs_export=on),
 * stay valid after a copy-up. Handles of NFS are longer than FHANDLE_BYTES_MAX. ZFS no longer opens
 * a file by its handle once the file has lost its last name.
 *
 * Births. The birth time of a file of overlayfs is that of the file in its layer, and
 * changes with a copy-up.
 *
 * close(). Network file systems and FUSE may write data back when a file is closed, and that may
 * fail.
 *
 * Users. The server of a network file system, or of FUSE, may allow root less than the owner of a
 * file (root_squash of NFS).
 *
 * Change times. A ctime is honest if the kernel sets it before or while data changes, by its own
 * clock, also when a mapping stores into a clean page, and if cachestat(2) shows the dirty pages.
 * tmpfs knows no clean pages: a mapping stores as often as it likes under one ctime. In
 * overlayfs a file that was opened before a copy-up stays the old file, and its pages belong to
 * another inode. The ctime of a network file system comes from the clock of its server.
 */
#include "worker/csrc/host/file_system.h"

#include <linux/magic.h>
#include <sys/vfs.h>

/* Magic numbers that <linux/magic.h> lacks. */
#define BCACHEFS_MAGIC 0xca451a4e
#define CIFS_MAGIC     0xff534d42
#define CEPH_MAGIC     0x00c36400
#define GFS2_MAGIC     0x01161970
#define JFS_MAGIC      0x3153464a
#define LUSTRE_MAGIC   0x0bd00bd0
#define NTFS3_MAGIC    0x7366746e
#define SMB2_MAGIC     0xfe534d42
#define UDF_MAGIC      0x15013346
#define XFS_MAGIC      0x58465342
#define ZFS_MAGIC      0x2fc12fc1

struct file_system {
	uint32_t type; /* statfs.f_type */
	uint32_t facts;
};

static const struct file_system known[] = {
	{EXT4_SUPER_MAGIC,
	 FS_LASTING_HANDLES | FS_SILENT_CLOSE | FS_HONEST_CTIME}, /* also ext2 and ext3 */
	{XFS_MAGIC, FS_LASTING_HANDLES | FS_SILENT_CLOSE | FS_HONEST_CTIME},
	{BTRFS_SUPER_MAGIC, FS_LASTING_HANDLES | FS_SILENT_CLOSE | FS_HONEST_CTIME},
	{F2FS_SUPER_MAGIC, FS_LASTING_HANDLES | FS_SILENT_CLOSE},
	{BCACHEFS_MAGIC, FS_LASTING_HANDLES | FS_SILENT_CLOSE},
	{ZFS_MAGIC, FS_LASTING_HANDLES | FS_SILENT_CLOSE},
	{TMPFS_MAGIC, FS_LASTING_HANDLES | FS_SILENT_CLOSE | FS_IN_MEMORY},
	{RAMFS_MAGIC, FS_SILENT_CLOSE | FS_IN_MEMORY},
	{ISOFS_SUPER_MAGIC, FS_LASTING_HANDLES | FS_SILENT_CLOSE | FS_HONEST_CTIME},
	{SQUASHFS_MAGIC, FS_LASTING_HANDLES | FS_SILENT_CLOSE | FS_HONEST_CTIME},
	{EROFS_SUPER_MAGIC_V1, FS_LASTING_HANDLES | FS_SILENT_CLOSE | FS_HONEST_CTIME},
	{UDF_MAGIC, FS_LASTING_HANDLES},
	{JFS_MAGIC, FS_LASTING_HANDLES},
	{NILFS_SUPER_MAGIC, FS_LASTING_HANDLES},
	{REISERFS_SUPER_MAGIC, FS_LASTING_HANDLES},
	{NTFS3_MAGIC, FS_LASTING_HANDLES},
	{MSDOS_SUPER_MAGIC, FS_SILENT_CLOSE},
	{EXFAT_SUPER_MAGIC, FS_SILENT_CLOSE},
	{OVERLAYFS_SUPER_MAGIC, FS_LASTING_HANDLES | FS_NEW_BIRTHS},
	{OCFS2_SUPER_MAGIC, FS_LASTING_HANDLES},
	{GFS2_MAGIC, FS_LASTING_HANDLES},
	{CEPH_MAGIC, FS_LASTING_HANDLES},
	{LUSTRE_MAGIC, FS_LASTING_HANDLES},
	{NFS_SUPER_MAGIC, FS_JUDGES_USERS | FS_SILLY_RENAMES},
	{FUSE_SUPER_MAGIC, FS_JUDGES_USERS}, /* also virtio-fs */
	{V9FS_MAGIC, FS_JUDGES_USERS},
	{CIFS_MAGIC, FS_JUDGES_USERS},
	{SMB2_MAGIC, FS_JUDGES_USERS},
};

uint32_t file_system_facts(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return 0;
	for (unsigned int i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].type == (uint32_t)fs.f_type)
			return known[i].facts;
	return 0;
}
