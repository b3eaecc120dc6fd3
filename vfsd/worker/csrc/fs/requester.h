/* SPDX-License-Identifier: Apache-2.0 */
/* PRIVATE: C only */
/* Acting as the user of the guest that a request is from: ids translated, groups, umask. */
#ifndef VFSD_REQUESTER_H
#define VFSD_REQUESTER_H

#include "worker/csrc/fs/fs.h"

/* Act as the requesting user, with `umask` where the guest leaves that to us. */
int requester_act(struct fs *fs, const struct request *r, uint32_t umask) must_check;
/* Act as the requesting user to find out what he may do (ACCESS). */
int requester_act_checked(struct fs *fs, const struct request *r) must_check;
/* The same with the host's group `gid` as the only supplementary group. */
int requester_act_as_member(struct fs *fs, const struct request *r, uint32_t gid) must_check;
/* Note that the host does not let this worker act for these ids of the guest; the first note of a
 * worker becomes a line in the log. */
void requester_note_refusal(struct fs *fs, uint32_t uid, uint32_t gid);
/* Before creating a file of `mode`: guest root keeps the sgid that its kernel let pass; a user must
 * be in the group, even one who is root on the host. */
int requester_keep_sgid(struct fs *fs, const struct request *r, uint32_t mode) must_check;

#endif
