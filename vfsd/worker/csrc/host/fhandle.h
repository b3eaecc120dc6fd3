/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Kernel file handles (name_to_handle_at(2)). A handle identifies a file without an fd, and notices
 * when the file's inode number is used for another file. A handle is opened through an fd of the
 * mount that the handle is from.
 */
#ifndef VFSD_FHANDLE_H
#define VFSD_FHANDLE_H

#include "transport/csrc/types.h"

enum {
	FHANDLE_BYTES_MAX = 32, /* ext4, xfs: 8 to 12; tmpfs 12; btrfs 20; overlayfs up to 32 */
};

struct fhandle {
	int32_t type;
	uint32_t len; /* bytes; 0: there is no handle */
	uint64_t mac; /* signature of the broker (handle_broker.c), if a broker opens the handles */
	uint8_t bytes[FHANDLE_BYTES_MAX];
};

/* Get the handle of dir/name, without following a symbolic link; or of `dir_fd` itself if name is
 * "". Return: 0, -EOPNOTSUPP (the file system has no handles, or longer ones), or -errno. */
int fhandle_get(int dir_fd, const char *name, struct fhandle *ret) must_check;

/* Like fhandle_get, for a name that must be on the mount `mount_id` (STATX_MNT_ID). Return also:
 * -EXDEV (the name is on another mount). */
int fhandle_get_on_mount(int dir_fd, const char *name, uint32_t mount_id,
			 struct fhandle *ret) must_check;

bool fhandle_equal(const struct fhandle *a, const struct fhandle *b);

/* Open the file of `handle` with `flags` of open(2). Return: the fd, -ESTALE (the file is gone), or
 * -errno (-ENFILE: no fd is free). */
int fhandle_open(int mount_fd, const struct fhandle *handle, int flags) must_check;

/* Does a handle of the file system of `fd` open its file for as long as the file has a name
 * (file_system.c)? */
bool fhandle_lasts(int fd);

/* Does the file system of this directory have lasting handles, and may this process open them? The
 * function opens a handle to find out. `fd` is open for reading. */
bool fhandle_works(int fd);

#endif
