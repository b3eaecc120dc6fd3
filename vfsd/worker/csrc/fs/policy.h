/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The operator's options as the ops use them. worker/policy.py fills the struct once. Whether the
 * guest supports a feature is in struct fuse_session.
 */
#ifndef VFSD_POLICY_H
#define VFSD_POLICY_H

#include "transport/csrc/types.h"
#include "worker/csrc/fs/idmap.h"
#include "worker/csrc/fs/xattrmap.h"

enum file_handles {
	/* An inode is held by an fd. */
	FILE_HANDLES_NEVER,
	/* An inode is held by an fd until fds are scarce, then by a handle that the broker opens.
	 */
	FILE_HANDLES_SIGNED,
	/* An inode is held by a handle if the file system has handles, otherwise by an fd. */
	FILE_HANDLES_PREFER,
	/* An inode is held by a handle; a file without a handle cannot be looked up. */
	FILE_HANDLES_MANDATORY,
};

/* A time in the form of FUSE replies. */
struct fs_timeout {
	uint64_t sec;
	uint32_t nsec;
};

struct fs_policy {
	struct fs_timeout entry_timeout; /* how long the guest may trust a name */
	struct fs_timeout attr_timeout;	 /* how long the guest may trust attributes */
	struct fs_timeout
		negative_timeout; /* how long it may trust an absent name; 0: not at all */
	uint32_t file_handles;	  /* enum file_handles */
	uint64_t lock_wait_ns;	  /* how long SETLKW may wait; UINT64_MAX: for ever */
	uint32_t file_open_flags; /* FOPEN_* in every reply to OPEN and CREATE */
	uint32_t dir_open_flags;  /* FOPEN_* in every reply to OPENDIR */
	bool keeps_unchanged;	  /* the guest keeps pages while the file is unchanged */
	bool readonly;
	bool forbid_symlinks; /* SYMLINK fails with EPERM */
	bool holds_back;      /* the guest may hold data of a file that it writes later */
	bool xattr;	      /* off: ENOSYS, and the guest stops asking */
	bool flock;	      /* the guest's flocks are taken on the host */
	bool posix_lock;
	bool allow_direct_io; /* off: O_DIRECT is dropped */
	bool announce_submounts;
	bool preserve_noatime;	/* off: O_NOATIME is dropped */
	bool allow_project_ids; /* off: IOCTL does not change project ids */
	struct idmap_pair uids; /* the guest's users and groups as ids of the host */
	struct idmap_pair gids;
	struct xattrmap xattrmap;
};

#endif
