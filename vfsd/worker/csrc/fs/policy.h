/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the operator's options mean for the ops, resolved by Python (worker/init.py) once.
 * Whether the guest takes part is in struct fuse_session.
 */
#ifndef VFSD_POLICY_H
#define VFSD_POLICY_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/idmap.h"
#include "worker/csrc/fs/xattrmap.h"

enum file_handles {
	FILE_HANDLES_NEVER,  /* an inode is held by an fd */
	FILE_HANDLES_SIGNED, /* … until fds are scarce, then by a handle that the broker opens */
	FILE_HANDLES_PREFER, /* by a handle where the file system has one */
	FILE_HANDLES_MANDATORY, /* … else it cannot be looked up */
};

struct fs_policy {
	uint64_t entry_timeout_ns;    /* how long the guest may trust a name */
	uint64_t attr_timeout_ns;     /* … an attribute */
	uint64_t negative_timeout_ns; /* … that a name does not exist; 0: not told */
	uint32_t file_handles;	      /* enum file_handles */
	uint64_t lock_wait_ns;	      /* how long SETLKW may wait; UINT64_MAX: for ever */
	uint32_t file_open_flags;     /* FOPEN_* in every reply to OPEN and CREATE */
	uint32_t dir_open_flags;      /* … to OPENDIR */
	bool readonly;
	bool forbid_symlinks; /* SYMLINK fails with EPERM */
	bool holds_back;      /* the guest may have data of a file that it writes later */
	bool xattr;	      /* off: ENOSYS, the guest stops asking */
	bool flock;	      /* locks of the guest are taken on the host */
	bool posix_lock;
	bool allow_direct_io; /* off: O_DIRECT is dropped */
	bool announce_submounts;
	bool preserve_noatime;	/* off: O_NOATIME is dropped */
	bool allow_project_ids; /* off: IOCTL changes no project id */
	struct idmap_pair uids; /* what the guest's users and groups are on the host */
	struct idmap_pair gids;
	struct xattrmap xattrmap;
};

#endif
