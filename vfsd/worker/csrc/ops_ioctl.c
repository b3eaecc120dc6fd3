/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IOCTL: the inode flags of chattr and lsattr, from a table. What is not in it is ENOTTY, so a
 * guest reaches no driver and no file system through an ioctl that nobody thought of.
 */
#include "worker/csrc/worker.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

struct known_ioctl {
	uint32_t command;
	uint32_t in_size;  /* bytes that come with the request … */
	uint32_t out_size; /* … and go with the reply */
};

/* FS_IOC_*FLAGS says long and means int. */
static const struct known_ioctl table[] = {
	{FS_IOC_GETFLAGS, 0, sizeof(int)},
	{FS_IOC_SETFLAGS, sizeof(int), 0},
	{FS_IOC_FSGETXATTR, 0, sizeof(struct fsxattr)},
	{FS_IOC_FSSETXATTR, sizeof(struct fsxattr), 0},
};

static const struct known_ioctl *find(uint32_t command)
{
	for (unsigned int i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (table[i].command == command)
			return &table[i];
	return NULL;
}

static int check(const struct worker *w, const struct request *r, const struct known_ioctl *known)
{
	const struct fuse_ioctl_in *in = REQUEST_ARG(r, struct fuse_ioctl_in);

	if (!known)
		return -ENOTTY;
	if (in->in_size < known->in_size || r->payload_len < known->in_size ||
	    in->out_size < known->out_size)
		return -EINVAL;
	if (known->in_size && w->policy.readonly)
		return -EROFS;
	return request_need_room(r, sizeof(struct fuse_ioctl_out) + known->out_size);
}

int op_ioctl(struct worker *w, struct request *r)
{
	const struct fuse_ioctl_in *in = REQUEST_ARG(r, struct fuse_ioctl_in);
	const struct known_ioctl *known = find(in->cmd);
	const struct open_file *file = file_table_get(w->files, in->fh, r->in.nodeid);
	struct fuse_ioctl_out *ret = REQUEST_REPLY(r, struct fuse_ioctl_out);
	struct fsxattr value; /* the largest */
	int err = check(w, r, known);

	if (err)
		return err;
	if (!file)
		return -EBADF;
	memset(&value, 0, sizeof(value));
	memcpy(&value, r->payload, known->in_size);
	err = credentials_root(&w->credentials);
	if (err)
		return err;
	if (ioctl(file->fd, known->command, &value) < 0)
		return -errno;
	memset(ret, 0, sizeof(*ret));
	memcpy(ret + 1, &value, known->out_size);
	return (int)(sizeof(*ret) + known->out_size);
}
