/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/fs/set_id.h"

#include "worker/csrc/fs/fs.h"

#include <errno.h>
#include <sys/stat.h>

enum {
	NO_GROUP = 65534, /* the host's nogroup, for a group that the map forbids */
};

/* Does it depend on the writer's groups whether set-group-id is removed? */
static bool group_decides(uint32_t mode)
{
	return (mode & (S_ISGID | S_IXGRP)) == S_ISGID;
}

static bool has_ids(const struct request *r)
{
	return r->in.uid != UINT32_MAX && r->in.gid != UINT32_MAX;
}

/* The requester's group on the host; `file_group` if the requester is in that group or is
 * unknown. */
static uint32_t group_of(const struct fs *fs, const struct request *r, uint32_t file_group)
{
	const struct idmap *map = &fs->policy.gids.to_host;
	uint32_t group = has_ids(r) ? idmap_translate(map, r->in.gid) : file_group;

	for (uint32_t i = 0; i < r->group_count; i++)
		if (idmap_translate(map, r->groups[i]) == file_group)
			return file_group;
	return group == UINT32_MAX ? NO_GROUP : group;
}

/* Get in *ret the group to act in, or CREDENTIALS_ANY_GROUP if the group makes no difference.
 * Return: 0 or -errno. */
static int find_group(const struct fs *fs, const struct request *r, int fd, uint32_t *ret)
{
	struct stat st;

	*ret = CREDENTIALS_ANY_GROUP;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISREG(st.st_mode) && group_decides(st.st_mode))
		*ret = group_of(fs, r, st.st_gid);
	return 0;
}

int set_id_before_truncate(struct fs *fs, const struct request *r, int fd, bool kill)
{
	uint32_t group = CREDENTIALS_ANY_GROUP;
	int err = kill ? find_group(fs, r, fd, &group) : 0;

	return err ? err : credentials_set_id(&fs->credentials, kill, group);
}

/* Like find_group, with a cache, for an op that is frequent. */
static __attribute__((noinline)) int find_group_again(struct fs *fs, const struct request *r,
						      int fd, uint32_t *ret)
{
	uint64_t count = __atomic_load_n(&fs->table->set_id_modes, __ATOMIC_ACQUIRE);
	int err;

	*ret = CREDENTIALS_ANY_GROUP;
	if (absence_is_known(&fs->set_ids, r->in.nodeid, count, fs->now_ns))
		return 0;
	err = find_group(fs, r, fd, ret);
	if (!err && *ret == CREDENTIALS_ANY_GROUP)
		absence_note(&fs->set_ids, r->in.nodeid, count, fs->now_ns);
	return err;
}

int set_id_before_write(struct fs *fs, struct request *r, int fd, bool kill)
{
	int err = 0;

	r->kill_suidgid = kill;
	r->kill_group = CREDENTIALS_ANY_GROUP;
	if (kill)
		err = find_group_again(fs, r, fd, &r->kill_group);
	return err ? err : credentials_set_id(&fs->credentials, kill, r->kill_group);
}

int set_id_before_chown(struct fs *fs, const struct request *r, int fd)
{
	uint32_t group = CREDENTIALS_ANY_GROUP;
	int err = has_ids(r) && r->in.uid ? find_group(fs, r, fd, &group) : 0;

	return err ? err
		   : credentials_set_id(&fs->credentials, group != CREDENTIALS_ANY_GROUP, group);
}

void set_id_note_mode(struct fs *fs, uint32_t mode)
{
	if (group_decides(mode))
		__atomic_add_fetch(&fs->table->set_id_modes, 1, __ATOMIC_ACQ_REL);
}
