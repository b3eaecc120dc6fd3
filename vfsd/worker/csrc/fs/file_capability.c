/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nearly every file that is written has no capability: absence.h. SETXATTR counts the capabilities
 * that it sets.
 *
 * The capability is removed before the data changes. A worker that dies between the two steps has
 * removed a capability without need, but never leaves changed data with a capability.
 */
#include "worker/csrc/fs/file_capability.h"

#include "worker/csrc/fs/fs.h"
#include "worker/csrc/host/proc_fd.h"

#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

static const char capability[] = "security.capability";

void file_capability_init(struct file_capability *c, const struct xattrmap *map)
{
	if (xattrmap_to_host(map, capability, c->name) < 0 || !strcmp(c->name, capability))
		c->name[0] = '\0';
}

/* A function of its own, because it is called rarely and its array would add a stack check to every
 * WRITE. */
static __attribute__((noinline)) int remove_if_set(const char *name, int fd)
{
	char path[FD_NAME];

	proc_fd_name(fd, path);
	/* Asking for the attribute does not lock the inode; removing it does. */
	if (getxattr(path, name, NULL, 0) < 0)
		return errno == ENODATA || errno == EOPNOTSUPP ? 0 : -errno;
	return removexattr(path, name) < 0 && errno != ENODATA ? -errno : 0;
}

int file_capability_drop(struct fs *fs, uint64_t nodeid, int fd)
{
	struct file_capability *c = &fs->capability;
	uint64_t sets;
	int err;

	if (!c->name[0])
		return 0;
	sets = __atomic_load_n(&fs->table->capability_sets, __ATOMIC_ACQUIRE);
	if (absence_is_known(&c->absences, nodeid, sets, fs->now_ns))
		return 0;
	err = credentials_root(&fs->credentials);
	if (!err)
		err = remove_if_set(c->name, fd);
	if (!err)
		absence_note(&c->absences, nodeid, sets, fs->now_ns);
	return err;
}

void file_capability_set(struct fs *fs, const char *name)
{
	if (fs->capability.name[0] && !strcmp(name, fs->capability.name))
		__atomic_add_fetch(&fs->table->capability_sets, 1, __ATOMIC_ACQ_REL);
}
