/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls of isolation that Python has no function for; each function makes one step.
 * worker/isolation.py explains their purpose and their order. Every function returns 0 (or an fd)
 * or -errno.
 */
#ifndef VFSD_ISOLATE_H
#define VFSD_ISOLATE_H

#include "transport/csrc/types.h"

enum isolate_namespace {
	NAMESPACE_MOUNT = 0x00020000, /* CLONE_NEWNS */
	NAMESPACE_UTS = 0x04000000,
	NAMESPACE_IPC = 0x08000000,
	NAMESPACE_USER = 0x10000000,
	NAMESPACE_PID = 0x20000000,
	NAMESPACE_NET = 0x40000000,
};

/* `namespaces`: enum isolate_namespace, or'ed. */
int isolate_unshare(int namespaces) must_check;

/* Enter the namespace of `fd`, which must be of this kind: systemd's RestrictNamespaces= refuses a
 * call without a kind. In a mount namespace its root becomes our root, and our directory. */
int isolate_join(int fd, enum isolate_namespace kind) must_check;

/* Mounts made in this namespace do not propagate to the host; later mounts and unmounts of the host
 * still propagate to this namespace. */
int isolate_receive_mounts_only(void) must_check;

/*
 * A proc file system that shows processes of this pid namespace and nothing else of the kernel, as
 * a mount that no path leads to and that leads nowhere (".." of it is itself). `hide_others`: from
 * Linux 5.8 on a process sees in it only the processes that it may trace. Return: an fd of the
 * mount.
 */
int isolate_mount_proc(bool hide_others) must_check;

/* Copy the mount of the directory `path`, with all that is mounted below it. The copy is not yet
 * attached. Return: its fd. */
int isolate_copy_tree(const char *path) must_check;
/*
 * Restrict every mount of a copy of isolate_copy_tree(): no device can be opened, no set-id bit or
 * file capability has an effect, and with `readonly` nothing can be changed either. A mount that
 * the host adds later does not get this. Return: also -ENOSYS (before Linux 5.12).
 */
int isolate_restrict_tree(int tree_fd, bool readonly) must_check;
/* Attach a copy of isolate_copy_tree() on top of the directory `path`. */
int isolate_attach_tree(int tree_fd, const char *path) must_check;

/* Make the attached `tree_fd` the root of this process, and detach the old root. */
int isolate_pivot(int tree_fd) must_check;

/* The mount that `fd` is on (STATX_MNT_ID). Return: 1 if `fd` is the root directory of that mount,
 * 0 if not, or -errno. */
int isolate_mount_of(int fd, uint64_t *ret_mount_id) must_check;

/* Hide the memory of this process from all processes without CAP_SYS_PTRACE. */
int isolate_hide_memory(void) must_check;

/* Make this process dumpable again after a change of ids: while undumpable, it does not belong to
 * the operator's user (/proc). */
int isolate_keep_dumpable(void) must_check;

#endif
