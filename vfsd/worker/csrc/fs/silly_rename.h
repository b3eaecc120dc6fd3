/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_SILLY_RENAME_H
#define VFSD_SILLY_RENAME_H

#include "worker/csrc/fs/fs.h"

/* The inode that silly_rename_prevent() has made stale. */
struct given_up {
	uint64_t nodeid; /* 0: no inode */
	struct inode_key key;
	int64_t btime; /* identity_birth_time() */
};

/* Does the file system of this inode rename files instead of removing them? Of NULL: false. */
bool silly_rename_concerns(struct fs *fs, const struct inode *inode);

/*
 * The name `name` in the directory `dir` (a nodeid) is about to be removed or replaced, and
 * silly_rename_concerns() is true for `dir`. Close the fds of the file that only this daemon has
 * open. The op must hold no pointer into a table, and gets its pointers afterwards. After the op
 * has ended with `result`, silly_rename_done() gives a file that still exists its fd back. `ret`:
 * zeroed by the caller.
 */
void silly_rename_prevent(struct fs *fs, uint64_t dir, const char *name, struct given_up *ret);
void silly_rename_done(struct fs *fs, uint64_t dir, const char *name, const struct given_up *gone,
		       int result);

/* The guest has the file open as `fd` and is about to release it. Is the file's name .nfsXXXX by
 * now? */
bool silly_rename_happened(struct fs *fs, uint64_t nodeid, int fd);
/* A file whose name was .nfsXXXX was released. Its inode is stale from then on, unless the guest
 * has the file open elsewhere. The caller must hold no pointer into a table. */
void silly_rename_released(struct fs *fs, uint64_t nodeid);

/* Removing the directory dir/name failed because it is not empty. If it contains only .nfsXXXX
 * names of files that this daemon is about to close, wait a moment. Return: should the op try
 * again? The caller must hold no pointer into a table. */
bool silly_rename_passes(struct fs *fs, uint64_t dir, const char *name, uint32_t *tries);

#endif
