/* SPDX-License-Identifier: Apache-2.0 */
#include "worker/csrc/sandbox/isolate.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* <sys/mount.h> and <linux/mount.h> do not go together before glibc 2.37. */
int mount(const char *source, const char *target, const char *type, unsigned long flags,
	  const void *data);
int umount2(const char *target, int flags);

enum {
	MOUNT_REC = 0x4000,
	MOUNT_SLAVE = 0x80000,
	UMOUNT_DETACH = 2,
};

_Static_assert((int)NAMESPACE_MOUNT == CLONE_NEWNS, "");
_Static_assert((int)NAMESPACE_UTS == CLONE_NEWUTS, "");
_Static_assert((int)NAMESPACE_IPC == CLONE_NEWIPC, "");
_Static_assert((int)NAMESPACE_USER == CLONE_NEWUSER, "");
_Static_assert((int)NAMESPACE_PID == CLONE_NEWPID, "");
_Static_assert((int)NAMESPACE_NET == CLONE_NEWNET, "");

static int result(long ret)
{
	return ret < 0 ? -errno : (int)ret;
}

int isolate_unshare(int namespaces)
{
	return result(unshare(namespaces));
}

int isolate_join(int fd, enum isolate_namespace kind)
{
	return result(setns(fd, (int)kind));
}

int isolate_receive_mounts_only(void)
{
	return result(mount(NULL, "/", NULL, MOUNT_REC | MOUNT_SLAVE, NULL));
}

int isolate_mount_proc(bool hide_others)
{
	int context = result(syscall(SYS_fsopen, "proc", FSOPEN_CLOEXEC));
	int ret;

	if (context < 0)
		return context;
	/* From Linux 5.8 on; on older kernels /proc/sys and the like are also visible. */
	(void)!syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "subset", "pid", 0);
	if (hide_others)
		(void)!syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "hidepid", "ptraceable",
			       0);
	ret = result(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	if (ret == 0)
		ret = result(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC,
				     MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
					     MOUNT_ATTR_NOEXEC));
	close(context);
	return ret;
}

int isolate_copy_tree(const char *path)
{
	return result(syscall(SYS_open_tree, AT_FDCWD, path,
			      OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE));
}

int isolate_restrict_tree(int tree_fd, bool readonly)
{
	struct mount_attr attributes = {
		.attr_set = MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID |
			    (readonly ? (uint64_t)MOUNT_ATTR_RDONLY : 0),
	};

	/* Not MOUNT_ATTR_NOEXEC: the host's kernel would refuse X_OK to every ACCESS. */
	return result(syscall(SYS_mount_setattr, tree_fd, "", AT_EMPTY_PATH | AT_RECURSIVE,
			      &attributes, sizeof(attributes)));
}

int isolate_attach_tree(int tree_fd, const char *path)
{
	return result(
		syscall(SYS_move_mount, tree_fd, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH));
}

int isolate_pivot(int tree_fd)
{
	int err = result(fchdir(tree_fd));

	/* The old root is then mounted on top of the new root, where "." leads to it. */
	if (!err)
		err = result(syscall(SYS_pivot_root, ".", "."));
	if (!err)
		err = result(umount2(".", UMOUNT_DETACH));
	return err ? err : result(chdir("/"));
}

int isolate_keep_dumpable(void)
{
	return result(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
}

int isolate_hide_memory(void)
{
	return result(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
}

int isolate_mount_of(int fd, uint64_t *ret_mount_id)
{
	struct statx st;
	int err = result(statx(fd, "", AT_EMPTY_PATH, STATX_MNT_ID, &st));

	if (err)
		return err;
	*ret_mount_id = st.stx_mnt_id;
	return !!(st.stx_attributes & STATX_ATTR_MOUNT_ROOT);
}
