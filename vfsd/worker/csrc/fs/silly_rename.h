/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
#ifndef VFSD_SILLY_RENAME_H
#define VFSD_SILLY_RENAME_H

#include "worker/csrc/fs/fs.h"

/* The inode that silly_rename_prevent() made stale. */
struct let_go {
	uint64_t nodeid; /* 0: none */
	struct inode_key key;
};

/*
 * The name `name` in the directory `dir` (a nodeid) is about to be removed or replaced: close what
 * only this daemon has open of its file, where its file system renames such files instead. The op
 * must hold no pointer into a table, and gets its own afterwards. When the op has ended with
 * `result`, silly_rename_done() gives back what it takes for a file that is still there.
 */
void silly_rename_prevent(struct fs *fs, uint64_t dir, const char *name, struct let_go *ret);
void silly_rename_done(struct fs *fs, uint64_t dir, const char *name, const struct let_go *gone,
		       int result);

/* Has the file that the guest has open as `fd`, and is about to release, got such a name? */
bool silly_rename_happened(struct fs *fs, uint64_t nodeid, int fd);
/* Such a file was released. Its inode is stale from then on, unless the guest has it open still.
 * The same for pointers as above. */
void silly_rename_released(struct fs *fs, uint64_t nodeid);

/* Removing the directory dir/name failed since it is not empty. Is all that is in it the other
 * names of files that this daemon is about to close? Then wait a moment. Return: try again. The
 * same for pointers. */
bool silly_rename_passes(struct fs *fs, uint64_t dir, const char *name, uint32_t *tries);

#endif
