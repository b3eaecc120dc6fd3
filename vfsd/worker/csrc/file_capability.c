/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nearly every file written has no capability, and to find that out costs a system call per WRITE.
 * So each worker remembers which files had none, and believes it under two conditions:
 *
 * No guest of this daemon has set a capability since. SETXATTR counts them in shared memory, after
 * it has set one and before it replies. A WRITE that sees the old count was not sent in answer to
 * that reply.
 *
 * It is less than ABSENCE_NS ago. Others (the host's own processes, another daemon with the same
 * map) set the attribute without telling us. What they set is dropped by every WRITE that begins
 * ABSENCE_NS later. A WRITE that begins sooner counts as if it came first. It may have waited in
 * its ring for as long, so nobody could rely on the order of the two.
 *
 * The capability goes before the data changes. A worker that dies between the two has dropped one
 * too many; never does it leave changed data with a capability.
 */
#include "worker/csrc/file_capability.h"

#include "worker/csrc/entry.h"

#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

enum {
	ABSENCE_NS = 1000 * 1000,
};

static const char capability[] = "security.capability";

void file_capability_init(struct file_capability *c, const struct xattrmap *map)
{
	if (xattrmap_to_host(map, capability, c->name) < 0 || !strcmp(c->name, capability))
		c->name[0] = '\0';
}

/* Seldom called, and its array would have every WRITE check its stack. */
static __attribute__((noinline)) int remove_if_set(const char *name, int fd)
{
	char path[FD_NAME];

	entry_fd_name(fd, path);
	/* Asking takes no lock of the inode, removing does. */
	if (getxattr(path, name, NULL, 0) < 0)
		return errno == ENODATA || errno == EOPNOTSUPP ? 0 : -errno;
	return removexattr(path, name) < 0 && errno != ENODATA ? -errno : 0;
}

int file_capability_drop(struct worker *w, uint64_t nodeid, int fd)
{
	struct file_capability *c = &w->capability;
	struct capability_absence *known = &c->absences[nodeid % CAPABILITY_ABSENCES];
	uint64_t sets;
	int err;

	if (!c->name[0])
		return 0;
	sets = __atomic_load_n(&w->table->capability_sets, __ATOMIC_ACQUIRE);
	if (known->nodeid == nodeid && known->sets == sets && w->now_ns < known->until_ns)
		return 0;
	err = credentials_root(&w->credentials);
	if (!err)
		err = remove_if_set(c->name, fd);
	if (!err)
		*known = (struct capability_absence){nodeid, sets, w->now_ns + ABSENCE_NS};
	return err;
}

void file_capability_set(struct worker *w, const char *name)
{
	if (w->capability.name[0] && !strcmp(name, w->capability.name))
		__atomic_add_fetch(&w->table->capability_sets, 1, __ATOMIC_ACQ_REL);
}
