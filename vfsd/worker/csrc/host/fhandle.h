/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Kernel file handles (name_to_handle_at(2)): a file's identity, inode number reuse included, that
 * costs no fd. A handle is opened through an fd of the mount that it is from.
 */
#ifndef VFSD_FHANDLE_H
#define VFSD_FHANDLE_H

#include "transport/csrc/types.h"

enum {
	FHANDLE_BYTES_MAX = 32, /* ext4, xfs: 8 to 12; tmpfs 12; btrfs 20; overlayfs up to 32 */
};

struct fhandle {
	int32_t type;
	uint32_t len; /* bytes; 0: there is none */
	uint64_t mac; /* signature of the broker (handle_broker.c), where it opens handles */
	uint8_t bytes[FHANDLE_BYTES_MAX];
};

/* The handle of dir/name, never following; of `dir_fd` itself if name is "".
 * Return: 0, -EOPNOTSUPP (the file system has none, or longer ones), or -errno. */
int fhandle_get(int dir_fd, const char *name, struct fhandle *ret) must_check;

/* The same for a name that must be on the mount `mount_id` (STATX_MNT_ID). Return also: -EXDEV (the
 * name is on another mount). */
int fhandle_get_on_mount(int dir_fd, const char *name, uint32_t mount_id,
			 struct fhandle *ret) must_check;

bool fhandle_equal(const struct fhandle *a, const struct fhandle *b);

/* Open it with `flags` of open(2). Return: the fd, -ESTALE (the file is gone), or -errno (-ENFILE:
 * no fd is to be had). */
int fhandle_open(int mount_fd, const struct fhandle *handle, int flags) must_check;

/* Would a handle from the file system of `fd` go on opening its file (file_system.c)? */
bool fhandle_lasts(int fd);

/* Has the file system of this directory handles that last, and may this process open them? An
 * attempt tells. `fd`: open for reading. */
bool fhandle_works(int fd);

#endif
