/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Can file handles hold the files of a mount? The pool finds out for the mount of the share, before
 * the first worker; a worker finds out for a mount below, with the first directory that the guest
 * looks up there. The inode table keeps the answer (mount_table.h).
 */
#ifndef VFSD_MOUNT_HANDLES_H
#define VFSD_MOUNT_HANDLES_H

#include "transport/csrc/types.h"

struct fs;

/*
 * May this process open handles of the files of the share? The inode table is at `inodes`;
 * `root_fd` is the shared directory, as for inode_table_init; the caller is root with
 * CAP_DAC_READ_SEARCH. Return: 1, or 0 if not (there are no handles, or opening them is not
 * allowed).
 */
int mount_handles_try(void *inodes, int root_fd) must_check;

/* The broker at the other end of `handles_fd` signs handles of the mount of `root_fd` (as above).
 * Return: 0 or -errno (-EIO: there is no broker). */
int mount_handles_expect_signatures(void *inodes, int root_fd, int handles_fd) must_check;

/* Return: true if it is not known yet whether handles can hold files of this mount. */
bool mount_handles_are_unknown(const struct fs *fs, uint64_t mnt_id);

/* Find out whether handles can hold files of this mount. `dir_fd` is a directory on the mount whose
 * inode the guest knows. */
void mount_handles_find_out(struct fs *fs, uint64_t mnt_id, int dir_fd);

#endif
