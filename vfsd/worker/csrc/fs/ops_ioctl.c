/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IOCTL: the inode flags of chattr and lsattr, from a table. Any other command fails with ENOTTY,
 * so a guest cannot reach a driver or a file system through an ioctl that was not considered here.
 *
 * A command that sets flags sets all of them, and some flags belong to the host: a project id
 * limits the disk space of a folder, and an extent size hint allocates gigabytes for a byte. So the
 * new value is compared with the file's current value, read through the same fd, and the two may
 * differ only in the bits below. A guest gains nothing by a change between the two calls: it can
 * change only those same bits.
 */
#include "worker/csrc/fs/ops.h"
#include "worker/csrc/fs/unknown_file.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

/* FS_IOC_*FLAGS are declared with long, but the kernel uses int. */
union ioctl_value {
	uint32_t flags;
	struct fsxattr xattr;
};

struct known_ioctl {
	uint32_t command;
	uint32_t in_size;     /* bytes of the request */
	uint32_t out_size;    /* bytes of the reply */
	uint32_t get_command; /* the command that reads what this one sets; 0: it sets nothing */
	bool (*may_set)(const struct fs_policy *policy, const union ioctl_value *now,
			const union ioctl_value *wanted);
};

enum {
	/* FS_*_FL that concern how this file is kept, and do not affect limits of the host. */
	GUEST_FLAGS = FS_SYNC_FL | FS_DIRSYNC_FL | FS_NOATIME_FL | FS_NODUMP_FL | FS_APPEND_FL |
		      FS_IMMUTABLE_FL | FS_NOCOW_FL | FS_COMPR_FL | FS_NOCOMP_FL,
	GUEST_XFLAGS = FS_XFLAG_SYNC | FS_XFLAG_NOATIME | FS_XFLAG_NODUMP | FS_XFLAG_APPEND |
		       FS_XFLAG_IMMUTABLE,
};

static bool may_set_flags(const struct fs_policy *policy, const union ioctl_value *now,
			  const union ioctl_value *wanted)
{
	uint32_t allowed = GUEST_FLAGS | (policy->allow_project_ids ? FS_PROJINHERIT_FL : 0);

	return !((now->flags ^ wanted->flags) & ~allowed);
}

/* fsx_nextents is only reported by the kernel, and changes with every write. */
static bool may_set_xattr(const struct fs_policy *policy, const union ioctl_value *now,
			  const union ioctl_value *wanted)
{
	uint32_t allowed = GUEST_XFLAGS | (policy->allow_project_ids ? FS_XFLAG_PROJINHERIT : 0);
	const struct fsxattr *old = &now->xattr, *next = &wanted->xattr;

	return !((old->fsx_xflags ^ next->fsx_xflags) & ~allowed) &&
	       (old->fsx_projid == next->fsx_projid || policy->allow_project_ids) &&
	       old->fsx_extsize == next->fsx_extsize && old->fsx_cowextsize == next->fsx_cowextsize;
}

static const struct known_ioctl table[] = {
	{FS_IOC_GETFLAGS, 0, sizeof(int), 0, NULL},
	{FS_IOC_SETFLAGS, sizeof(int), 0, FS_IOC_GETFLAGS, may_set_flags},
	{FS_IOC_FSGETXATTR, 0, sizeof(struct fsxattr), 0, NULL},
	{FS_IOC_FSSETXATTR, sizeof(struct fsxattr), 0, FS_IOC_FSGETXATTR, may_set_xattr},
};

static const struct known_ioctl *find(uint32_t command)
{
	for (unsigned int i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (table[i].command == command)
			return &table[i];
	return NULL;
}

static int check(const struct fs *fs, const struct request *r, const struct known_ioctl *known)
{
	const struct fuse_ioctl_in *in = REQUEST_ARG(r, struct fuse_ioctl_in);

	if (!known)
		return -ENOTTY;
	if (in->in_size < known->in_size || r->payload_len < known->in_size ||
	    in->out_size < known->out_size)
		return -EINVAL;
	if (known->in_size && fs->policy.readonly)
		return -EROFS;
	return request_need_room(r, sizeof(struct fuse_ioctl_out) + known->out_size);
}

/* Return: 0, -EPERM, or -errno if the current value cannot be read. */
static int check_change(const struct fs *fs, int fd, const struct known_ioctl *known,
			const union ioctl_value *wanted)
{
	union ioctl_value now;

	if (!known->get_command)
		return 0;
	memset(&now, 0, sizeof(now));
	if (ioctl(fd, known->get_command, &now) < 0)
		return -errno;
	return known->may_set(&fs->policy, &now, wanted) ? 0 : -EPERM;
}

int op_ioctl(struct fs *fs, struct request *r)
{
	const struct fuse_ioctl_in *in = REQUEST_ARG(r, struct fuse_ioctl_in);
	const struct known_ioctl *known = find(in->cmd);
	const struct open_file *file = file_table_get(fs->files, in->fh, r->in.nodeid);
	struct fuse_ioctl_out *ret = REQUEST_REPLY(r, struct fuse_ioctl_out);
	union ioctl_value value;
	int err = check(fs, r, known);

	if (err)
		return err;
	if (!file)
		return unknown_file(fs, r->in.nodeid);
	memset(&value, 0, sizeof(value));
	memcpy(&value, r->payload, known->in_size);
	err = credentials_root(&fs->credentials);
	if (!err)
		err = check_change(fs, file->fd, known, &value);
	if (err)
		return err;
	if (ioctl(file->fd, known->command, &value) < 0)
		return -errno;
	memset(ret, 0, sizeof(*ret));
	memcpy(ret + 1, &value, known->out_size);
	return (int)(sizeof(*ret) + known->out_size);
}
