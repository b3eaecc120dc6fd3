/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Set-id bits are removed when a file changes, as the host's kernel decides. From a file that is
 * changed without CAP_FSETID the kernel removes set-user-id, and set-group-id if the group may
 * execute the file. Set-group-id without group execution stays if the process is in the file's
 * group. For files that have such a bit, which are rare, the worker acts in the requester's group.
 *
 * If idmapped mounts are agreed on (FUSE_ALLOW_IDMAP), Linux >= 6.12 does not send the ids of the
 * requester. A set-group-id without group execution then stays: FUSE defines that the requests that
 * remove set-id bits (FUSE_HANDLE_KILLPRIV_V2) remove set-group-id only from files that the group
 * may execute. No guest sends the supplementary groups of the requester, except in CREATE.
 */
#ifndef VFSD_SET_ID_H
#define VFSD_SET_ID_H

#include "transport/csrc/types.h"

struct fs;
struct request;

/* Each function leaves the credentials in force with which the change is to be made. `fd` is the fd
 * of an inode or of an open file; `kill`: the requester has no CAP_FSETID. Return: 0 or -errno. */
int set_id_before_truncate(struct fs *fs, const struct request *r, int fd, bool kill) must_check;
/* WRITE may leave the loop, so the request also notes what its thread needs. */
int set_id_before_write(struct fs *fs, struct request *r, int fd, bool kill) must_check;
/* chown(2), even if it changes nothing, removes the bits for every requester. */
int set_id_before_chown(struct fs *fs, const struct request *r, int fd) must_check;

/* A guest has set this mode on a file. */
void set_id_note_mode(struct fs *fs, uint32_t mode);

#endif
