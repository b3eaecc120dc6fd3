/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The system calls of isolation that Python has no function for, one each. What they are for and
 * their order: worker/isolation.py. Every function returns 0 (or an fd) or -errno.
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

/* Mounts made here stay here; what the host mounts or unmounts later still arrives. */
int isolate_receive_mounts_only(void) must_check;

/*
 * A proc file system that shows processes of this pid namespace and nothing else of the kernel, as
 * a mount that no path leads to and that leads nowhere (".." of it is itself). `hide_others`: from
 * Linux 5.8 on a process sees in it only those that it may trace. Return: its fd.
 */
int isolate_mount_proc(bool hide_others) must_check;

/* A copy of the directory `path` with all that is mounted below it, not yet attached. Return: fd.
 */
int isolate_copy_tree(const char *path) must_check;
/*
 * On every mount of that copy no device can be opened and no set-id bit or file capability has an
 * effect; with `readonly` nothing can be changed either. A mount that the host adds later does not
 * get this. Return: also -ENOSYS (before Linux 5.12).
 */
int isolate_restrict_tree(int tree_fd, bool readonly) must_check;
/* Attach that copy on top of the directory `path`. */
int isolate_attach_tree(int tree_fd, const char *path) must_check;

/* The attached `tree_fd` becomes the root of this process and the old root is detached. */
int isolate_pivot(int tree_fd) must_check;

/* The mount that `fd` is on (STATX_MNT_ID). Return: 1 if `fd` is the root directory of it, 0 if
 * not. */
int isolate_mount_of(int fd, uint64_t *ret_mount_id) must_check;

/* Keep the memory of this process from all that have not CAP_SYS_PTRACE. */
int isolate_hide_memory(void) must_check;

/* A change of ids has made this process undumpable: it is not the operator's any more. Undo that.
 */
int isolate_keep_dumpable(void) must_check;

#endif
