/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/*
 * Set-id bits go when a file changes, as the host's kernel decides. It takes set-user-id, and
 * set-group-id of what a group may execute, from a file that is changed without CAP_FSETID. A
 * set-group-id without group execution stays if the process is in the file's group. For files that
 * have such a bit, which are rare, the worker acts in the requester's group.
 *
 * Linux >= 6.12 does not say whose request it is where idmapped mounts are agreed on
 * (FUSE_ALLOW_IDMAP). Such a bit stays then: FUSE defines the requests that take set-id bits away
 * (FUSE_HANDLE_KILLPRIV_V2) as taking set-group-id from group executables only. No guest says
 * which supplementary groups the requester is in, but in a CREATE.
 */
#ifndef VFSD_SET_ID_H
#define VFSD_SET_ID_H

#include "transport/csrc/types.h"

struct fs;
struct request;

/* Each: `fd` is an inode's or an open file's; `kill`: the requester has no CAP_FSETID. It leaves
 * credentials in force that the change is to be made with. Return: 0 or -errno. */
int set_id_before_truncate(struct fs *fs, const struct request *r, int fd, bool kill) must_check;
/* WRITE may leave the loop: what its thread needs is noted in the request. */
int set_id_before_write(struct fs *fs, struct request *r, int fd, bool kill) must_check;
/* chown(2), also of nothing, takes the bits away whoever asks. */
int set_id_before_chown(struct fs *fs, const struct request *r, int fd) must_check;

/* A guest has given a file this mode. */
void set_id_note_mode(struct fs *fs, uint32_t mode);

#endif
